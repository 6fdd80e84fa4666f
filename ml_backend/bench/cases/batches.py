"""BatchBALD beside the three libraries that have it."""

import numpy as np
import numpy.typing as npt

from ml_backend.bench.cases.bench import Bench, median_cpu_s, timings, versus
from ml_backend.bench.judge import Information, joint_information
from ml_backend.bench.pools import near_duplicate_pool
from ml_backend.bench.process import Measured, Prepared
from ml_backend.bench.report import CaseReport, Figure, Floor

__all__ = ["POOL_SEED", "batch_bald_k2", "batch_bald_k3", "batch_bald_large"]

POOL_SEED = 0
_JUDGE_SEED = 1


def batch_bald_k2(bench: Bench) -> CaseReport:
    """Two classes, beside all three."""
    return _batch_bald(bench, 2)


def batch_bald_k3(bench: Bench) -> CaseReport:
    """Three classes, beside batchbald-redux and scikit-activeml."""
    return _batch_bald(bench, 3)


def batch_bald_large(bench: Bench) -> CaseReport:
    """A pool of 100,000: its memory in a fresh process, its time beside that of 1,000."""
    scale = bench.scale
    pools = {
        name: bench.save(name, near_duplicate_pool(images, scale.passes, 3, POOL_SEED))
        for name, images in (("small pool", scale.pool), ("large pool", scale.large_pool))
    }
    tasks = {
        name: bench.ours.prepare("batch_bald", probs=path, batch_size=scale.batch, seed=0)
        for name, path in pools.items()
    }
    found = bench.measure(tasks)
    with bench.fresh() as side:
        task = side.prepare("batch_bald", probs=pools["large pool"], batch_size=scale.batch, seed=0)
        alone = task.run()
    figures = [
        versus(
            f"time, {scale.batch} of {scale.large_pool:,}",
            "s",
            median_cpu_s(found, "large pool"),
            (f"{scale.batch} of {scale.pool:,}", median_cpu_s(found, "small pool")),
            floor=Floor(kind="at most", value=60.0),
        )
    ]
    if alone.run.extra_mib is not None:
        figures.append(
            Figure(
                name=f"extra memory, {scale.batch} of {scale.large_pool:,}",
                unit="MiB",
                ours=alone.run.extra_mib,
                ratio=alone.run.extra_mib,
                floor=Floor(kind="less than", value=1.2 * 1024),
            )
        )
    measured = {**found, "large pool, fresh process": [alone]}
    notes = (f"K = 3, T = {scale.passes}; extra memory: peak of the resident set over that before the call",)
    return CaseReport(name="batch_bald_100000", figures=tuple(figures), timings=timings(measured), notes=notes)


def _batch_bald(bench: Bench, classes: int) -> CaseReport:
    scale = bench.scale
    pool = near_duplicate_pool(scale.pool, scale.passes, classes, POOL_SEED)
    found = bench.measure(_contenders(bench, bench.save(f"batch_bald_k{classes}", pool), classes))
    # Of the first repeat: the seed is the same in all of them.
    picks = {name: tuple(int(image) for image in runs[0].result) for name, runs in found.items()}
    judged = {name: _judge(pool, batch, scale.judge_configurations) for name, batch in picks.items()}
    figures = _figures(found, judged)
    error = max(information.standard_error for information in judged.values())
    notes = (
        f"{scale.batch} of {scale.pool:,}, T = {scale.passes}, K = {classes}; information by one float64 estimator of "
        f"{scale.judge_configurations:,} drawn labellings, standard error at most {error:.2g} nats; "
        f"the ceiling is log T = {np.log(scale.passes):.3f}",
    )
    return CaseReport(
        name=f"batch_bald_1000_k{classes}", figures=figures, timings=timings(found), notes=notes, picks=picks
    )


def _contenders(bench: Bench, path: str, classes: int) -> dict[str, Prepared]:
    scale = bench.scale
    given = {"probs": path, "batch_size": scale.batch, "seed": 0}
    tasks = {"ours": bench.ours.prepare("batch_bald", **given)}
    if bench.peers is not None:
        tasks["batchbald-redux"] = bench.peers.prepare(
            "redux_batch", **given, configurations=scale.redux_configurations
        )
        if classes == 2:
            tasks["Baal"] = bench.peers.prepare("baal_batch", **given, draws=scale.baal_draws)
        tasks["scikit-activeml"] = bench.peers.prepare("activeml_batch", **given)
    return tasks


def _figures(found: dict[str, list[Measured]], judged: dict[str, Information]) -> tuple[Figure, ...]:
    # Peer -> times faster than it, information over its.
    floors = {
        "batchbald-redux": (Floor(kind="at least", value=100.0), Floor(kind="at least", value=0.995)),
        "Baal": (Floor(kind="at least", value=50.0), Floor(kind="more than", value=1.0)),
        "scikit-activeml": (None, None),
    }
    ours_s, ours_nats = median_cpu_s(found, "ours"), judged["ours"].nats
    figures: list[Figure] = []
    for peer, (faster, more) in floors.items():
        if peer in found:
            anchor = (peer, median_cpu_s(found, peer))
            figures.append(versus("time", "s", ours_s, anchor, floor=faster, faster=True))
            figures.append(versus("information", "nats", ours_nats, (peer, judged[peer].nats), floor=more))
    if not figures:
        faster, more = floors["batchbald-redux"]
        figures = [
            versus("time", "s", ours_s, None, floor=faster),
            versus("information", "nats", ours_nats, None, floor=more),
        ]
    return tuple(figures)


def _judge(pool: npt.NDArray[np.float32], picks: tuple[int, ...], configurations: int) -> Information:
    return joint_information(pool[list(picks)].astype(np.float64), configurations, _JUDGE_SEED)
