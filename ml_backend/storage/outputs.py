"""Pool outputs as one file: arrays of numbers and of text, never a pickle."""

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ml_backend.errors import OtherFormat, StorageError
from ml_backend.predictions import LastLayerGradients, PoolPredictions
from ml_backend.schemas import Exclusion
from ml_backend.storage.atomic import replace_file

FORMAT: Final = 1
"""Of both files, and of a shard's. What holds none is of the first format, which was written without."""
OUTPUTS = "outputs.npz"
EVIDENCE = "evidence.npz"

_OPTIONAL = ("features", "labelled_features")


def write_outputs(path: Path, outputs: PoolPredictions, *, compress: bool) -> None:
    """Write all of them, to the bit.

    Args:
        path: of the new file, in a folder that is there.
        outputs: what to write.
        compress: for what is kept; a file that lives for minutes is written faster without.

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
        told = json.dumps([exclusion.model_dump() for exclusion in outputs.exclusions])
        arrays["exclusions"] = np.frombuffer(told.encode(), np.uint8)
    write: Callable[..., None] = np.savez_compressed if compress else np.savez
    buffer = io.BytesIO()
    write(buffer, allow_pickle=False, **arrays)
    replace_file(path, buffer.getvalue())


def read_outputs(path: Path) -> PoolPredictions | None:
    """What ``write_outputs`` wrote; None where there is no such file.

    Raises:
        OtherFormat: another version wrote it.
        StorageError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if (seen := int(arrays["format"]) if "format" in arrays else 1) != FORMAT:
                raise OtherFormat(f"{path} is of format {seen}, and this version reads format {FORMAT}")
            gradients = LastLayerGradients(arrays["residuals"], arrays["hidden"]) if "hidden" in arrays else None
            told = json.loads(arrays["exclusions"].tobytes()) if "exclusions" in arrays else []
            return PoolPredictions(
                image_ids=tuple(arrays["image_ids"].tolist()),
                classes=tuple(arrays["classes"].tolist()),
                probs=arrays["probs"],
                **{name: arrays[name] for name in _OPTIONAL if name in arrays},
                gradients=gradients,
                exclusions=tuple(Exclusion.model_validate(one) for one in told),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StorageError(f"{path} is damaged ({error}): move it away to go on") from error


def keep_outputs(folder: Path, outputs: PoolPredictions) -> None:
    """Write the passes for good, and what else a strategy looked at, features or gradients, into a file of its own.

    Raises:
        OSError: the folder is gone, or the disk refuses.
    """
    write_outputs(folder / OUTPUTS, PoolPredictions(outputs.image_ids, outputs.classes, outputs.probs), compress=True)
    if outputs.features is not None or outputs.gradients is not None:
        # Features of a network hardly compress.
        write_outputs(folder / EVIDENCE, replace(outputs, probs=outputs.probs[:, :0]), compress=False)


def kept_evidence(folder: Path) -> PoolPredictions | None:
    """All that ``keep_outputs`` wrote; without what has been swept since. None where there is nothing.

    Raises:
        OtherFormat: another version wrote one of them.
        StorageError: a file is damaged, or the two are of different pools.
    """
    outputs, evidence = read_outputs(folder / OUTPUTS), read_outputs(folder / EVIDENCE)
    if outputs is None or evidence is None:
        return outputs
    if outputs.image_ids != evidence.image_ids or outputs.classes != evidence.classes:
        raise StorageError(f"{folder / EVIDENCE} is of another pool than {OUTPUTS} beside it")
    return replace(evidence, probs=outputs.probs)
