"""Exports the network of a stored round: a folder with the network, its ONNX files, and a model card."""

import json
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8

from ml_backend.analytics.evaluation import wilson
from ml_backend.analytics.history import HELD_OUT, HeldOutPredictions
from ml_backend.analytics.overview import analyse
from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import BackendError, SettingsError, StorageError, UnknownRound, WeightsError
from ml_backend.images.cache import ImageCache
from ml_backend.images.dataset import read_ahead
from ml_backend.images.decode import PREPROCESSING
from ml_backend.images.synthetic import draw_pool
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.model.checkpoint import FILE_NAME, Checkpoint
from ml_backend.model.export import (
    HEAD,
    MASKS,
    MODEL,
    OnnxCheck,
    check_onnx,
    input_side_of,
    load_networks,
    save_networks,
    write_onnx,
)
from ml_backend.model.learner import IMAGES
from ml_backend.rounds.live import open_project
from ml_backend.rounds.replay import package_version
from ml_backend.schemas import Exclusion, FrozenModel, ProjectKey, RoundReport
from ml_backend.seeding import fixed_set
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.rounds import KEPT_NETWORKS, sha256_of, sha256_of_files

CARD: Final = "card.json"
COMPARED_IMAGES: Final = 64
"""Images on which the ONNX files are compared with the network."""
NOTICE: Final = (
    "Not a medical device. This network was trained to choose the images that people label next; it was not validated "
    "for diagnosis, and must not be used for it."
)


class Figure(FrozenModel):
    """A share that was counted on ``n`` images, and Wilson's 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, correct: int, n: int) -> "Figure | None":
        """None where nothing was counted."""
        low, high = wilson(correct, n)
        return cls(value=correct / n, low=low, high=high, n=n) if n else None

    def __str__(self) -> str:
        return f"{100 * self.value:.0f} % (95 % interval {100 * self.low:.0f} to {100 * self.high:.0f} %, n = {self.n})"


class ModelCard(FrozenModel):
    """What is known of an exported model: ``card.json``, which ``README.md`` says in words.

    Attributes:
        classes: in the order of the outputs; least severe first.
        networks: number of networks; of an ensemble more than one.
        passes: stochastic passes of all networks together.
        weights: that the backbone began with: ``imagenet``, ``none``, or the name of a file.
        trained: ``head`` on a frozen backbone, or ``full``.
        image_side: of the square input in pixels.
        mean: of each input channel on the 0 to 1 scale; ``std`` likewise. ``model.onnx`` normalises by itself.
        labels_per_class: all labels that the round learned from or validated on; ``prevalence``: their shares.
        validation: accuracy on validation images, which the strategy has chosen: harder than the average image.
        recall: share of each class that was predicted as this class, on the same images.
        holdout: accuracy on randomly drawn images before they had a label, as of this round, by its network and those
            before; None where fewer than 30 have a label.
        onnx: the ONNX files against the network; None without them.
        trained_at: beginning of the round.
        version: of this package in the round; ``code`` is the SHA-256 of its files, ``versions`` are the libraries'.
        manifest: SHA-256 of the round's manifest; ``options`` are the project's in the round.
        files: SHA-256 of every other file of the folder.
    """

    format: Literal[1] = 1
    notice: str = NOTICE
    project: int
    round_id: str
    classes: tuple[str, ...]
    networks: int
    passes: int
    backbone: str
    weights: str
    trained: Literal["head", "full"]
    preprocessing: str = PREPROCESSING
    image_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels_per_class: dict[str, int]
    prevalence: dict[str, float]
    train_images: int
    validation_images: int
    validation: Figure | None
    recall: dict[str, Figure | None]
    auroc: float | None
    holdout: Figure | None
    onnx: OnnxCheck | None = None
    trained_at: datetime
    exported_at: datetime
    version: str
    code: str
    versions: Mapping[str, str]
    manifest: str | None
    options: Mapping[str, object]
    files: Mapping[str, str] = {}


def round_to_export(store: ProjectStore, wanted: str | None) -> RoundReport:
    """The report of the round whose network is exported.

    Args:
        store: of the project.
        wanted: a round's number or id; a round that only ranked anew stands for the one whose network did. None: the
            newest round with a network.

    Raises:
        UnknownRound: there is no such round, or its network is gone.
    """
    kept = [one for one in store.round_ids() if store.network(one) is not None]
    there = f"rounds with a network: {', '.join(kept) or 'none'}"
    if wanted is None:
        if not kept:
            raise UnknownRound("no round of this project has a network to export yet: label until one has trained")
        return store.report(kept[-1])
    number = wanted.removeprefix("r")
    round_id = f"r{int(number):06d}" if number.isdecimal() else wanted
    if round_id not in store.round_ids():
        raise UnknownRound(f"--round {wanted}: there is no such round; {there}")
    report = store.report(round_id)
    if report.base is not None:
        report = store.report(report.base)
    if report.request.round_id not in kept:
        raise UnknownRound(
            f"--round {wanted}: its network is not stored; the last {KEPT_NETWORKS} rounds that trained keep theirs; "
            f"{there}"
        )
    return report


def export_round(
    settings: Settings, key: ProjectKey, out: Path, wanted: str | None = None, *, onnx: bool = True
) -> ModelCard:
    """Write the network of a round into a new folder, which appears whole or not at all.

    Args:
        settings: of the installation; Label Studio is asked for images that the cache no longer has.
        key: of the project.
        out: the folder; must not exist, or be empty.
        wanted: see ``round_to_export``.
        onnx: also write ONNX files, which needs the packages of the extra ``export``.

    Raises:
        SettingsError: the folder has files already.
        UnknownRound: see ``round_to_export``.
        WeightsError: the network or its backbone cannot be read.
        RoundError: PyTorch cannot write it as ONNX.
        StorageError: the disk refuses.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"--out {out} exists already: name a new folder, or delete it")
    store = RoundStore(settings.data_dir).project(key)
    report = round_to_export(store, wanted)
    folder = store.network(report.request.round_id)
    if folder is None:
        raise UnknownRound(f"the network of round {report.request.round_id} has just been removed: export a newer one")
    networks = load_networks(folder)
    card = make_card(store, report, networks)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as temporary:
            made = Path(temporary) / "model"
            made.mkdir()
            save_networks(made, networks)
            if onnx:
                write_onnx(made, networks)
                pixels = _pool_pixels(settings, key, store, report, input_side_of(networks))
                card = card.model_copy(update={"onnx": check_onnx(made, networks, *pixels)})
            card = card.model_copy(update={"files": sha256_of_files(made)})
            (made / CARD).write_text(card.model_dump_json(indent=1))
            (made / "README.md").write_text(readme(card))
            os.replace(made, out)  # noqa: PTH105 - over an empty folder, which Path.rename also allows, on POSIX only
    except OSError as error:
        raise StorageError(f"the model could not be written to {out}: {error}") from error
    return card


def open_exported(folder: Path) -> tuple[Checkpoint, ...]:
    """The networks of an exported folder, if they are those that its card names.

    Raises:
        WeightsError: there is no card; a network is missing, damaged, or of another export; or see ``load_networks``.
    """
    try:
        expected = {**json.loads((folder / CARD).read_bytes())["files"]}
        found = {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob(FILE_NAME)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{folder} cannot be read ({error}): expected the whole folder that `ml-backend export` wrote"
        ) from error
    for name in sorted({one for one in expected if Path(one).name == FILE_NAME} | found.keys()):
        if found.get(name) != expected.get(name):
            raise WeightsError(
                f"{folder / name} is {'not the file' if name in found else 'missing, a network'} that {CARD} names: "
                "copy the whole folder again"
            )
    return load_networks(folder)


def make_card(store: ProjectStore, report: RoundReport, networks: tuple[Checkpoint, ...]) -> ModelCard:
    """The card of a round's network, without its files.

    Args:
        store: of the project.
        report: of the round, which trained the network.
        networks: of the round.

    Raises:
        StorageError: a record of the round is damaged.
    """
    request, fit, first = report.request, report.fit, networks[0]
    if fit is None:
        raise UnknownRound(f"round {request.round_id} has trained no network")
    held_out = store.record(request.round_id, HELD_OUT, HeldOutPredictions)
    confusion = {} if held_out is None else held_out.confusion()
    labels = sum(report.labels_per_class.values())
    manifest = store.manifest(request.round_id)
    normalisation = first.network.backbone.normalisation
    return ModelCard(
        project=request.project.id,
        round_id=request.round_id,
        classes=first.classes,
        networks=len(networks),
        passes=sum(one.options.passes for one in networks),
        backbone=first.network.backbone.name,
        # Of a file its name alone: where it lies concerns this machine.
        weights=Path(first.options.weights).name,
        trained="head" if first.frozen_backbone else "full",
        image_side=input_side_of(networks),
        mean=normalisation.mean,
        std=normalisation.std,
        labels_per_class=dict(report.labels_per_class),
        prevalence={name: count / labels for name, count in report.labels_per_class.items()} if labels else {},
        train_images=fit.train_images,
        validation_images=fit.validation_images,
        validation=Figure.of(round(fit.validation_accuracy * fit.validation_images), fit.validation_images),
        recall={
            name: Figure.of(confusion[name][name], sum(confusion[name].values())) if name in confusion else None
            for name in first.classes
        },
        auroc=fit.validation_auroc,
        holdout=_holdout(store, request.round_id),
        trained_at=report.started_at,
        exported_at=datetime.now(UTC),
        version=package_version() if manifest is None else manifest.version,
        code="" if manifest is None else manifest.code,
        versions={} if manifest is None else manifest.versions,
        manifest=store.manifest_hash(request.round_id),
        options={**request.options, "weights": Path(first.options.weights).name},
    )


def _holdout(store: ProjectStore, round_id: str) -> Figure | None:
    """The accuracy on holdout images as the owner's page had it after this round."""
    connection = store.connection()
    if connection is None:
        return None
    try:
        config = parse_label_config(connection.label_config)
        options = ProjectOptions.resolve(connection.extra_params, config.attributes)
        estimate = analyse(store, config, options, refresh=True).control
    except BackendError:  # the config or an option is wrong by now
        return None
    until = [] if estimate is None else [one for one in estimate.running if one.round_id <= round_id]
    return Figure.of(until[-1].correct, until[-1].n) if until else None


def _pool_pixels(
    settings: Settings, key: ProjectKey, store: ProjectStore, report: RoundReport, side: int
) -> tuple[UInt8[npt.NDArray[np.uint8], "images side side"], Literal["pool", "synthetic"]]:
    """Images of the round's pool, from the cache or Label Studio; drawn ones where none can be read."""
    inputs = store.inputs(report.request.round_id)
    pool = {} if inputs is None else {image.id: image for image in inputs.pool}
    chosen = fixed_set(tuple(pool), report.request.seed, COMPARED_IMAGES)
    found = []
    try:
        with open_project(settings, key, patience_s=0.0) as context:
            images = ImageCache(context.images, context.installation.cache / IMAGES, side)
            results = read_ahead([pool[image_id] for image_id in chosen], images.read)
            found = [result.pixels for _, result in results if not isinstance(result, Exclusion)]
    except BackendError:  # no key, or no Label Studio: the network can be exported all the same
        pass
    if found:
        return np.stack(found), "pool"
    drawn, _, _ = draw_pool(COMPARED_IMAGES, (1, 1, 1), seed=0, side=side)
    return np.stack(drawn), "synthetic"


def readme(card: ModelCard) -> str:
    """The card in words, as Markdown, with a program that predicts without this package."""
    ensemble = "" if card.networks == 1 else f", an ensemble of {card.networks} networks"
    tested_by = "" if card.networks == 1 else " (each label by the networks that were not trained on it)"
    part = "the head, on a frozen backbone" if card.trained == "head" else "the whole network"
    rows = "\n".join(
        f"| {name} | {card.labels_per_class.get(name, 0)} | {100 * card.prevalence.get(name, 0):.0f} % "
        f"| {card.recall.get(name) or 'not known'} |"
        for name in card.classes
    )
    files = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in card.files.items())
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    return f"""# Model of project {card.project}, round {int(card.round_id[1:])}

**{card.notice}**

A Monte Carlo dropout classifier of single images into {", ".join(card.classes)}{ensemble}.
Backbone: {card.backbone}, weights `{card.weights}`; trained part: {part}.
Trained on {card.trained_at:%Y-%m-%d %H:%M} UTC, exported on {card.exported_at:%Y-%m-%d}.

## Training and figures

| class | labels | share | recall in validation |
|---|---|---|---|
{rows}

The network expects classes as frequent as these labels, which active learning makes more equal than in the clinic: the
probabilities of a class that is rarer there are too high.

- Trained on {card.train_images} images, validated on {card.validation_images}{tested_by}.
- Accuracy in validation: {card.validation or "not known"}. Early stopping has seen these images; the strategy has
  chosen them, and they are harder than the average image.
- AU ROC in validation: {"not known" if card.auroc is None else f"{card.auroc:.2f}, without an interval"}.
- Accuracy on randomly drawn images before they had a label: {card.holdout or "not known: fewer than 30 have one"}.

## Input

A grayscale image, upright, transparency over black, squashed to {card.image_side} x {card.image_side} pixels
(bilinear, not cropped), 0 black to 255 white. 16-bit images are scaled by the smallest bit depth that holds their
brightest pixel. `model.onnx` normalises by itself: mean {", ".join(map(str, card.mean))}, standard deviation
{", ".join(map(str, card.std))}, of values 0 to 1.

## Predict

`ml-backend predict --model FOLDER --images FOLDER --out predictions.csv` computes the {card.passes} passes of the
round.
{_onnx_words(card)}
## Origin

label-studio-active-learning {card.version or "(not installed)"}, SHA-256 of its code `{card.code or "not known"}`;
{versions or "versions not known"}.
SHA-256 of the round's manifest: `{card.manifest or "not known"}`.
`{CARD}` holds all of this for programs, and every option of the training.

| file | SHA-256 |
|---|---|
{files}
"""


def _onnx_words(card: ModelCard) -> str:
    if (onnx := card.onnx) is None:
        return ""
    images = "images of the round's pool" if onnx.of == "pool" else "synthetic radiographs (no image could be read)"
    return f"""
Without this package, with ONNX Runtime, NumPy and Pillow:

```python
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

side = {card.image_side}, {card.image_side}
image = ImageOps.exif_transpose(Image.open("image.png"))
if image.mode.startswith("I"):  # 16 bits
    brightest = 2 ** max(8, int(np.asarray(image).max()).bit_length()) - 1
    pixels = np.round(np.asarray(image.resize(side, Image.Resampling.BILINEAR)) * (255.0 / brightest))
else:
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    pixels = image.convert("L").resize(side, Image.Resampling.BILINEAR, reducing_gap=2.0)
model = onnxruntime.InferenceSession("{MODEL}")
probabilities, features = model.run(None, {{"pixels": np.asarray(pixels, np.uint8)[None]}})

head = onnxruntime.InferenceSession("{HEAD}")
(passes,) = head.run(None, {{"features": features, **np.load("{MASKS}")}})
mean = passes.mean(axis=1)  # [images, classes]: {", ".join(card.classes)}
```

DICOM files, and colour or transparency of 16 bits, must be converted to gray first, as `predict` does by itself.
`probabilities` are those without dropout, an approximation of `mean`. On {onnx.images} {images} they
differ by {onnx.approximation_mean:.3f} on average and {onnx.approximation_largest:.3f} at most; both name the same
class for {onnx.same_class}. The passes of ONNX Runtime differ from PyTorch's by {onnx.onnx_difference:.0e} at most.
"""
