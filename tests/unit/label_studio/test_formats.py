import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.label_interface.interface import LabelInterface

from ml_backend.config import ProjectOptions
from ml_backend.errors import PayloadError, SettingsError
from ml_backend.label_studio.formats import (
    LabelConfig,
    parse_label_config,
    prediction,
    question,
    read_annotation,
    read_image,
    training_classes,
)
from ml_backend.schemas import ImageRef
from tests.label_configs import LEARNED, REFUSED, Learned, Refused, config

ROOT = Path(__file__).parents[3]
PAYLOADS = ROOT / "tests" / "data" / "payloads"
IMAGE = ImageRef(id="7", uri="/data/upload/1/a.png")
SEVERITY = (ROOT / "label_studio_config" / "severity.xml").read_text()
CONFIG = LabelConfig(("normal", "severe", "Unreadable"), "severity", "image", "image", {})
DEFAULTS = ProjectOptions.resolve(environ={})


def answer(*choices: str | list[str], from_name: str = "severity") -> dict[str, Any]:
    entries = [{"from_name": from_name, "to_name": "image", "type": "choices", "value": {"choices": list(choices)}}]
    return {
        "id": 3,
        "completed_by": 2,
        "was_cancelled": False,
        "result": entries if choices else [],
        "updated_at": "2026-11-22T21:59:35.289953Z",
        "ground_truth": False,
    }


def recorded(name: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads((PAYLOADS / f"{name}.json").read_text())
    return payload


class TestParseLabelConfig:
    def test_severity(self) -> None:
        """The config that we ship, whole."""
        config = parse_label_config((ROOT / "label_studio_config" / "severity.xml").read_text())

        assert config.classes == ("normal", "moderate", "severe", "unreadable")
        assert (config.from_name, config.to_name, config.image_key) == ("severity", "image", "image")
        assert config.attributes["model_strategy"] == "mean_std"

    def test_knows_the_other_questions(self) -> None:
        choices = "<Choice value='a'/><Choice value='b'/></Choices>"
        xml = (
            f"<View><Image name='i' value='$i'/><Choices name='c' toName='i'>{choices}<TextArea name='t' toName='i'/>"
            f"<Choices name='d' toName='i'>{choices}</View>"
        )

        assert parse_label_config(xml).other_questions == {"t", "d"}

    def test_reads_what_setup_sends(self) -> None:
        assert parse_label_config(recorded("setup")["schema"]).from_name == "severity"

    def test_the_one_with_options_counts(self) -> None:
        """Else the first about an image; never one about a text, a region, or with several answers."""
        choices = "<Choice value='a'/><Choice value='b'/></Choices>"
        xml = (
            "<View><Image name='film' value='$scan'/><Text name='t' value='$t'/>"
            f"<Choices name='about_text' toName='t'>{choices}"
            f"<Choices name='region' toName='film' perRegion='true'>{choices}"
            f"<Choices name='many' toName='film' choice='multiple'>{choices}"
            f"<Choices name='first' toName='film'>{choices}"
            f"<Choices name='ours' toName='film' %s>{choices}</View>"
        )

        assert parse_label_config(xml % "").from_name == "first"
        assert parse_label_config(xml % "model_passes='9'").from_name == "ours"
        assert parse_label_config(xml % "").image_key == "scan"

    @pytest.mark.parametrize("case", LEARNED.values(), ids=LEARNED.keys())
    def test_says_what_is_learned_and_what_is_not(self, case: Learned) -> None:
        read = parse_label_config(case.xml)

        assert training_classes(read, DEFAULTS) == case.classes
        assert read.image_key == case.image_key
        assert case.not_learned in question(read, DEFAULTS)

    @pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
    def test_refuses_what_could_never_be_learned(self, case: Refused) -> None:
        with pytest.raises(PayloadError) as refused:
            parse_label_config(case.xml)

        assert case.reason in str(refused.value)
        assert case.way_out in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_an_alias_is_what_annotations_hold(self) -> None:
        xml = (
            "<View><Image name='i' value='$i'/><Choices name='c' toName='i'>"
            "<View><Choice value='No finding' alias='0'/></View><Choice value='Finding'/></Choices></View>"
        )

        assert parse_label_config(xml).classes == ("0", "Finding")

    @pytest.mark.parametrize(
        ("xml", "message"),
        [
            ("", "not plain XML"),
            ("<View><Image", "not plain XML"),
            ("<View>\ud800</View>", "not plain XML"),
            ("<View></View>", "no Image tag"),
            ("<View><Image name='i' value='$i'/></View>", "no Choices tag about an Image"),
            ("<View><Image name='i' value='$i'/><Choices name='c' toName='j'/></View>", "no Choices tag"),
            ("<View><Image name='i' value='$i'/><Choices name='c' toName='i'/></View>", "holds no Choice"),
            ("<View><Image name='i' value='$i'/><Choices toName='i'/></View>", "no name"),
            ("<View><Image name='i' value='x.png'/><Choices name='c' toName='i'/></View>", "'x.png'"),
            ("<View><Image name='i' valueList='$i'/><Choices name='c' toName='i'/></View>", "one image a task"),
            (
                "<View><Image name='i' value='$i'/><Choices name='c' toName='i' choice='multiple'/></View>",
                "choice='multiple'",
            ),
            (
                "<View><Image name='i' value='$i'/><Choices name='c' toName='i'>"
                "<Choice value='a'/><Choice value='a'/></Choices></View>",
                "'a' twice",
            ),
            (
                "<View><Image name='i' value='$i'/><Choices name='c' toName='i'><Choice/></Choices></View>",
                "has no value",
            ),
        ],
    )
    def test_says_what_is_missing(self, xml: str, message: str) -> None:
        with pytest.raises(PayloadError, match=message):
            parse_label_config(xml)

    @pytest.mark.parametrize(
        "other", ["<Choices name='c' toName='i'/>", "<Rating name = 'c' toName='i'/>", "<Text name='i'/>"]
    )
    def test_a_name_that_stands_twice_is_refused(self, other: str) -> None:
        """Label Studio looks for it only where it is written with double quotes and no blanks."""
        asked = "<Choices name='c' toName='i'><Choice value='a'/><Choice value='b'/></Choices>"

        with pytest.raises(PayloadError, match="several tags have the name"):
            parse_label_config(f"<View><Image name='i' value='$i'/>{asked}{other}</View>")

    def test_tags_deep_in_one_another(self) -> None:
        deep = f"{'<View>' * 3000}{'</View>' * 3000}"

        with pytest.raises(PayloadError, match="more than 255 deep"):
            parse_label_config(config(deep))

    def test_an_entity_bomb_goes_off_nowhere(self) -> None:
        bomb = '<!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><View>&b;</View>'

        with pytest.raises(PayloadError, match="DTDForbidden"):
            parse_label_config(bomb)

    @given(st.text())
    @settings(deadline=None)
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        with pytest.raises(PayloadError):
            parse_label_config(text)


class TestTrainingClasses:
    def test_without_the_way_out_whatever_its_case(self) -> None:
        assert training_classes(CONFIG, ProjectOptions()) == ("normal", "severe")

    def test_names_what_is_too_few(self) -> None:
        with pytest.raises(SettingsError, match="1 of them would be learned"):
            training_classes(LabelConfig(("normal", "unreadable"), "c", "i", "image", {}), ProjectOptions())

    def test_a_way_out_that_is_no_choice_is_refused(self) -> None:
        """Else the real one would be learned as a class, in silence."""
        config = LabelConfig(("normal", "severe", "unreadable"), "c", "i", "image", {})

        with pytest.raises(SettingsError, match="unreadable='blurry' is none of the choices 'normal', 'severe'"):
            training_classes(config, ProjectOptions(unreadable="blurry"))

    @pytest.mark.parametrize("option", [None, "unreadable", " Unreadable", "9"])
    def test_a_way_out_is_known_by_its_value_and_by_its_alias(self, option: str | None) -> None:
        given = {} if option is None else {"unreadable": option}

        options = ProjectOptions.resolve(given, environ={})

        assert training_classes(parse_label_config(LEARNED["alias"].xml), options) == ("0", "2")

    def test_a_way_out_among_nested_choices(self) -> None:
        way_out = '<Choice value="none"><Choice value="blurred" alias="x"/></Choice>'
        read = parse_label_config(LEARNED["allowNested and nested"].xml.replace("</Choices>", f"{way_out}</Choices>"))

        for option in ("x", "blurred"):
            options = ProjectOptions.resolve({"unreadable": option}, environ={})
            assert training_classes(read, options) == ("normal", "bacterial", "viral")

    @pytest.mark.parametrize("name", ["allowNested and flat", "allowNested in small letters"])
    def test_paths_cannot_be_pre_labelled(self, name: str) -> None:
        read = parse_label_config(LEARNED[name].xml)

        with pytest.raises(SettingsError, match=r"prelabel=True: .* 'label', which has allowNested='true': leave one"):
            training_classes(read, ProjectOptions.resolve({"prelabel": True}, environ={}))

    def test_a_config_without_a_way_out_is_fine(self) -> None:
        config = LabelConfig(("normal", "severe"), "c", "i", "image", {})

        assert training_classes(config, ProjectOptions()) == ("normal", "severe")


class TestOrderOfClasses:
    CONFIG = LabelConfig(("severe", "unreadable", "0", "mild"), "severity", "i", "i", {}, values={"0": "Normal"})

    @staticmethod
    def order(**options: object) -> tuple[str, ...]:
        return training_classes(TestOrderOfClasses.CONFIG, ProjectOptions.resolve(options, environ={}))

    @pytest.mark.parametrize(
        "value", ["0,mild,severe", " normal , Mild,SEVERE", '["0", "mild", "severe"]', ["0", "mild", "severe"]]
    )
    def test_as_the_owner_gives_it(self, value: object) -> None:
        assert self.order(ordinal=value) == ("0", "mild", "severe")

    @pytest.mark.parametrize("value", [True, "true", "yes", "", " ", None])
    def test_as_the_choices_have_it(self, value: object) -> None:
        assert self.order(ordinal=value) == self.order() == ("severe", "0", "mild")

    def test_choices_that_are_no_class_may_be_named(self) -> None:
        options = ProjectOptions.resolve(
            {"ordinal": "normal,unreadable,mild,severe", "ignore_classes": "mild"}, environ={}
        )

        assert training_classes(self.CONFIG, options) == ("0", "severe")

    @pytest.mark.parametrize("value", ["normal,severe", "normal,mild,severe,0", "normal,mild,severe,worse"])
    def test_every_class_once_and_no_other(self, value: str) -> None:
        message = f"ordinal='{value}' must name each of the classes 'severe', '0 (Normal)', 'mild' of Choices"
        with pytest.raises(SettingsError, match=re.escape(message)):
            self.order(ordinal=value)

    @pytest.mark.parametrize("rule", ["median", "ordinal"])
    def test_rules_that_need_an_order_refuse_classes_without_one(self, rule: str) -> None:
        with pytest.raises(
            SettingsError, match=f"consensus={rule} needs the order .* set consensus=majority or dawid_skene"
        ):
            self.order(ordinal="no", consensus=rule)

    @pytest.mark.parametrize("rule", ["majority", "dawid_skene", "latest"])
    def test_other_rules_take_them(self, rule: str) -> None:
        options = ProjectOptions.resolve({"ordinal": "false", "consensus": rule}, environ={})

        assert training_classes(self.CONFIG, options) == ("severe", "0", "mild")
        assert question(self.CONFIG, options).startswith("learns 'severity', in no order: severe, 0 (Normal), mild")

    def test_two_classes_always_have_one(self) -> None:
        assert self.order(ordinal=False, ignore_classes="mild") == ("severe", "0")

    def test_a_single_name_is_no_order(self) -> None:
        with pytest.raises(
            SettingsError, match=r"ordinal='severe'.*: must be true, false, or the classes, least severe"
        ):
            self.order(ordinal="severe")


class TestReadImage:
    def test_of_a_recorded_task(self) -> None:
        image = read_image(recorded("TASKS_CREATED")["tasks"][2], CONFIG)

        assert image == ImageRef(id=image.id, uri="/data/upload/2/0123abcd-film2.png", patient_id="p1")

    @pytest.mark.parametrize(("patient", "read"), [(None, None), ("", None), (12, "12"), (0, "0"), ("p 1", "p 1")])
    def test_patient(self, patient: object, read: str | None) -> None:
        assert read_image({"id": 1, "data": {"image": "a", "patient_id": patient}}, CONFIG).patient_id == read

    @pytest.mark.parametrize("key", ["patient_id", "patientid", "patientId", "PatientID", "Patient ID", "patient-id"])
    def test_patient_under_the_names_of_public_data_sets(self, key: str) -> None:
        assert read_image({"id": 1, "data": {"image": "a", key: 12}}, CONFIG).patient_id == "12"

    def test_its_own_key_comes_first(self) -> None:
        task = {
            "id": 1,
            "data": {"PatientID": "x", "image": "a", "patient_id": "p", "patient": "y", "patient_id_2": "z"},
        }

        assert read_image(task, CONFIG).patient_id == "p"
        assert (
            read_image({"id": 1, "data": {"image": "a", "patient": "y", "subject_id": "z"}}, CONFIG).patient_id is None
        )

    def test_one_patient_of_several_imports_is_one_group(self) -> None:
        """As Label Studio 1.23.2 reads CSV files: 12 becomes 12.0 where another cell of the column is empty."""
        tasks = [{"id": 1, "data": {"image": "a", "patient_id": patient}} for patient in (12, 12.0, "12", " 12 ")]

        assert {read_image(task, CONFIG).group for task in tasks} == {"patient 12"}

    @pytest.mark.parametrize(
        "task",
        [
            {"id": 9, "data": {"picture": "/a.png"}},
            {"id": 9, "data": {"image": " "}},
            {"id": 9, "data": {"image": ["/a.png", "/b.png"]}},
            {"id": 9, "data": None},
            {"id": 9},
        ],
    )
    def test_names_the_task_without_an_image(self, task: dict[str, Any]) -> None:
        with pytest.raises(PayloadError, match="task 9 has no image under 'image'"):
            read_image(task, CONFIG)

    @pytest.mark.parametrize(
        ("value", "data", "uri"),
        [
            ("$study.image", {"study": {"image": "/a.png"}}, "/a.png"),
            ("$study.image", {"study.image": "/a.png"}, "/a.png"),
            ("$images[1]", {"images": ["/a.png", "/b.png"]}, "/b.png"),
            ("$a[0].b", {"a": [{"b": "/a.png"}]}, "/a.png"),
            ("$study.image", {"study": "/a.png"}, None),
            ("$study.image", {"study": {}}, None),
            ("$images[2]", {"images": ["/a.png", "/b.png"]}, None),
            ("$images[0]", {"images": "/a.png"}, None),
        ],
    )
    def test_within_the_task_data(self, value: str, data: dict[str, Any], uri: str | None) -> None:
        """As Label Studio's page finds it: the whole key first, then step by step."""
        read = parse_label_config(config(image=f'<Image name="image" value="{value}"/>'))

        if uri is None:
            with pytest.raises(PayloadError, match=f"task 9 has no image under '{re.escape(value[1:])}'"):
                read_image({"id": 9, "data": data}, read)
        else:
            assert read_image({"id": 9, "data": data}, read).uri == uri

    def test_a_task_without_a_number(self) -> None:
        with pytest.raises(PayloadError, match="id='x'"):
            read_image({"id": "x"}, CONFIG)


class TestReadAnnotation:
    def test_of_a_recorded_event(self) -> None:
        event = recorded("ANNOTATION_UPDATED")
        config = parse_label_config(event["project"]["label_config"])

        annotation = read_annotation(event["annotation"], IMAGE, config, ProjectOptions())

        assert (annotation.value, annotation.rater, annotation.ground_truth) == ("severe", "1", False)
        assert annotation.updated_at == datetime.fromisoformat(event["annotation"]["updated_at"])

    def test_skipped_empty_and_unreadable_have_no_value(self) -> None:
        skipped = answer("normal") | {"was_cancelled": True}
        items = [skipped, answer(), answer("unreadable"), recorded("ANNOTATION_CREATED-skipped")["annotation"]]

        read = [read_annotation(item, IMAGE, CONFIG, ProjectOptions()) for item in items]

        assert [annotation.value for annotation in read] == [None] * 4
        assert [annotation.unanswered for annotation in read] == [False, True, False, False]

    def test_another_question_does_not_count(self) -> None:
        item = answer("normal")
        item["result"][0]["from_name"] = "side"
        config = replace(CONFIG, other_questions=frozenset({"side"}))

        read = read_annotation(item, IMAGE, config, ProjectOptions())

        assert (read.value, read.unanswered) == (None, True)

    def test_an_answer_that_the_config_does_not_ask_for_is_named(self) -> None:
        """As imports from another project have it: Label Studio stores them, and shows readers an empty form."""
        item = answer("normal")
        item["result"][0]["from_name"] = "diagnosis"

        with pytest.raises(PayloadError, match=r"annotation 3 of task 7 answers 'diagnosis'.*from_name='severity'"):
            read_annotation(item, IMAGE, CONFIG, ProjectOptions())

    def test_a_choice_that_was_imported_as_text(self) -> None:
        item = answer("normal")
        item["result"][0]["value"]["choices"] = "normal"

        assert read_annotation(item, IMAGE, CONFIG, ProjectOptions()).value == "normal"

    @pytest.mark.parametrize(
        ("result", "parent"),
        [
            ([], None),
            ([answer("normal")["result"][0] | {"score": 0.9}], None),
            (answer("normal")["result"], 209),  # of a model of the owner's: predictions need no score
        ],
    )
    def test_a_copied_prediction_is_nobodys_answer(self, result: list[object], parent: int | None) -> None:
        """As Label Studio 1.23.2 makes annotations of predictions: without a time, which its page always measures."""
        item = answer() | {"result": result, "lead_time": None, "parent_prediction": parent}

        with pytest.raises(PayloadError, match=r"annotation 3 of task 7 .* no reader gave it"):
            read_annotation(item, IMAGE, CONFIG, ProjectOptions())

        for reader in ({"lead_time": 2.5}, {"ground_truth": True}):
            read = read_annotation(item | reader, IMAGE, CONFIG, ProjectOptions())
            assert read.value == ("normal" if result else None)

    def test_an_import_without_times_is_an_answer(self) -> None:
        item = answer("normal") | {"lead_time": None}

        assert read_annotation(item, IMAGE, CONFIG, ProjectOptions()).value == "normal"

    @pytest.mark.parametrize(
        ("label_config", "choices", "value"),
        [
            ("alias", ["0"], "0"),
            ("alias", ["normal"], "0"),  # of an import: Label Studio keeps it as it is
            ("alias", ["normal", "0"], "0"),
            ("alias", ["9"], None),
            ("alias", ["Unreadable"], None),
            ("alias", [["2"]], "2"),  # stored while the config had allowNested
            ("alias", ["mild"], "mild"),
            ("allowNested and flat", [["a"]], "a"),
            ("allowNested and flat", ["a"], "a"),
            ("allowNested and nested", [["pneumonia", "viral"]], "viral"),
            ("allowNested and nested", ["viral"], "viral"),
            ("allowNested and nested", [["pneumonia"]], "pneumonia"),
            (
                "allowNested and nested",
                [["pneumonia"], ["pneumonia", "bacterial"], ["pneumonia", "viral"]],
                "bacterial + viral",
            ),
            ("the same name in two branches", [["right"], ["right", "yes"]], "right / yes"),
            ("the same name in two branches", ["yes"], "yes"),
        ],
    )
    def test_every_spelling_of_a_choice(
        self, label_config: str, choices: list[str | list[str]], value: str | None
    ) -> None:
        read = parse_label_config(LEARNED[label_config].xml)

        assert read_annotation(answer(*choices, from_name="label"), IMAGE, read, DEFAULTS).value == value

    def test_two_answers_are_not_the_class_of_their_names(self) -> None:
        both = replace(CONFIG, classes=("normal", "severe", "normal + severe"))

        assert read_annotation(answer("normal + severe"), IMAGE, both, DEFAULTS).value == "normal + severe"
        assert read_annotation(answer("normal", "severe"), IMAGE, both, DEFAULTS).value not in both.classes

    def test_two_answers_are_no_class(self) -> None:
        assert read_annotation(answer("normal", "severe"), IMAGE, CONFIG, ProjectOptions()).value == "normal + severe"

    @pytest.mark.parametrize(
        ("who", "rater"), [(5, "5"), ({"id": 5, "email": "a@b.c"}, "5"), (None, "unknown, annotation 3")]
    )
    def test_rater(self, who: object, rater: str) -> None:
        assert read_annotation(answer("normal") | {"completed_by": who}, IMAGE, CONFIG, ProjectOptions()).rater == rater

    def test_time_without_a_zone_is_utc(self) -> None:
        item = answer("normal") | {"updated_at": "2026-11-22T21:59:35"}

        assert read_annotation(item, IMAGE, CONFIG, ProjectOptions()).updated_at.tzinfo is UTC

    @pytest.mark.parametrize(
        "broken",
        [
            {"result": None},
            {"result": ["normal"]},
            {"result": [{"from_name": "severity", "type": "choices"}]},
            {"result": [{"from_name": "severity", "type": "choices", "value": {"choices": None}}]},
            {"updated_at": "yesterday"},
            {"updated_at": None},
        ],
    )
    def test_names_what_cannot_be_read(self, broken: dict[str, Any]) -> None:
        with pytest.raises(PayloadError, match="annotation 3 of task 7"):
            read_annotation(answer("normal") | broken, IMAGE, CONFIG, ProjectOptions())


class TestPrediction:
    def test_empty_form(self) -> None:
        assert prediction("12", 0.25, "al-1", CONFIG) == {
            "task": 12,
            "score": 0.25,
            "model_version": "al-1",
            "result": [],
        }

    def test_suggestion(self) -> None:
        value = {"choices": ["severe"]}
        result = [{"from_name": "severity", "to_name": "image", "type": "choices", "value": value}]

        assert prediction("12", 0.0, "al-1", CONFIG, "severe")["result"] == result

    def test_no_path_is_suggested(self) -> None:
        """Label Studio would drop the prediction, and the image's place in the order with it."""
        read = parse_label_config(LEARNED["allowNested and nested"].xml)

        assert prediction("12", 0.0, "al-1", read, "viral")["result"] == []

    def test_confidence_stands_with_the_answer_and_not_in_the_order(self) -> None:
        found = prediction("12", 0.25, "al-1", CONFIG, "severe", confidence=0.875)

        assert found["score"] == 0.25
        assert isinstance(found["result"], list)
        assert found["result"][0]["score"] == 0.875

    @pytest.mark.parametrize("score", [-0.01, 1.01, float("nan")])
    def test_refuses_what_would_be_dropped_in_silence(self, score: float) -> None:
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            prediction("12", score, "al-1", CONFIG)


class TestIgnoredClasses:
    @pytest.mark.parametrize("chosen", ["severe", " SEVERE ,", ["severe"]])
    def test_are_not_learned(self, chosen: object) -> None:
        options = ProjectOptions.resolve({"ignore_classes": chosen}, environ={})

        assert training_classes(parse_label_config(SEVERITY), options) == ("normal", "moderate")

    def test_one_that_is_no_choice_is_named(self) -> None:
        options = ProjectOptions.resolve({"ignore_classes": "severe,grave"}, environ={})

        with pytest.raises(SettingsError, match="ignore_classes='grave' is none of the classes 'normal', 'moderate'"):
            training_classes(parse_label_config(SEVERITY), options)

    def test_two_must_be_left(self) -> None:
        options = ProjectOptions.resolve({"ignore_classes": "severe,normal"}, environ={})

        with pytest.raises(SettingsError, match="ignore_classes='severe,normal' 1 of them would be learned"):
            training_classes(parse_label_config(SEVERITY), options)

    @pytest.mark.parametrize("chosen", ["3", "Severe"])
    def test_are_known_by_value_and_by_alias(self, chosen: str) -> None:
        xml = SEVERITY.replace('value="severe"', 'value="severe" alias="3"')
        config, options = parse_label_config(xml), ProjectOptions.resolve({"ignore_classes": chosen}, environ={})

        assert training_classes(config, options) == ("normal", "moderate")
        assert read_annotation(answer("3"), IMAGE, config, options).ignored


CONFIGS = sorted((ROOT / "label_studio_config").glob("*.xml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
class TestShippedConfig:
    """Label Studio's own SDK judges what is read from a label config and published under it."""

    def test_is_read_as_the_sdk_reads_it(self, path):
        config = parse_label_config(path.read_text())
        control = LabelInterface(path.read_text()).get_control(config.from_name)

        assert config.classes == tuple(control.labels)
        assert [config.to_name] == list(control.to_name)
        assert config.attributes == control.attr

    def test_every_class_makes_a_prediction_that_the_sdk_accepts(self, path):
        config = parse_label_config(path.read_text())
        interface = LabelInterface(path.read_text())

        for suggestion in (None, *config.classes):
            found = prediction("7", 0.25, "al-r000001", config, suggestion)
            assert interface.validate_prediction(found, return_errors=True) == []

    def test_the_sdk_refuses_what_is_no_class(self, path):
        """The referee can show the red card: an unknown class is an error."""
        config = parse_label_config(path.read_text())
        wrong = prediction("7", 0.25, "al-r000001", config, "zebra")

        assert LabelInterface(path.read_text()).validate_prediction(wrong, return_errors=True)
