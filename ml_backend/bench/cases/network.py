"""The passes, a whole acquisition and a round of training."""

from ml_backend.bench.cases.bench import Bench, median_cpu_s, timings, versus
from ml_backend.bench.films import films_in, write_films, write_small_films
from ml_backend.bench.pools import near_duplicate_pool
from ml_backend.bench.report import CaseReport, Figure, Floor

__all__ = ["batch_bald_share", "mc_scoring", "training"]


def mc_scoring(bench: Bench) -> CaseReport:
    """T stochastic passes over one deterministic pass of the same network over the same pool in the same batches."""
    scale = bench.scale
    whole = {"backbone": scale.backbone, "images": scale.mc_images, "side": scale.side}
    few = {**whole, "images": scale.naive_images}
    tasks = {
        "ours": bench.ours.prepare("mc_probs", **whole, passes=scale.mc_passes),
        "one pass": bench.ours.prepare("deterministic_pass", **whole),
        # The same path through the backbone, which may be a faster one than the plain network's.
        "ours, T = 1": bench.ours.prepare("mc_probs", **whole, passes=1),
    }
    slow = {
        "naive": bench.ours.prepare("naive_passes", **few, passes=scale.mc_passes),
        "one pass, few images": bench.ours.prepare("deterministic_pass", **few),
    }
    if bench.peers is not None:
        slow["Baal"] = bench.peers.prepare("baal_passes", **few, passes=scale.mc_passes)
        slow["one pass, few images, Baal's network"] = bench.peers.prepare("deterministic_pass", **few)
    found = {**bench.measure(tasks), **bench.measure(slow)}
    seconds = {name: median_cpu_s(found, name) for name in found}
    label = f"T = {scale.mc_passes}"
    figures = [
        versus(
            f"{label}, {scale.mc_images} images",
            "s",
            seconds["ours"],
            ("one deterministic pass", seconds["one pass"]),
            floor=Floor(kind="at most", value=1.03),
        ),
        versus(
            f"{label}, {scale.mc_images} images",
            "s",
            seconds["ours"],
            ("ours with T = 1", seconds["ours, T = 1"]),
            floor=Floor(kind="at most", value=1.03),
        ),
        versus(
            f"{label}, naive, {scale.naive_images} images",
            "s",
            seconds["naive"],
            ("one deterministic pass", seconds["one pass, few images"]),
        ),
    ]
    if "Baal" in seconds:
        anchor = ("one deterministic pass", seconds["one pass, few images, Baal's network"])
        figures.append(versus(f"{label}, Baal, {scale.naive_images} images", "s", seconds["Baal"], anchor))
    notes = (
        f"{scale.backbone} at {scale.side} px, untrained, batches of 16; naive and Baal on {scale.naive_images}, "
        "over one pass over those: there the column `ours` is theirs",
    )
    return CaseReport(name="mc_scoring", figures=tuple(figures), timings=timings(found), notes=notes)


def batch_bald_share(bench: Bench) -> CaseReport:
    """What BatchBALD takes of a whole acquisition: decode, backbone, passes, ranking."""
    scale = bench.scale
    films = films_in(bench.images, "jpeg") if bench.images is not None else []
    films = films or write_films(bench.folder / "films", "jpeg", scale.films, *scale.film)
    probs = bench.save("share", near_duplicate_pool(scale.pool, scale.passes, 3, seed=0))
    tasks = {
        "decode": bench.ours.prepare(
            "decode_films", files=[str(path) for path in films], side=scale.decoded_side, rounds=scale.film_rounds
        ),
        "backbone": bench.ours.prepare(
            "backbone_features", backbone=scale.backbone, images=scale.mc_images // 4, side=scale.side
        ),
        "passes": bench.ours.prepare("head_passes", backbone=scale.backbone, images=scale.pool, passes=scale.passes),
        "rank": bench.ours.prepare("batch_bald", probs=probs, batch_size=scale.batch, seed=0),
    }
    found = bench.measure(tasks)
    images = {
        "decode": len(films) * scale.film_rounds,
        "backbone": scale.mc_images // 4,
        "passes": scale.pool,
        "rank": scale.pool,
    }
    seconds = {name: median_cpu_s(found, name) * scale.pool / count for name, count in images.items()}
    figure = versus(
        f"{scale.batch} of {scale.pool:,}",
        "s",
        seconds["rank"],
        ("the whole acquisition", sum(seconds.values())),
        floor=Floor(kind="less than", value=0.01),
    )
    notes = (
        f"of {scale.pool:,} images: "
        + ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
        + f"; decode measured on {images['decode']} films and backbone on {images['backbone']} images, then scaled; "
        f"passes and rank on all {scale.pool:,}",
    )
    return CaseReport(name="batch_bald_share", figures=(figure,), timings=timings(found), notes=notes)


def training(bench: Bench) -> CaseReport:
    """One round of the head, and the features that are kept; nothing to compare with."""
    scale = bench.scale
    folder = write_small_films(bench.folder / "small", scale.small_films, side=max(64, scale.side))
    given = {"folder": str(folder), "backbone": scale.backbone, "side": scale.side}
    tasks = {
        "train the head": bench.ours.prepare("head_round", **given),
        "read kept features": bench.ours.prepare("kept_features", **given),
    }
    found = bench.measure(tasks)
    figures = (
        Figure(
            name=f"train the head, {scale.small_films} images", unit="s", ours=median_cpu_s(found, "train the head")
        ),
        Figure(
            name="read kept features, an image",
            unit="s",
            ours=median_cpu_s(found, "read kept features") / scale.small_films,
        ),
    )
    return CaseReport(name="training", figures=figures, timings=timings(found))
