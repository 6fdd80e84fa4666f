"""What a round sees is noted on the way: the labels and the pool that its manifest stands for.

A round is sealed: hashes of its data, code, weights and options, and of the seal before it.
Every selection once more, from what its round has kept, by the code that made it; and what its hashes say.
"""

import hashlib
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from itertools import zip_longest
from math import isclose
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, ValidationError

import ml_backend
from ml_backend.acquisition.strategy import CatalogStrategy, rank_by_features
from ml_backend.config import ProjectOptions
from ml_backend.consensus.rules import Consensus
from ml_backend.errors import OtherFormat, StorageError
from ml_backend.model.backbones import weights_file
from ml_backend.model.inference import hardware_fingerprint
from ml_backend.predictions import ImageFeatures
from ml_backend.registry import strategy_spec
from ml_backend.rounds.cold_start import random_order
from ml_backend.rounds.holdout import mixed
from ml_backend.rounds.interfaces import ConsensusRule, LabelSource
from ml_backend.rounds.reuse import ranked_anew
from ml_backend.rounds.run import inputs_digest, reranked_digest
from ml_backend.rounds.start_features import START_FEATURES, FeaturesLost, StartFeatures, found_again
from ml_backend.schemas import Annotation, Exclusion, FrozenModel, ImageRef, Ranking, RoundReport, natural_order
from ml_backend.storage import ProjectStore
from ml_backend.storage.rounds import (
    INPUTS,
    Manifest,
    RoundInputs,
    sha256_of,
    sha256_of_files,
)


class RecordingLabelSource:
    """A label source and a rule that remember what they last said. Satisfies ``engine.ports.LabelSource``.

    Args:
        labels: the source itself.
        rule: the rule itself.
    """

    def __init__(self, labels: LabelSource, rule: ConsensusRule) -> None:
        self._labels = labels
        self._rule = rule
        self._consensus = Consensus(labels=(), exclusions=())
        self._pool: Sequence[ImageRef] = ()

    def annotations(self) -> Sequence[Annotation]:
        return self._labels.annotations()

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        self._pool, unusable = self._labels.unlabelled()
        return self._pool, unusable

    def consensus(self, annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
        """Satisfies ``engine.ports.ConsensusRule``."""
        self._consensus = self._rule(annotations, classes)
        return self._consensus

    def noted(self) -> RoundInputs:
        """The labels and the pool of the last call of each, in the order of the image ids."""
        return RoundInputs(
            labels=tuple(sorted(self._consensus.labels, key=lambda label: natural_order(label.image.id))),
            pool=tuple(sorted(self._pool, key=lambda image: natural_order(image.id))),
        )


def sealed(
    project: ProjectStore,
    report: RoundReport,
    inputs: RoundInputs,
    folder: Path,
    device: Literal["auto", "cpu", "cuda"],
) -> Manifest:
    """The manifest of a round that is being saved.

    Args:
        project: with the rounds before it.
        report: of the round.
        inputs: what it learned from and ranked.
        folder: with every file of the round but this one.
        device: that the installation asks for.

    Raises:
        OSError: a file cannot be read.
        SettingsError: no such backbone.
    """
    previous = _newest(project, report.request.round_id)
    options = ProjectOptions.model_validate(report.request.options)
    # A random order before the first training asks no network; a typical one asks a backbone.
    by_network = report.by_network or report.ranking.strategy != "random"
    weights = weights_file(options.backbone, options.weights) if by_network else None
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
    """Of records, one line of JSON each, in the order of these lines."""
    return hashlib.sha256("\n".join(sorted(one.model_dump_json() for one in records)).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Of the package's .py files, by their paths in sorted order, as they are when a process first asks."""
    root = Path(ml_backend.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def package_version() -> str:
    """As it was installed; empty where it was not."""
    try:
        return metadata.version("label-studio-active-learning")
    except metadata.PackageNotFoundError:
        return ""


def versions() -> Mapping[str, str]:
    """Of what computes."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _torchvision_version(),
        "numpy": np.__version__,
    }


def _torchvision_version() -> str:
    """As its file says: importing it takes seconds, and a replay needs nothing else of it."""
    spec = find_spec("torchvision")
    if spec is not None and spec.origin is not None:
        text = Path(spec.origin).with_name("version.py").read_text()
        if (found := re.search(r"^__version__ = ['\"](.+)['\"]$", text, re.MULTILINE)) is not None:
            return found[1]
    return metadata.version("torchvision")


def _newest(project: ProjectStore, round_id: str) -> tuple[str, str] | None:
    """The newest round before this one that has a manifest, and the hash of its file, readable or not."""
    for earlier in reversed([saved for saved in project.round_ids() if saved < round_id]):
        if (found := project.manifest_hash(earlier)) is not None:
            return earlier, found
    return None


SCORE_TOLERANCE: Final = 1e-9
"""Relative: another CPU may add up in another order."""

Count = Annotated[int, Field(ge=0)]


class Replay(FrozenModel):
    """One selection, made again.

    Attributes:
        strategy: that ranked.
        verdict: ``same``: the same images in the same order; ``differs``; ``cannot``: something is not kept.
        batch: images of the batch; ``same_batch``: of these, how many were chosen again.
        images: in the ranking; ``same_places``: of these, how many stand where they stood.
        faults: what was changed since, and what came out differently, in words.
        notes: what is another by now and may excuse it: versions, the code; and what is not kept.
        sentence: the line that is printed.
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
        """Whether nothing speaks against the round."""
        return self.verdict != "differs" and not self.faults


class _Surroundings(NamedTuple):
    """What a selection is made again by, and on."""

    code: str
    version: str
    versions: dict[str, str]
    machine: str


class _NotKept(Exception):
    """The message says what is missing."""


def replays(
    project: ProjectStore, cache: Path, only: str | None = None, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> Iterator[Replay]:
    """Make every selection of a project again, oldest first.

    Args:
        project: with its rounds.
        cache: of the installation; features of a start are read from it.
        only: the one round that is asked for.
        device: that the installation asks for.

    Raises:
        StorageError: there is no such round.
    """
    ids = project.round_ids()
    if only is not None and only not in ids:
        project.report(only)  # says which there are
    now = _Surroundings(code_digest(), package_version(), dict(versions()), hardware_fingerprint(device))
    for round_id in ids if only is None else [only]:
        faults, notes, elsewhere = _held_against_the_manifest(project, round_id, now)
        try:
            report = project.report(round_id)
            again = _ranked_again(project, report, cache)
        except StorageError as error:
            yield _cannot(round_id, "unknown", str(error), [*faults, str(error)], notes)
        except (_NotKept, ValueError) as error:  # ValueError: from outputs that no round can have made
            strategy = report.ranking.strategy
            spoilt = [] if isinstance(error, _NotKept) else [str(error)]
            yield _cannot(round_id, strategy, str(error), [*faults, *spoilt], notes)
        else:
            yield _compared(report, again, faults, notes, elsewhere)


def _ranked_again(project: ProjectStore, report: RoundReport, cache: Path) -> Ranking:
    """By the functions that the round itself called, from what it has kept.

    Raises:
        StorageError: a file is damaged.
        ValueError: what is kept cannot have come from a round.
        _NotKept: something is missing.
    """
    request, ranking = report.request, report.ranking
    try:
        outputs = project.evidence(request.round_id)
    except OtherFormat as error:
        raise _NotKept(str(error)) from error
    if outputs is None and not report.by_network:
        start = _start_again(project, report, cache)
        return mixed(start, request.control_share, request.seed, request.round_id)
    if outputs is None:
        raise _NotKept("what its network said of the pool is not kept")
    strategy = CatalogStrategy(ranking.strategy)
    missing = [
        need
        for need in sorted(strategy_spec(ranking.strategy).needs)
        if (need == "features" and outputs.features is None) or (need == "gradients" and outputs.gradients is None)
    ]
    if missing:
        raise _NotKept(f"the {' and '.join(missing)} that it looked at are kept of the last rounds only")
    return ranked_anew(request, strategy, outputs, ranking.image_ids)


def _start_again(project: ProjectStore, report: RoundReport, cache: Path) -> Ranking:
    """An order from before the first network; raises as ``_ranked_again``."""
    request, ids = report.request, tuple(sorted(report.ranking.image_ids, key=natural_order))
    if report.ranking.strategy == "random":
        return random_order([ImageRef(id=one, uri=one) for one in ids], request.batch_size, request.seed)
    note = project.record(request.round_id, START_FEATURES, StartFeatures)
    if note is None:
        raise _NotKept("where the features are kept that it looked at was not noted: an older version made it")
    labelled = sorted(note.kept.keys() - set(ids), key=natural_order)
    try:
        pool = ImageFeatures(ids, found_again(note, ids, cache))
        covered = found_again(note, labelled, cache) if labelled else None
    except FeaturesLost as lost:
        raise _NotKept(f"of the features that it looked at, {lost}") from lost
    return rank_by_features(report.ranking.strategy, pool, covered, request.batch_size, request.seed)


def _compared(
    report: RoundReport, again: Ranking, faults: Sequence[str], notes: Sequence[str], elsewhere: Sequence[str]
) -> Replay:
    stored, size = report.ranking, min(report.request.batch_size, len(report.ranking.image_ids))
    same_batch = len(set(stored.image_ids[:size]) & set(again.image_ids[:size]))
    same_places = sum(a == b for a, b in zip(stored.image_ids, again.image_ids, strict=False))
    differences = list(_differences(stored, again))
    if differences:
        order = f"{same_batch} of {size} of the batch, {same_places} of {len(stored.image_ids)} in their place"
    else:
        order = f"same {size} of {size}, same order of {len(stored.image_ids)}"
    return Replay(
        round_id=report.request.round_id,
        strategy=stored.strategy,
        verdict="differs" if differences else "same",
        batch=size,
        same_batch=same_batch,
        images=len(stored.image_ids),
        same_places=same_places,
        faults=(*faults, *differences),
        # Threads are told too, which change nothing: where all came out the same, it is of no interest.
        notes=(*notes, *(elsewhere if differences else ())),
        sentence=f"{report.request.round_id} {stored.strategy}: {order}",
    )


def _differences(stored: Ranking, again: Ranking) -> Iterator[str]:
    """What of a ranking came out otherwise: the first place, the first score, the control images."""
    places = enumerate(zip_longest(stored.image_ids, again.image_ids), start=1)
    for place, (was, now) in places:
        if was != now:
            yield f"place {place}: image {was or 'none'} stored, image {now or 'none'} now"
            break
    scores = dict(zip(again.image_ids, again.scores, strict=True))
    for image_id, was in zip(stored.image_ids, stored.scores, strict=True):
        score = scores.get(image_id)
        if score is not None and not isclose(was, score, rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE):
            yield f"image {image_id}: score {was:.9g} stored, {score:.9g} now"
            break
    if stored.control != again.control:
        yield f"control images: {len(stored.control)} stored, {len(again.control)} now, or others"


def _cannot(round_id: str, strategy: str, why: str, faults: Sequence[str], notes: Sequence[str]) -> Replay:
    return Replay(
        round_id=round_id,
        strategy=strategy,
        verdict="cannot",
        faults=tuple(dict.fromkeys(faults)),
        notes=tuple(notes),
        sentence=f"{round_id} {strategy}: cannot be replayed: {why}",
    )


def _held_against_the_manifest(
    project: ProjectStore, round_id: str, now: _Surroundings
) -> tuple[list[str], list[str], list[str]]:
    """What was changed since the round was saved, what of the surroundings is another by now, and the machine."""
    try:
        manifest = project.manifest(round_id)
    except StorageError as error:
        return [str(error)], [], []
    if manifest is None:
        return [], ["it has no manifest, so nothing says whether a file was changed"], []
    faults = project.file_faults(round_id, manifest.files)
    if manifest.round_id != round_id:
        faults.append(f"its manifest is that of round {manifest.round_id}")
    faults += _broken_chain(project, manifest)
    faults += _changed_inputs(project, round_id, manifest)
    notes = [
        f"made with {name} {was}, now {now.versions.get(name, 'none')}"
        for name, was in manifest.versions.items()
        if now.versions.get(name) != was
    ]
    if manifest.code != now.code:
        notes.append(f"made by other code (version {manifest.version or 'unknown'}; now {now.version or 'unknown'})")
    elsewhere = [f"made on {manifest.machine}, now on {now.machine}: the last digits of a score may differ"]
    return faults, notes, elsewhere if manifest.machine != now.machine else []


def _broken_chain(project: ProjectStore, manifest: Manifest) -> list[str]:
    if manifest.previous_round is None:
        return []
    try:
        project.manifest(manifest.previous_round)  # a damaged one is a fault even where its hash is right
        before = project.manifest_hash(manifest.previous_round)
    except StorageError as error:
        return [str(error)]
    if before is None:
        return [f"round {manifest.previous_round}, which it follows, or the manifest of that, is gone"]
    if before != manifest.previous:
        return [f"the manifest of round {manifest.previous_round} is not the one that it follows"]
    return []


def _changed_inputs(project: ProjectStore, round_id: str, manifest: Manifest) -> list[str]:
    """The labels, the pool and the options: held against the manifest, and against what the round itself noted."""
    try:
        report, inputs = project.report(round_id), project.record(round_id, INPUTS, RoundInputs)
        base = None if report.base is None else project.report(report.base)
    except (StorageError, ValidationError) as error:
        return [str(error)]
    if inputs is None:
        return []
    faults = [
        f"the {name} are not those that it was made from"
        for name, records, wanted in (
            ("labels", inputs.labels, manifest.labels),
            ("pool's images", inputs.pool, manifest.pool),
        )
        if listing_digest(records) != wanted
    ]
    if dict(report.request.options) != dict(manifest.options) or report.request.seed != manifest.seed:
        changed = sorted(
            name
            for name in report.request.options.keys() | manifest.options.keys()
            if report.request.options.get(name) != manifest.options.get(name)
        )
        faults.append(f"options are not those that it was made with: {', '.join(changed) or 'seed'}")
    digest = (
        inputs_digest(report.request, inputs.labels, inputs.pool)
        if base is None
        else reranked_digest(report.request, base, inputs.labels, inputs.pool)
    )
    if digest != report.inputs:
        faults.append("labels, pool and request together are not what the round noted when it began")
    return faults
