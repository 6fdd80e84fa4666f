"""Label Studio's JSON: label configs, tasks, annotations, predictions, and the requests that it sends. No I/O."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Any, Final, TypeVar
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.ElementTree import XMLParser  # type: ignore[import-untyped]
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from ml_backend.config import OPTION_PREFIX, ProjectOptions
from ml_backend.config.settings import NEED_ORDER
from ml_backend.errors import PayloadError, SettingsError
from ml_backend.schemas import PATIENT_KEY, Annotation, ImageRef, ProjectKey, is_patient_key, patient_of

Json = Mapping[str, Any]
Path = tuple[str, ...]
SINGLE = ("single", "single-radio")
# In any value, Label Studio's page replaces this with task data.
FROM_THE_TASK = re.compile(r"\$[A-Za-z0-9_\[\].{}]")
IMAGE_VALUE = re.compile(r"\$[A-Za-z0-9_]+(\.[A-Za-z0-9_]+|\[[0-9]+\])*")
# Tags that a reader answers with; other control tags draw.
ANSWERS = ("choices", "taxonomy", "rating", "textarea", "number", "datetime", "pairwise", "ranker")
BELOW = " / "  # between a choice and one nested in it
DEPTH = 255  # deepest nesting of tags that Label Studio accepts
EXAMPLE = '<Choices name="label" toName={!r} choice="single-radio"> with a Choice for each class'


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """The question of a label config that this backend answers.

    Attributes:
        classes: the choices as annotations hold them, in the order of the config; ``unreadable`` among them. The
            alias where a choice has one; the path where two nested choices have the same name.
        from_name: name of the Choices tag.
        to_name: name of the Image tag that it is about.
        image_key: key of the image in a task's data; ``image`` for ``value="$image"``.
        attributes: of the Choices tag, ``model_*`` among them.
        values: class -> the text that readers see, where it is another.
        spellings: every spelling of a choice as a path, of one name unless choices are nested, and its class. A name
            that is missing is its own class.
        nested: whether annotations hold choices as paths (``allowNested``).
        other_questions: names of the other tags that a reader answers.
        not_learned: for the owner, which parts of the label config are not learned.
    """

    classes: tuple[str, ...]
    from_name: str
    to_name: str
    image_key: str
    attributes: dict[str, str]
    values: Mapping[str, str] = field(default_factory=dict)
    spellings: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    nested: bool = False
    other_questions: frozenset[str] = frozenset()
    not_learned: tuple[str, ...] = ()


def parse_label_config(xml: str) -> LabelConfig:
    """Find the question in a label config: a single-choice Choices tag about an Image.

    Of several, the first with a ``model_*`` attribute counts, else the first that can be learned. Tag names may be in
    any case, as in Label Studio. A question that Label Studio accepts and no annotation could answer is refused.

    Raises:
        PayloadError: the XML is malformed or holds a DTD, or the config has no such question; names the tag, the
            reason and the way out.
    """
    tags = _Tags(_root(xml))
    if not tags.images:
        named = " with a name, in small letters" if tags.of("image") else ""
        raise PayloadError(f'the label config has no Image tag{named}: add <Image name="image" value="$image"/>')
    asked = tags.of("choices")
    # A model_ attribute is the owner's choice: no other question is learned in its place.
    marked = [tag for tag in asked if any(key.startswith(OPTION_PREFIX) for key in tag.attrib)]
    found: list[LabelConfig] = []
    refused: list[str] = []
    for tag in marked or asked:
        try:
            found.append(_read_question(tag, tags))
        except PayloadError as error:
            refused.append(str(error))
    if not found:
        if marked:
            raise PayloadError(f"{'; '.join(refused)}; a {OPTION_PREFIX} attribute says that this question counts")
        controls = ", ".join(map(_named, tags.controls()))
        why = "; ".join(refused) or f"{f'only {controls}; ' if controls else ''}add {tags.example()}"
        raise PayloadError(f"the label config has no Choices tag about an Image that can be learned: {why}")
    others = {str(tag.get("name")) for tag in tags.controls()} - {found[0].from_name}
    return replace(found[0], other_questions=frozenset(others), not_learned=tuple(_not_learned(found[0], tags)))


class _Tags:
    """The tags of a label config, by their names in small letters, as Label Studio's page reads them."""

    def __init__(self, root: Element) -> None:
        self._all = [tag for tag in root.iter() if _kind(tag)]
        self._parents = {child: tag for tag in self._all for child in tag}
        depth = {root: 1}
        for tag in self._all[1:]:
            depth[tag] = depth[self._parents[tag]] + 1
        if max(depth.values()) > DEPTH:
            raise PayloadError(f"the label config has tags more than {DEPTH} deep in one another")
        self.images = {name: tag for tag in self.of("image") if (name := tag.get("name"))}

    def of(self, kind: str) -> list[Element]:
        return [tag for tag in self._all if _kind(tag) == kind]

    def is_twice(self, name: str) -> bool:
        """Whether several tags have the name; Label Studio refuses it only in double quotes."""
        return sum(tag.get("name") == name for tag in self._all) > 1

    def called(self, name: str) -> str:
        return next((_named(tag) for tag in self._all if tag.get("name") == name), f"{name!r}, which is not a tag")

    def controls(self) -> list[Element]:
        """The control tags, which readers answer or draw with."""
        return [tag for tag in self._all if tag.get("name") and _attribute(tag, "toName")]

    def around(self, tag: Element | None) -> Iterator[Element]:
        """The tag and all that contain it."""
        while tag is not None:
            yield tag
            tag = self._parents.get(tag)

    def example(self) -> str:
        return EXAMPLE.format(next(iter(self.images), "image"))


def _root(xml: str) -> Element:
    # Comments are kept: Label Studio's page reads one in a Choice as its value.
    parser = XMLParser(target=TreeBuilder(insert_comments=True, insert_pis=True), forbid_dtd=True)
    try:
        parser.feed(xml)
        root: Element = parser.close()
    except (ParseError, ValueError) as error:
        # A ValueError is a DTD, which may be an entity bomb, or a lone surrogate.
        raise PayloadError(f"the label config is not plain XML ({error}); it begins {xml[:60]!r}") from None
    if root.tag.startswith("{"):
        name = root.tag.rpartition("}")[2]
        raise PayloadError(f"{name} has an xmlns attribute, with which Label Studio takes no predictions: delete it")
    return root


def _kind(tag: Element) -> str:
    """The name of a tag in small letters; empty for a comment or a processing instruction."""
    name: object = tag.tag
    return name.lower() if isinstance(name, str) else ""


def _attribute(tag: Element, name: str) -> str | None:
    """An attribute in any case, as Label Studio's page reads it."""
    return {key.lower(): value for key, value in tag.attrib.items()}.get(name.lower())


def _named(tag: Element) -> str:
    return f"{tag.tag} {(tag.get('name') or _attribute(tag, 'value'))!r}"


def _read_question(tag: Element, tags: _Tags) -> LabelConfig:
    """Raises PayloadError where no annotation could answer it."""
    name, to_name, me = tag.get("name"), tag.get("toName"), _named(tag)
    if not name:
        raise PayloadError(f"a {tag.tag} tag has no name: set name='label'")
    if "@" in name:
        raise PayloadError(f"{me}: Label Studio stores no answer under a name with an '@': leave it out")
    if any(_kind(outer) == "repeater" for outer in tags.around(tag)):
        raise PayloadError(f"{me} is repeated for each image of a task; wanted is one image a task: leave Repeater out")
    if not to_name:
        raise PayloadError(f"{me} has no toName: set toName={next(iter(tags.images))!r}, spelled so")
    if "," in to_name:
        raise PayloadError(f"{me}: Label Studio stores no answer about several tags (toName={to_name!r}): name one")
    if to_name not in tags.images:
        raise PayloadError(f"{me} is about {tags.called(to_name)}, and only an Image is learned: add {tags.example()}")
    if twice := [one for one in (name, to_name) if tags.is_twice(one)]:
        raise PayloadError(f"{me}: several tags have the name {twice[0]!r}: give each a name of its own")
    _check_answers(tag, me)
    _check_conditions(tag, tags)
    image_key = _image_key(tags.images[to_name])
    choices = _read_choices(tag, me)
    last = Counter(stored[-1] for stored, _ in choices)
    classes = tuple(stored[-1] if last[stored[-1]] == 1 else BELOW.join(stored) for stored, _ in choices)
    if same := [choice for choice, count in Counter(classes).items() if count > 1]:
        raise PayloadError(f"{me} has {', '.join(map(repr, same))} twice: give each choice a value of its own")
    if len(classes) < 2:
        raise PayloadError(f"{me} offers {classes[0]!r} alone, and at least 2 classes are needed: add a Choice")
    return LabelConfig(
        classes,
        name,
        to_name,
        image_key,
        dict(tag.attrib),
        values={name: BELOW.join(seen) for name, (_, seen) in zip(classes, choices, strict=True) if (name,) != seen},
        spellings=_spellings(me, classes, choices),
        nested=_attribute(tag, "allowNested") == "true",
    )


def _check_answers(tag: Element, me: str) -> None:
    """Refuse a question that has not one answer an image."""
    for flag in ("perRegion", "allowNested"):
        if (value := _attribute(tag, flag)) not in (None, "true", "false"):
            raise PayloadError(f"{me} has {flag}={value!r}, which Label Studio cannot show: set 'true' or 'false'")
    if _attribute(tag, "perRegion") == "true":
        raise PayloadError(f"{me} is asked of each region (perRegion='true'); a class is of an image: leave it out")
    if (answers := _attribute(tag, "choice")) == "multiple":
        raise PayloadError(
            f"{me} takes several answers (choice={answers!r}); a class is one answer: set choice='single-radio'"
        )
    if answers not in (None, *SINGLE):
        raise PayloadError(f"{me} has choice={answers!r}, which Label Studio cannot show: set choice='single-radio'")
    if value := _attribute(tag, "value"):
        raise PayloadError(
            f"{me} takes choices from the task data (value={value!r}), and all images need the same: write Choice tags"
        )


def _check_conditions(question: Element, tags: _Tags) -> None:
    for outer in tags.around(question):
        _check_condition(outer, question, tags)


def _check_condition(outer: Element, question: Element, tags: _Tags) -> None:
    """Refuse a question on a condition that no annotation can meet: readers would never see it."""
    when, by, values = (_attribute(outer, name) for name in ("visibleWhen", "whenTagName", "whenChoiceValue"))
    where = "" if outer is question else f" lies in a {outer.tag} that"
    never = f"{_named(question)}{where} is shown on a condition that never holds"
    others = [tag for tag in tags.controls() if tag is not question]
    asked = [tag for tag in others if _kind(tag) in ("choices", "taxonomy") and by in (None, tag.get("name"))]
    if when == "region-selected":
        if not any(_kind(tag) not in ANSWERS and by in (None, tag.get("name")) for tag in others):
            what = "nothing draws regions" if by is None else f"{tags.called(by)} draws no regions"
            raise PayloadError(f"{never} (visibleWhen={when!r}, and {what}): leave visibleWhen out")
        return
    by_choice = when in ("choice-selected", "choice-unselected") or (when is None and values is not None)
    if not by_choice or (when == "choice-unselected" and by is None):
        return
    if not asked:
        what = "there is no other question" if by is None else f"whenTagName={by!r} is no other question"
        raise PayloadError(f"{never} ({what}): name another question, or leave the condition out")
    from_the_task = any(_attribute(tag, name) is not None for tag in asked for name in ("value", "apiUrl"))
    if when == "choice-unselected" or values is None or from_the_task:
        return
    offered = {_attribute(item, name) for tag in asked for item in tag.iter() for name in ("value", "alias")}
    if offered.isdisjoint(values.split(",")):
        names = ", ".join(map(_named, asked))
        raise PayloadError(f"{never} (whenChoiceValue={values!r} is not a choice of {names}): name one of its choices")


def _image_key(image: Element) -> str:
    several, value = _attribute(image, "valueList"), image.get("value", "")
    if several:
        raise PayloadError(
            f"{_named(image)} shows several images a task (valueList={several!r}); wanted is one image a task: "
            "value='$image'"
        )
    if image.text and image.text.strip() and not any(map(_kind, image)):
        raise PayloadError(f"{_named(image)} holds text, which Label Studio takes for its value: delete the text")
    if not IMAGE_VALUE.fullmatch(value):
        raise PayloadError(
            f"{_named(image)} has value={value!r}; wanted is one image a task, its whole address under a key of "
            "the task data that has only a-z, A-Z, 0-9 and _: value='$image'"
        )
    return value[1:]


def _read_choices(question: Element, me: str) -> list[tuple[Path, Path]]:
    """Each choice as Label Studio stores it, and as readers see it."""
    nested = _attribute(question, "allowNested") == "true"
    found: list[tuple[Path, Path]] = []
    for line in _leaves(question):
        if len(line) > 1 and not nested:
            raise PayloadError(
                f"{_named(line[-1])} of {me} lies in {_named(line[-2])}, and Label Studio shows the outer one alone: "
                "set allowNested='true', or write them side by side"
            )
        stored, seen = zip(*(_names(choice, me) for choice in line), strict=True)
        found.append((stored, seen))
    if not found:
        raise PayloadError(f"{me} holds no Choice tags: add one for each class")
    return found


def _leaves(tag: Element, above: tuple[Element, ...] = ()) -> Iterator[tuple[Element, ...]]:
    """Every Choice that holds no other one, preceded by those that contain it."""
    for child in filter(_kind, tag):
        if _kind(child) == "choice":
            line = (*above, child)
            yield from _leaves(child, line) if any(map(_kind, child)) else [line]
        elif above:
            raise PayloadError(f"{_named(above[-1])} holds {child.tag}, which Label Studio cannot show: leave it out")
        else:
            yield from _leaves(child)


def _names(choice: Element, me: str) -> tuple[str, str]:
    """A choice as annotations hold it, and as readers see it."""
    value, alias = _attribute(choice, "value"), _attribute(choice, "alias")
    if not value:
        raise PayloadError(f"a Choice of {me} has no value: set value='...'")
    if alias == "":
        raise PayloadError(f"Choice {value!r} of {me} has an empty alias, and its answers would be empty: delete alias")
    if alias in ("true", "false"):
        raise PayloadError(f"Choice {value!r} of {me} has alias={alias!r}, which Label Studio cannot show: set another")
    for name, hinders in (("visible", "false"), ("readonly", "true")):
        if _attribute(choice, name) == hinders:
            raise PayloadError(
                f"Choice {value!r} of {me} has {name}={hinders!r}, and no reader can choose it: leave {name} out; "
                "if it is to be no class, the option ignore_classes says so"
            )
    if not any(map(_kind, choice)) and (len(choice) or (choice.text or "").strip()):
        raise PayloadError(
            f"Choice {value!r} of {me} holds text or a comment, which Label Studio stores for its value: delete it"
        )
    if alias is None and FROM_THE_TASK.search(value):
        raise PayloadError(
            f"Choice {value!r} of {me} is filled from the task data, and all images need the same: set an alias"
        )
    return value if alias is None else alias, value


def _spellings(me: str, classes: Sequence[str], spelled: Sequence[tuple[Path, Path]]) -> dict[Path, str]:
    """Every path, and every unique last name, with its class."""
    found: dict[Path, str] = {}
    for choice, paths in zip(classes, spelled, strict=True):
        for path in paths:
            if (other := found.setdefault(path, choice)) != choice:
                raise PayloadError(
                    f"{me}: {path[-1]!r} is a value or an alias both of {other!r} and of {choice!r}: give one another"
                )
    lasts = {choice: {path[-1] for path in paths} for choice, paths in zip(classes, spelled, strict=True)}
    counts = Counter(name for names in lasts.values() for name in names)
    short = {(name,): choice for choice, names in lasts.items() for name in names if counts[name] == 1}
    return short | {(choice,): choice for choice in classes} | found


def _not_learned(config: LabelConfig, tags: _Tags) -> Iterator[str]:
    eligible, others = [], []
    for tag in tags.controls():
        if tag.get("name") == config.from_name:
            continue
        try:
            eligible.append(_read_question(tag, tags).from_name) if _kind(tag) == "choices" else others.append(tag)
        except PayloadError:
            others.append(tag)
    if eligible:
        yield f"not {', '.join(map(repr, eligible))} (give the one that counts a {OPTION_PREFIX} attribute)"
    if others:
        yield f"nor {', '.join(map(_named, others))}, which cannot be learned"
    if rest := [name for name in tags.images if name != config.to_name]:
        yield f"of the image {config.to_name!r} alone, not of {', '.join(map(repr, rest))}"
    [asked] = (tag for tag in tags.of("choices") if tag.get("name") == config.from_name)
    if any(_attribute(outer, name) for outer in tags.around(asked) for name in ("visibleWhen", "whenChoiceValue")):
        yield "asked on a condition: an image without an answer to it has no label"
    if config.nested and any(len(path) > 1 for path in config.spellings):
        yield "to tick a choice that holds others ticks them all, and gives no label"


def shown(choice: str, config: LabelConfig) -> str:
    """A class with the text that readers see: ``0 (normal)``."""
    return f"{choice} ({config.values[choice]})" if choice in config.values else choice


def question(config: LabelConfig, options: ProjectOptions) -> str:
    """A line that names what is learned of a label config, and what is not.

    Raises:
        SettingsError: see ``training_classes``.
    """
    classes = training_classes(config, options)
    learned = ", ".join(shown(choice, config) for choice in classes)
    rest = [shown(choice, config) for choice in config.classes if choice not in classes]
    no_class = [f"images answered {' or '.join(rest)} are left out"] if rest else []
    order = "from least to most severe" if options.ordered(classes) else "in no order"
    learns = f"learns {config.from_name!r}, {order}: {learned}"
    return "; ".join([learns, *no_class, *config.not_learned])


def training_classes(config: LabelConfig, options: ProjectOptions) -> tuple[str, ...]:
    """The classes that the network learns: the choices without ``unreadable`` and ``ignore_classes``.

    They are in the order of the choices, or in that of the option ``ordinal``. The options match the value or the alias
    of a choice, in any case.

    Raises:
        SettingsError: fewer than two remain, ``unreadable`` is set and is none of the choices, one of
            ``ignore_classes`` is none of them, ``ordinal`` does not name each class once, the classes have no order and
            ``consensus`` needs one, or ``prelabel`` cannot work.
    """
    offered = ", ".join(repr(shown(choice, config)) for choice in config.classes)
    learned = tuple(choice for choice in config.classes if not _is_named(choice, config, [options.unreadable]))
    if "unreadable" in options.model_fields_set and learned == config.classes:
        raise SettingsError(
            f"unreadable={options.unreadable!r} is none of the choices {offered} of "
            f"Choices {config.from_name!r}: name one of them, or leave the option out"
        )
    for name in options.ignore_classes:
        if not any(_is_named(choice, config, [name]) for choice in learned):
            raise SettingsError(
                f"ignore_classes={name!r} is none of the classes "
                f"{', '.join(repr(shown(choice, config)) for choice in learned)} of Choices {config.from_name!r}: "
                "name one of them, or leave it out of the option"
            )
    classes = tuple(choice for choice in learned if not _is_named(choice, config, options.ignore_classes))
    if len(classes) < 2:
        ignored = f" and ignore_classes={','.join(options.ignore_classes)!r}" if options.ignore_classes else ""
        raise SettingsError(
            f"Choices {config.from_name!r} offers {offered}; without "
            f"unreadable={options.unreadable!r}{ignored} {len(classes)} of them would be learned, and at least 2 are "
            "needed"
        )
    if options.prelabel and config.nested:
        raise SettingsError(
            f"prelabel=True: Label Studio imports no predictions for Choices {config.from_name!r}, which has "
            "allowNested='true': leave one of the two out"
        )
    return _in_order(classes, config, options)


def _in_order(classes: tuple[str, ...], config: LabelConfig, options: ProjectOptions) -> tuple[str, ...]:
    offered = ", ".join(repr(shown(choice, config)) for choice in classes)
    if not options.ordered(classes) and options.consensus in NEED_ORDER:
        raise SettingsError(
            f"consensus={options.consensus} needs the order of the classes, and ordinal=false says that {offered} have "
            "none: set consensus=majority or dawid_skene, or give the order, least severe first: "
            f"ordinal={','.join(classes)}"
        )
    if isinstance(options.ordinal, bool):
        return classes
    # Choices that are no class may be named too.
    named = [[choice for choice in config.classes if _is_named(choice, config, [name])] for name in options.ordinal]
    ordered = tuple(choice for found in named for choice in found if choice in classes)
    if not all(named) or Counter(ordered) != Counter(classes):
        raise SettingsError(
            f"ordinal={','.join(options.ordinal)!r} must name each of the classes {offered} of Choices "
            f"{config.from_name!r} once, and no other, least severe first; or leave the option out"
        )
    return ordered


def read_image(task: Json, config: LabelConfig) -> ImageRef:
    """The image of a task of the task list, the export or a webhook.

    Raises:
        PayloadError: the task has no id, or its data holds no image under the config's key.
    """
    number, data = task.get("id"), task.get("data")
    if not isinstance(number, int):
        raise PayloadError(f"a task has id={number!r}; expected a number")
    uri = _at(data, config.image_key)
    if not isinstance(data, Mapping) or not isinstance(uri, str) or not uri.strip():
        seen = sorted(data) if isinstance(data, Mapping) else data
        raise PayloadError(f"task {number} has no image under {config.image_key!r}; its data holds {seen!r}")
    # Under its own key, else under one of the spellings of public data sets.
    key = PATIENT_KEY if PATIENT_KEY in data else next(filter(is_patient_key, data), None)
    return ImageRef(id=str(number), uri=uri.strip(), patient_id=patient_of(None if key is None else data[key]))


def read_annotation(item: Json, image: ImageRef, config: LabelConfig, options: ProjectOptions) -> Annotation:
    """One reader's answer.

    Args:
        item: an annotation of the JSON export or of a webhook.
        image: of its task.
        config: the project's question.
        options: of the project.

    Returns:
        ``value`` is None where the reader skipped, answered nothing or called the image unreadable. Several answers
        (of an import, or of a ticked choice that holds others) make a value that is no class, so that consensus names
        it.

    Raises:
        PayloadError: the annotation has another form, answers another question, or was copied from a prediction.
    """
    try:
        choices = () if item["was_cancelled"] else _choices(item["result"], config)
        if (why := _why_not_an_answer(item, choices, config)) is not None:
            raise PayloadError(f"annotation {item.get('id')} of task {image.id} {why}")
        updated_at = datetime.fromisoformat(item["updated_at"])
        truth = bool(item.get("ground_truth"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PayloadError(f"annotation {item.get('id')!r} of task {image.id} cannot be read: {error!r}") from None
    unreadable = all(_is_named(choice, config, [options.unreadable]) for choice in choices)
    # Several answers are no class, even if one class is called "a + b".
    value = None if unreadable else " + ".join(choices)
    if len(choices) > 1 and value in config.classes:
        value = " + ".join(map(repr, choices))
    return Annotation(
        image=image,
        rater=rater_of(item),
        value=value,
        ignored=value is not None and _is_named(value, config, options.ignore_classes),
        unanswered=not choices and not item["was_cancelled"],
        ground_truth=truth,
        updated_at=updated_at if updated_at.tzinfo else updated_at.replace(tzinfo=UTC),
    )


def prediction(
    image_id: str,
    score: float,
    version: str,
    config: LabelConfig,
    suggestion: str | None = None,
    *,
    confidence: float | None = None,
) -> dict[str, object]:
    """A prediction as Label Studio imports it; the lowest score is served first.

    Args:
        image_id: id of the task.
        score: 0 to 1.
        version: model version.
        config: the project's question.
        suggestion: class that is pre-selected for the reader; None leaves the form empty, and so do nested choices,
            whose paths Label Studio does not import.
        confidence: of the suggestion, 0 to 1; it does not affect the order. None where it is not known.

    Raises:
        ValueError: the score is not in [0, 1]: Label Studio would drop the prediction without an error.
    """
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"a prediction's score lies in [0, 1], got {score}")
    answer: dict[str, object] = {
        "from_name": config.from_name,
        "to_name": config.to_name,
        "type": "choices",
        "value": {"choices": [suggestion]},
    }
    if confidence is not None:
        answer["score"] = confidence
    return {
        "task": int(image_id),
        "score": score,
        "model_version": version,
        "result": [] if suggestion is None or config.nested else [answer],
    }


def _at(data: object, key: str) -> object:
    """The value in a task's data under ``image``, ``study.image`` or ``images[0]``; None where there is none."""
    if isinstance(data, Mapping) and key in data:
        return data[key]
    for step in re.findall(r"\w+", key):
        if isinstance(data, Mapping):
            data = data.get(step)
        elif isinstance(data, Sequence) and not isinstance(data, str) and step.isdecimal() and int(step) < len(data):
            data = data[int(step)]
        else:
            return None
    return data


def _choices(result: list[Json], config: LabelConfig) -> tuple[str, ...]:
    """The classes that were answered; any other answer as it is."""
    paths: list[Path] = []
    for entry in result:
        if entry.get("from_name") == config.from_name and entry.get("type") == "choices":
            choices = entry["value"]["choices"]
            # An import may give a single choice as text, and Label Studio keeps it so.
            each = [choices] if isinstance(choices, str) else choices
            paths += [tuple(map(str, choice)) if isinstance(choice, list) else (str(choice),) for choice in each]
    # Label Studio stores a choice that holds others in addition to those below it.
    ends = [path for path in paths if not any(len(o) > len(path) and o[: len(path)] == path for o in paths)]
    return tuple(dict.fromkeys(config.spellings.get(path, BELOW.join(path)) for path in ends))


def _why_not_an_answer(item: Json, choices: tuple[str, ...], config: LabelConfig) -> str | None:
    """Why an annotation is no answer of a reader; None where it is one, or a skip."""
    if item["was_cancelled"]:
        return None
    entries = [entry for entry in item["result"] if entry.get("type") == "choices"]
    # Label Studio's page measures the time of every answer, and names the prediction that an annotation was made from
    # until that is deleted. Only a prediction's entries have a score. A ground truth is confirmed by its user.
    copied = "lead_time" in item and item["lead_time"] is None and not item.get("ground_truth")
    if copied and not item["result"]:
        return (
            'holds no choice, and no reader gave it: "Create Annotations From Predictions" in Label Studio makes such; '
            "delete it there, and readers get the image"
        )
    if copied and choices and (item.get("parent_prediction") or any("score" in entry for entry in entries)):
        return (
            "was copied from a prediction, and no reader gave it: no network must learn from a network's answers; "
            "delete it in Label Studio, and readers get the image, or mark it there as ground truth if it is right"
        )
    strange = {str(entry.get("from_name")) for entry in entries} - {config.from_name, *config.other_questions}
    kinds = {
        str(entry.get("type"))
        for entry in item["result"]
        if entry.get("from_name") == config.from_name and entry.get("type") != "choices"
    }
    if not choices and kinds:
        return (
            f"answers {config.from_name!r} as {', '.join(sorted(kinds))}, and the label config asks it by Choices: "
            "import it again with type='choices'"
        )
    if not choices and strange:
        return (
            f"answers {', '.join(map(repr, sorted(strange)))}, which the label config does not ask: "
            f"import it again with from_name={config.from_name!r}"
        )
    return None


def _is_named(choice: str, config: LabelConfig, given: Collection[str]) -> bool:
    """Whether an option names a choice, by value or alias, in any case."""
    names = [choice, config.values.get(choice, choice)]
    if config.nested:
        names += [path.rpartition(BELOW)[2] for path in names]
    return not {name.strip().casefold() for name in names}.isdisjoint(name.strip().casefold() for name in given)


NO_AUTHOR: Final = "unknown, annotation "
"""Begin of a rater's name that stands for one annotation."""


def rater_of(item: Json) -> str:
    """A user's id, which some exports hold in an object.

    An answer of a deleted user has none, and two of them need not be one reader's: each counts on its own.
    """
    completed_by = item.get("completed_by")
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("id")
    return f"{NO_AUTHOR}{item.get('id')}" if completed_by is None else str(completed_by)


PROJECT_KEY = r"^[1-9][0-9]{0,17}\.[0-9]{1,18}$"

Number = Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]


def parse_key(value: object) -> ProjectKey:
    """Read a project's key; raises ValueError for another form."""
    # At most 18 digits: more than an id or a time needs, and short enough for the name of a folder.
    if not (isinstance(value, str) and re.fullmatch(PROJECT_KEY, value)):
        raise ValueError(f"a project is named '<id>.<unix seconds>', got {str(value)[:60]!r}")
    return ProjectKey.parse(value)


Key = Annotated[
    ProjectKey,
    PlainValidator(parse_key),
    WithJsonSchema({"type": "string", "pattern": PROJECT_KEY, "description": "<id>.<unix seconds of its creation>"}),
]

M = TypeVar("M", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SetupRequest(_Body):
    """``/setup``: a project and its owner's options.

    The access token of the request is ignored: it is a legacy token, which Label Studio refuses by default.
    """

    project: Key
    label_config: Annotated[str, Field(alias="schema")]
    hostname: Annotated[str, Field(pattern=r"^https?://[^\s/@?#\\]+(/[^\s@?#\\]*)?$", max_length=2000)]
    extra_params: dict[str, object] = {}

    @field_validator("extra_params", mode="before")
    @classmethod
    def _parse_text(cls, value: object) -> object:
        """Label Studio passes on what the owner saved: an object, nothing, or an object as text."""
        if value is None or value == "":
            return {}
        if isinstance(value, str):
            try:
                return from_json(value)
            except ValueError:
                raise ValueError(f'is not a JSON object: {value[:80]!r}; expected {{"strategy": "entropy"}}') from None
        return value


class _Task(_Body):
    id: Number


class PredictRequest(_Body):
    """``/predict``: tasks that wait for a prediction."""

    tasks: list[_Task]
    project: Key


class VersionsRequest(_Body):
    """``POST /versions``, as label-studio-ml has it."""

    project: Key


class ProjectRow(_Body):
    """The project of an event: a whole row, except for a deleted project."""

    id: Number
    created_at: AwareDatetime | None = None
    label_config: str | None = None
    # Its toggle "Start model training on annotation submission": 0 is off, n asks Label Studio itself to send
    # START_TRAINING ahead of every nth annotation event (1.23.2: tasks/models.py, update_ml_backend).
    min_annotations_to_start_training: Count | None = None
    total_annotations_number: Count | None = None
    skipped_annotations_number: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_number(cls, value: object) -> object:
        return {"id": value} if isinstance(value, int) else value

    @field_validator("created_at")
    @classmethod
    def _after_1970(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.timestamp() < 0:
            raise ValueError("must not lie before 1970")
        return value

    @property
    def key(self) -> ProjectKey | None:
        """The project's key; None where the row has no creation time."""
        return None if self.created_at is None else ProjectKey(id=self.id, created=int(self.created_at.timestamp()))

    @property
    def annotations(self) -> int | None:
        """Number of annotations with skips, as Label Studio's own trigger counts them."""
        if self.total_annotations_number is None:
            return None
        return self.total_annotations_number + (self.skipped_annotations_number or 0)


class Event(_Body):
    """``/webhook``."""

    action: Annotated[str, Field(min_length=1, max_length=100)]
    project: ProjectRow | None = None
    # ANNOTATIONS_CREATED has its list under `annotation`, ANNOTATIONS_DELETED under `annotations`.
    annotation: dict[str, object] | list[dict[str, object]] | None = None
    annotations: list[dict[str, object]] | None = None
    tasks: list[dict[str, object]] | None = None

    @property
    def changed(self) -> int:
        """Number of annotations, or of tasks, that the event is about; at least 1."""
        items = self.annotation if isinstance(self.annotation, list) else self.annotations or self.tasks
        return max(1, len(items or ()))

    @property
    def identity(self) -> str | None:
        """Identifies the event; None where it names no items."""
        one = self.annotation
        listed = one if isinstance(one, list) else self.annotations or self.tasks
        items = [one] if isinstance(one, dict) else listed
        if not items or self.project is None:
            return None
        named = [(item.get("id"), item.get("updated_at")) for item in items]
        return blake2b(repr((self.action, self.project.annotations, named)).encode(), digest_size=16).hexdigest()

    @property
    def annotated(self) -> int:
        """Number of new tasks that were imported with annotations, for which no other event is sent."""
        return sum(bool(task.get("total_annotations")) for task in self.tasks or ())

    def require_project(self) -> ProjectRow:
        """The project's row.

        Raises:
            PayloadError: the event has none.
        """
        if self.project is None:
            raise PayloadError(f"{self.action} names no project: switch on 'Send payload' of the webhook")
        return self.project


class Form(_Body):
    """A button of a project's page, with the token of the page."""

    token: str


class OptionsForm(Form):
    """The form of a project's options; each as it was typed.

    Attributes:
        shown: JSON object of the values that the form showed; only what differs from them is changed.
    """

    shown: str = "{}"
    strategy: str = ""
    batch_size: str = ""
    reserve: str = ""
    control_share: str = ""
    retrain_after: str = ""
    per_patient: str = ""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class _OpenAnswer(_Answer):
    model_config = ConfigDict(extra="allow")


class ErrorAnswer(_Answer):
    """An error: the value seen, the value expected, the way out."""

    error: str


class HealthAnswer(_Answer):
    """``/health``: the server is up; ``degraded`` lists what does not work."""

    status: str = "UP"
    degraded: list[str] = []


class SetupAnswer(_Answer):
    """``/setup``: the version that Label Studio shows for the backend."""

    model_version: str


class PredictAnswer(_Answer):
    """``/predict``: one prediction a task, in their order."""

    results: list[dict[str, object]]


class WebhookAnswer(_OpenAnswer):
    """``/webhook``: the outcome of the event."""

    action: str
    outcome: str


class VersionsAnswer(_Answer):
    """``/versions``: the model versions that are served now."""

    versions: list[str]


class StatusAnswer(_Answer):
    """``/``: the state of every project."""

    status: str = "UP"
    projects: list[dict[str, object]]


class ProjectAnswer(_OpenAnswer):
    """``/projects/<key>``: one project, its rounds and the images that the last one chose."""

    project: str


class RoundAnswer(_OpenAnswer):
    """``/projects/<key>/rounds/<round>``: one round, and the images that it chose."""

    project: str
    round: str


def parse_body(model: type[M], body: bytes) -> M:
    """Read a request's body.

    Raises:
        PayloadError: no JSON, or other types than Label Studio sends; names each place.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_context=False)
        places = "; ".join(
            f"{'.'.join(map(str, m['loc'])) or 'body'}: {m['msg'].removeprefix('Value error, ')}" for m in mistakes[:5]
        )
        more = f" (and {len(mistakes) - 5} more)" if len(mistakes) > 5 else ""
        raise PayloadError(f"this is not what Label Studio sends: {places}{more}") from None
