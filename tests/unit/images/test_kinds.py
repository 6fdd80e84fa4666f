"""A file is read, or named by what it is, with a way out."""

import pytest

from ml_backend.images.decode import UndecodableImage, decode
from tests.unit.images.kinds import KINDS, READ


@pytest.mark.parametrize("kind", READ)
def test_is_read(kind: str) -> None:
    assert decode(READ[kind], 32, "x").shape == (32, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_is_named_with_a_way_out(kind: str) -> None:
    content, trouble, words = KINDS[kind]

    with pytest.raises(UndecodableImage) as error:
        decode(content, 32, "x")

    assert error.value.kind == trouble
    assert words in str(error.value)
    assert "\n" not in str(error.value)
