"""The learner of a round: images and labels in, a fitted network and its posterior over the pool out."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from ml_backend.errors import RoundError, SettingsError, TooFewLabels
from ml_backend.images.cached import ImageCache
from ml_backend.images.dataset import load_labelled, read_ahead
from ml_backend.images.source import ImageSource
from ml_backend.model import training
from ml_backend.model.backbones import Backbone
from ml_backend.model.checkpoint import FILE_NAME, save_checkpoint
from ml_backend.model.features import FeatureExtractor
from ml_backend.model.inference import regroup
from ml_backend.model.network import McDropoutClassifier
from ml_backend.model.randomness import derive, seeded
from ml_backend.model.threads import one_thread
from ml_backend.model.training import FeatureExamples, Fitted, PixelExamples, Schedule
from ml_backend.model.validation import accuracy, auroc
from ml_backend.model.weights import load_backbone
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Exclusion, FitReport, ImageRef, Label
from ml_backend.settings import ProjectOptions

__all__ = ["CACHE_LIMIT_BYTES", "LearnerStage", "McDropoutLearner"]

CACHE_LIMIT_BYTES = 20 * 2**30
"""Of the pixels, and again of the features: 400,000 images at 224 pixels, 2.5 million ResNet50 feature vectors."""

LearnerStage = Literal["features", "train", "score"]


def _silent(stage: LearnerStage, done: int, total: int) -> None:
    del stage, done, total


@dataclass(frozen=True, slots=True, eq=False)
class _Set:
    """The readable part of the labels of training or validation."""

    images: tuple[ImageRef, ...]
    examples: FeatureExamples | PixelExamples
    exclusions: tuple[Exclusion, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """The network of the last fit, and what turns images into its features."""

    network: McDropoutClassifier
    classes: tuple[str, ...]
    extractor: FeatureExtractor


class McDropoutLearner:
    """Trains an ``McDropoutClassifier`` from scratch at every fit. Satisfies ``engine.ports.Learner``.

    With ``finetune: head`` the backbone is frozen: its features are computed once an image and kept on disk, and a
    fit takes about a second. With ``full`` the whole network is trained, from the same start at every fit. ``auto``
    is full on a GPU and head on a CPU.

    Args:
        options: of the project. ``options.seed`` is not looked at: ``seed`` is.
        source: where images come from.
        cache: folder of pixels and features; may be shared by projects, rounds and processes.
        device: ``auto`` takes the GPU where there is one.
        seed: of the first weights, the training and the masks.
        progress: called with ``features``, ``train`` or ``score``, what is done of it and all.

    Raises:
        SettingsError: ``cuda`` on a machine without a usable GPU.
    """

    def __init__(
        self,
        options: ProjectOptions,
        source: ImageSource,
        cache: Path,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        seed: int = 0,
        progress: Callable[[LearnerStage, int, int], None] = _silent,
    ) -> None:
        self._options = options
        self._device = _choose_device(device)
        self._seed = seed
        self._progress = progress
        self._images = ImageCache(source, cache / "images", options.image_side)
        self._feature_folder = cache / "features"
        self._head_only = options.finetune == "head" or (options.finetune == "auto" and self._device.type == "cpu")
        self._loaded: Backbone | None = None
        self._frozen: FeatureExtractor | None = None
        self._fit: _Fit | None = None

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        """Train from scratch; see ``engine.ports.Learner``.

        Raises:
            TooFewLabels: fewer than 2 readable images to train on, or none to validate on.
            SettingsError: no such backbone.
            WeightsError: the backbone's weights cannot be had.
            RoundError: training diverged, or the GPU's memory is too small.
        """
        self._fit = None
        total = len(train) + len(validation)
        load = self._load_features if self._head_only else self._load_pixels
        train_set = load(train, classes, lambda done: self._progress("features", done, total))
        validation_set = load(validation, classes, lambda done: self._progress("features", len(train) + done, total))
        _require_enough(train_set, validation_set)
        network, fitted = self._train(train_set, validation_set, classes)
        self._fit = _Fit(network, tuple(classes), self._extractor_of(network))
        probs = self._validation_probs(self._fit, validation_set).mean(dim=1).cpu().numpy()
        targets = validation_set.examples.targets.cpu().numpy()
        return FitReport(
            epochs=fitted.epochs,
            best_epoch=fitted.best_epoch,
            class_weights=dict(zip(classes, fitted.class_weights, strict=True)),
            train_images=len(train_set.images),
            validation_images=len(validation_set.images),
            validation_loss=fitted.validation_loss,
            validation_accuracy=accuracy(probs, targets),
            validation_auroc=auroc(probs, targets),
            exclusions=train_set.exclusions + validation_set.exclusions,
        )

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Literal["probs", "features"]]) -> PoolOutputs:
        """Draw the stochastic passes over the pool, with one set of masks; see ``engine.ports.Learner``.

        The same image gets the same probabilities whatever else is in the pool (to rounding).

        Raises:
            RoundError: nothing was fitted yet, or the GPU's memory is too small.
        """
        fit = self._require_fit()
        head = fit.network.head
        masks = head.masks(self._options.passes, self._seed)
        ids: list[str] = []
        exclusions: list[Exclusion] = []
        probs = [torch.empty(0, self._options.passes, len(fit.classes))]
        features = [torch.empty(0, fit.network.backbone.dims)]

        def batches() -> Iterator[Tensor]:
            for batch in fit.extractor.batches(pool):
                ids.extend(image.id for image in batch.images)
                exclusions.extend(batch.exclusions)
                self._progress("score", len(ids) + len(exclusions), len(pool))
                yield batch.features

        for chunk in regroup(batches()):
            probs.append(head.passes(chunk, masks).cpu())
            if "features" in needs:
                features.append(chunk.cpu())
        self._trim(fit.extractor)
        return PoolOutputs(
            image_ids=tuple(ids),
            classes=fit.classes,
            probs=torch.cat(probs).numpy(),
            features=torch.cat(features).numpy() if "features" in needs else None,
            exclusions=tuple(exclusions),
        )

    def prepare(self, images: Sequence[ImageRef]) -> None:
        """Fill the caches, so that the first fit need not. An unreadable image is no error here.

        Raises:
            SettingsError, WeightsError: as the first fit would, but before anybody has labelled in vain.
        """
        # Loaded in any case, for the errors.
        extractor = self._frozen_extractor() if self._head_only else None
        self._backbone()
        if extractor is None:
            for done, _ in enumerate(read_ahead(images, lambda image: self._images.read(image).key), start=1):
                self._progress("features", done, len(images))
            return
        done = 0
        for batch in extractor.batches(images):
            done += len(batch.images) + len(batch.exclusions)
            self._progress("features", done, len(images))
        self._trim(extractor)

    def save(self, folder: str) -> None:
        """Write the fitted network into a folder, as ``model.safetensors``.

        Raises:
            RoundError: nothing was fitted yet.
        """
        fit = self._require_fit()
        save_checkpoint(
            Path(folder) / FILE_NAME,
            fit.network,
            fit.classes,
            self._options,
            self._seed,
            frozen_backbone=self._head_only,
        )

    def _train(
        self, train_set: _Set, validation_set: _Set, classes: Sequence[str]
    ) -> tuple[McDropoutClassifier, Fitted]:
        """A new network, fitted. Every call starts from the same weights."""
        backbone = self._backbone() if self._head_only else copy.deepcopy(self._backbone())
        with seeded(self._seed, "head"):
            network = McDropoutClassifier(len(classes), backbone, dropout=self._options.dropout)
        network.to(self._device)
        if self._device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        if isinstance(train_set.examples, FeatureExamples) and self._options.weights == "none":
            network.head.standardise(train_set.examples.features)
        with one_thread() if self._head_only else nullcontext():
            fitted = training.train(
                network.head if self._head_only else network,
                train_set.examples,
                validation_set.examples,
                classes,
                schedule=Schedule.of(self._options, head_only=self._head_only),
                seed=derive(self._seed, "fit"),
                progress=lambda done, total: self._progress("train", done, total),
            )
        network.eval()
        return network, fitted

    def _load_features(self, labels: Sequence[Label], classes: Sequence[str], progress: Callable[[int], None]) -> _Set:
        batch = self._frozen_extractor().all([label.image for label in labels], progress)
        value_of = {label.image.id: label.value for label in labels}
        targets = torch.tensor([classes.index(value_of[image.id]) for image in batch.images], dtype=torch.int64)
        return _Set(batch.images, FeatureExamples(batch.features, targets.to(self._device)), batch.exclusions)

    def _load_pixels(self, labels: Sequence[Label], classes: Sequence[str], progress: Callable[[int], None]) -> _Set:
        loaded = load_labelled(labels, classes, self._images.read, progress)
        examples = PixelExamples(loaded.pixels, loaded.targets.to(self._device))
        return _Set(loaded.images, examples, loaded.exclusions)

    def _validation_probs(self, fit: _Fit, validation_set: _Set) -> Float32[Tensor, "images passes classes"]:
        head = fit.network.head
        masks = head.masks(self._options.passes, self._seed)
        if isinstance(validation_set.examples, FeatureExamples):
            return head.passes(validation_set.examples.features, masks)
        return head.passes(fit.extractor.run(validation_set.examples.pixels), masks)

    def _backbone(self) -> Backbone:
        """As loaded; never trained."""
        if self._loaded is None:
            self._loaded = load_backbone(self._options.backbone, self._options.weights)
        return self._loaded

    def _frozen_extractor(self) -> FeatureExtractor:
        if self._frozen is None:
            self._frozen = FeatureExtractor(self._backbone(), self._images, self._device, self._feature_folder)
        return self._frozen

    def _extractor_of(self, network: McDropoutClassifier) -> FeatureExtractor:
        if self._head_only:
            return self._frozen_extractor()
        return FeatureExtractor(network.backbone, self._images, self._device, None)

    def _require_fit(self) -> _Fit:
        if self._fit is None:
            raise RoundError("there is no fitted network: call fit first")
        return self._fit

    def _trim(self, extractor: FeatureExtractor) -> None:
        self._images.trim(CACHE_LIMIT_BYTES)
        extractor.trim(CACHE_LIMIT_BYTES)


def _choose_device(wanted: str) -> torch.device:
    if wanted != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "cuda":
        raise SettingsError("device='cuda', but torch finds no usable GPU: set AL_DEVICE=auto or cpu")
    return torch.device("cpu")


def _require_enough(train_set: _Set, validation_set: _Set) -> None:
    exclusions = train_set.exclusions + validation_set.exclusions
    if len(train_set.images) < 2 or not validation_set.images:
        unread = f"; {len(exclusions)} more cannot be read, the first: {exclusions[0].reason}" if exclusions else ""
        raise TooFewLabels(
            f"{len(train_set.images)} readable labelled images to train on and {len(validation_set.images)} to "
            f"validate on, at least 2 and 1 are needed: label more images{unread}"
        )
