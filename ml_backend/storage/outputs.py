"""What grows with the pool as files: arrays of numbers and text, never a pickle."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import structlog
from jaxtyping import Float16

from ml_backend.errors import OtherFormat, StorageError
from ml_backend.predictions import LastLayerGradients, PoolPredictions
from ml_backend.schemas import Exclusion
from ml_backend.storage.atomic import write_atomically

FORMAT: Final = 1
"""Of both files. A file without one is of format 1, which was first written without a number."""
OUTPUTS = "outputs.npz"
EVIDENCE = "evidence.npz"

log = structlog.get_logger(__name__)

Ids = npt.NDArray[np.int32] | npt.NDArray[np.int64] | npt.NDArray[np.str_]
_DAMAGES = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file may raise."""
_OPTIONAL = ("features", "labelled_features")


def write_columns(path: Path, **columns: npt.NDArray[Any]) -> None:
    """Write columns of equal or different lengths, compressed.

    Raises:
        OSError: the folder is gone, or the disk refuses.
    """
    np.savez_compressed(path, allow_pickle=False, format=np.array(FORMAT), **columns)


def read_columns(path: Path, *names: str) -> list[npt.NDArray[Any]]:
    """Some columns of a file of ``write_columns``; the others are not read.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it is damaged, or another version wrote it.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as columns:
            _require_format(path, columns)
            return [columns[name] for name in names]
    except FileNotFoundError:
        raise
    except _DAMAGES as error:
        raise _damaged(path, error) from error


def id_column(ids: Sequence[str]) -> Ids:
    """Image ids as a column: of numbers where all are numbers as Label Studio writes them, else of text."""
    if all(one.isdecimal() and one.isascii() and len(one) < 19 and (one[0] != "0" or one == "0") for one in ids):
        numbers = np.array([*map(int, ids)], dtype=np.int64)
        return numbers if numbers.max(initial=0) > np.iinfo(np.int32).max else numbers.astype(np.int32)
    return np.array(ids, dtype=np.str_)


def ids_of(column: Ids) -> tuple[str, ...]:
    """The image ids in a column."""
    return tuple(map(str, column.tolist()))


def json_column(text: str) -> npt.NDArray[np.uint8]:
    """JSON as a column."""
    return np.frombuffer(text.encode(), np.uint8)


def _require_format(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    if (seen := int(arrays["format"]) if "format" in arrays else 1) != FORMAT:
        raise OtherFormat(f"{path} is of format {seen}, and this version reads format {FORMAT}")


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(f"{path} is damaged ({error}): move it away to continue")


def write_outputs(path: Path, outputs: PoolPredictions) -> None:
    """Write predictions so that they come back bit-identical; uncompressed, which costs a tenth of the room.

    Args:
        path: of the new file, in an existing folder.
        outputs: to write.

    Raises:
        OSError: the folder is gone, or the disk refuses.
    """
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "image_ids": id_column(outputs.image_ids),
        "classes": np.array(outputs.classes, dtype=np.str_),
        "probs": outputs.probs,
    }
    arrays |= {name: array for name in _OPTIONAL if (array := getattr(outputs, name)) is not None}
    if outputs.gradients is not None:
        arrays |= {"residuals": outputs.gradients.residuals, "hidden": outputs.gradients.hidden}
    if outputs.exclusions:
        arrays["exclusions"] = json_column(json.dumps([exclusion.model_dump() for exclusion in outputs.exclusions]))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue(), parents=False)


def read_outputs(path: Path) -> PoolPredictions | None:
    """Read a file of ``write_outputs``; None where there is none.

    Raises:
        OtherFormat: another version wrote it.
        StorageError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            _require_format(path, arrays)
            gradients = LastLayerGradients(arrays["residuals"], arrays["hidden"]) if "hidden" in arrays else None
            exclusions = json.loads(arrays["exclusions"].tobytes()) if "exclusions" in arrays else []
            return PoolPredictions(
                image_ids=ids_of(arrays["image_ids"]),
                classes=tuple(arrays["classes"].tolist()),
                probs=arrays["probs"],
                **{name: arrays[name] for name in _OPTIONAL if name in arrays},
                gradients=gradients,
                exclusions=tuple(Exclusion.model_validate(one) for one in exclusions),
            )
    except FileNotFoundError:
        return None
    except _DAMAGES as error:
        raise _damaged(path, error) from error


def write_round_outputs(folder: Path, outputs: PoolPredictions) -> None:
    """Write a round's passes, and features or gradients, which are removed sooner, into a file of their own.

    Raises:
        OSError: the folder is gone, or the disk refuses.
    """
    write_outputs(folder / OUTPUTS, PoolPredictions(outputs.image_ids, outputs.classes, outputs.probs))
    if outputs.features is not None or outputs.gradients is not None:
        write_outputs(folder / EVIDENCE, replace(outputs, probs=outputs.probs[:, :0]))


def read_evidence(folder: Path) -> PoolPredictions | None:
    """Read both files of ``write_round_outputs``, as far as they are kept; None where there is neither.

    Raises:
        OtherFormat: another version wrote one of them.
        StorageError: a file is damaged, or the two are of different pools.
    """
    outputs, evidence = read_outputs(folder / OUTPUTS), read_outputs(folder / EVIDENCE)
    if outputs is None or evidence is None:
        return outputs
    if outputs.image_ids != evidence.image_ids or outputs.classes != evidence.classes:
        raise StorageError(f"{folder / EVIDENCE} and {OUTPUTS} are of different pools")
    return replace(evidence, probs=outputs.probs)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Features of a project's images on their first principal axes; see ``rounds.embedding``.

    Attributes:
        round_id: of the round that computed it.
        source: digest of what it was computed from.
        image_ids: of the images that could be read.
        components: of each image, the axis of most variance first.
        explained: fraction of the features' variance on the first two axes together, 0 to 1.
    """

    round_id: str
    source: str
    image_ids: tuple[str, ...]
    components: Float16[npt.NDArray[np.float16], "images axes"]
    explained: float


def write_embedding(path: Path, embedding: Embedding) -> None:
    """Replace a file of ``read_embedding``; 100,000 images on 64 axes take 14 MB.

    Raises:
        OSError: the disk refuses.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        format=np.array(FORMAT),
        about=np.array([embedding.round_id, embedding.source]),
        image_ids=np.array(embedding.image_ids, dtype=np.str_),
        components=embedding.components,
        explained=np.array(embedding.explained),
    )
    write_atomically(path, buffer.getvalue())


def read_embedding(path: Path) -> Embedding | None:
    """The embedding in a file; None where there is none, or it is damaged or of another version, which is logged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            _require_format(path, arrays)
            round_id, source = arrays["about"].tolist()
            ids = tuple(arrays["image_ids"].tolist())
            return Embedding(round_id, source, ids, arrays["components"], float(arrays["explained"]))
    except FileNotFoundError:
        return None
    except (OtherFormat, *_DAMAGES) as error:
        log.warning("an embedding is ignored and computed again", file=str(path), error=str(error))
        return None


class SavesItself(Protocol):
    """A learner that can write its network."""

    def save(self, folder: str) -> None: ...
