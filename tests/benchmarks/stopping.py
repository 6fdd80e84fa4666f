"""Measures the verdict on when to stop: whole learning runs, of which ``stop_advice`` sees only what it sees live.

    python -m tests.benchmarks.stopping --seeds 10
    python -m tests.benchmarks.stopping --labels labels.csv --features features.npz --task 'normal;viral;bacterial'

Each run continues long after anybody would stop, so that the gain of the labels after each round is known: the smoothed
accuracy on images that no round sees. A verdict was false where more than a point came after it.

With ``--out`` the runs are kept, and the verdicts are evaluated again in seconds.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, quantiles
from tempfile import TemporaryDirectory

import numpy as np
from sklearn.isotonic import IsotonicRegression
from threadpoolctl import threadpool_limits

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.analytics.agreement import (
    FIXED_SET,
    Agreement,
    PredictionSnapshot,
    prediction_snapshot,
    seed_noise_agreement,
)
from ml_backend.analytics.stopping import Verdict, stop_advice
from ml_backend.config import ProjectOptions
from ml_backend.consensus import median as median_rule
from ml_backend.images.source import FolderSource
from ml_backend.model.data import FeatureTable
from ml_backend.model.hardware import one_thread
from ml_backend.model.learner import McDropoutLearner
from ml_backend.rounds.interfaces import Learner, assume_current, no_progress
from ml_backend.rounds.live import measure_seed_noise
from ml_backend.schemas import FrozenModel, ProjectKey, RoundRequest
from ml_backend.seeding import derive
from ml_backend.simulation.dataset import DataSet, load_dataset, parse_task, split_by_patient
from ml_backend.simulation.experiments import synthetic_tables
from ml_backend.simulation.oracle import Oracle
from ml_backend.simulation.run import SimulatedProject, simulated_rounds
from ml_backend.simulation.specs import EXPERIMENTS

START = 25  # labels of every class before the first network, as in a live project
WORTH = 0.01  # accuracy that is worth more reading
VERDICTS: dict[str, frozenset[Verdict]] = {"soon, or stop": frozenset({"soon", "stop"}), "stop": frozenset({"stop"})}


class Step(FrozenModel):
    """A round of a run, as the owner's page has it, with its true accuracy.

    Attributes:
        images: validation images of its network.
        noise: agreement with a network of another seed, where one was trained.
        truth: accuracy on the images that no round sees.
    """

    marks: PredictionSnapshot
    images: int
    noise: Agreement | None = None
    truth: float


@dataclass(frozen=True)
class VerdictOutcome:
    """When a verdict was first given in a run, and what came after it.

    Attributes:
        labels: number of labels at the verdict; None where it was never given.
        missed: accuracy that the labels after it added.
        late: labels since the plateau; negative where the verdict came before it.
        plateau: number of labels after which at most a point of accuracy came.
    """

    labels: int | None
    missed: float
    late: int
    plateau: int


def learning_run(data: DataSet, strategy: str, seed: int, rounds: int, noise_every: int = 5) -> Iterator[Step]:
    """Runs rounds of 20 labels each; validation is drawn from the labels, as live.

    Args:
        data: with a table of features; no round sees its test side.
        strategy: name of the acquisition function.
        seed: of the start set, the splits and the networks.
        rounds: at most.
        noise_every: rounds between two measurements of the seed noise.
    """
    options = ProjectOptions.resolve({"strategy": strategy, "finetune": "head", "seed": seed}, environ={})
    assert data.features is not None
    table = FeatureTable([image.id for image in data.images], data.features)
    with TemporaryDirectory() as folder, one_thread(), threadpool_limits(1):

        def network(own_seed: int) -> McDropoutLearner:
            source, cache = FolderSource(Path(folder)), Path(folder) / "cache"
            return McDropoutLearner(options, source, cache, device="cpu", seed=own_seed, table=table)

        oracle = Oracle.of(data)
        oracle.reveal(oracle.start_set(START, seed))
        learner = network(seed)
        project = SimulatedProject(oracle, median_rule)
        request = RoundRequest(
            project=ProjectKey(id=1, created=0),
            round_id="r000001",
            reason="labels",
            classes=data.classes,
            strategy=strategy,
            batch_size=options.batch_size,
            min_labels_per_class=2,
            control_share=0.0,
            validation_share=options.validation_share,
            seed=seed,
        )
        results = simulated_rounds(request, project, learner, CatalogStrategy(strategy))
        for number, result in zip(range(1, rounds + 1), results, strict=False):
            assert result.training is not None
            predictions = result.training.predictions
            marks = prediction_snapshot(result.report, predictions)
            assert marks is not None
            noise = None
            if number % noise_every == 0:
                replicate = measure_seed_noise(
                    result.training,
                    lambda _: network(derive(seed, "twin")),
                    seed=seed,
                    most=FIXED_SET,
                    progress=no_progress,
                    raise_if_preempted=assume_current,
                )
                noise = None if replicate is None else seed_noise_agreement(predictions, replicate)
            assert result.report.fit is not None
            images = result.report.fit.validation_images
            yield Step(marks=marks, images=images, noise=noise, truth=_accuracy(learner, data))


def _accuracy(learner: Learner, data: DataSet) -> float:
    asked = data.labels("test")
    answers = learner.outputs([label.image for label in asked], frozenset({"probs"})).suggestions()
    return sum(answers[label.image.id] == label.value for label in asked) / len(asked)


def evaluate_verdict(steps: Sequence[Step], verdicts: frozenset[Verdict], batch_size: int = 20) -> VerdictOutcome:
    """When one of these verdicts was first given in a run, and whether it was right.

    Isotonic regression smooths the accuracy, so that the noise of a round does not count as a gain.
    """
    curve = IsotonicRegression().fit_transform(np.arange(len(steps)), [step.truth for step in steps])
    labels = [step.marks.labels for step in steps]
    left = float(curve[-1]) - curve
    plateau = labels[int(np.argmax(left <= WORTH))]
    for number in range(1, len(steps) + 1):
        marks = [step.marks for step in steps[:number]]
        noise = {step.marks.round_id: step.noise for step in steps[:number] if step.noise is not None}
        images = {step.marks.round_id: step.images for step in steps[:number]}
        if stop_advice(marks, noise, labels=batch_size, images=images).verdict in verdicts:
            at = labels[number - 1]
            return VerdictOutcome(at, float(left[number - 1]), at - plateau, plateau)
    return VerdictOutcome(None, 0.0, labels[-1] - plateau, plateau)


def report(outcomes: Sequence[VerdictOutcome]) -> str:
    """One line: how often, how often falsely, and how late."""
    given = [outcome for outcome in outcomes if outcome.labels is not None]
    if not given:
        return f"never in {len(outcomes)} runs"
    false = [outcome for outcome in given if outcome.missed > WORTH]
    return (
        f"in {len(given)} of {len(outcomes)} runs, at {_spread([outcome.labels or 0 for outcome in given])} labels, "
        f"{_spread([outcome.late for outcome in given])} after the plateau; false in {len(false)}, where up to "
        f"{100 * max((outcome.missed for outcome in false), default=0.0):.1f} points came after"
    )


def _spread(values: Sequence[int]) -> str:
    if len(values) < 2:
        return f"{values[0]}"
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.0f} [{low:.0f} to {high:.0f}]"


def two_sides(data: DataSet, within: str | None) -> DataSet:
    """Splits by patient into 70 % to label and 30 % to measure by.

    Args:
        data: any.
        within: the side of the data that is used; None for all.
    """
    rows = [row for row, image in enumerate(data.images) if within in {None, data.split[image.id]}]
    images = tuple(data.images[row] for row in rows)
    truth = {image.id: data.truth[image.id] for image in images}
    split = split_by_patient(images, truth, 0, (0.7, 0.0, 0.3))
    assert data.features is not None
    return replace(data, images=images, truth=truth, split=split, features=data.features[rows], source=None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the runs that are not kept yet, and print how good the verdicts were."""
    args = _parsed(arguments)
    _say(f"python -m tests.benchmarks.stopping {' '.join(sys.argv[1:] if arguments is None else arguments)}")
    data = _data(args)
    counts = data.counts()
    _say(f"{sum(counts['train'].values())} images to label, {sum(counts['test'].values())} to measure by")
    for strategy in args.strategies.split(","):
        runs = [_run(args, data, strategy, seed) for seed in range(args.seeds)]
        rises = [run[-1].truth - run[0].truth for run in runs]
        _say(f"{strategy}: {len(runs)} runs to {runs[0][-1].marks.labels} labels; accuracy {100 * fmean(rises):+.1f}")
        for name, verdicts in VERDICTS.items():
            _say(f"  {name}: {report([evaluate_verdict(run, verdicts) for run in runs])}")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", type=Path, help="table as for `ml-backend simulate`; default: drawn images")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--task", help="classes of your table, least severe first")
    parser.add_argument("--images", type=int, default=1_000, help="number of synthetic images")
    parser.add_argument("--strategies", default="entropy")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("experiments/stopping"), help="folder of the kept runs")
    return parser.parse_args(arguments)


def _data(args: argparse.Namespace) -> DataSet:
    """The training side of the user's tables, so that their test side stays unseen; else drawn images."""
    if args.labels is not None:
        read = load_dataset(None, args.labels, features=args.features, task=parse_task(args.task))
        return two_sides(read, "train")
    spec = replace(EXPERIMENTS["loss-ablation"], images=args.images)
    drawn = synthetic_tables(spec, args.out / "drawn", quick=False, tell=_say)
    return two_sides(load_dataset(None, drawn.labels, features=drawn.features, task=parse_task(drawn.task)), None)


def _run(args: argparse.Namespace, data: DataSet, strategy: str, seed: int) -> list[Step]:
    """The kept run of as many rounds, or a new one."""
    whose = "drawn" if args.labels is None else "own"
    kept = args.out / f"{whose}-{strategy}-{seed}-{args.rounds}.jsonl"
    if not kept.exists():
        steps = list(learning_run(data, strategy, seed, args.rounds))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("".join(f"{step.model_dump_json()}\n" for step in steps))
    return [Step.model_validate_json(line) for line in kept.read_text().splitlines()]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
