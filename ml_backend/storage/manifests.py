"""What a round was made from, in hashes; each manifest names the one before it, so that none is replaced unseen."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from ml_backend.errors import StorageError
from ml_backend.records import ImageRef, Label, Record
from ml_backend.storage.files import read_record

__all__ = [
    "INPUTS",
    "MANIFEST",
    "Manifest",
    "RoundInputs",
    "file_faults",
    "read_manifest",
    "sha256_of",
    "sha256_of_files",
]

MANIFEST: Final = "manifest"
INPUTS: Final = "inputs"
"""The names under which these records stand in a round's folder."""
_SWEPT = ("model", "evidence")  # how files begin that are kept of the last rounds only


class RoundInputs(Record):
    """What a round learned from and ranked.

    Attributes:
        labels: in the order of the image ids.
        pool: likewise.
    """

    labels: tuple[Label, ...]
    pool: tuple[ImageRef, ...]


class Manifest(Record):
    """A round in hashes; all of them sha256, in hex.

    Attributes:
        files: of every file of the round's folder when it was saved, by its path there.
        labels: of the listing of labels, one line of JSON each; the pool likewise.
        code: of the package's .py files, and its version.
        versions: of what computes.
        machine: what decides a last bit, in words.
        weights: of the backbone's weights file; empty where there is none.
        weights_from: the network's name, and whence its weights.
        previous: hash of the manifest of the round ``previous_round``; None in a chain's first.
    """

    format: Literal[1] = 1
    round_id: str
    files: dict[str, str]
    labels: str
    pool: str
    code: str
    version: str
    versions: dict[str, str]
    machine: str
    weights: str
    weights_from: str
    seed: int
    options: dict[str, object] = Field(default={})
    previous: str | None = None
    previous_round: str | None = None


def sha256_of(path: Path) -> str:
    """Of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path) -> dict[str, str]:
    """Of every file in a folder and below, by its path there; a manifest is left out.

    Raises:
        OSError: one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths if path.name != f"{MANIFEST}.json"}


def read_manifest(folder: Path) -> tuple[Manifest, str] | None:
    """A round's manifest, and the hash of its file; None where the round has none.

    Raises:
        StorageError: it is damaged.
    """
    path = folder / f"{MANIFEST}.json"
    manifest = read_record(path, Manifest)
    if manifest is None:
        return None
    try:
        return manifest, sha256_of(path)
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}") from error


def file_faults(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Each file of a round that is not what its manifest says, in words. Networks and evidence may be gone by now."""
    faults = []
    for name, wanted in files.items():
        try:
            seen = sha256_of(folder / name)
        except FileNotFoundError:
            if not Path(name).name.startswith(_SWEPT):
                faults.append(f"{name} is gone")
            continue
        except OSError as error:
            faults.append(f"{name} cannot be read: {error}")
            continue
        if seen != wanted:
            faults.append(f"{name} is not what was saved: its sha256 begins with {seen[:12]}, not {wanted[:12]}")
    return faults
