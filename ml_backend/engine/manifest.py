"""A round is sealed: hashes of its data, code, weights and options, and of the seal before it."""

import hashlib
import platform
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import ml_backend
from ml_backend.model.machine import machine
from ml_backend.model.weights import weights_file
from ml_backend.records import Record, RoundReport
from ml_backend.settings import ProjectOptions
from ml_backend.storage import ProjectStore
from ml_backend.storage.manifests import MANIFEST, Manifest, RoundInputs, sha256_of, sha256_of_files

__all__ = ["code_digest", "listing_digest", "package_version", "sealed", "versions"]


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
        machine=machine(device),
        weights="" if weights is None else sha256_of(weights),
        weights_from=f"{options.backbone} {options.weights}" if by_network else "no network",
        seed=report.request.seed,
        options=report.request.options,
        previous=None if previous is None else previous[1],
        previous_round=None if previous is None else previous[0],
    )


def listing_digest(records: Iterable[Record]) -> str:
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
        path = project.folder / "rounds" / earlier / f"{MANIFEST}.json"
        if path.is_file():
            return earlier, sha256_of(path)
    return None
