"""Label Studio's label configs and JSON, read into our records and written from them. No I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from ml_backend.errors import PayloadError, SettingsError
from ml_backend.records import Annotation, ImageRef, patient_of
from ml_backend.settings import OPTION_PREFIX, ProjectOptions

__all__ = [
    "LabelConfig",
    "parse_label_config",
    "prediction",
    "read_annotation",
    "read_image",
    "training_classes",
]

Json = Mapping[str, Any]
PATIENT_KEY = "patient_id"


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What a label config says about the one question that this backend answers.

    Attributes:
        classes: the choices as they stand in annotations, in the order of the config; ``unreadable`` among them.
        from_name: name of the Choices tag.
        to_name: name of the Image tag that it is about.
        image_key: where the image stands in a task's data; ``image`` for ``value="$image"``.
        attributes: of the Choices tag, ``model_*`` among them.
        other_questions: names of the other tags that a reader answers.
    """

    classes: tuple[str, ...]
    from_name: str
    to_name: str
    image_key: str
    attributes: dict[str, str]
    other_questions: frozenset[str] = frozenset()


def parse_label_config(xml: str) -> LabelConfig:
    """Find the question in a label config: a single-choice Choices tag about an Image.

    Of several, the first with a ``model_*`` attribute counts, else the first.

    Raises:
        PayloadError: the XML is malformed or holds a DTD, or the config has no such question; says what is missing.
    """
    try:
        root: Element = fromstring(xml, forbid_dtd=True)
    except (ParseError, ValueError) as error:
        # A ValueError is a DTD, which may be an entity bomb, or a lone surrogate.
        raise PayloadError(f"the label config is no plain XML ({error}); it begins {xml[:60]!r}") from None
    images = {tag.get("name"): tag for tag in root.iter("Image")}
    if not images:
        raise PayloadError('the label config has no Image tag: add <Image name="image" value="$image"/>')
    questions = [tag for tag in root.iter("Choices") if tag.get("toName") in images and tag.get("perRegion") != "true"]
    if not questions:
        raise PayloadError(
            f"the label config has no Choices tag about an Image: add one with toName={min(map(str, images))!r}"
        )
    single = [tag for tag in questions if tag.get("choice", "single").startswith("single")]
    if not single:
        raise PayloadError(
            f"Choices {questions[0].get('name')!r} takes several answers (choice={questions[0].get('choice')!r}); "
            "a class is one answer: set choice='single-radio'"
        )
    question = next((tag for tag in single if any(key.startswith(OPTION_PREFIX) for key in tag.attrib)), single[0])
    asked = {str(tag.get("name")) for tag in root.iter() if tag.get("toName") and tag is not question}
    return replace(_read_question(question, images[question.get("toName")]), other_questions=frozenset(asked))


def _read_question(question: Element, image: Element) -> LabelConfig:
    name = question.get("name")
    value = image.get("value", "")
    if not name:
        raise PayloadError("the Choices tag has no name: set name='label'")
    if not (value.startswith("$") and len(value) > 1):
        raise PayloadError(
            f"Image {image.get('name')!r} has value={value!r}; wanted is one image a task: value='$image'"
        )
    # An alias takes the value's place in the annotations.
    classes = tuple(tag.get("alias") or tag.get("value") or "" for tag in question.iter("Choice"))
    if not classes:
        raise PayloadError(f"Choices {name!r} holds no Choice tags; choices that come with the task cannot be learned")
    if "" in classes:
        raise PayloadError(f"a Choice of Choices {name!r} has no value")
    if twice := {choice for choice in classes if classes.count(choice) > 1}:
        raise PayloadError(f"Choices {name!r} has {', '.join(map(repr, sorted(twice)))} twice")
    return LabelConfig(classes, name, str(question.get("toName")), value[1:], dict(question.attrib))


def training_classes(config: LabelConfig, options: ProjectOptions) -> tuple[str, ...]:
    """The classes that the network learns: the choices without ``options.unreadable``, whatever its case.

    Raises:
        SettingsError: fewer than two remain, or ``unreadable`` was chosen by the owner and is none of the choices.
    """
    if "unreadable" in options.model_fields_set and not any(_is_unreadable(c, options) for c in config.classes):
        raise SettingsError(
            f"unreadable={options.unreadable!r} is none of the choices {', '.join(map(repr, config.classes))} of "
            f"Choices {config.from_name!r}: name one of them, or leave the option out"
        )
    classes = tuple(choice for choice in config.classes if not _is_unreadable(choice, options))
    if len(classes) < 2:
        raise SettingsError(
            f"Choices {config.from_name!r} offers {', '.join(map(repr, config.classes))}; without "
            f"unreadable={options.unreadable!r} {len(classes)} of them would be learned, and at least 2 are needed"
        )
    return classes


def read_image(task: Json, config: LabelConfig) -> ImageRef:
    """The image of a task, from the task list, the export or a webhook alike.

    Raises:
        PayloadError: the task has no id, or its data holds no image under the config's key.
    """
    number, data = task.get("id"), task.get("data")
    if not isinstance(number, int):
        raise PayloadError(f"a task has id={number!r}; wanted a number")
    if not isinstance(data, Mapping) or not isinstance(uri := data.get(config.image_key), str) or not uri.strip():
        seen = sorted(data) if isinstance(data, Mapping) else data
        raise PayloadError(f"task {number} has no image under {config.image_key!r}; its data holds {seen!r}")
    return ImageRef(id=str(number), uri=uri.strip(), patient_id=patient_of(_patient(data)))


def _patient(data: Json) -> object:
    """Under its own key, else under one of public data sets' spellings: patientid, patientId, PatientID, Patient ID."""
    if PATIENT_KEY in data:
        return data[PATIENT_KEY]
    bare = PATIENT_KEY.replace("_", "")
    return next((value for key, value in data.items() if re.sub(r"[^a-z]", "", key.casefold()) == bare), None)


def read_annotation(item: Json, image: ImageRef, config: LabelConfig, options: ProjectOptions) -> Annotation:
    """One reader's answer.

    ``item`` is an annotation of the JSON export or of a webhook, ``image`` that of its task.

    Returns:
        ``value`` is None where the reader skipped, answered nothing or called the image unreadable. Two answers to
        a single choice (only an import can give them) make a value that is no class, so that consensus names it.

    Raises:
        PayloadError: the annotation has another form, answers another question, or was copied from a prediction.
    """
    try:
        choices = () if item["was_cancelled"] else _choices(item["result"], config)
        if (why := _no_answer_of_a_reader(item, choices, config)) is not None:
            raise PayloadError(f"annotation {item.get('id')} of task {image.id} {why}")
        updated_at = datetime.fromisoformat(item["updated_at"])
        truth = bool(item.get("ground_truth"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PayloadError(f"annotation {item.get('id')!r} of task {image.id} cannot be read: {error!r}") from None
    answered = bool(choices) and not all(_is_unreadable(choice, options) for choice in choices)
    return Annotation(
        image=image,
        rater=_rater(item),
        value=" + ".join(choices) if answered else None,
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

    ``suggestion`` is a class that the reader finds pre-selected; None leaves the form empty. ``confidence``, 0 to 1,
    stands with the answer and orders nothing; None where it is not known.

    Raises:
        ValueError: the score is not in [0, 1]: Label Studio would drop the prediction in silence.
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
        "result": [] if suggestion is None else [answer],
    }


def _choices(result: list[Json], config: LabelConfig) -> tuple[str, ...]:
    mine = (entry for entry in result if entry.get("from_name") == config.from_name and entry.get("type") == "choices")
    return tuple(choice for entry in mine for choice in _values(entry))


def _values(entry: Json) -> tuple[str, ...]:
    """The choices of an entry; an import may give a single one as text, and Label Studio keeps it so."""
    choices = entry["value"]["choices"]
    return (choices,) if isinstance(choices, str) else tuple(map(str, choices))


def _no_answer_of_a_reader(item: Json, choices: tuple[str, ...], config: LabelConfig) -> str | None:
    """Why an annotation counts for nobody's answer; None where it is one, or a skip."""
    if item["was_cancelled"]:
        return None
    entries = [entry for entry in item["result"] if entry.get("type") == "choices"]
    # Label Studio's page measures the time of every answer, and only a prediction's entries have a score.
    # A ground truth is vouched for by whoever marked it.
    copied = "lead_time" in item and item["lead_time"] is None and not item.get("ground_truth")
    if copied and not item["result"]:
        return (
            'holds no choice, and no reader gave it: "Create Annotations From Predictions" in Label Studio makes such; '
            "delete it there, and readers get the image"
        )
    if copied and choices and any("score" in entry for entry in entries):
        return (
            "was copied from a prediction, and no reader gave it: the network must not learn from its own answers; "
            "delete it in Label Studio, and readers get the image, or mark it there as ground truth if it is right"
        )
    strange = {str(entry.get("from_name")) for entry in entries} - {config.from_name, *config.other_questions}
    if not choices and strange:
        return (
            f"answers {', '.join(map(repr, sorted(strange)))}, which the label config does not ask: "
            f"import it anew with from_name={config.from_name!r}"
        )
    return None


def _is_unreadable(choice: str, options: ProjectOptions) -> bool:
    return choice.casefold() == options.unreadable.casefold()


def _rater(item: Json) -> str:
    """A user's number; some exports spell the user out.

    A deleted user leaves nothing, and the answers of two such are not one reader's: each counts on its own.
    """
    completed_by = item.get("completed_by")
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("id")
    return f"unknown, annotation {item.get('id')}" if completed_by is None else str(completed_by)
