"""Predictions and embeddings as files: arrays of numbers and text, never a pickle."""

import io
import json
import zipfile
import zlib
from collections.abc import Callable
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

_OPTIONAL = ("features", "labelled_features")


def write_outputs(path: Path, outputs: PoolPredictions, *, compress: bool) -> None:
    """Write predictions so that they come back bit-identical.

    Args:
        path: of the new file, in an existing folder.
        outputs: to write.
        compress: for files that are kept; a file that lives for minutes is written faster without.

    Raises:
        OSError: the folder is gone, or the disk refuses.
    """
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "image_ids": np.array(outputs.image_ids, dtype=np.str_),
        "classes": np.array(outputs.classes, dtype=np.str_),
        "probs": outputs.probs,
    }
    arrays |= {name: array for name in _OPTIONAL if (array := getattr(outputs, name)) is not None}
    if outputs.gradients is not None:
        arrays |= {"residuals": outputs.gradients.residuals, "hidden": outputs.gradients.hidden}
    if outputs.exclusions:
        text = json.dumps([exclusion.model_dump() for exclusion in outputs.exclusions])
        arrays["exclusions"] = np.frombuffer(text.encode(), np.uint8)
    write: Callable[..., None] = np.savez_compressed if compress else np.savez
    buffer = io.BytesIO()
    write(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue(), parents=False)


def read_outputs(path: Path) -> PoolPredictions | None:
    """Read a file of ``write_outputs``; None where there is none.

    Raises:
        OtherFormat: another version wrote it.
        StorageError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if (seen := int(arrays["format"]) if "format" in arrays else 1) != FORMAT:
                raise OtherFormat(f"{path} is of format {seen}, and this version reads format {FORMAT}")
            gradients = LastLayerGradients(arrays["residuals"], arrays["hidden"]) if "hidden" in arrays else None
            exclusions = json.loads(arrays["exclusions"].tobytes()) if "exclusions" in arrays else []
            return PoolPredictions(
                image_ids=tuple(arrays["image_ids"].tolist()),
                classes=tuple(arrays["classes"].tolist()),
                probs=arrays["probs"],
                **{name: arrays[name] for name in _OPTIONAL if name in arrays},
                gradients=gradients,
                exclusions=tuple(Exclusion.model_validate(one) for one in exclusions),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StorageError(f"{path} is damaged ({error}): move it away to continue") from error


def write_round_outputs(folder: Path, outputs: PoolPredictions) -> None:
    """Write a round's passes, which are kept for good, and features or gradients into a file of their own.

    Raises:
        OSError: the folder is gone, or the disk refuses.
    """
    write_outputs(folder / OUTPUTS, PoolPredictions(outputs.image_ids, outputs.classes, outputs.probs), compress=True)
    if outputs.features is not None or outputs.gradients is not None:
        # Features of a network hardly compress.
        write_outputs(folder / EVIDENCE, replace(outputs, probs=outputs.probs[:, :0]), compress=False)


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
            if (seen := int(arrays["format"])) != FORMAT:
                raise ValueError(f"format {seen}, and this version reads format {FORMAT}")  # noqa: TRY301 - with the rest
            round_id, source = arrays["about"].tolist()
            ids = tuple(arrays["image_ids"].tolist())
            return Embedding(round_id, source, ids, arrays["components"], float(arrays["explained"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("an embedding is ignored and computed again", file=str(path), error=str(error))
        return None


class SavesItself(Protocol):
    """A learner that can write its network."""

    def save(self, folder: str) -> None: ...
