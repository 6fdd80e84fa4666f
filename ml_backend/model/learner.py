"""The learner of a round: trains a network on labelled images and scores a pool with it."""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

import torch

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError, WeightsError
from ml_backend.images.cache import ImageCache
from ml_backend.images.dataset import read_ahead
from ml_backend.images.source import ImageSource
from ml_backend.model import training
from ml_backend.model.backbones import Backbone, input_side, load_backbone
from ml_backend.model.checkpoint import FILE_NAME, load_compatible, save_checkpoint
from ml_backend.model.data import (
    FOLDER,
    TABLE,
    FeatureExamples,
    FeatureExtractor,
    FeatureSource,
    FeatureTable,
    LabelledDataset,
    TableBackbone,
    TableFeatures,
    require_enough,
)
from ml_backend.model.distributed import SINGLE, Group
from ml_backend.model.hardware import Precision, choose_device, one_thread, seeded
from ml_backend.model.inference import FittedNetwork
from ml_backend.model.network import McDropoutClassifier
from ml_backend.model.training import OptimizerConfig, TrainingResult
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.schemas import FitReport, HeldOutImage, ImageRef, Label
from ml_backend.seeding import derive

IMAGES: Final = "images"
"""Folder of the pixels, below a learner's cache."""

LearnerStage = Literal["features", "train", "score"]

LearnerProgress: TypeAlias = Callable[[LearnerStage, int, int], None]
"""Called with a stage, how much of it is done, and its total."""

_LOG = logging.getLogger(__name__)


def _no_progress(stage: LearnerStage, done: int, total: int) -> None:
    del stage, done, total


class McDropoutLearner:
    """Trains an ``McDropoutClassifier`` and scores a pool with it. Satisfies ``rounds.interfaces.Learner``.

    With ``finetune: head`` the backbone is frozen: its features are computed once an image and cached on disk, and a
    fit takes about a second. With ``full`` the whole network is trained. ``auto`` is full on a GPU and head on a CPU.

    With ``retrain: scratch`` every fit starts from the same weights. With ``warm`` it continues from those of the last
    fit, or of ``warm_from`` before the first fit, with their standardisation; if they do not fit any more, it logs the
    reason and starts from scratch.

    Args:
        options: of the project; ``seed`` replaces ``options.seed``.
        source: of the images; unused with a table.
        cache: folder of pixels and features; may be shared by projects, rounds and processes. Unused with a table.
        device: ``auto`` is the GPU if there is one.
        seed: of initial weights, training and masks.
        progress: see ``LearnerProgress``.
        warm_from: folder into which an earlier learner saved its network.
        cache_limit_bytes: disk space of the cached images, and again of the features: 20 GiB are 400,000 images at
            224 pixels and 2.5 million feature vectors of a ResNet50.
        table: of features, for a simulation without images; backbone and weights of the options are ignored.
        group: processes that train the whole network together; a head is trained by one.

    Raises:
        SettingsError: ``cuda`` on a machine without a usable GPU, a precision that the device lacks, a network that
            timm does not have, ``min_epochs`` above ``epochs``, or ``finetune: full`` with a table.
    """

    def __init__(
        self,
        options: ProjectOptions,
        source: ImageSource,
        cache: Path,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        seed: int = 0,
        progress: LearnerProgress = _no_progress,
        warm_from: Path | None = None,
        cache_limit_bytes: int = 20 * 2**30,
        table: FeatureTable | None = None,
        group: Group = SINGLE,
    ) -> None:
        if table is not None and options.finetune == "full":
            raise SettingsError("finetune='full', but a table of features has no images: set finetune=head")
        self._options = options
        self._group = group
        self._device = choose_device(device)
        self._precision = Precision.from_options(self._device, options.precision, channels_last=options.channels_last)
        self._warm_from = warm_from
        self._cache_limit_bytes = cache_limit_bytes
        self._seed = seed
        self._progress = progress
        self._side = input_side(options.backbone if table is None else TABLE, options.image_side)
        self._images = ImageCache(source, cache / IMAGES, self._side, cache_limit_bytes)
        self._feature_folder = cache / FOLDER
        self._table = None if table is None else TableBackbone(table)
        on_cpu = self._device.type == "cpu"
        self._head_only = options.finetune == "head" or (options.finetune == "auto" and (on_cpu or table is not None))
        self._config = OptimizerConfig.from_options(options, head_only=self._head_only)
        self._loaded: Backbone | None = self._table
        self._frozen: FeatureSource | None = None if table is None else TableFeatures(table, self._device)
        self._fit: FittedNetwork | None = None
        self._last: FittedNetwork | None = None  # for a warm start only

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        """Train; see ``rounds.interfaces.Learner``.

        Raises:
            TooFewLabels: fewer than 2 readable images to train on, or none to validate on.
            SettingsError: no such backbone.
            WeightsError: the backbone's weights are unavailable.
            RoundError: training diverged, or the GPU's memory is too small.
        """
        return self.fit_loaded(*self.load(train, validation, classes), classes)

    def load(
        self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]
    ) -> tuple[LabelledDataset, LabelledDataset]:
        """Read the labelled images of a fit; the first half of ``fit``.

        Raises:
            SettingsError, WeightsError, RoundError: as ``fit``.
        """
        self._fit = None
        total = len(train) + len(validation)
        return (
            self._load(train, classes, lambda done: self._progress("features", done, total)),
            self._load(validation, classes, lambda done: self._progress("features", len(train) + done, total)),
        )

    def fit_loaded(
        self, train_set: LabelledDataset, validation_set: LabelledDataset, classes: Sequence[str]
    ) -> FitReport:
        """Train on what ``load`` of this learner, or of one with the same backbone, has read; see ``fit``."""
        self._fit = None
        require_enough(train_set, validation_set)
        earlier = self._warm_start_network(classes)
        network, result = self._train(train_set, validation_set, classes, earlier)
        self._fit = self._fitted(network, classes, (train_set, validation_set))
        self._last = self._fit if self._options.retrain == "warm" else None
        features = validation_set.features(self._fit.extractor)
        probs = network.head.passes(features, self._fit.masks).mean(dim=1).cpu().numpy()
        targets = validation_set.examples.targets.cpu().numpy()
        return FitReport(
            epochs=result.epochs,
            best_epoch=result.best_epoch,
            class_weights=dict(zip(classes, result.class_weights, strict=True)),
            train_images=len(train_set.images),
            validation_images=len(validation_set.images),
            validation_loss=result.validation_loss,
            validation_accuracy=training.accuracy(probs, targets),
            validation_auroc=training.auroc(probs, targets),
            validation_recall=training.recalls(probs, targets, classes),
            began="scratch" if earlier is None else "warm",
            exclusions=train_set.exclusions + validation_set.exclusions,
            held_out=tuple(
                HeldOutImage(
                    image_id=image.id, label=classes[target], probs=dict(zip(classes, means.tolist(), strict=True))
                )
                for image, target, means in zip(validation_set.images, targets, probs.clip(0.0, 1.0), strict=True)
            ),
        )

    @property
    def head_only(self) -> bool:
        """Whether the backbone is frozen: all learners with the same options then compute the same features."""
        return self._head_only

    def outputs(
        self, pool: Sequence[ImageRef], needs: frozenset[Need], others: Sequence["McDropoutLearner"] = ()
    ) -> PoolPredictions:
        """Draw the stochastic passes over the pool, with one set of masks; see ``rounds.interfaces.Learner``.

        An image gets the same probabilities in any pool: up to rounding, and to the bit if its shard of
        ``inference.SHARD_IMAGES`` is the same. ``labelled_features`` are known if this learner was fitted.

        Args:
            pool: any number of images.
            needs: of the strategy.
            others: learners with the same frozen backbone, whose passes follow this one's; the images are read once.

        Raises:
            RoundError: nothing was fitted yet, or the GPU's memory is too small.
        """
        fit = self._require_fit()
        outputs = fit.outputs(
            pool,
            needs,
            lambda done: self._progress("score", done, len(pool)),
            [other._require_fit() for other in others],  # noqa: SLF001 - of this class
        )
        self._trim(fit.extractor)
        return outputs

    def prepare(self, images: Sequence[ImageRef]) -> None:
        """Fill the caches, so that the first fit is fast. An unreadable image is not an error.

        Raises:
            SettingsError, WeightsError: as the first fit would raise them.
        """
        extractor = self._frozen_extractor() if self._head_only else None
        self._backbone()  # in any case, for the errors
        if extractor is None:
            for done, _ in enumerate(read_ahead(images, lambda image: self._images.read(image).key), start=1):
                self._progress("features", done, len(images))
            self._images.trim()
            return
        done, left = 0, len(images)
        for batch in extractor.batches(images):
            # Of what is to be computed: the time left follows from its rate, also after a stop.
            done += batch.total - batch.cached
            left -= batch.cached
            self._progress("features", done, left)
        self._trim(extractor)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """Features of the backbone as loaded, even if it is trained; see ``rounds.interfaces.Learner``."""
        if self._options.weights == "none" and self._table is None:
            _LOG.warning("an untrained backbone hardly distinguishes images: set weights")
        extractor = self._frozen_extractor()
        batch = extractor.all(images, lambda done: self._progress("features", done, len(images)))
        self._trim(extractor)
        image_ids = tuple(image.id for image in batch.images)
        return ImageFeatures(image_ids, batch.features.cpu().numpy(), batch.exclusions, batch.keys)

    def save(self, folder: str) -> None:
        """Write the fitted network into a folder, as ``model.safetensors``.

        Raises:
            RoundError: nothing was fitted yet.
        """
        fit = self._require_fit()
        path = Path(folder) / FILE_NAME
        save_checkpoint(path, fit.network, fit.classes, self._options, self._seed, frozen_backbone=self._head_only)

    def restore(self, folder: str) -> None:
        """Load the network that ``save`` wrote into a folder, in this process or another.

        On the same kind of device ``outputs`` gives the same bits as the learner that saved it.

        Raises:
            WeightsError: see ``checkpoint.load_compatible``.
        """
        checkpoint = load_compatible(Path(folder), self._options, head_only=self._head_only, table=self._table)
        self._precision.place(checkpoint.network)
        self._fit = self._fitted(checkpoint.network, checkpoint.classes, None)

    def _warm_start_network(self, classes: Sequence[str]) -> McDropoutClassifier | None:
        """The network that a warm start continues from; None, with a warning that gives the reason, if none fits.

        Its dropout rate may differ: the rate is not a weight.
        """
        if self._options.retrain != "warm":
            return None
        if self._last is not None:
            if self._last.classes == tuple(classes):
                return self._last.network
            reason = f"the last network was for {list(self._last.classes)}, not {list(classes)}"
        elif self._warm_from is not None:
            try:
                return load_compatible(
                    self._warm_from, self._options, head_only=self._head_only, classes=classes, table=self._table
                ).network
            except WeightsError as error:
                reason = str(error)
        else:
            return None
        _LOG.warning("training starts from scratch: %s", reason)
        return None

    def _train(
        self,
        train_set: LabelledDataset,
        validation_set: LabelledDataset,
        classes: Sequence[str],
        earlier: McDropoutClassifier | None,
    ) -> tuple[McDropoutClassifier, TrainingResult]:
        """Train a new network, always from the same initial weights, or from those of an earlier network."""
        backbone = self._backbone() if self._head_only else copy.deepcopy(self._backbone())
        with seeded(self._seed, "head"):
            network = McDropoutClassifier(len(classes), backbone, dropout=self._options.dropout)
        self._precision.place(network)
        data, held_out = train_set.examples, validation_set.examples
        part = network.head if self._head_only else network
        if earlier is not None:
            part.load_state_dict((earlier.head if self._head_only else earlier).state_dict())
        elif isinstance(data, FeatureExamples) and self._options.weights == "none":
            network.head.fit_standardisation(data.features)
        train = partial(
            training.train,
            classes=classes,
            config=self._config,
            precision=self._precision,
            seed=derive(self._seed, "fit"),
            progress=partial(self._progress, "train"),
        )
        if isinstance(data, FeatureExamples) and isinstance(held_out, FeatureExamples):
            with one_thread():
                result = train(*training.head_problem(network.head, data, held_out))
        else:
            result = train(network, data, held_out, group=self._group)
        network.eval()
        return network, result

    def _fitted(
        self, network: McDropoutClassifier, classes: Sequence[str], sets: tuple[LabelledDataset, ...] | None
    ) -> FittedNetwork:
        extractor: FeatureSource
        if self._head_only:
            extractor = self._frozen_extractor()
        else:
            extractor = FeatureExtractor(network.backbone, self._images, self._precision, None)
        return FittedNetwork(
            network,
            tuple(classes),
            extractor,
            network.head.masks(self._options.passes, self._seed),
            None if sets is None else cache(lambda: torch.cat([each.features(extractor) for each in sets])),
        )

    def _load(
        self, labels: Sequence[Label], classes: Sequence[str], progress: Callable[[int], None]
    ) -> LabelledDataset:
        soft = self._options.soft_labels
        if self._head_only:
            return LabelledDataset.from_features(labels, classes, self._frozen_extractor(), progress, soft=soft)
        normalisation = self._backbone().normalisation
        read = training.read_together(self._group, [label.image for label in labels], self._images.read)
        return LabelledDataset.from_pixels(
            labels, classes, read, self._device, progress, normalisation=normalisation, soft=soft
        )

    def _backbone(self) -> Backbone:
        """The backbone as loaded; never trained."""
        if self._loaded is None:
            self._loaded = load_backbone(self._options.backbone, self._options.weights, self._side)
        return self._loaded

    def _frozen_extractor(self) -> FeatureSource:
        if self._frozen is None:
            self._frozen = FeatureExtractor(
                self._backbone(), self._images, self._precision, self._feature_folder, self._cache_limit_bytes
            )
        return self._frozen

    def _require_fit(self) -> FittedNetwork:
        if self._fit is None:
            raise RoundError("there is no fitted network: call fit first")
        return self._fit

    def _trim(self, extractor: FeatureSource) -> None:
        self._images.trim()
        extractor.trim()
