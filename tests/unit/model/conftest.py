from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ml_backend.images.synthetic import draw_pool
from ml_backend.model.hardware import one_thread
from tests.unit.model.synthetic_images import CLASSES, SIDE


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Networks as small as these are faster in one thread."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 synthetic images with the class in the name, and an HTML page."""
    folder = tmp_path_factory.mktemp("images")
    arrays, labels, _ = draw_pool(60, (1, 1, 1), seed=0, side=SIDE)
    for index, (array, label) in enumerate(zip(arrays, labels, strict=True)):
        Image.fromarray(array).save(folder / f"{index:02d}-{CLASSES[label]}.png")
    (folder / "60-normal.png").write_bytes(b"<!doctype html><title>Log in</title>")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
