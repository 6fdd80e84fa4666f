"""Why an image was chosen, for every strategy that there is."""

import pytest

from ml_backend.analytics import ImageInsight
from ml_backend.analytics.overview import CONTROL, reason, reason_unseen
from ml_backend.registry import STRATEGIES

IMAGE = ImageInsight(
    image_id="4",
    place=1,
    probs={"normal": 0.09, "moderate": 0.48, "severe": 0.43},
    score=0.25,
    aleatoric=0.6,
    epistemic=0.31,
)
SAID = {
    "badge": "differs from the others of its batch",
    "bald": "the passes disagree: 28 % of the maximum",  # 0.31 of log 3
    "batch_bald": "differs from the others of its batch: adds 23 % of what a label can hold",
    "core_set": "differs from the others of its batch: 0.25 from the nearest",
    "entropy": "undecided between moderate 48 % and severe 43 %",
    "least_confidence": "unsure of its prediction, moderate 48 %",
    "margin": "small margin between moderate 48 % and severe 43 %",
    "mean_std": "the passes disagree: 25 points",
    "power_bald": "the passes disagree: 28 % of the maximum; spread over the pool at random",
    "random": "drawn at random",
    "typiclust": "differs from the others of its batch: typical",
    "variation_ratios": "25 % of the passes vote against",
}


class TestReason:
    def test_every_strategy_has_its_own(self):
        assert set(SAID) == set(STRATEGIES)
        assert len({reason(name, IMAGE) for name in STRATEGIES}) == len(STRATEGIES)

    @pytest.mark.parametrize("strategy", SAID)
    def test_says_what_the_strategy_saw(self, strategy):
        assert reason(strategy, IMAGE).startswith(SAID[strategy])

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_control_image_is_there_by_chance_whatever_ranks_the_others(self, strategy):
        assert reason(strategy, IMAGE.model_copy(update={"control": True})) == CONTROL
        assert reason_unseen(strategy, control=True) == CONTROL

    def test_a_strategy_that_is_no_more_shows_its_score(self):
        assert reason("gone", IMAGE) == "score 0.25"

    def test_without_a_network(self):
        assert reason_unseen("random") == "drawn at random"
        assert "typical" in reason_unseen("typiclust")
        assert reason_unseen("gone")
