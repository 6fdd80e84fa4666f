"""Which runs a study has, and what may change in a folder that holds one."""

import pytest

from ml_backend.config import ProjectOptions
from ml_backend.errors import SettingsError
from ml_backend.registry import STRATEGIES
from ml_backend.simulation.plan import BASELINE, PROFILES
from tests.unit.simulation.tiny import make_plan


class TestRuns:
    def test_are_every_strategy_with_every_seed_and_a_baseline_for_each(self):
        names = [run.name for run in make_plan().runs()]

        assert names == ["random-s0", "random-s1", "entropy-s0", "entropy-s1", "baseline-s0", "baseline-s1"]

    def test_of_two_losses_carry_their_name(self):
        plan = make_plan(losses=("weighted", "unweighted"), seeds=(4,), strategies=("entropy",))

        assert [run.name for run in plan.runs()] == [
            "entropy-weighted-s4", "entropy-unweighted-s4", "baseline-weighted-s4", "baseline-unweighted-s4",
        ]  # fmt: skip
        assert [plan.options_of(run).loss for run in plan.runs()] == ["weighted", "unweighted"] * 2

    def test_are_done_seed_by_seed(self):
        """So that half a study holds whole comparisons."""
        assert [run.seed for run in make_plan().in_turn()] == [0, 0, 0, 1, 1, 1]

    def test_are_found_by_name(self):
        plan = make_plan()

        assert all(plan.run(run.name) == run for run in plan.runs())
        with pytest.raises(SettingsError, match="has no run 'entropy-s7': it was begun by another command"):
            plan.run("entropy-s7")

    def test_no_strategy_is_called_like_the_baseline(self):
        assert BASELINE not in STRATEGIES

    def test_seed_and_strategy_are_the_runs_own(self):
        plan = make_plan(seeds=(3,))
        run = plan.run("entropy-s3")

        assert (plan.options_of(run).seed, plan.options_of(run).strategy) == (3, "entropy")
        request = plan.request(run, ("a", "b"))
        assert (request.seed, request.strategy, request.batch_size, request.control_share) == (3, "entropy", 5, 0.0)


class TestRounds:
    @pytest.mark.parametrize(
        ("budget", "rounds"), [(6, 1), (10, 1), (11, 2), (30, 5), (46, 9), (47, 9), (48, 9), (5, 0)]
    )
    def test_train_within_the_budget_while_something_is_left_to_rank(self, budget, rounds):
        """6 labels, then 11, 16 ... 46 of 48."""
        assert make_plan(budget=budget).rounds(classes=3, train_images=48) == rounds


class TestCheckSame:
    def test_the_same_command_at_another_time_goes_on(self):
        make_plan(started_at="2027-01-01T00:00:00+00:00", command="x").check_same(make_plan())

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"budget": 20}, "budget: 30 then, 20 now"),
            ({"seeds": (0, 1, 2)}, "seeds: 0,1 then, 0,1,2 now"),
            ({"digests": {"labels": "aa", "features": "cc"}}, "digests features: bb then, cc now"),
            ({"versions": {"python": "3.12"}}, "versions python: 3.11 then, 3.12 now"),
            ({"options": {"batch_size": 20}}, "options batch_size: 5 then, 20 now"),
            ({"imbalance": {"normal": 0.1}}, "imbalance normal: None then, 0.1 now"),
        ],
    )
    def test_another_one_is_refused_with_what_changed(self, changes, said):
        if "options" in changes:
            changes = {"options": make_plan().options | changes["options"]}

        with pytest.raises(SettingsError) as refused:
            make_plan(**changes).check_same(make_plan())

        assert said in str(refused.value)
        assert "give a new --out, or repeat `ml-backend simulate" in str(refused.value)


class TestProfiles:
    @pytest.mark.parametrize("name", PROFILES)
    def test_hold_options_that_there_are(self, name):
        ProjectOptions.resolve(PROFILES[name].options, environ={})

    def test_the_papers(self):
        """25 a class, 20 a round, patience 3, from scratch."""
        options = ProjectOptions.resolve(PROFILES["paper"].options, environ={})

        assert PROFILES["paper"].initial == 25
        assert (options.batch_size, options.patience, options.retrain) == (20, 3, "scratch")
