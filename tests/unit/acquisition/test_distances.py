"""Distances that no place in the pool and no thread count may change."""

import pytest
import torch

from ml_backend.acquisition import diversity as module
from ml_backend.acquisition.diversity import computable, nearest, squared_distances, squared_lengths


class TestSquaredDistances:
    def test_hand_computed(self) -> None:
        rows = torch.tensor([[3.0, 4.0], [1.0, 0.0]])

        assert squared_distances(rows, torch.tensor([0.0, 1.0])).tolist() == [18.0, 2.0]
        assert squared_distances(rows, torch.tensor([[0.0, 0.0], [1.0, 2.0]])).tolist() == [25.0, 4.0]
        assert squared_lengths(rows).tolist() == [25.0, 1.0]

    def test_a_row_alone_and_anywhere(self) -> None:
        """Copies lie at the same distance to the last bit, in whichever chunk, and at 0 of each other."""
        rows = torch.rand(3 * module._CHUNK_ELEMENTS // 100, 100, generator=torch.Generator().manual_seed(0))
        rows[[1, 4000, len(rows) - 1]] = rows[0].clone()

        apart = squared_distances(rows, rows[7])

        assert (
            len(set(apart[[0, 1, 4000, len(rows) - 1]].tolist() + squared_distances(rows[:1], rows[7]).tolist())) == 1
        )
        assert squared_distances(rows, rows[0])[[0, 1, 4000, len(rows) - 1]].tolist() == [0.0] * 4


class TestNearest:
    def test_hand_computed(self) -> None:
        rows, centres = torch.tensor([[0.0], [4.0], [9.0]]), torch.tensor([[1.0], [10.0], [5.0]])

        assert nearest(rows, centres).tolist() == [1.0, 1.0, 1.0]

    def test_across_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_CENTRES", 7)
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 25)
        generator = torch.Generator().manual_seed(0)
        rows, centres = torch.randn(40, 3, generator=generator), torch.randn(33, 3, generator=generator)

        by_hand = (rows[:, None].double() - centres[None].double()).square().sum(dim=-1).amin(dim=1)

        assert nearest(rows, centres).tolist() == pytest.approx(by_hand.tolist(), rel=1e-5)


class TestComputable:
    def test_half_precision_is_widened_and_the_rest_left(self) -> None:
        assert computable(torch.ones(1, 1, dtype=torch.bfloat16)).dtype == torch.float32
        assert computable(torch.ones(1, 1, dtype=torch.float64)).dtype == torch.float64
