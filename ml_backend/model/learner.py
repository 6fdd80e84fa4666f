"""The learner of a round: images and labels in, a fitted network and its posterior over the pool out."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache as once
from pathlib import Path
from typing import Final, Literal

import structlog
import torch

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError
from ml_backend.images.cache import ImageCache
from ml_backend.images.dataset import read_ahead
from ml_backend.images.source import ImageSource
from ml_backend.model import training
from ml_backend.model.backbones import Backbone, load_backbone
from ml_backend.model.checkpoint import FILE_NAME, earlier_network, save_checkpoint, take_up
from ml_backend.model.data import FeatureExamples, LabelledSet, require_enough
from ml_backend.model.features import (
    FOLDER,
    FeatureExtractor,
    FeatureSource,
    FeatureTable,
    TableBackbone,
    TableFeatures,
)
from ml_backend.model.generators import seeded
from ml_backend.model.hardware import Arithmetic, choose_device, one_thread
from ml_backend.model.network import McDropoutClassifier
from ml_backend.model.scoring import FittedNetwork
from ml_backend.model.training import Fitted, Schedule
from ml_backend.model.validation import accuracy, auroc, recalls
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.schemas import FitReport, ImageRef, Label
from ml_backend.seeding import derive

IMAGES: Final = "images"
"""Where the pixels are kept, below the cache that a learner is given."""

LearnerStage = Literal["features", "train", "score"]

log = structlog.get_logger(__name__)


def _silent(stage: LearnerStage, done: int, total: int) -> None:
    del stage, done, total


class McDropoutLearner:
    """Trains an ``McDropoutClassifier`` and asks it about a pool. Satisfies ``engine.ports.Learner``.

    With ``finetune: head`` the backbone is frozen: its features are computed once an image and kept on disk, and a
    fit takes about a second. With ``full`` the whole network is trained. ``auto`` is full on a GPU and head on a CPU.

    With ``retrain: scratch`` every fit starts from the same weights. With ``warm`` it goes on from those of the last
    fit, or of ``warm_from`` where this learner has made none, under the standardisation that they were fitted under;
    where these do not fit any more it says so in the log and starts from scratch.

    Args:
        options: of the project. ``options.seed`` is not looked at: ``seed`` is.
        source: where images come from; not looked at where there is a table.
        cache: folder of pixels and features; may be shared by projects, rounds and processes. Likewise.
        device: ``auto`` takes the GPU where there is one.
        seed: of the first weights, the training and the masks.
        progress: called with ``features``, ``train`` or ``score``, what is done of it and all.
        warm_from: folder that an earlier learner saved its network into.
        cache_limit_bytes: what the images in the cache may take, and again the features: 20 GiB are 400,000 images
            at 224 pixels and 2.5 million feature vectors of a ResNet50.
        table: of features, for a study that has no images; the backbone and its weights are not looked at then.

    Raises:
        SettingsError: ``cuda`` on a machine without a usable GPU, a precision that the device lacks,
            ``min_epochs`` above ``epochs``, or ``finetune: full`` with a table.
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
        warm_from: Path | None = None,
        cache_limit_bytes: int = 20 * 2**30,
        table: FeatureTable | None = None,
    ) -> None:
        if table is not None and options.finetune == "full":
            raise SettingsError("finetune='full', but a table of features has no images: set finetune=head")
        self._options = options
        self._device = choose_device(device)
        self._arithmetic = Arithmetic.of(self._device, options.precision, channels_last=options.channels_last)
        self._warm_from = warm_from
        self._cache_limit_bytes = cache_limit_bytes
        self._seed = seed
        self._progress = progress
        self._images = ImageCache(source, cache / IMAGES, options.image_side, cache_limit_bytes)
        self._feature_folder = cache / FOLDER
        self._table = None if table is None else TableBackbone(table)
        on_cpu = self._device.type == "cpu"
        self._head_only = options.finetune == "head" or (options.finetune == "auto" and (on_cpu or table is not None))
        self._schedule = Schedule.of(options, head_only=self._head_only)
        self._loaded: Backbone | None = self._table
        self._frozen: FeatureSource | None = None if table is None else TableFeatures(table, self._device)
        self._fit: FittedNetwork | None = None
        self._last: FittedNetwork | None = None  # only where a warm start wants it

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        """Train; see ``engine.ports.Learner``.

        Raises:
            TooFewLabels: fewer than 2 readable images to train on, or none to validate on.
            SettingsError: no such backbone.
            WeightsError: the backbone's weights cannot be had.
            RoundError: training diverged, or the GPU's memory is too small.
        """
        self._fit = None
        total = len(train) + len(validation)
        train_set = self._load(train, classes, lambda done: self._progress("features", done, total))
        validation_set = self._load(
            validation, classes, lambda done: self._progress("features", len(train) + done, total)
        )
        require_enough(train_set, validation_set)
        earlier = self._earlier(classes)
        network, fitted = self._train(train_set, validation_set, classes, earlier)
        self._fit = self._fitted(network, classes, (train_set, validation_set))
        self._last = self._fit if self._options.retrain == "warm" else None
        features = validation_set.features(self._fit.extractor)
        probs = network.head.passes(features, self._fit.masks).mean(dim=1).cpu().numpy()
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
            validation_recall=recalls(probs, targets, classes),
            began="scratch" if earlier is None else "warm",
            exclusions=train_set.exclusions + validation_set.exclusions,
        )

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Draw the stochastic passes over the pool, with one set of masks; see ``engine.ports.Learner``.

        The same image gets the same probabilities whatever else is in the pool (to rounding; to the bit whatever
        other shards of ``scoring.SHARD_IMAGES`` are). ``labelled_features`` are known where this learner fitted.

        Raises:
            RoundError: nothing was fitted yet, or the GPU's memory is too small.
        """
        fit = self._require_fit()
        outputs = fit.outputs(pool, needs, lambda done: self._progress("score", done, len(pool)))
        self._trim(fit.extractor)
        return outputs

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
            self._images.trim()
            return
        done = 0
        for batch in extractor.batches(images):
            done += len(batch.images) + len(batch.exclusions)
            self._progress("features", done, len(images))
        self._trim(extractor)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """Features of the backbone as it was loaded, also where it is trained; see ``engine.ports.Learner``."""
        if self._options.weights == "none" and self._table is None:
            log.warning("an untrained backbone hardly tells which images look alike: set weights", weights="none")
        extractor = self._frozen_extractor()
        seen = extractor.all(images, lambda done: self._progress("features", done, len(images)))
        self._trim(extractor)
        image_ids = tuple(image.id for image in seen.images)
        return ImageFeatures(image_ids, seen.features.cpu().numpy(), seen.exclusions, seen.keys)

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

    def restore(self, folder: str) -> None:
        """Take up the network that ``save`` wrote into a folder, in this process or another.

        On the same kind of device ``outputs`` gives the same bits as of the learner that saved it.

        Raises:
            WeightsError: see ``resume.take_up``.
        """
        checkpoint = take_up(Path(folder), self._options, head_only=self._head_only, table=self._table)
        self._arithmetic.place(checkpoint.network)
        self._fit = self._fitted(checkpoint.network, checkpoint.classes, None)

    def _earlier(self, classes: Sequence[str]) -> McDropoutClassifier | None:
        if self._options.retrain != "warm":
            return None
        last = None if self._last is None else (self._last.network, self._last.classes)
        return earlier_network(
            last, self._warm_from, self._options, classes, head_only=self._head_only, table=self._table
        )

    def _train(
        self,
        train_set: LabelledSet,
        validation_set: LabelledSet,
        classes: Sequence[str],
        earlier: McDropoutClassifier | None,
    ) -> tuple[McDropoutClassifier, Fitted]:
        """A new network, fitted: every call starts from the same weights, or from those of an earlier network."""
        backbone = self._backbone() if self._head_only else copy.deepcopy(self._backbone())
        with seeded(self._seed, "head"):
            network = McDropoutClassifier(len(classes), backbone, dropout=self._options.dropout)
        self._arithmetic.place(network)
        part = network.head if self._head_only else network
        if earlier is not None:
            part.load_state_dict((earlier.head if self._head_only else earlier).state_dict())
        elif isinstance(train_set.examples, FeatureExamples) and self._options.weights == "none":
            network.head.standardise(train_set.examples.features)
        with one_thread() if self._head_only else nullcontext():
            fitted = training.train(
                part,
                train_set.examples,
                validation_set.examples,
                classes,
                schedule=self._schedule,
                arithmetic=self._arithmetic,
                seed=derive(self._seed, "fit"),
                progress=lambda done, total: self._progress("train", done, total),
            )
        network.eval()
        return network, fitted

    def _fitted(
        self, network: McDropoutClassifier, classes: Sequence[str], sets: tuple[LabelledSet, ...] | None
    ) -> FittedNetwork:
        extractor: FeatureSource
        if self._head_only:
            extractor = self._frozen_extractor()
        else:
            extractor = FeatureExtractor(network.backbone, self._images, self._arithmetic, None)
        return FittedNetwork(
            network,
            tuple(classes),
            extractor,
            network.head.masks(self._options.passes, self._seed),
            None if sets is None else once(lambda: torch.cat([one.features(extractor) for one in sets])),
        )

    def _load(self, labels: Sequence[Label], classes: Sequence[str], progress: Callable[[int], None]) -> LabelledSet:
        if self._head_only:
            return LabelledSet.of_features(labels, classes, self._frozen_extractor(), progress)
        return LabelledSet.of_pixels(labels, classes, self._images, self._device, progress)

    def _backbone(self) -> Backbone:
        """As loaded; never trained."""
        if self._loaded is None:
            self._loaded = load_backbone(self._options.backbone, self._options.weights)
        return self._loaded

    def _frozen_extractor(self) -> FeatureSource:
        if self._frozen is None:
            self._frozen = FeatureExtractor(
                self._backbone(), self._images, self._arithmetic, self._feature_folder, self._cache_limit_bytes
            )
        return self._frozen

    def _require_fit(self) -> FittedNetwork:
        if self._fit is None:
            raise RoundError("there is no fitted network: call fit first")
        return self._fit

    def _trim(self, extractor: FeatureSource) -> None:
        self._images.trim()
        extractor.trim()
