"""What the demo labels and how: the visitor's options, the images with their labels, the options of the project."""

import io
import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ml_backend.analytics.few_labels import can_train
from ml_backend.config import ProjectOptions
from ml_backend.demo.services import Login
from ml_backend.demo.summary import View
from ml_backend.errors import SettingsError
from ml_backend.images.synthetic import draw_pool
from ml_backend.label_studio.connect import read_label_config
from ml_backend.label_studio.formats import parse_label_config, training_classes
from ml_backend.schemas import patient_of
from ml_backend.simulation.tables import read_rows, unlike_spellings

DRAWN_CLASSES = ("normal", "moderate", "severe")
# The imbalance of the paper's chest X-rays: arXiv:2508.21263.
DRAWN_SHARES = (0.14, 0.36, 0.50)
COLUMNS = ("path", "label")
SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL_CONFIGS = ("severity", "normal_diseased")
# Small enough for six minutes on two cores, large enough that the network learns something.
PROJECT_DEFAULTS: dict[str, object] = {
    "batch_size": 20,
    "reserve": 80,
    "retrain_after": 20,
    "min_labels_per_class": 4,
    "passes": 50,
    "finetune": "head",
    "backbone": "resnet50",
    "image_side": 224,
}


@dataclass(frozen=True, slots=True)
class LabelStudioAddress:
    """A running Label Studio and its owner."""

    url: str
    admin: Login

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "LabelStudioAddress | None":
        """Read ``AL_DEMO_LABEL_STUDIO_URL`` and its companions; None without an URL: the demo starts its own.

        Raises:
            SettingsError: the owner's e-mail address, password or token is missing.
        """
        url = environ.get("AL_DEMO_LABEL_STUDIO_URL")
        if not url:
            return None
        names = ("AL_DEMO_LABEL_STUDIO_EMAIL", "AL_DEMO_LABEL_STUDIO_PASSWORD", "AL_DEMO_LABEL_STUDIO_TOKEN")
        if missing := [name for name in names if not environ.get(name)]:
            raise SettingsError(
                f"AL_DEMO_LABEL_STUDIO_URL={url!r} needs {' and '.join(missing)} too (a legacy token); "
                "or unset it, and the demo starts a Label Studio of its own"
            )
        email, password, token = (environ[name] for name in names)
        return cls(url.rstrip("/"), Login(email, password, token))


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of the demo; those of its project are read from the environment (``AL_PASSES=20``), as by a backend.

    Attributes:
        rounds: rounds with a trained network to go through.
        readers: simulated readers.
        images: folder of the visitor's images; given together with ``labels``.
        labels: CSV file with the columns ``path`` and ``label``, and optionally ``patient_id``.
        count: images to draw where the visitor gives none.
        side: of a drawn image, in pixels.
        strategy: acquisition function.
        seed: of the drawn images, the project and the readers' mistakes.
        mistakes: fraction of the images that a reader labels wrong.
        folder: where the demo keeps its data.
        json: file to which the summary is written.
        stay: whether everything stays up at the end; None: on a terminal only.
        redis_url: a running Redis; None: the demo starts a Valkey.
        label_studio: a running Label Studio; None: the demo starts one.
    """

    rounds: int = 3
    readers: int = 2
    images: Path | None = None
    labels: Path | None = None
    count: int = 160
    side: int = 256
    strategy: str = "mean_std"
    seed: int = 0
    mistakes: float = 0.05
    folder: Path = Path(".demo")
    json: Path | None = None
    stay: bool | None = None
    redis_url: str | None = field(default_factory=lambda: os.environ.get("AL_REDIS_URL") or None)
    label_studio: LabelStudioAddress | None = field(default_factory=lambda: LabelStudioAddress.from_environ(os.environ))

    def __post_init__(self) -> None:
        if (self.images is None) != (self.labels is None):
            raise SettingsError(
                f"IMAGES={str(self.images or '')!r} and LABELS={str(self.labels or '')!r} go together: "
                "a folder of images, and a CSV file with the columns path,label"
            )
        if self.rounds < 1 or self.readers < 1 or self.count < 1 or self.side < 32:
            raise SettingsError(
                f"rounds={self.rounds}, readers={self.readers} and count={self.count} must be at least 1, "
                f"side={self.side} at least 32"
            )


@dataclass(frozen=True, slots=True)
class DemoImage:
    """An image to upload, and the label that the simulated readers know.

    Attributes:
        name: of the uploaded file: unique, without a hint at label or patient.
        content: PNG or JPEG file.
    """

    name: str
    content: bytes
    label: str
    patient_id: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """A label config, and the classes that it offers, least severe first."""

    xml: str
    classes: tuple[str, ...]


def choose_question(table: Path | None) -> Question:
    """The first shipped label config that offers all labels of the visitor's table, or of the drawn images.

    Raises:
        SettingsError: the table cannot be read.
    """
    labels = set(DRAWN_CLASSES)
    if table is not None:
        rows = read_rows(table, COLUMNS, lambda line, row: (line, row["label"]), whole=unlike_spellings)
        labels = {label for _, label in rows}
    questions = []
    for name in LABEL_CONFIGS:
        xml = read_label_config(name)
        questions.append(Question(xml, training_classes(parse_label_config(xml), ProjectOptions.resolve(environ={}))))
    # Where none fits, the first: ``read_images`` then names the rows with labels that it does not offer.
    return next((question for question in questions if labels <= set(question.classes)), questions[0])


def draw_images(count: int, seed: int, side: int) -> list[DemoImage]:
    """Draw synthetic chest X-rays, ``side`` pixels square: 14 % normal, 36 % moderate, 50 % severe."""
    images = []
    for number, (pixels, label, patient) in enumerate(zip(*draw_pool(count, DRAWN_SHARES, seed, side), strict=True)):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        images.append(DemoImage(f"image-{number:05d}.png", content.getvalue(), DRAWN_CLASSES[int(label)], patient))
    return images


def read_images(folder: Path, table: Path, classes: Sequence[str]) -> list[DemoImage]:
    """Read the visitor's images.

    Args:
        folder: root of the paths in the table.
        table: CSV file with the columns ``path`` and ``label``, and optionally ``patient_id``.
        classes: the labels that are allowed.

    Raises:
        SettingsError: names every bad row by its line and column (the first ten of many).
    """
    if not folder.is_dir():
        raise SettingsError(
            f"IMAGES={str(folder)!r} does not exist or is not a directory: name the root of the paths in LABELS"
        )
    numbers = itertools.count()
    return read_rows(table, COLUMNS, lambda _, row: _read_image(folder, row, classes, next(numbers)), key=("path",))


def _read_image(folder: Path, row: Mapping[str, str], classes: Sequence[str], number: int) -> DemoImage:
    """Read one row's image.

    Raises:
        ValueError: names the column, the value, and what was expected.
    """
    path, label = row["path"], row["label"]
    if label not in classes:
        raise ValueError(f"column label: {label!r} is not a class; known are {', '.join(classes)}")
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"column path: {path!r} is not a path inside {folder}")
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"column path: {path!r} does not end in {', '.join(SUFFIXES)}")
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"column path: {path!r} is not a readable image ({error})") from error
    # A new name: Label Studio shows it to readers, and the visitor's may hold a patient's name or a class.
    return DemoImage(f"image-{number:05d}{file.suffix.lower()}", content, label, patient_of(row.get("patient_id")))


def project_options(demo: DemoOptions, *, has_imagenet: bool, environ: Mapping[str, str]) -> dict[str, object]:
    """The ``extra_params`` of the demo's connection.

    Args:
        demo: the visitor's options.
        has_imagenet: whether the ImageNet weights are on this machine.
        environ: ``AL_<NAME>`` replaces the demo's default of an option.

    Raises:
        SettingsError: names each wrong value and what is allowed.
    """
    chosen = PROJECT_DEFAULTS | {"weights": "imagenet" if has_imagenet else "none"}
    chosen = {name: environ.get(f"AL_{name.upper()}", value) for name, value in chosen.items()}
    chosen |= {"strategy": demo.strategy, "seed": demo.seed}
    resolved = ProjectOptions.resolve(
        chosen,
        environ={},
        spell=lambda name: f"--{name}" if name in {"strategy", "seed"} else f"AL_{name.upper()}",
    ).model_dump()
    return {name: resolved[name] for name in chosen}


def check_enough(
    images: Sequence[DemoImage], classes: Sequence[str], demo: DemoOptions, options: ProjectOptions
) -> None:
    """Check that the images suffice for the rounds.

    Raises:
        SettingsError: gives the number of images, the number needed, and the way out.
    """
    more = "a larger --count" if demo.images is None else "more images"
    counts = Counter(image.label for image in images)
    least = options.min_labels_per_class
    short = [f"{name} has {counts[name]}" for name in classes if counts[name] < least]
    if not can_train({name: counts[name] for name in classes}, least):
        raise SettingsError(
            f"a network is trained once two classes have {least} labels, but {' and '.join(short)} of {len(images)} "
            f"images: give {more}, or set AL_MIN_LABELS_PER_CLASS"
        )
    # At best the start set is the first batch; readers label half a batch at most while a round runs.
    needed = options.retrain_after * demo.rounds + options.retrain_after // 2 + demo.readers
    if len(images) < needed:
        raise SettingsError(
            f"{demo.rounds} rounds need {needed} images or more, there are {len(images)}: "
            f"give {more}, fewer ROUNDS, or set AL_RETRAIN_AFTER"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The images, the question about them, and the options of the project: as its connection has them, and resolved."""

    images: Sequence[DemoImage]
    question: Question
    extra_params: dict[str, object]
    options: ProjectOptions


def make_plan(options: DemoOptions, question: Question, given: Sequence[DemoImage] | None, view: View) -> Plan:
    """Resolve the options of the project, and draw the images where the visitor gave none.

    Raises:
        SettingsError: an option is wrong, or the images do not suffice for the rounds.
    """
    # Imports torch, which takes seconds.
    from ml_backend.model.backbones import weights_file  # noqa: PLC0415

    backbone = os.environ.get("AL_BACKBONE") or "resnet50"
    extra_params = project_options(
        options, has_imagenet=weights_file(backbone, "imagenet") is not None, environ=os.environ
    )
    if extra_params["weights"] == "none" and "AL_WEIGHTS" not in os.environ:
        view.print(
            f"ImageNet weights of {backbone} are not on this machine: the demo continues with untrained features"
        )
    images = given
    if images is None:
        view.step("drawing images", 0, None)
        images = draw_images(options.count, options.seed, options.side)
        view.step("drawing images", 1, 1)
    resolved = ProjectOptions.resolve(extra_params, parse_label_config(question.xml).attributes)
    check_enough(images, question.classes, options, resolved)
    return Plan(images, question, extra_params, resolved)
