"""Warnings: the findings of the study, against its own random and baseline, and what it lacks."""

from dataclasses import replace

from ml_backend.simulation.report import MetricAnswer, answer, cautions, metrics_of
from ml_backend.simulation.run_log import StudyResults
from tests.unit.simulation.drawn_results import drawn_metrics, drawn_results


def accuracy(results: StudyResults) -> MetricAnswer:
    return answer(metrics_of(results)[0], results)


def said(results: StudyResults, *torn: str) -> str:
    return "\n".join(words for one in cautions(results, accuracy(results), torn) for words in one.messages)


class TestCautions:
    def test_a_sound_study_has_none(self):
        results = drawn_results(("random", "entropy"), seeds=10, rounds=25)
        low = drawn_metrics(0.6, results.summary.classes)
        baselines = tuple(row.model_copy(update={"metrics": low}) for row in results.baselines)

        assert said(replace(results, baselines=baselines)) == ""

    def test_few_seeds(self):
        assert "3 seeds: Wilcoxon" in said(drawn_results())

    def test_seeds_are_those_that_every_strategy_ran(self):
        results = drawn_results(("random", "entropy"), seeds=10, rounds=8)
        rows = [row for row in results.rounds if row.strategy == "random" or row.seed < 4]

        assert "4 seeds: Wilcoxon" in said(replace(results, rounds=tuple(rows)))

    def test_random_ahead(self):
        results = drawn_results(("random", "entropy"), seeds=10, rounds=8)
        rows = [
            row.model_copy(update={"metrics": drawn_metrics(0.3, results.summary.classes)})
            if row.strategy == "entropy"
            else row
            for row in results.rounds
        ]

        assert "entropy learns more slowly than random picks" in said(replace(results, rounds=tuple(rows)))

    def test_few_passes_for_batch_bald(self):
        assert "batch_bald picked batches of 20 with 50 passes" in said(drawn_results(("random", "batch_bald")))

    def test_a_class_that_never_reaches_the_baseline_and_how_often_it_was_picked(self):
        words = said(drawn_results(("random", "entropy"), rounds=3, variants=("weighted",)))

        assert "entropy, weighted never reaches the baseline's figures of class 'viral'" in words
        assert "of its picks" in words

    def test_what_asks_for_the_same_is_said_together(self):
        results = drawn_results(("random", "entropy"), rounds=3)
        found = cautions(results, accuracy(results), ())

        assert len({one.check for one in found}) == len(found)
        assert max(len(one.messages) for one in found) > 1

    def test_torn_runs(self):
        [first, *_] = cautions(drawn_results(), accuracy(drawn_results()), ("entropy, seed 1: 2 of 6 rounds",))

        assert first.messages[0].startswith("1 run broke off")
        assert "entropy, seed 1: 2 of 6 rounds" in first.messages[0]
        assert "--out" in first.check

    def test_missing_baselines(self):
        results = drawn_results(seeds=3)

        assert "9 of 9 runs have no baseline" in said(replace(results, baselines=()))
        assert "entropy, seed 1 and 4 more" in said(replace(results, baselines=()))
        assert "3 of 9 runs" in said(replace(results, baselines=results.baselines[:2]))

    def test_without_random(self):
        assert "random was not run" in said(drawn_results(("entropy",)))
