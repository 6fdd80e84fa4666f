"""The catalogue of strategies in words."""

from typing import get_args

import pytest

from ml_backend.registry import STRATEGIES, Need, strategy_spec


class TestStrategies:
    def test_holds_the_papers_functions_and_those_beyond(self):
        of_the_paper = {
            "batch_bald", "entropy", "least_confidence", "margin", "mean_std", "random", "variation_ratios",
        }  # fmt: skip

        assert of_the_paper | {"badge", "bald", "core_set", "power_bald", "typiclust"} == set(STRATEGIES)

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_an_entry_says_everything(self, name):
        entry = STRATEGIES[name]

        assert entry.name == name
        assert all([entry.summary, entry.unit, entry.range, entry.source])
        assert entry.needs <= set(get_args(Need))
        assert entry.min_passes >= 1
        assert "|" not in entry.summary + entry.unit + entry.range + entry.source  # they stand in a Markdown table

    def test_stand_in_the_order_in_which_a_reader_looks_for_them(self):
        assert list(STRATEGIES) == sorted(STRATEGIES)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"unknown strategy 'best': known are badge, .*variation_ratios"):
            strategy_spec("best")
