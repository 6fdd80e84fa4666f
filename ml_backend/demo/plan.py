"""What is decided before readers begin: the images, the question about them, the options of the project."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ml_backend.demo.films import DRAWN_CLASSES, Film, draw_films, labels_in, read_films
from ml_backend.demo.options import DemoOptions, check_enough, project_options
from ml_backend.demo.project import shipped_config
from ml_backend.demo.view import View
from ml_backend.label_studio.formats import parse_label_config, training_classes
from ml_backend.settings import ProjectOptions

__all__ = ["Plan", "Question", "choose_question", "make_plan", "visitors_films"]

CONFIGS = ("severity", "normal_diseased")  # the first that knows all labels is taken


@dataclass(frozen=True, slots=True)
class Question:
    """A label config and the classes that readers tell apart by it, least severe first."""

    xml: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is needed to make the project and to label its images."""

    films: Sequence[Film]
    question: Question
    extra_params: dict[str, object]
    options: ProjectOptions


def choose_question(options: DemoOptions) -> Question:
    """The shipped label config that asks for the visitor's labels; that of the drawn films where there are none.

    Raises:
        SettingsError: the visitor's table cannot be read.
    """
    labels = set(DRAWN_CLASSES) if options.labels is None else labels_in(options.labels)
    questions = [_question(name) for name in CONFIGS]
    # Where none fits, the first one says which of the labels it does not know.
    return next((question for question in questions if labels <= set(question.classes)), questions[0])


def visitors_films(options: DemoOptions, question: Question) -> list[Film] | None:
    """The visitor's images; None where films are to be drawn.

    Raises:
        SettingsError: names every bad row.
    """
    if options.images is None or options.labels is None:
        return None
    return read_films(options.images, options.labels, question.classes)


def make_plan(options: DemoOptions, question: Question, films: Sequence[Film] | None, view: View) -> Plan:
    """Decide the rest, and draw the films where the visitor gave none.

    Raises:
        SettingsError: an option is wrong, or the images do not suffice for the rounds.
    """
    # Imports torch, which takes seconds.
    from ml_backend.model.weights import weights_at_hand  # noqa: PLC0415

    backbone = os.environ.get("AL_BACKBONE") or "resnet50"
    extra_params = project_options(options, weights_at_hand(backbone), os.environ)
    if extra_params["weights"] == "none" and "AL_WEIGHTS" not in os.environ:
        view.say(f"ImageNet weights of {backbone} are not on this machine: the demo goes on with untrained features")
    if films is None:
        view.step("drawing images", 0, None)
        films = draw_films(options.count, options.seed, options.side)
        view.step("drawing images", 1, 1)
    resolved = ProjectOptions.resolve(extra_params, parse_label_config(question.xml).attributes)
    check_enough(films, question.classes, options, resolved)
    return Plan(films, question, extra_params, resolved)


def _question(name: str) -> Question:
    xml = shipped_config(name)
    return Question(xml, training_classes(parse_label_config(xml), ProjectOptions.resolve(environ={})))
