import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.model.steps import Loss


class TestLossOfGuessing:
    def test_balanced_weights_make_all_classes_one(self) -> None:
        targets = torch.tensor([0] * 7 + [1] * 18 + [2] * 25)
        weights = len(targets) / (3 * torch.bincount(targets))

        assert Loss(weights).of_guessing(targets) == pytest.approx(math.log(3.0))

    def test_unweighted_it_is_the_entropy_of_the_classes(self) -> None:
        """5 of 100: 0.199 nats, by hand."""
        targets = torch.tensor([1] * 5 + [0] * 95)

        assert Loss(torch.ones(2)).of_guessing(targets) == pytest.approx(0.1985, abs=1e-4)

    def test_of_one_class_nothing_is_to_be_guessed(self) -> None:
        assert Loss(torch.tensor([1.0, 0.0, 0.0])).of_guessing(torch.zeros(4, dtype=torch.int64)) == 0.0

    @given(
        targets=st.lists(st.integers(0, 3), min_size=1, max_size=40),
        weights=st.lists(st.floats(0.1, 5.0), min_size=4, max_size=4),
        answer=st.lists(st.floats(-3.0, 3.0), min_size=4, max_size=4),
    )
    def test_no_single_answer_loses_less(self, targets: list[int], weights: list[float], answer: list[float]) -> None:
        """And that of the weighted shares loses just as much."""
        loss, rows = Loss(torch.tensor(weights)), torch.tensor(targets)
        least = loss.of_guessing(rows)
        shares = torch.bincount(rows, minlength=4) * loss.weights

        assert float(loss.training(torch.tensor(answer).repeat(len(rows), 1), rows)) >= least - 1e-5
        assert float(loss.training(shares.log().clamp_min(-50.0).repeat(len(rows), 1), rows)) == pytest.approx(
            least, abs=1e-5
        )
