"""``ml_backend.simulate``: a study from Python, with its results as data frames."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console

from ml_backend.errors import SettingsError
from ml_backend.simulation.analysis import LabelsRatio, PairedDifference, complete_runs, metric_statistics, tables
from ml_backend.simulation.metrics import METRICS
from ml_backend.simulation.options import SEEDS, SimulateOptions
from ml_backend.simulation.report import PRINTED, labels_ratio_from_random
from ml_backend.simulation.run_log import StudyResults, to_frame
from ml_backend.simulation.study import simulate as run_study

AnyPath: TypeAlias = str | os.PathLike[str]
_FLAG: Final = re.compile(r"(?<![\w/.-])--([a-z][a-z-]+)")  # errors name the options of the command


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Results of a study as data frames; values that are not defined are NaN.

    Attributes:
        curves: one row a round of a run that trained a network: ``strategy``, ``variant``, ``seed``, ``round``,
            ``labels``, ``share`` (of the training images), the test metrics, epochs and seconds.
        labels_needed: one row a run and metric: the labels at which the smoothed curve reaches each target; ``inf``
            where it never does.
        summary: one row a strategy and metric: ``seeds``; ``area``, the median area under the learning curve;
            ``minus_random``, the mean of the paired differences of the areas from ``random``, with the 95 % interval
            ``low`` to ``high`` and ``p`` of Wilcoxon's test; ``labels_ratio``, the median of the labels needed for
            ``target`` divided by those of ``random``, with ``ratio_low`` to ``ratio_high``. Intervals and p need six
            seeds; ``ml-backend compare STUDY --reference NAME`` gives differences from another strategy.
        baselines: one row a network that was trained on all labels.
        batches: one row a chosen image.
        results: the same as records, with the summary of the study.
        out: folder of the study, with ``report.html`` and the figures.
    """

    curves: pd.DataFrame
    labels_needed: pd.DataFrame
    summary: pd.DataFrame
    baselines: pd.DataFrame
    batches: pd.DataFrame
    results: StudyResults
    out: Path


def simulate(
    labels: AnyPath,
    out: AnyPath,
    *,
    images: AnyPath | None = None,
    ratings: AnyPath | None = None,
    features: AnyPath | None = None,
    strategies: str | Sequence[str | Callable[..., Any]] = ("entropy", "mean_std"),
    seeds: int | Sequence[int] = int(SEEDS),
    profile: str = "paper",
    start: Literal["live", "given"] = "live",
    task: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    imbalance: Mapping[str, float] | None = None,
    loss: str | Sequence[str] = "weighted",
    finetune: str | None = None,
    backbone: str | None = None,
    weights: AnyPath | None = None,
    passes: int | None = None,
    batch_size: int | None = None,
    initial: int | None = None,
    min_labels_per_class: int | None = None,
    cold_start: str | None = None,
    option: Mapping[str, object] | None = None,
    budget: float = 0.5,
    device: str = "auto",
    no_random: bool = False,
    readers: AnyPath | Sequence[str] | Mapping[str, npt.ArrayLike] | None = None,
    reads: int | None = None,
    count: Literal["images", "reads"] = "images",
    no_baseline: bool = False,
    workers: int = 1,
    redis: str | None = None,
    quiet: bool = False,
) -> Simulation:
    """Run a study on labelled images, or continue one, as ``ml-backend simulate`` does.

    The options are those of the command, which ``ml-backend simulate --help`` describes, with Python's types. A study
    in ``out`` goes on where it stopped; with more strategies, more seeds or a larger budget it grows.

    ``strategies`` may be functions of your own, which take ``probs`` (a tensor [images, passes, classes]) and return a
    score an image, or have ``acquisition_function``; with several workers, only such as can be imported. ``seeds`` is
    their number, or the seeds. ``task`` is the classes, least severe first, or class -> the labels that it joins.
    ``budget`` is a number of labels (int), or a fraction of the training images (float). ``readers`` are names such as
    ``["good*4", "poor"]``, a CSV or JSON file, or reader -> confusion matrix, rows (true class) and columns (answer) in
    the order of the classes. With ``workers``, a script needs ``if __name__ == "__main__":``. ``quiet`` prints no
    progress.

    Raises:
        SettingsError: an option or a table is wrong, or the folder holds another study.
        BackendError: a run failed, or the disk or Redis refuses.
    """
    given = {**locals()}  # the options, before any other local variable
    given |= {
        "labels": Path(labels),
        "out": Path(out),
        "images": None if images is None else os.fspath(images),
        "ratings": None if ratings is None else Path(ratings),
        "features": None if features is None else Path(features),
        "weights": None if weights is None else os.fspath(weights),
        "strategies": _listed(strategies),
        "seeds": str(seeds) if isinstance(seeds, int | str) else "".join(f"{seed}," for seed in seeds),
        "task": _task(task),
        "imbalance": _listed([f"{name}={share}" for name, share in imbalance.items()]) if imbalance else None,
        "loss": _listed(loss),
        "option": [f"{name}={value}" for name, value in (option or {}).items()],
        "budget": str(budget),
        "readers": _readers(readers),
    }
    del given["quiet"]
    options = SimulateOptions(**given)
    try:
        results = run_study(options, Console(quiet=quiet))
    except SettingsError as error:
        raise SettingsError(_FLAG.sub(lambda flag: flag[1].replace("-", "_"), str(error))) from error
    needed, summary = _statistics(results) if results.rounds else (pd.DataFrame(), pd.DataFrame())
    return Simulation(
        curves=to_frame(results.rounds),
        labels_needed=needed,
        summary=summary,
        baselines=to_frame(results.baselines),
        batches=to_frame(results.batches),
        results=results,
        out=options.out,
    )


def _listed(value: str | Sequence[str | Callable[..., Any]]) -> str:
    if isinstance(value, str):
        return value
    return ",".join(one if isinstance(one, str) else f"{one.__module__}:{one.__qualname__}" for one in value)


def _readers(readers: AnyPath | Sequence[str] | Mapping[str, npt.ArrayLike] | None) -> str | None:
    if isinstance(readers, Mapping):
        return json.dumps({name: np.asarray(rows, dtype=float).tolist() for name, rows in readers.items()})
    if isinstance(readers, os.PathLike):
        return os.fspath(readers)
    return None if readers is None else _listed(readers)


def _task(task: str | Sequence[str] | Mapping[str, Sequence[str]] | None) -> str | None:
    if task is None or isinstance(task, str):
        return task
    if isinstance(task, Mapping):
        return ";".join(f"{name}={_listed(joined)}" for name, joined in task.items())
    return ";".join(task)


def _statistics(results: StudyResults) -> tuple[pd.DataFrame, pd.DataFrame]:
    kept, _ = complete_runs(results)
    needed, rows = [], []
    for metric in (metric for metric in METRICS if metric.name in PRINTED):
        one = metric_statistics(metric, kept)
        needed.append(one.needed_by_run.assign(metric=metric.name))
        for group, runs in tables(one.curves).items():
            ahead = one.differences.get(group) or PairedDifference(math.nan, None, None, None, 0)
            target, found = labels_ratio_from_random(one, group)
            ratio = found or LabelsRatio(math.nan, None, None, 0)
            area = one.areas.by_group[group].median if one.areas else math.nan
            values = (area, ahead.mean, ahead.low, ahead.high, ahead.p, ratio.median, ratio.low, ratio.high)
            rows.append((metric.name, *group, runs.shape[1], target, *values))
    numbers = ["area", "minus_random", "low", "high", "p", "labels_ratio", "ratio_low", "ratio_high"]
    summary = pd.DataFrame(rows, columns=["metric", "strategy", "variant", "seeds", "target", *numbers])
    return pd.concat(needed, ignore_index=True), summary.astype(dict.fromkeys(numbers, float))
