from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.model.steps import EpochMean

PATHS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20)


def means(path: Sequence[float], memory: float) -> list[float]:
    """The mean after every epoch of a network of one number, which walks along the path."""
    place = torch.zeros((), dtype=torch.float64)
    mean = EpochMean([place], memory)
    found = []
    for step in path:
        place.fill_(step)
        mean.add()
        found.append(float(mean.tensors[0]))
    return found


class TestEpochMean:
    def test_hand_computed(self) -> None:
        """4, (4 + 8) / 2, (6 + 6 + 0) / 3; from then on a quarter of the new one: 0.75 * 4 + 0.25 * 8, ..."""
        assert means([4, 8, 0, 8, 1], memory=0.75) == pytest.approx([4, 6, 4, 5, 4])

    def test_stands_in_place_for_a_while(self) -> None:
        weights, variance = torch.tensor([1.0, 2.0]), torch.tensor(4.0)
        mean = EpochMean([weights, variance], 0.9)
        mean.add()
        weights += 2
        variance += 6
        mean.add()

        with mean.in_place():
            assert (weights.tolist(), variance.item()) == ([2, 3], 7)
        assert (weights.tolist(), variance.item()) == ([3, 4], 10)

    def test_comes_out_again_after_an_error(self) -> None:
        weights = torch.tensor([1.0])
        mean = EpochMean([weights], 0.9)
        mean.add()
        weights += 2

        with pytest.raises(ZeroDivisionError), mean.in_place():
            1 / 0  # noqa: B018

        assert weights.tolist() == [3]

    @given(path=PATHS)
    def test_no_memory_is_the_network_itself(self, path: list[float]) -> None:
        assert means(path, memory=0.0) == path

    @given(path=PATHS, memory=st.floats(0.0, 1.0, exclude_max=True))
    def test_lies_within_the_path(self, path: list[float], memory: float) -> None:
        for number, mean in enumerate(means(path, memory), start=1):
            assert min(path[:number]) - 1e-9 <= mean <= max(path[:number]) + 1e-9

    @given(path=PATHS)
    def test_long_memory_is_the_plain_mean(self, path: list[float]) -> None:
        assert means(path, memory=0.999)[-1] == pytest.approx(sum(path) / len(path), abs=1e-6)

    @pytest.mark.parametrize("memory", [-0.1, 1.0])
    def test_memory_out_of_range(self, memory: float) -> None:
        with pytest.raises(ValueError, match=f"at least 0 and below 1, got {memory}"):
            EpochMean([], memory)
