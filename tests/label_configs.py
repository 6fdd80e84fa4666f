"""Label configs that Label Studio 1.23.2 accepts, and what is learned of each, or why nothing is.

The unit tests read them; tests/system/test_connect.py shows that the real Label Studio accepts them, and that what is
learned can be published under them. What annotations hold under each was seen in Chromium.
"""

from dataclasses import dataclass

IMAGE = '<Image name="image" value="$image"/>'
AB = '<Choice value="a"/><Choice value="b"/>'
NESTED = '<Choice value="normal"/><Choice value="pneumonia"><Choice value="bacterial"/><Choice value="viral"/></Choice>'
ABOUT = 'name="label" toName="image"'


@dataclass(frozen=True)
class Learned:
    """``not_learned``: part of the sentence about the rest; ``unreadable``: the class that means so."""

    xml: str
    classes: tuple[str, ...]
    not_learned: str = ""
    image_key: str = "image"


@dataclass(frozen=True)
class Refused:
    """``reason``: the tag and the reason; ``way_out``: what to do."""

    xml: str
    reason: str
    way_out: str


def config(choices: str = AB, attributes: str = ABOUT, *, image: str = IMAGE, others: str = "") -> str:
    """A label config of one question."""
    return f"<View>{image}<Choices {attributes}>{choices}</Choices>{others}</View>"


def asked(name: str, attributes: str = "", choices: str = AB) -> str:
    return f'<Choices name="{name}" toName="image" {attributes}>{choices}</Choices>'


def view(*tags: str) -> str:
    return f"<View>{IMAGE}{''.join(tags)}</View>"


BOX = '<RectangleLabels name="box" toName="image"><Label value="x"/></RectangleLabels>'
SIDE = '<Image name="side" value="$side"/>'
TEXT = '<Text name="text" value="$text"/>'
GOOD_BAD = '<Choice value="good"/><Choice value="bad"/>'
IF_A = 'visibleWhen="choice-selected" whenTagName="quality" whenChoiceValue="a"'

LEARNED = {
    "plain": Learned(config(), ("a", "b")),
    "single": Learned(config(attributes=f'{ABOUT} choice="single" layout="select" required="true"'), ("a", "b")),
    "alias": Learned(
        config(
            '<Choice value="normal" alias="0"/><Choice value="severe" alias="2"/><Choice value="Unreadable" alias="9"/>'
        ),
        ("0", "2"),
        "learns 'label', from least to most severe: 0 (normal), 2 (severe); "
        "images answered 9 (Unreadable) are left out",
    ),
    "an alias means unreadable": Learned(
        config(AB + '<Choice value="cannot be judged" alias="unreadable"/>'),
        ("a", "b"),
        "images answered unreadable (cannot be judged) are left out",
    ),
    "alias of its own value": Learned(config('<Choice value="a" alias="a"/><Choice value="b"/>'), ("a", "b")),
    "value from the task under an alias": Learned(
        config('<Choice value="$x" alias="0"/><Choice value="b"/>'), ("0", "b")
    ),
    "html, selected, hint, an ampersand": Learned(
        config('<Choice value="a &amp; b" html="&lt;b&gt;A&lt;/b&gt;" selected="true" hint="h"/><Choice value="b"/>'),
        ("a & b", "b"),
    ),
    "choices in views": Learned(config(f'<Header value="Which?"/><View>{AB}</View>'), ("a", "b")),
    "many choices": Learned(config("".join(f'<Choice value="{n}"/>' for n in range(30))), tuple(map(str, range(30)))),
    "allowNested and flat": Learned(config(attributes=f'{ABOUT} allowNested="true"'), ("a", "b")),
    "allowNested in small letters": Learned(config(attributes=f'{ABOUT} allownested="true"'), ("a", "b")),
    "allowNested and nested": Learned(
        config(NESTED, f'{ABOUT} allowNested="true"'),
        ("normal", "bacterial", "viral"),
        "viral (pneumonia / viral); to tick a choice that holds others ticks them all, and gives no label",
    ),
    "the same name in two branches": Learned(
        config(
            '<Choice value="left"><Choice value="yes"/></Choice><Choice value="right"><Choice value="yes"/></Choice>',
            f'{ABOUT} allowNested="true"',
        ),
        ("left / yes", "right / yes"),
    ),
    "allowNested that is not": Learned(config(attributes=f'{ABOUT} allowNested="false"'), ("a", "b")),
    "small letters": Learned(
        '<view><image name="image" value="$image"/><choices name="label" toName="image">'
        '<choice value="a" alias="0"/><choice value="b"/></choices></view>',
        ("0", "b"),
    ),
    "declaration, comments, instructions": Learned(
        f'<?xml version="1.0"?><!-- ours --><?php x?>{config("<!-- first -->" + AB)}<!-- end -->', ("a", "b")
    ),
    "blanks before it": Learned(f"\n  {config()}", ("a", "b")),
    "in a panel": Learned(view(f'<Collapse><Panel value="p">{asked("label")}</Panel></Collapse>'), ("a", "b")),
    "a path in the task data": Learned(
        config(image='<Image name="image" value="$study.image"/>'), ("a", "b"), image_key="study.image"
    ),
    "an item in the task data": Learned(
        config(image='<Image name="image" value="$images[0]"/>'), ("a", "b"), image_key="images[0]"
    ),
    "two questions": Learned(
        view(asked("quality", choices=GOOD_BAD), asked("severity")),
        ("good", "bad"),
        "learns 'quality', from least to most severe: good, bad; not 'severity' (give the one that counts a model_ "
        "attribute)",
    ),
    "the second question counts": Learned(
        view(asked("quality"), asked("label", 'model_passes="9"', GOOD_BAD)),
        ("good", "bad"),
        "learns 'label', from least to most severe: good, bad; not 'quality' (give",
    ),
    "a question of one choice before it": Learned(
        view(asked("seen", choices='<Choice value="seen"/>'), asked("label")),
        ("a", "b"),
        "nor Choices 'seen', which cannot be learned",
    ),
    "on a condition": Learned(
        view(asked("quality", 'choice="multiple"'), asked("label", IF_A)),
        ("a", "b"),
        "asked on a condition: an image without an answer to it has no label",
    ),
    "on a choice of any question": Learned(
        view(asked("quality", 'choice="multiple"'), asked("label", 'whenChoiceValue="b"')),
        ("a", "b"),
        "asked on a condition",
    ),
    "unless a choice is made": Learned(
        view(asked("quality", 'choice="multiple"'), asked("label", IF_A.replace("selected", "unselected"))),
        ("a", "b"),
        "asked on a condition",
    ),
    "in a view on a condition": Learned(
        view(BOX, f'<View visibleWhen="region-selected">{asked("label")}</View>'),
        ("a", "b"),
        "nor RectangleLabels 'box', which cannot be learned; asked on a condition",
    ),
    "beside one of each region": Learned(
        view(asked("where", 'perRegion="true"'), asked("label")),
        ("a", "b"),
        "nor Choices 'where', which cannot be learned",
    ),
    "per item of one": Learned(config(attributes=f'{ABOUT} perItem="true"'), ("a", "b")),
    "two images": Learned(config(others=SIDE), ("a", "b"), "of the image 'image' alone, not of 'side'"),
    "beside a text": Learned(
        view(TEXT, f'<Choices name="about" toName="text">{AB}</Choices>', asked("label")),
        ("a", "b"),
        "nor Choices 'about', which cannot be learned",
    ),
    "beside other tags": Learned(
        config(
            others='<TextArea name="why" toName="image"/><Rating name="sure" toName="image"/>'
            '<Number name="age" toName="image"/><HyperText name="h" value="$text"/>'
        ),
        ("a", "b"),
        "nor TextArea 'why', Rating 'sure', Number 'age', which cannot be learned",
    ),
}

NEVER = "Choices 'label' is shown on a condition that never holds"

REFUSED = {
    "on a condition on no tag": Refused(
        view(asked("label", 'visibleWhen="choice-selected" whenTagName="gone"')),
        f"{NEVER} (whenTagName='gone' is no other question)",
        "leave the condition out",
    ),
    "on the contrary of no tag": Refused(
        view(asked("label", 'visiblewhen="choice-unselected" whenTagName="gone" whenChoiceValue="a"')),
        f"{NEVER} (whenTagName='gone' is no other question)",
        "leave the condition out",
    ),
    "on a condition on itself": Refused(
        view(asked("label", 'visibleWhen="choice-selected" whenTagName="label" whenChoiceValue="a"')),
        f"{NEVER} (whenTagName='label' is no other question)",
        "leave the condition out",
    ),
    "on any choice, and there is no other": Refused(
        view(asked("label", 'visibleWhen="choice-selected"')), f"{NEVER} (there is no other question)", "leave the"
    ),
    "on a choice that nobody offers": Refused(
        view(asked("quality", 'choice="multiple"'), asked("label", IF_A.replace('"a"', '"c,d"'))),
        f"{NEVER} (whenChoiceValue='c,d' is not a choice of Choices 'quality')",
        "name one of its choices",
    ),
    "on a choice without visibleWhen": Refused(
        view(asked("label", 'whenChoiceValue="x"')), f"{NEVER} (there is no other question)", "leave the condition out"
    ),
    "on a region, and nothing draws one": Refused(
        view(f'<View visibleWhen="region-selected">{asked("label")}</View>'),
        "Choices 'label' lies in a View that is shown on a condition that never holds "
        "(visibleWhen='region-selected', and nothing draws regions)",
        "leave visibleWhen out",
    ),
    "a hidden choice": Refused(
        config(AB + '<Choice value="c" visible="false"/>'),
        "Choice 'c' of Choices 'label' has visible='false', and no reader can choose it",
        "leave visible out",
    ),
    "a choice that is read only": Refused(
        config(AB + '<Choice value="c" readOnly="true"/>'), "has readonly='true'", "leave readonly out"
    ),
    "empty": Refused("<View/>", "no Image tag", "add <Image"),
    "no image": Refused(
        f'<View><Text name="text" value="$text"/><Choices name="label" toName="text">{AB}</Choices></View>',
        "no Image tag",
        "add <Image",
    ),
    "about a text": Refused(
        view(TEXT, f'<Choices name="label" toName="text">{AB}</Choices>'),
        "Choices 'label' is about Text 'text'",
        "add <Choices",
    ),
    "about regions": Refused(
        view(BOX, f'<Choices name="label" toName="box">{AB}</Choices>'),
        "Choices 'label' is about RectangleLabels 'box'",
        "add <Choices",
    ),
    "about two images": Refused(
        config(attributes='name="label" toName="image,side"', others=SIDE),
        "stores no answer about several tags (toName='image,side')",
        "name one",
    ),
    "an at sign": Refused(
        config(attributes='name="label@1" toName="image"'), "under a name with an '@'", "leave it out"
    ),
    "nested": Refused(
        config(NESTED),
        "Choice 'bacterial' of Choices 'label' lies in Choice 'pneumonia', and Label Studio shows the outer one alone",
        "set allowNested='true'",
    ),
    "a view in a choice": Refused(
        config(f'<Choice value="a"><View>{AB}</View></Choice><Choice value="c"/>', f'{ABOUT} allowNested="true"'),
        "Choice 'a' holds View",
        "leave it out",
    ),
    "allowNested in capitals": Refused(
        config(attributes=f'{ABOUT} allowNested="TRUE"'), "allowNested='TRUE', which Label Studio cannot", "set 'true'"
    ),
    "several answers": Refused(
        config(attributes=f'{ABOUT} choice="multiple"'), "'label' takes several answers", "set choice='single-radio'"
    ),
    "several answers and options": Refused(
        view(asked("other"), asked("label", 'choice="multiple" model_passes="9"')),
        "'label' takes several answers",
        "a model_ attribute says that this question counts",
    ),
    "no kind of answer": Refused(
        config(attributes=f'{ABOUT} choice="many"'), "has choice='many'", "set choice='single-radio'"
    ),
    "of each region": Refused(
        config(attributes=f'{ABOUT} perRegion="true"'), "'label' is asked of each region", "leave it out"
    ),
    "from the task": Refused(
        view(f'<Choices {ABOUT} value="$options"/>'),
        "'label' takes choices from the task data (value='$options')",
        "write Choice tags",
    ),
    "from the task and beside": Refused(
        config(attributes=f'{ABOUT} value="$options"'), "takes choices from the task data", "write Choice tags"
    ),
    "a choice from the task": Refused(
        config('<Choice value="costs $5"/><Choice value="b"/>'),
        "'costs $5' of Choices 'label' is filled",
        "set an alias",
    ),
    "one choice": Refused(config('<Choice value="a"/>'), "offers 'a' alone", "add a Choice"),
    "no choice": Refused(config("<View/>"), "holds no Choice tags", "add one for each class"),
    "a choice twice": Refused(config(AB + '<Choice value="a"/>'), "has 'a' twice", "a value of its own"),
    "an alias twice": Refused(
        config('<Choice value="a" alias="0"/><Choice value="b" alias="0"/>'), "has '0' twice", "a value of its own"
    ),
    "an alias that is a value": Refused(
        config('<Choice value="a" alias="b"/><Choice value="b" alias="c"/>'),
        "'b' is a value or an alias both of 'b' and of 'c'",
        "give one another",
    ),
    "a value under two aliases": Refused(
        config('<Choice value="a" alias="0"/><Choice value="a" alias="1"/>'),
        "'a' is a value or an alias both of '0' and of '1'",
        "give one another",
    ),
    "an empty alias": Refused(
        config('<Choice value="a" alias=""/><Choice value="b"/>'),
        "Choice 'a' of Choices 'label' has an empty alias",
        "delete",
    ),
    "an alias that is no text": Refused(
        config('<Choice value="yes" alias="true"/><Choice value="no" alias="false"/>'),
        "Choice 'yes' of Choices 'label' has alias='true', which Label Studio cannot show",
        "set another",
    ),
    "an empty value": Refused(
        config('<Choice value=""/><Choice value="b"/>'), "a Choice of Choices 'label' has no value", "set"
    ),
    "a text in a choice": Refused(
        config('<Choice value="a">Apple</Choice><Choice value="b"/>'),
        "Choice 'a' of Choices 'label' holds text",
        "delete",
    ),
    "a comment in a choice": Refused(
        config('<Choice value="a"><!-- A --></Choice><Choice value="b"/>'), "holds text or a comment", "delete"
    ),
    "a text in an image": Refused(
        config(image='<Image name="image" value="$image">x</Image>'), "Image 'image' holds text", "delete"
    ),
    "several images a task": Refused(
        config(image='<Image name="image" valueList="$images"/>'),
        "Image 'image' shows several images a task (valueList='$images')",
        "value='$image'",
    ),
    "an address with a key in it": Refused(
        config(image='<Image name="image" value="https://host/$image"/>'),
        "value='https://host/$image'",
        "value='$image'",
    ),
    "no key": Refused(config(image='<Image name="image" value="image"/>'), "value='image'", "value='$image'"),
    "a key in braces": Refused(
        config(image='<Image name="image" value="{{image}}"/>'), "value='{{image}}'", "'$image'"
    ),
    "a key with a hyphen": Refused(config(image='<Image name="image" value="$my-image"/>'), "'$my-image'", "'$image'"),
    "a key with an umlaut": Refused(config(image='<Image name="image" value="$größe"/>'), "'$größe'", "only a-z"),
    "a repeater": Refused(
        '<View><Repeater on="$images" indexFlag="{{i}}"><Image name="i_{{i}}" value="$images[{{i}}]"/>'
        f'<Choices name="c_{{{{i}}}}" toName="i_{{{{i}}}}">{AB}</Choices></Repeater></View>',
        "is repeated for each image of a task",
        "leave Repeater out",
    ),
    "no toName": Refused(
        view(f'<choices name="label">{AB}</choices>'), "choices 'label' has no toName", "set toName='image'"
    ),
    "capitals": Refused(
        '<VIEW><IMAGE NAME="image" VALUE="$image"/><CHOICES NAME="c" TONAME="image"><CHOICE VALUE="a"/></CHOICES>'
        "</VIEW>",
        "no Image tag with a name, in small letters",
        "add <Image name=",
    ),
    "a name space": Refused(
        config().replace("<View>", '<View xmlns="http://example.org/">'), "View has an xmlns attribute", "delete it"
    ),
    "Taxonomy": Refused(
        view(f'<Taxonomy name="t" toName="image">{AB}</Taxonomy>'), "only Taxonomy 't'", "add <Choices"
    ),
    "Rating": Refused(view('<Rating name="r" toName="image"/>'), "only Rating 'r'", "add <Choices"),
    "Number": Refused(view('<Number name="n" toName="image"/>'), "only Number 'n'", "add <Choices"),
    "TextArea": Refused(view('<TextArea name="t" toName="image"/>'), "only TextArea 't'", "add <Choices"),
    "RectangleLabels": Refused(
        view(BOX),
        "only RectangleLabels 'box'",
        "add <Choices",
    ),
    "Pairwise": Refused(
        view(SIDE, '<Pairwise name="p" toName="image,side"/>'),
        "only Pairwise 'p'",
        "add <Choices",
    ),
    "Ranker": Refused(
        view('<List name="l" value="$images"/><Ranker name="r" toName="l"/>'), "only Ranker 'r'", "add <Choices"
    ),
    "video": Refused(
        f'<View><Video name="v" value="$text"/><Choices name="c" toName="v">{AB}</Choices></View>',
        "no Image tag",
        "add <Image",
    ),
}
