"""Manifests and replay: hashes of what a round was made from, and its selection repeated from what it has saved.

Each manifest holds the hash of the one before it, so that no round can be replaced unnoticed.
"""

import hashlib
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from itertools import zip_longest
from math import isclose
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError

import ml_backend
from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.analytics.few_labels import sought_classes
from ml_backend.config import ProjectOptions
from ml_backend.errors import OtherFormat, StorageError
from ml_backend.model.backbones import weights_file
from ml_backend.model.inference import hardware_fingerprint
from ml_backend.predictions import ImageFeatures
from ml_backend.registry import strategy_spec
from ml_backend.rounds.cold_start import START_FEATURES, Embedded, FeaturesLost, StartFeatures, random_order, with_rest
from ml_backend.rounds.reuse import rank_all, reranked_digest
from ml_backend.rounds.run import ProjectData, inputs_digest
from ml_backend.rounds.split import mix_in_holdout
from ml_backend.rounds.spread import spread_again
from ml_backend.schemas import FrozenModel, Label, Ranking, RoundReport, natural_order
from ml_backend.storage import ProjectStore
from ml_backend.storage.outputs import OUTPUTS
from ml_backend.storage.rounds import (
    RANKING,
    Manifest,
    RoundInputs,
    sha256_of,
    sha256_of_files,
)

Device = Literal["auto", "cpu", "cuda"]

SCORE_TOLERANCE: Final = 1e-9
"""Relative: another CPU may add in another order."""


def round_inputs(data: ProjectData) -> RoundInputs:
    """The labels and the pool of a round, in the order of the image ids."""
    return RoundInputs(
        labels=tuple(sorted(data.labels, key=lambda label: natural_order(label.image.id))),
        pool=tuple(sorted(data.pool, key=lambda image: natural_order(image.id))),
    )


def make_manifest(
    store: ProjectStore, report: RoundReport, inputs: RoundInputs, folder: Path, device: Device
) -> Manifest:
    """The manifest of a round that is being saved.

    Args:
        store: with the rounds before it.
        report: of the round.
        inputs: labels and pool of the round.
        folder: with every other file of the round.
        device: the installation's setting.

    Raises:
        OSError: a file cannot be read.
        SettingsError: unknown backbone.
    """
    options = ProjectOptions.model_validate(report.request.options)
    # A random order before the first training needs no network; one by features needs a backbone.
    by_network = report.by_network or report.ranking.strategy != "random"
    weights = weights_file(options.backbone, options.weights) if by_network else None
    earlier = reversed([saved for saved in store.round_ids() if saved < report.request.round_id])
    # Readable or not: its hash counts.
    hashes = ((saved, store.manifest_hash(saved)) for saved in earlier)
    previous = next(((saved, found) for saved, found in hashes if found is not None), None)
    return Manifest(
        round_id=report.request.round_id,
        files=sha256_of_files(folder),
        labels=listing_digest(inputs.labels),
        pool=listing_digest(inputs.pool),
        code=code_digest(),
        version=package_version(),
        versions=versions(),
        machine=hardware_fingerprint(device),
        weights="" if weights is None else sha256_of(weights),
        weights_from=f"{options.backbone} {options.weights}" if by_network else "no network",
        seed=report.request.seed,
        options=report.request.options,
        previous=None if previous is None else previous[1],
        previous_round=None if previous is None else previous[0],
    )


def listing_digest(records: Iterable[FrozenModel]) -> str:
    """SHA-256 of records as lines of JSON, in the order of these lines."""
    return hashlib.sha256("\n".join(sorted(one.model_dump_json() for one in records)).encode()).hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 of the package's .py files in the order of their paths, read once per process."""
    root = Path(ml_backend.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def package_version() -> str:
    """The installed version; empty where the package is not installed."""
    try:
        return metadata.version("label-studio-active-learning")
    except metadata.PackageNotFoundError:
        return ""


def versions() -> dict[str, str]:
    """Versions of Python and of the numerical libraries."""
    torchvision = metadata.version("torchvision")
    # From its file, which also names the build: importing it takes seconds.
    if (spec := find_spec("torchvision")) is not None and spec.origin is not None:
        text = Path(spec.origin).with_name("version.py").read_text()
        if (found := re.search(r"^__version__ = ['\"](.+)['\"]$", text, re.MULTILINE)) is not None:
            torchvision = found[1]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision,
        "timm": metadata.version("timm"),
        "numpy": np.__version__,
    }


Count = Annotated[int, Field(ge=0)]


class Replay(FrozenModel):
    """A repeated selection.

    Attributes:
        strategy: of the ranking.
        verdict: ``same``: the same images in the same order; ``differs``; ``cannot``: something is no longer stored.
        batch: images of the batch; ``same_batch``: of these, how many were selected again.
        images: in the ranking; ``same_places``: of these, how many have the same place.
        faults: what was changed since the round, and what came out differently.
        notes: possible causes of a difference: other versions, other code, another machine; and what is not stored.
        sentence: one line for the terminal.
    """

    round_id: str
    strategy: str
    verdict: Literal["same", "differs", "cannot"]
    batch: Count = 0
    same_batch: Count = 0
    images: Count = 0
    same_places: Count = 0
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sentence: str

    @property
    def sound(self) -> bool:
        """Whether nothing contradicts the round."""
        return self.verdict != "differs" and not self.faults


def replays(store: ProjectStore, cache: Path, only: str | None = None, device: Device = "auto") -> Iterator[Replay]:
    """Repeat every selection of a project, oldest first.

    Args:
        store: of the project.
        cache: of the installation; features of the pretrained backbone are read from it.
        only: the one round to repeat; None for all.
        device: the installation's setting.

    Raises:
        StorageError: there is no such round.
    """
    ids = store.round_ids()
    if only is not None and only not in ids:
        store.report(only)  # raises, and names the rounds that exist
    for round_id in ids if only is None else [only]:
        yield _replay(store, cache, round_id, device)


def _replay(store: ProjectStore, cache: Path, round_id: str, device: Device) -> Replay:
    faults, notes, machine_notes = _audit(store, round_id, device)
    strategy = "unknown"
    try:
        strategy = store.summary(round_id).strategy
        _require_ranking(store, round_id)
        report = store.report(round_id)
        repeated = _spread_again(store, report, _select_again(store, report, cache))
    except (StorageError, _NotStored, ValueError) as error:  # ValueError: predictions that no round can have made
        if not isinstance(error, _NotStored):
            faults.append(str(error))
        return Replay(
            round_id=round_id,
            strategy=strategy,
            verdict="cannot",
            faults=tuple(dict.fromkeys(faults)),
            notes=tuple(notes),
            sentence=f"{round_id} {strategy}: cannot be replayed: {error}",
        )
    stored, images = report.ranking, len(report.ranking.image_ids)
    batch = min(report.request.batch_size, images)
    same_batch = len(set(stored.image_ids[:batch]) & set(repeated.image_ids[:batch]))
    same_places = sum(a == b for a, b in zip(stored.image_ids, repeated.image_ids, strict=False))
    differences = list(_differences(stored, repeated))
    if differences:
        order = f"{same_batch} of {batch} of the batch, {same_places} of {images} in their place"
    else:
        order = f"same {batch} of {batch}, same order of {images}"
    return Replay(
        round_id=round_id,
        strategy=strategy,
        verdict="differs" if differences else "same",
        batch=batch,
        same_batch=same_batch,
        images=images,
        same_places=same_places,
        faults=(*faults, *differences),
        # The machine includes its number of threads, which changes no result: named only where something differs.
        notes=(*notes, *(machine_notes if differences else ())),
        sentence=f"{round_id} {strategy}: {order}",
    )


class _NotStored(Exception):
    """Something that the selection was made from is not stored; the message says what."""


def _require_ranking(store: ProjectStore, round_id: str) -> None:
    if RANKING in store.removed_files(round_id):
        raise _NotStored(f"the ranking of round {round_id} was removed, as AL_KEEP_ROUNDS says")


def _select_again(store: ProjectStore, report: RoundReport, cache: Path) -> Ranking:
    """Rank by the functions of the round, from what it has saved.

    Raises:
        StorageError: a file is damaged.
        ValueError: the files cannot have come from a round.
        _NotStored: something is missing.
    """
    request, ranking = report.request, report.ranking
    try:
        predictions = store.evidence(request.round_id)
    except OtherFormat as error:
        raise _NotStored(str(error)) from error
    if predictions is None:
        if report.by_network:
            if OUTPUTS in store.removed_files(request.round_id):
                raise _NotStored("its passes were removed, as AL_KEEP_ROUNDS says; all else was compared")
            raise _NotStored("the predictions of its network are not stored")
        start = _start_again(store, report, cache)
        return mix_in_holdout(start, request.control_share, request.seed, request.round_id)
    missing = [
        need
        for need in sorted(strategy_spec(ranking.strategy).needs)
        if (need == "features" and predictions.features is None)
        or (need == "gradients" and predictions.gradients is None)
    ]
    if missing:
        raise _NotStored(f"its {' and '.join(missing)} are stored for the last rounds only")
    whole = rank_all(request, CatalogStrategy(ranking.strategy), predictions, ranking.image_ids)
    if ranking.sought:
        # An image that the round has ranked may have become unreadable before it sought.
        embedded = _embedded_again(store, report, cache)
        whole = embedded.seek(whole, *_sought_again(store, report))
    return mix_in_holdout(whole, request.control_share, request.seed, request.round_id)


def _start_again(store: ProjectStore, report: RoundReport, cache: Path) -> Ranking:
    """A ranking from before the first network; raises as ``_select_again``."""
    request, ids = report.request, tuple(sorted(report.ranking.image_ids, key=natural_order))
    if report.ranking.strategy == "random":
        return random_order(ids, request.batch_size, request.seed)
    embedded = _embedded_again(store, report, cache)
    start = with_rest(embedded.rank(report.ranking.strategy, request.batch_size, request.seed), ids, request.seed)
    return embedded.seek(start, *_sought_again(store, report)) if report.ranking.sought else start


def _embedded_again(store: ProjectStore, report: RoundReport, cache: Path) -> Embedded:
    """The features behind a start or behind seeking; raises as ``_select_again``."""
    ids = set(report.ranking.image_ids)
    record = store.record(report.request.round_id, START_FEATURES, StartFeatures)
    if record is None:
        raise _NotStored("it did not record where its features are cached: an older version made it")
    pool = tuple(sorted(ids & record.kept.keys(), key=natural_order))
    labelled = tuple(sorted(record.kept.keys() - ids, key=natural_order))
    try:
        return Embedded(
            ImageFeatures(pool, record.read(pool, cache)),
            ImageFeatures(labelled, record.read(labelled, cache)) if labelled else None,
        )
    except FeaturesLost as lost:
        raise _NotStored(f"of its features, {lost}") from lost


def _sought_again(store: ProjectStore, report: RoundReport) -> tuple[tuple[Label, ...], tuple[str, ...]]:
    """The labels of a round, and the classes that it sought; raises as ``_select_again``."""
    inputs = store.inputs(report.request.round_id)
    if inputs is None:
        raise _NotStored("its labels are not stored")
    # Of these labels: a reranking's report counts those of its network.
    counts = Counter(label.value for label in inputs.labels)
    per_class = {name: counts[name] for name in report.request.classes}
    return inputs.labels, sought_classes(per_class, report.request.min_labels_per_class)


def _spread_again(store: ProjectStore, report: RoundReport, ranking: Ranking) -> Ranking:
    """What a batch holds too many of is put off again; raises as ``_select_again``."""
    if not (bound := report.request.per_patient):
        return ranking
    inputs = store.inputs(report.request.round_id)
    if inputs is None:
        raise _NotStored("the patients of its images are not stored")
    return spread_again(ranking, {image.id: image.patient_id for image in inputs.pool}, bound, report.ranking)


def _differences(stored: Ranking, repeated: Ranking) -> Iterator[str]:
    """The first place, the first score and the holdout, where they differ."""
    for place, (was, now) in enumerate(zip_longest(stored.image_ids, repeated.image_ids), start=1):
        if was != now:
            yield f"place {place}: image {was or 'none'} stored, image {now or 'none'} now"
            break
    scores = dict(zip(repeated.image_ids, repeated.scores, strict=True))
    for image_id, was in zip(stored.image_ids, stored.scores, strict=True):
        score = scores.get(image_id)
        if score is not None and not isclose(was, score, rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE):
            yield f"image {image_id}: score {was:.9g} stored, {score:.9g} now"
            break
    if stored.sought != repeated.sought:
        yield f"sought images: {len(stored.sought)} stored, {len(repeated.sought)} now, or others"
    if stored.control != repeated.control:
        yield f"holdout images: {len(stored.control)} stored, {len(repeated.control)} now, or others"


def _audit(store: ProjectStore, round_id: str, device: Device) -> tuple[list[str], list[str], list[str]]:
    """Compare a round with its manifest.

    Returns:
        What was changed since the round was saved; what differs between then and now without being a fault; the same
        of the machine.
    """
    try:
        manifest = store.manifest(round_id)
    except StorageError as error:
        return [str(error)], [], []
    if manifest is None:
        return [], ["it has no manifest, which would show whether a file was changed"], []
    faults = store.file_faults(round_id, manifest.files)
    if manifest.round_id != round_id:
        faults.append(f"its manifest is that of round {manifest.round_id}")
    for more in (_chain_faults(store, manifest), _input_faults(store, round_id, manifest)):
        try:
            faults += more
        except (StorageError, ValidationError) as error:
            faults.append(str(error))
    now, here = versions(), hardware_fingerprint(device)
    notes = [
        f"made with {name} {was}, now {now.get(name, 'none')}"
        for name, was in manifest.versions.items()
        if now.get(name) != was
    ]
    if manifest.code != code_digest():
        was, is_now = manifest.version or "unknown", package_version() or "unknown"
        notes.append(f"made by other code (version {was}; now {is_now})")
    machine_note = f"made on {manifest.machine}, now on {here}: the last digits of a score may differ"
    return faults, notes, [machine_note] if manifest.machine != here else []


def _chain_faults(store: ProjectStore, manifest: Manifest) -> Iterator[str]:
    if (previous := manifest.previous_round) is None:
        return
    store.manifest(previous)  # a damaged one is a fault even where its hash is right
    before = store.manifest_hash(previous)
    if before is None:
        yield f"round {previous}, which it follows, or the manifest of that round, is gone"
    elif before != manifest.previous:
        yield f"the manifest of round {previous} is not the one that it follows"


def _input_faults(store: ProjectStore, round_id: str, manifest: Manifest) -> Iterator[str]:
    """Labels, pool and options, compared with the manifest and with the digest in the report."""
    if (inputs := store.inputs(round_id)) is None:
        return
    if any(RANKING in store.removed_files(one) for one in (round_id, store.summary(round_id).base) if one is not None):
        return  # what they are compared with is gone; the manifest still holds the hashes of labels and pool
    report = store.report(round_id)
    base = None if report.base is None else store.report(report.base)
    request = report.request
    if listing_digest(inputs.labels) != manifest.labels:
        yield "the labels are not those that it was made from"
    if listing_digest(inputs.pool) != manifest.pool:
        yield "the pool's images are not those that it was made from"
    if dict(request.options) != dict(manifest.options) or request.seed != manifest.seed:
        names = sorted(request.options.keys() | manifest.options.keys())
        changed = [name for name in names if request.options.get(name) != manifest.options.get(name)]
        yield f"options are not those that it was made with: {', '.join(changed) or 'seed'}"
    if base is None:
        digest = inputs_digest(request, inputs.labels, inputs.pool)
    else:
        digest = reranked_digest(request, base, inputs.labels, inputs.pool)
    if digest != report.inputs:
        yield "labels, pool and request together are not what the round noted when it began"
