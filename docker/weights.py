"""Put a backbone's weights into the data volume and load them as a round does; in the worker's image.

weights.py BACKBONE              download the ImageNet weights to the place where rounds look for them
weights.py BACKBONE NAME < FILE  store FILE as NAME, for a host without internet access. ImageNet weights keep the name
                                 that torchvision gives them; any other file is what the option ``weights`` then names
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import torch

from ml_backend.errors import BackendError
from ml_backend.model.backbones import load_backbone, weights_file


def store(file: BinaryIO, name: str) -> Path:
    """Copy a file into torch.hub's folder; under its name only once it is complete.

    Raises:
        ValueError: ``name`` is not the bare name of a file.
    """
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not the bare name of a file: give the name without a folder")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as partial:
        shutil.copyfileobj(file, partial)
    return Path(partial.name).replace(folder / name)


def main(backbone: str, name: str | None = None) -> str:
    """What was loaded from where, and the option that uses it.

    Raises:
        BackendError: no such backbone, or its weights cannot be downloaded or read. A file that was stored is removed.
    """
    stored = store(sys.stdin.buffer, name) if name is not None else None
    try:
        ours = stored is None or stored == weights_file(backbone, "imagenet")
        network = load_backbone(backbone, "imagenet" if ours else str(stored))
    except BackendError:
        if stored is not None:
            stored.unlink()
        raise
    count = sum(tensor.numel() for tensor in network.parameters())
    path = stored or weights_file(backbone, "imagenet")
    return f"{path}: loaded {count:,} weights into {backbone}; the option is weights={network.weights}"


if __name__ == "__main__":
    if not 1 < len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        print(main(*sys.argv[1:]))  # noqa: T201
    except (BackendError, ValueError) as error:
        sys.exit(f"weights.py: {error}")
