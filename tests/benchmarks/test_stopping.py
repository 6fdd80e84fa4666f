"""How the verdict on when to stop is evaluated."""

import shlex

import pytest

from ml_backend.analytics.agreement import Agreement, PredictionSnapshot
from tests.benchmarks.stopping import VERDICTS, Step, VerdictOutcome, evaluate_verdict, main, report
from tests.manual import commands_run_by

AGREED = {str(image): image % 2 for image in range(100)}
NOISE = Agreement(images=100, agreed=0.9, kappa=0.8, error=0.05)


def run(*truths: float, first_agreed: int = 0, images: int = 1000) -> list[Step]:
    """Rounds of 20 labels whose networks agree from ``first_agreed`` on, with a constant validation accuracy."""
    return [
        Step(
            marks=PredictionSnapshot(
                round_id=f"r{number:06d}",
                labels=100 + 20 * number,
                accuracy=0.8,
                classes=("normal", "severe"),
                predicted=AGREED if number >= first_agreed else {name: (number * ord(name[-1])) % 2 for name in AGREED},
            ),
            images=images,
            noise=NOISE,
            truth=truth,
        )
        for number, truth in enumerate(truths)
    ]


LONG = [0.8] * 14  # one round fewer than "stop" wants


class TestEvaluateVerdict:
    def test_right_and_late(self):
        """Nothing is gained after 120 labels; the verdict comes at fifteen rounds, 380 labels."""
        outcome = evaluate_verdict(run(0.7, *LONG, 0.8), VERDICTS["stop"])

        assert outcome == VerdictOutcome(labels=380, missed=0.0, late=260, plateau=120)

    def test_false(self):
        """Given at 380 labels; 5 points came after, the last of them with 420."""
        outcome = evaluate_verdict(run(0.7, *LONG, 0.82, 0.85), VERDICTS["stop"])

        assert outcome.labels == 380
        assert outcome.missed == pytest.approx(0.05)
        assert outcome.late == -40

    def test_noise_of_a_round_is_no_gain(self):
        """A single round of 0.84 among rounds of 0.8 is smoothed out."""
        outcome = evaluate_verdict(run(0.7, *LONG[:5], 0.84, *LONG), VERDICTS["stop"])

        assert outcome.missed < 0.01
        assert outcome.plateau == 120

    def test_never(self):
        outcome = evaluate_verdict(run(0.7, *LONG, first_agreed=99), VERDICTS["stop"])

        assert outcome == VerdictOutcome(labels=None, missed=0.0, late=260, plateau=120)

    def test_never_on_a_handful_of_validation_images(self):
        assert evaluate_verdict(run(0.7, *LONG, images=29), VERDICTS["soon, or stop"]).labels is None


class TestReport:
    def test_counts_verdicts_and_false_ones(self):
        outcomes = [
            VerdictOutcome(200, 0.0, 60, 140),
            VerdictOutcome(240, 0.02, -20, 260),
            VerdictOutcome(220, 0.01, 20, 200),
            VerdictOutcome(None, 0.0, 0, 300),
        ]

        assert report(outcomes) == (
            "in 3 of 4 runs, at 220 [210 to 230] labels, 20 [0 to 40] after the plateau; "
            "false in 1, where up to 2.0 points came after"
        )

    def test_never(self):
        assert report([VerdictOutcome(None, 0.0, 0, 300)]) == "never in 1 runs"


def test_a_second_run_reads_what_the_first_kept(tmp_path, capsys):
    """The manual's command, with few images and one short run."""
    [command] = commands_run_by(__file__)
    assert command.words[:3] == ["python", "-m", "tests.benchmarks.stopping"]
    arguments = [*shlex.split(command.run_as)[3:], "--out", str(tmp_path)]

    main(arguments)
    first = capsys.readouterr().out
    [kept] = tmp_path.glob("drawn-entropy-0-5.jsonl")
    before = kept.stat().st_mtime_ns
    main(arguments)

    assert capsys.readouterr().out.splitlines()[-3:] == first.splitlines()[-3:]
    assert kept.stat().st_mtime_ns == before
    steps = [Step.model_validate_json(line) for line in kept.read_text().splitlines()]
    assert [step.marks.labels for step in steps] == [75, 95, 115, 135, 155]
    assert [step.noise is None for step in steps] == [True, True, True, True, False]
