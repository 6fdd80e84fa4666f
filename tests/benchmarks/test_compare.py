"""The arithmetic of the figures, what a side measures, and that both sides share their arithmetic."""

import itertools
import math
import re
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.benchmarks.compare import ROOT, BenchError, Figure, Run, Side, Task, cpu_s, joint_information, side_by_side
from tests.benchmarks.tasks import measure


class TestFigure:
    @pytest.mark.parametrize(
        ("comparison", "below", "equal", "above"),
        [("<=", True, True, False), ("<", True, False, False), (">=", False, True, True), (">", False, False, True)],
    )
    def test_target(self, comparison, below, equal, above):
        figures = [Figure("time", "s", ours, ("them", 1.0), (comparison, 2.0)) for ours in (1.9, 2.0, 2.1)]

        assert [figure.met for figure in figures] == [below, equal, above]

    def test_ratio(self):
        assert Figure("time", "s", 3.0, ("them", 4.0)).ratio == 0.75
        assert Figure("time", "s", 0.1, ("them", 9.0), faster=True).ratio == pytest.approx(90.0)
        assert Figure("memory", "MiB", 5.0, absolute=True).ratio == 5.0

    def test_without_a_baseline_nothing_is_met_or_missed(self):
        figure = Figure("time", "s", 3.0, None, ("<=", 1.0))

        assert (figure.ratio, figure.met) == (None, None)

    @pytest.mark.parametrize(
        ("ours", "unit", "shown"),
        [(0.003, "s", "3 ms"), (3e-5, "s", "30 µs"), (2.0, "s", "2 s"), (5.0, "MiB", "5 MiB")],
    )
    def test_is_shown_in_the_unit_that_fits(self, ours, unit, shown):
        assert f" {shown} " in str(Figure("x", unit, ours, ("them", 1.0)))

    def test_one_slow_run_does_not_move_the_median(self):
        assert cpu_s([Run(seconds, 0.0, None, None) for seconds in (0.1, 9.0, 0.2)]) == 0.2


def drawn(images: int, passes: int, classes: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).dirichlet([0.5] * classes, size=(images, passes))


def by_definition(probs: npt.NDArray[np.float64]) -> float:
    """``H(y_1 .. y_b) - Σ_i mean_t H(y_i | w_t)``, labelling by labelling: another way to the same number."""
    picks, _, classes = probs.shape
    entropy = 0.0
    for labels in itertools.product(range(classes), repeat=picks):
        share = np.prod([probs[pick, :, label] for pick, label in enumerate(labels)], axis=0).mean()
        entropy -= share * math.log(share) if share > 0 else 0.0
    safe = np.where(probs > 0, probs, 1.0)
    return float(entropy + (probs * np.log(safe)).sum(axis=-1).mean(axis=1).sum())


class TestJointInformation:
    @pytest.mark.parametrize("copies", [1, 3])
    def test_hand_computed(self, copies):
        """Two certain networks disagree about an image: its label is one bit, and that of a copy nothing more."""
        probs = np.array([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]] * copies)

        assert joint_information(probs) == pytest.approx((math.log(2), 0.0))

    def test_networks_that_agree_cannot_be_told_apart(self):
        assert joint_information(np.full((4, 5, 3), 1 / 3)) == pytest.approx((0.0, 0.0), abs=1e-12)

    @pytest.mark.parametrize(("picks", "classes"), [(1, 3), (3, 2), (4, 3)])
    @pytest.mark.parametrize("zeros", [False, True])
    def test_equals_the_definition(self, picks, classes, zeros):
        probs = drawn(picks, passes=7, classes=classes)
        if zeros:
            probs[:, ::2, 0] = 0.0
            probs /= probs.sum(axis=-1, keepdims=True)

        assert joint_information(probs)[0] == pytest.approx(by_definition(probs), abs=1e-12)

    def test_drawn_labellings_agree_with_all_of_them(self):
        probs = drawn(7, passes=30, classes=3)
        exact, exact_error = joint_information(probs, configurations=3**7)
        estimate, error = joint_information(probs, configurations=2_000)

        assert exact_error == 0.0
        assert 0.0 < error < 0.02
        assert abs(estimate - exact) < 4 * error

    def test_standard_error_is_that_of_repeated_estimates(self):
        probs = drawn(8, passes=10, classes=2)
        estimates = [joint_information(probs, configurations=200, seed=seed) for seed in range(200)]

        spread = np.std([nats for nats, _ in estimates])
        assert np.mean([error for _, error in estimates]) == pytest.approx(spread, rel=0.2)
        assert len(set(estimates)) == 200
        assert estimates[3] == joint_information(probs, configurations=200, seed=3)

    @settings(deadline=None, max_examples=25)
    @given(picks=st.integers(1, 9), passes=st.integers(1, 12), classes=st.integers(2, 4), seed=st.integers(0, 99))
    def test_is_between_0_and_log_t(self, picks, passes, classes, seed):
        nats, _ = joint_information(drawn(picks, passes, classes, seed), configurations=300, seed=seed)

        assert -1e-9 <= nats <= math.log(passes) + 1e-9

    def test_one_labelling_of_a_network_has_no_known_error(self):
        assert joint_information(drawn(12, passes=10, classes=3), configurations=10)[1] == math.inf

    @pytest.mark.parametrize(("picks", "configurations"), [(0, 10), (1, 0)])
    def test_refuses_an_empty_batch(self, picks, configurations):
        with pytest.raises(ValueError, match=f"got {picks} and {configurations}"):
            joint_information(np.full((picks, 2, 2), 0.5), configurations)


class TestMeasure:
    @pytest.mark.parametrize(("seconds", "least", "most"), [(0.02, 5, 12), (0.25, 1, 1)])
    def test_a_short_task_is_repeated_and_measured_as_one(self, seconds, least, most):
        calls: list[float] = []

        def sleep() -> None:
            calls.append(seconds)
            time.sleep(seconds)

        cpu_seconds, wall_s, _, _ = measure(sleep)

        assert least <= len(calls) <= most
        assert seconds <= wall_s < seconds + 0.2
        assert cpu_seconds < wall_s

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets the peak")
    def test_memory_is_the_peak_that_a_task_adds(self):
        large = measure(lambda: np.ones(200 * 2**20, dtype=np.uint8).sum())[2]
        small = measure(lambda: np.ones(2**20, dtype=np.uint8).sum())[2]

        assert large == pytest.approx(200, abs=20)
        assert small is not None
        assert small < 100


@pytest.fixture(scope="module")
def side():
    with Side(sys.executable, "test") as started:
        yield started


class TestSide:
    def test_takes_turns_on_one_thread(self, side):
        tasks = {name: Task(side, "versions", packages=[name]) for name in ("numpy", "scipy")}
        runs = side_by_side(tasks, repeats=3)

        assert [run.result for run in runs["numpy"]] == [{"numpy": np.__version__}] * 3
        assert len(runs["scipy"]) == 3

    def test_a_task_that_fails_is_named_and_the_side_goes_on(self, side):
        with pytest.raises(BenchError, match=r"versions: PackageNotFoundError: .*no-such"):
            Task(side, "versions", packages=["no-such"]).run()
        with pytest.raises(BenchError, match="nonsense: KeyError"):
            Task(side, "nonsense").run()
        assert Task(side, "versions", packages=[]).run().result == {}

    def test_a_process_that_ended_is_reported_with_its_log(self):
        with Side(sys.executable, "test-ended") as ended:
            ended.ask(None)
            ended._child.kill()
            with pytest.raises(BenchError, match=r"the process ended; see .*test-ended\.log"):
                Task(ended, "versions", packages=[]).run()


def pins(path: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+==\S+)", (ROOT / path).read_text(), re.MULTILINE))


def test_peers_share_the_arithmetic_of_the_project():
    """Of another torch the comparison would be of two torches."""
    names = ("torch", "torchvision", "numpy", "pillow", "scipy")
    shared = {pin for pin in pins("requirements.lock") if pin.partition("==")[0] in names}

    assert len(shared) >= len(names)
    assert shared | {"baal==2.1.0", "batchbald-redux==2.0.5", "scikit-activeml==1.0.1"} <= pins(
        "tests/benchmarks/peers.lock"
    )
