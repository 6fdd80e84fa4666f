from collections.abc import Iterator

import pytest

from ml_backend.model.threads import one_thread


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Networks as small as these are faster in one thread, and many times so where other tests run too."""
    with one_thread():
        yield
