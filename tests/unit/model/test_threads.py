import pytest
import torch

from ml_backend.model.hardware import one_thread


def test_puts_the_number_back_also_after_an_error() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert seen == [1]
    assert torch.get_num_threads() == before
