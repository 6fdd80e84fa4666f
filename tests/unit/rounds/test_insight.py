"""The insight of a round, hand-computed."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from ml_backend.acquisition.strategy import AcquisitionRanking, rank
from ml_backend.errors import StaleRound
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import STRATEGIES
from ml_backend.rounds.live import KEPT_PREVIEW, round_insight, strategy_previews
from ml_backend.schemas import Ranking
from tests.fakes import make_report

TWO = ("normal", "severe")
# Image a: two passes that agree on a doubt. b: two sure passes that contradict each other. c: two sure ones that agree.
PROBS = np.array([[[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]], dtype=np.float32)
OUTPUTS = PoolPredictions(("a", "b", "c"), TWO, PROBS)


def insight(ranking: Ranking):
    return round_insight(make_report().model_copy(update={"ranking": ranking}), OUTPUTS)


class TestRoundInsight:
    def test_doubt_of_every_pass_is_aleatoric_and_doubt_between_them_epistemic(self):
        found = insight(Ranking(strategy="bald", image_ids=("a", "b", "c"), scores=(0.1,) * 3, batch_size=3)).batch

        assert [one.aleatoric for one in found] == pytest.approx([math.log(2), 0.0, 0.0])
        assert [one.epistemic for one in found] == pytest.approx([0.0, math.log(2), 0.0])

    def test_pool_by_mean_and_by_count(self):
        """Mean probability of normal: (0.5 + 0.5 + 0) / 3. Ties go to the first class: a and b count as normal."""
        found = insight(Ranking(strategy="bald", image_ids=("b", "a", "c"), scores=(0.7, 0.0, 0.0), batch_size=1))

        assert found.images == 3
        assert found.expected == pytest.approx({"normal": 1 / 3, "severe": 2 / 3})
        assert found.predicted == {"normal": 2, "severe": 1}

    def test_batch_in_the_order_of_the_ranking_with_its_scores(self):
        found = insight(Ranking(strategy="bald", image_ids=("b", "c", "a"), scores=(0.7, 0.2, 0.1), batch_size=2))

        assert [(one.image_id, one.place, one.score) for one in found.batch] == [("b", 1, 0.7), ("c", 2, 0.2)]
        assert found.batch[1].suggestion == "severe"
        assert found.batch[1].confidence == 1.0
        assert found.batch[0].probs == pytest.approx({"normal": 0.5, "severe": 0.5})

    def test_control_images_are_kept_wherever_they_stand(self):
        ranking = Ranking(
            strategy="bald", image_ids=("b", "c", "a"), scores=(0.7, 0.2, 0.1), batch_size=1, control=("a",)
        )
        found = insight(ranking)

        assert [(one.image_id, one.control) for one in found.batch] == [("b", False)]
        assert [(one.image_id, one.place, one.control) for one in found.control] == [("a", 3, True)]

    def test_ranked_images_that_were_not_scored_are_left_out(self):
        """A top-up's newcomers, say."""
        found = insight(Ranking(strategy="bald", image_ids=("new", "c"), scores=(0.7, 0.2), batch_size=2))

        assert [one.image_id for one in found.batch] == ["c"]

    def test_empty_pool(self):
        nothing = PoolPredictions((), TWO, PROBS[:0])
        ranking = Ranking(strategy="bald", image_ids=(), scores=(), batch_size=2)
        found = round_insight(make_report().model_copy(update={"ranking": ranking}), nothing)

        assert found.expected == {"normal": 0.0, "severe": 0.0}
        assert found.batch == ()


class TestPreviews:
    def test_first_by_each_strategy_that_ranks_probabilities(self):
        """Of BALD the two passes that contradict each other; of the margin what is undecided by the mean."""
        found = strategy_previews(OUTPUTS, seed=0, batch_size=4).first

        assert found["bald"][0].image_id == "b"
        assert found["bald"][0].score == pytest.approx(math.log(2))
        assert {one.image_id for one in found["margin"][:2]} == {"a", "b"}
        assert found["margin"][2].probs == pytest.approx({"normal": 0.0, "severe": 1.0})
        assert "random" in found
        assert not {"badge", "batch_bald", "core_set", "epig"} & found.keys()

    @pytest.mark.parametrize(("batch_size", "kept"), [(1, 8), (20, 46), (80, KEPT_PREVIEW)])
    def test_two_batches_more_than_are_shown_and_a_plugin_that_fails_is_left_out(self, monkeypatch, batch_size, kept):
        outputs = PoolPredictions(tuple(map(str, range(120))), TWO, np.full((120, 2, 2), 0.5, np.float32))
        spec = dataclasses.replace(STRATEGIES["bald"], name="broken", target="no_such_module:f")
        monkeypatch.setitem(STRATEGIES, "broken", spec)

        found = strategy_previews(outputs, seed=0, batch_size=batch_size, chosen="broken").first

        assert "broken" not in found
        assert {len(images) for images in found.values()} == {kept}

    def test_of_plugins_only_the_chosen_one(self, monkeypatch):
        asked = list[str]()

        def noted(name: str, *args: Any, **options: Any) -> AcquisitionRanking:
            asked.append(name)
            return rank(name, *args, **options)

        monkeypatch.setattr("ml_backend.rounds.live.rank", noted)
        for name in ("chosen", "installed"):
            spec = dataclasses.replace(STRATEGIES["bald"], name=name, target="no_such_module:f")
            monkeypatch.setitem(STRATEGIES, name, spec)

        strategy_previews(OUTPUTS, seed=0, batch_size=2, chosen="chosen")

        assert "chosen" in asked
        assert "installed" not in asked

    def test_a_plugin_whose_scores_cannot_be_shown_is_left_out(self, monkeypatch):
        """No number is no error of ``rank``."""

        def broken(*_: object, **__: object) -> object:
            raise KeyError("no such image")

        monkeypatch.setattr("ml_backend.rounds.live._image_insights", broken)

        assert strategy_previews(OUTPUTS, seed=0, batch_size=2).first == {}

    def test_makes_way_between_two_strategies(self):
        calls = iter([None, StaleRound("another round waits")])

        def make_way() -> None:
            if (error := next(calls)) is not None:
                raise error

        with pytest.raises(StaleRound, match="another round waits"):
            strategy_previews(OUTPUTS, seed=0, batch_size=2, make_way=make_way)
