"""Predictions come back as they were written, and workers hand them to each other."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml_backend.errors import OtherFormat, StorageError
from ml_backend.predictions import LastLayerGradients, PoolPredictions
from ml_backend.schemas import Exclusion
from ml_backend.storage.outputs import read_outputs, write_outputs

# NumPy's text drops NULs at its end; no id of a task and no path can hold one.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=5)
FLOATS = st.floats(width=32)  # NaN, infinities and -0.0 too


@st.composite
def pool_outputs(draw: st.DrawFn) -> PoolPredictions:
    ids = draw(st.lists(TEXT, max_size=4, unique=True))
    classes = draw(st.lists(TEXT, min_size=2, max_size=3, unique=True))
    images = len(ids)

    def array(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return draw(arrays.arrays(np.float32, shape, elements=FLOATS))

    return PoolPredictions(
        image_ids=tuple(ids),
        classes=tuple(classes),
        probs=array(images, 2, len(classes)),
        features=array(images, 3) if draw(st.booleans()) else None,
        labelled_features=array(2, 3) if draw(st.booleans()) else None,
        gradients=LastLayerGradients(array(images, len(classes)), array(images, 4)) if draw(st.booleans()) else None,
        exclusions=tuple(Exclusion(image_id=one, reason=one) for one in draw(st.lists(TEXT, max_size=2))),
    )


def bits(outputs: PoolPredictions) -> list[object]:
    found: list[object] = [outputs.image_ids, outputs.classes, outputs.exclusions]
    kept = [outputs.probs, outputs.features, outputs.labelled_features]
    if outputs.gradients is not None:
        kept += [outputs.gradients.residuals, outputs.gradients.hidden]
    return found + [None if one is None else (one.dtype, one.shape, one.tobytes()) for one in kept]


@given(pool_outputs())
@settings(deadline=None, max_examples=60)
def test_comes_back_to_the_bit(outputs):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outputs.npz")
        write_outputs(path, outputs)
        again = read_outputs(path)

    assert again is not None
    assert bits(again) == bits(outputs)


def test_no_file(tmp_path):
    assert read_outputs(tmp_path / "outputs.npz") is None


def test_a_pickle_is_refused(tmp_path):
    """Whoever can write a file must not run code by it."""
    path = tmp_path / "outputs.npz"
    np.savez(path, image_ids=np.array([{"a": 1}], dtype=object), classes=np.array(["a"]), probs=np.zeros((1, 1, 1)))

    with pytest.raises(StorageError, match="allow_pickle"):
        read_outputs(path)


class TestFormat:
    """What is written now, with another number in it, or with none."""

    @staticmethod
    def rewritten(path: Path, **changes: object) -> None:
        with np.load(path) as arrays:
            kept: dict[str, Any] = {name: arrays[name] for name in arrays if name not in changes}
        kept |= {name: np.array(value) for name, value in changes.items() if value is not None}
        np.savez(path, **kept)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        outputs = PoolPredictions(("1",), ("a", "b"), np.full((1, 1, 2), 0.5, np.float32))
        write_outputs(tmp_path / "outputs.npz", outputs)
        return tmp_path / "outputs.npz"

    def test_a_file_of_before_formats_were_written_is_read(self, path):
        self.rewritten(path, format=None)
        with np.load(path) as arrays:
            assert "format" not in arrays

        found = read_outputs(path)

        assert found is not None
        assert found.image_ids == ("1",)

    @pytest.mark.parametrize("seen", [0, 2])
    def test_one_of_another_version_is_told_from_damage(self, path, seen):
        self.rewritten(path, format=seen)

        with pytest.raises(OtherFormat, match=rf"outputs\.npz is of format {seen}, and this version reads format 1"):
            read_outputs(path)

    def test_a_format_that_is_none_is_damage(self, path):
        self.rewritten(path, format="new")

        with pytest.raises(StorageError, match=r"outputs\.npz is damaged") as refused:
            read_outputs(path)

        assert not isinstance(refused.value, OtherFormat)


@pytest.mark.parametrize("missing", ["image_ids", "classes", "probs", "residuals"])
def test_a_file_of_another_kind_is_damaged(tmp_path, missing):
    arrays_ = {
        "image_ids": np.array(["1"]),
        "classes": np.array(["a", "b"]),
        "probs": np.zeros((1, 1, 2), np.float32),
        "residuals": np.zeros((1, 2), np.float32),
        "hidden": np.zeros((1, 2), np.float32),
    }
    del arrays_[missing]
    np.savez(tmp_path / "outputs.npz", allow_pickle=False, **arrays_)

    with pytest.raises(StorageError, match=r"outputs\.npz is damaged"):
        read_outputs(tmp_path / "outputs.npz")
