"""The pointwise functions beside Baal's and scikit-activeml's; the other strategies alone."""

from pathlib import Path
from typing import Final

import numpy as np

from ml_backend.bench.cases.bench import Bench, median_cpu_s, timings, versus
from ml_backend.bench.pools import plain_pool
from ml_backend.bench.process import Measured, Prepared
from ml_backend.bench.report import CaseReport, Figure, Floor
from ml_backend.registry import STRATEGIES

__all__ = ["others", "pointwise"]

_FUNCTIONS: Final = ("entropy", "mean_std", "bald", "least_confidence", "margin", "variation_ratios")
_PEERS: Final = {
    "Baal": ("baal_score", ("entropy", "mean_std", "bald", "least_confidence", "margin")),
    "scikit-activeml": ("activeml_score", ("entropy", "bald", "least_confidence", "margin", "variation_ratios")),
}
_OTHERS: Final = ("power_bald", "badge", "core_set", "typiclust")

_GROWTH_MIB = 1.0
"""Allowed for 50,000 more images of 57 MiB: the scores that are returned take 0.4."""


def pointwise(bench: Bench) -> CaseReport:
    """Each of the six against the fastest peer that has it; that its memory does not grow with the pool."""
    points = bench.scale.points
    pool = plain_pool(points, bench.scale.passes, 3, seed=0)
    paths = {points: bench.save("pointwise", pool), points // 2: bench.save("pointwise_half", pool[: points // 2])}
    figures: list[Figure] = []
    measured: dict[str, list[Measured]] = {}
    notes: list[str] = []
    for function in _FUNCTIONS:
        tasks = _contenders(bench, function, paths[points])
        notes += _agreement(bench.folder, function, tasks)
        found = bench.measure(tasks)
        seconds = {name: median_cpu_s(found, name) for name in found}
        peers = {name: value for name, value in seconds.items() if name != "ours"}
        fastest = min(peers, key=lambda name: peers[name]) if peers else None
        anchor = None if fastest is None else (fastest, peers[fastest])
        figures.append(versus(function, "s", seconds["ours"], anchor, floor=Floor(kind="at most", value=1.0)))
        measured |= {f"{function}: {name}": runs for name, runs in found.items()}
    growth, alone = _growth(bench, paths)
    notes.append(
        f"{points:,} x {bench.scale.passes} x 3 float32; growth of memory from {points // 2:,} to {points:,} images, "
        f"of which {_GROWTH_MIB:g} MiB allow for the scores that are returned"
    )
    return CaseReport(
        name="pointwise", figures=(*figures, *growth), timings=timings({**measured, **alone}), notes=tuple(notes)
    )


def others(bench: Bench) -> CaseReport:
    """What the strategies without a floor take."""
    scale = bench.scale
    tasks = {
        strategy: bench.ours.prepare(
            "rank_pool",
            strategy=strategy,
            needs=sorted(STRATEGIES[strategy].needs),
            images=scale.feature_pool,
            dims=scale.dims,
            passes=scale.passes,
            batch_size=scale.batch,
        )
        for strategy in _OTHERS
    }
    found = bench.measure(tasks)
    figures = tuple(
        Figure(name=f"{name}, {scale.batch} of {scale.feature_pool:,}", unit="s", ours=median_cpu_s(found, name))
        for name in found
    )
    notes = (f"{scale.dims:,} features, hidden layer of 512, uniform: they form no clusters; {scale.batch} labelled",)
    return CaseReport(name="others", figures=figures, timings=timings(found), notes=notes)


def _contenders(bench: Bench, function: str, path: str) -> dict[str, Prepared]:
    tasks = {"ours": bench.ours.prepare("score", function=function, probs=path)}
    if bench.peers is not None:
        for peer, (task, known) in _PEERS.items():
            if function in known:
                tasks[peer] = bench.peers.prepare(task, function=function, probs=path)
    return tasks


def _agreement(folder: Path, function: str, tasks: dict[str, Prepared]) -> list[str]:
    """How far the values lie apart, where both mean the same: Baal's variance is none of ours."""
    if function == "mean_std":
        return []
    scores = {}
    for name, task in tasks.items():
        path = folder / f"scores_{name}.npy"
        task.run(save=path)
        scores[name] = np.load(path)
    notes = []
    for peer in scores.keys() - {"ours"}:
        ours = scores["ours"]
        # Baal wants the least certain last: its margin and certainty are 1 minus ours.
        theirs = 1.0 - scores[peer] if peer == "Baal" and function in ("margin", "least_confidence") else scores[peer]
        notes.append(f"{function}: ours and {peer} differ by {np.abs(ours - theirs).max():.1e} at most")
    return sorted(notes)


def _growth(bench: Bench, paths: dict[int, str]) -> tuple[list[Figure], dict[str, list[Measured]]]:
    """What the larger of two pools takes more, in a process that gives freed memory back at once."""
    figures = []
    alone: dict[str, list[Measured]] = {}
    with bench.fresh() as side:
        for function in _FUNCTIONS:
            peaks = {}
            for images, path in sorted(paths.items()):
                task = side.prepare("score", function=function, probs=path)
                task.run()  # the first call of a function loads code
                one = task.run()
                task.drop()
                peaks[images] = one.run.extra_mib
                alone[f"{function}: memory, {images:,} images"] = [one]
            small, large = (peaks[images] for images in sorted(paths))
            if small is not None and large is not None:
                figures.append(_growth_figure(function, large - small))
    return figures, alone


def _growth_figure(function: str, growth: float) -> Figure:
    floor = Floor(kind="at most", value=_GROWTH_MIB)
    return Figure(name=f"{function}, growth of extra memory", unit="MiB", ours=growth, ratio=growth, floor=floor)
