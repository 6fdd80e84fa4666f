"""What is compared, and the targets of the ratios: ``CASES``, name -> function. A new case is its function there."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from ml_backend.consensus import RULES
from tests.benchmarks.compare import Bench, Case, Figure, Run, Side, Task, cpu_s, joint_information, main, quantity
from tests.benchmarks.inputs import near_duplicate_pool, plain_pool, stored_project, write_classes, write_radiographs
from tests.system.owner_data import KEY

# Size -> (as the targets are stated, tiny: figures that mean nothing).
SIZES: Final[dict[str, tuple[Any, Any]]] = {
    "backbone": ("resnet50", "resnet18"),
    "side": (224, 32),
    "mc_images": (64, 8),
    "naive_images": (2, 2),
    "mc_passes": (50, 4),
    "pool": (1_000, 60),
    "large_pool": (100_000, 300),
    "batch": (20, 4),
    "passes": (100, 20),
    "redux_configurations": (1_000, 100),
    "baal_draws": (10, 5),
    "information_configurations": (40_000, 2_000),
    "points": (100_000, 500),
    "image": ((2_500, 2_048), (250, 204)),  # height, width
    "images": (4, 2),
    "image_repeats": (3, 1),
    "decoded_side": (224, 32),
    "class_images": (120, 30),
    "feature_pool": (10_000, 200),
    "features": (2_048, 16),
    "read_images": (10_000, 60),
}
PEER_DECODERS: Final = ("Pillow", "torchvision.io", "opencv", "opencv, reduced 4", "opencv, reduced 8", "pyvips")
POINTWISE: Final = {
    "entropy": ("baal_score", "activeml_score"),
    "mean_std": ("baal_score",),
    "bald": ("baal_score", "activeml_score"),
    "least_confidence": ("baal_score", "activeml_score"),
    "margin": ("baal_score", "activeml_score"),
    "variation_ratios": ("activeml_score",),
}
PEERS: Final = {"baal_score": "Baal", "activeml_score": "scikit-activeml"}


def mc_scoring(bench: Bench) -> Case:
    """T stochastic passes over one deterministic pass of the same network over the same pool in the same batches."""
    images, passes = {"backbone": bench["backbone"], "side": bench["side"]}, {"passes": bench["mc_passes"]}
    whole, few = images | {"images": bench["mc_images"]}, images | {"images": bench["naive_images"]}
    runs = bench.measure(
        {
            "ours": Task(bench.ours, "mc_probs", **whole, **passes),
            "one pass": Task(bench.ours, "deterministic_pass", **whole),
            # The same path through the backbone, which may be faster than the plain network's.
            "T = 1": Task(bench.ours, "mc_probs", **whole, passes=1),
        }
    )
    slow = {
        "naive": Task(bench.ours, "naive_passes", **few, **passes),
        "one pass, few": Task(bench.ours, "deterministic_pass", **few),
    }
    if bench.peers is not None:
        slow["Baal"] = Task(bench.peers, "baal_passes", **few, **passes)
        slow["one pass, few, Baal's network"] = Task(bench.peers, "deterministic_pass", **few, torchvision=True)
    runs |= bench.measure(slow)
    seconds = {name: cpu_s(found) for name, found in runs.items()}
    name, plain = f"{bench['mc_passes']} passes, {bench['mc_images']} images", "one deterministic pass"
    figures = [
        Figure(name, "s", seconds["ours"], (plain, seconds["one pass"]), ("<=", 1.03)),
        Figure(name, "s", seconds["ours"], ("ours with 1 pass", seconds["T = 1"]), ("<=", 1.03)),
        Figure("naive passes, few images", "s", seconds["naive"], (plain, seconds["one pass, few"])),
    ]
    if bench.peers is not None:
        baseline = (plain, seconds["one pass, few, Baal's network"])
        figures.append(Figure("Baal's passes, few images", "s", seconds["Baal"], baseline))
    return Case(figures, runs, [f"{images}, untrained; few: {bench['naive_images']} images"])


def batch_bald(bench: Bench, classes: int) -> Case:
    """BatchBALD's time and the information of its batch."""
    pool = near_duplicate_pool(bench["pool"], bench["passes"], classes, seed=0)
    given: dict[str, Any] = {"probs": bench.save("pool", pool), "batch_size": bench["batch"], "seed": 0}
    tasks = {"ours": Task(bench.ours, "batch_bald", **given)}
    if bench.peers is not None:
        redux, draws = {"configurations": bench["redux_configurations"]}, {"draws": bench["baal_draws"]}
        tasks["batchbald-redux"] = Task(bench.peers, "redux_batch", **given, **redux)
        if classes == 2:
            tasks["Baal"] = Task(bench.peers, "baal_batch", **given, **draws)
        tasks["scikit-activeml"] = Task(bench.peers, "activeml_batch", **given)
    runs = bench.measure(tasks)
    configurations = bench["information_configurations"]
    information = {
        name: joint_information(pool[found[0].result], configurations, seed=1) for name, found in runs.items()
    }
    targets: dict[str, tuple[Any, Any]] = {
        "batchbald-redux": ((">=", 100.0), (">=", 0.995)),
        "Baal": ((">=", 50.0), (">", 1.0)),
    }
    figures = []
    for peer in list(runs)[1:] or ["ours"]:
        faster, more = targets.get(peer, (None, None))
        times = None if peer == "ours" else (peer, cpu_s(runs[peer]))
        nats = None if peer == "ours" else (peer, information[peer][0])
        figures.append(Figure("time", "s", cpu_s(runs["ours"]), times, faster, faster=True))
        figures.append(Figure("information", "nats", information["ours"][0], nats, more))
    error = max(standard_error for _, standard_error in information.values())
    note = (
        f"{bench['batch']} of {bench['pool']:,}, T = {bench['passes']}, K = {classes}; standard error of the "
        f"information at most {error:.2g} nats, its maximum log T = {np.log(bench['passes']):.3f}"
    )
    return Case(figures, runs, [note])


def batch_bald_100000(bench: Bench) -> Case:
    """A large pool: its time over that of a small one, its memory in a fresh process."""
    tasks = {}
    for name in ("pool", "large_pool"):
        path = bench.save(name, near_duplicate_pool(bench[name], bench["passes"], 3, seed=0))
        tasks[name] = Task(bench.ours, "batch_bald", probs=path, batch_size=bench["batch"], seed=0)
    runs = bench.measure(tasks)
    with Side(sys.executable, "memory", exact_memory=True, quick=bench.quick) as side:
        run = Task(side, "batch_bald", **tasks["large_pool"].arguments).run()
    name = f"{bench['batch']} of {bench['large_pool']:,}, K = 3"
    small = (f"of {bench['pool']:,}", cpu_s(runs["pool"]))
    figures = [Figure(f"time, {name}", "s", cpu_s(runs["large_pool"]), small, ("<=", 60.0))]
    if run.extra_mib is not None:
        figures.append(Figure(f"extra memory, {name}", "MiB", run.extra_mib, target=("<", 1.2 * 1024), absolute=True))
    return Case(figures, runs | {"fresh process": [run]})


def batch_bald_share(bench: Bench) -> Case:
    """BatchBALD's share of a whole acquisition: decode, backbone, passes, ranking."""
    files = write_radiographs(bench.folder, "jpeg", bench["images"], *bench["image"])
    pool, backbone = bench["pool"], bench["backbone"]
    repeats, few = bench["image_repeats"], bench["mc_images"] // 4
    probs = bench.save("pool", near_duplicate_pool(pool, bench["passes"], 3, seed=0))
    decode = {"library": "ours", "files": files, "side": bench["decoded_side"], "repeats": repeats}
    runs = bench.measure(
        {
            "decode": Task(bench.ours, "decode", **decode),
            "backbone": Task(bench.ours, "backbone_features", backbone=backbone, images=few, side=bench["side"]),
            "passes": Task(bench.ours, "head_passes", backbone=backbone, images=pool, passes=bench["passes"]),
            "rank": Task(bench.ours, "batch_bald", probs=probs, batch_size=bench["batch"], seed=0),
        }
    )
    images = {"decode": len(files) * repeats, "backbone": few, "passes": pool, "rank": pool}
    seconds = {name: cpu_s(found) * pool / images[name] for name, found in runs.items()}
    whole = ("the whole acquisition", sum(seconds.values()))
    figure = Figure(f"{bench['batch']} of {pool:,}", "s", seconds["rank"], whole, ("<", 0.01))
    shares = ", ".join(f"{name} {quantity(value, 's')}" for name, value in seconds.items())
    return Case([figure], runs, [f"of {pool:,} images: {shares}; scaled from {images}"])


def pointwise(bench: Bench) -> Case:
    """Each pointwise function over the fastest peer that has it, and the growth of its memory with the pool."""
    pool = plain_pool(bench["points"], bench["passes"], 3, seed=0)
    whole, half = bench.save("points", pool), bench.save("half", pool[: len(pool) // 2])
    figures, runs = list[Figure](), dict[str, list[Run]]()
    differences: dict[str, float] = {}
    for function, peer_tasks in POINTWISE.items():
        tasks = {"ours": Task(bench.ours, "score", function=function, probs=whole)}
        for task in peer_tasks if bench.peers is not None else ():
            assert bench.peers is not None
            tasks[PEERS[task]] = Task(bench.peers, task, function=function, probs=whole)
        found = bench.measure(tasks)
        runs |= {f"{function}: {name}": measured for name, measured in found.items()}
        for peer in tasks.keys() - ({"ours"} if function != "mean_std" else tasks.keys()):  # Baal's is a variance
            theirs = found[peer][0].result
            # Baal orders by the reverse of two of them.
            reverse = peer == "Baal" and function in ("margin", "least_confidence")
            distance = np.abs(found["ours"][0].result - (1.0 - theirs if reverse else theirs)).max()
            differences[f"{function}: {peer}"] = float(distance)
        fastest = min(
            ((name, cpu_s(found[name])) for name in tasks if name != "ours"), key=lambda p: p[1], default=None
        )
        figures.append(Figure(function, "s", cpu_s(found["ours"]), fastest, ("<=", 1.0)))
    with Side(sys.executable, "memory", exact_memory=True, quick=bench.quick) as side:
        for function in POINTWISE:
            peaks = []
            for path in (half, whole):
                score = Task(side, "score", function=function, probs=path)
                score.run()  # the first call of a function loads code
                peaks.append(score.run())
                side.ask(None)
            runs |= {f"{function}: memory": peaks}
            if peaks[0].extra_mib is not None and peaks[1].extra_mib is not None:
                growth = peaks[1].extra_mib - peaks[0].extra_mib
                name = f"{function}, growth of extra memory"
                figures.append(Figure(name, "MiB", growth, target=("<=", 1.0), absolute=True))
    note = f"{len(pool):,} x {bench['passes']} x 3; growth from half of it: 1 MiB allows for the returned scores"
    return Case(figures, runs, [note], differences)


def decode(bench: Bench, kind: str) -> Case:
    """From the bytes of a file to a gray square, over the fastest peer."""
    files = write_radiographs(bench.folder, kind, bench["images"], *bench["image"])
    given = {"files": files, "side": bench["decoded_side"], "repeats": bench["image_repeats"]}
    tasks = {"ours": Task(bench.ours, "decode", library="ours", **given)}
    if bench.peers is not None:
        for library in (*PEER_DECODERS, *(["Pillow, draft mode"] if kind == "jpeg" else [])):
            tasks[library] = Task(bench.peers, "decode", library=library, **given)
    runs = bench.measure(tasks)
    count = len(files) * bench["image_repeats"]
    seconds = {name: cpu_s(found) / count for name, found in runs.items()}
    # Reading a reduced PNG skips pixels instead of averaging them: another image.
    sound = [name for name in seconds if name != "ours" and not (kind == "png" and "reduced" in name)]
    fastest = _fastest({name: seconds[name] for name in sound})
    figure = Figure("an image", "s", seconds["ours"], fastest, (">=", 0.9), faster=True)
    timed = ", ".join(f"{name} {quantity(value, 's')}" for name, value in sorted(seconds.items(), key=lambda i: i[1]))
    square = runs["ours"][0].result.astype(float)
    differences = {name: float(np.abs(runs[name][0].result - square).mean()) for name in sound}
    return Case([figure], runs, [timed], differences)


def others(bench: Bench) -> Case:
    """The strategies without a target."""
    given = {"images": bench["feature_pool"], "dims": bench["features"], "passes": bench["passes"]}
    runs = bench.measure(
        {
            name: Task(bench.ours, "rank_pool", strategy=name, batch_size=bench["batch"], **given)
            for name in ("power_bald", "badge", "core_set", "typiclust")
        }
    )
    figures = [Figure(name, "s", cpu_s(found)) for name, found in runs.items()]
    return Case(figures, runs, [f"{bench['batch']} of {given}; the features are uniform and form no clusters"])


def of_100000(bench: Bench) -> Case:
    """A batch of a large pool on one core, and its memory beside the pool in a fresh process."""
    given = {"images": bench["large_pool"], "dims": bench["features"], "passes": bench["passes"]}
    tasks = {
        name: Task(bench.ours, "rank_pool", strategy=name, batch_size=bench["batch"], **given)
        for name in ("class_balanced", "epig", "uherding")
    }
    runs = bench.measure(tasks)
    figures = [Figure(name, "s", cpu_s(found), target=("<=", 10.0), absolute=True) for name, found in runs.items()]
    for name, task in tasks.items():
        with Side(sys.executable, "memory", exact_memory=True) as side:
            run = Task(side, "rank_pool", **task.arguments).run()
        runs |= {f"{name}: fresh process": [run]}
        if run.extra_mib is not None:
            title = f"{name}, extra memory"
            figures.append(Figure(title, "MiB", run.extra_mib, target=("<=", 2048.0), absolute=True))
    return Case(figures, runs, [f"{bench['batch']} of {given}; the features are uniform and form no clusters"])


def training(bench: Bench) -> Case:
    """One training of the head, and reading the cached features."""
    images, side = bench["class_images"], bench["side"]
    given = {"folder": str(write_classes(bench.folder / "classes", images, max(64, side))), "side": side}
    runs = bench.measure(
        {
            name: Task(bench.ours, "head_round", backbone=bench["backbone"], features_only=features_only, **given)
            for name, features_only in (("train the head", False), ("read cached features", True))
        }
    )
    train, read = cpu_s(runs["train the head"]), cpu_s(runs["read cached features"]) / images
    figures = [
        Figure(f"train the head, {images} images", "s", train),
        Figure("read the features of an image", "s", read),
    ]
    return Case(figures, runs)


PAGES: Final = {
    "/": "/",
    "project page": f"/projects/{KEY}",
    "page of a round": f"/projects/{KEY}/rounds/r000006",
    "/metrics": "/metrics",
    "/predict": "/predict",
}


def pages(bench: Bench) -> Case:
    """A warm request for each page of the web server: a stored pool of 100,000 over one of 1,000."""
    sizes = [bench["pool"], bench["large_pool"]]
    folders = {size: str(stored_project(bench.folder / f"project_{size}", size)) for size in sizes}
    figures, runs = list[Figure](), dict[str, list[Run]]()
    for name, path in PAGES.items():
        found = bench.measure(
            {
                f"{name}, {size:,}": Task(bench.ours, "page_request", data_folder=folder, path=path)
                for size, folder in folders.items()
            }
        )
        runs |= found
        small, large = (cpu_s(measured) for measured in found.values())
        title = f"{name}, pool of {sizes[1]:,}"
        figures.append(Figure(title, "ms", 1e3 * large, target=("<=", 50.0), absolute=True))
        figures.append(Figure(title, "ms", 1e3 * large, (f"of {sizes[0]:,}", 1e3 * small), ("<=", 4 / 3)))
    return Case(figures, runs)


def consensus(bench: Bench) -> Case:
    """Every consensus rule on three answers an image, of 50 readers."""
    images = bench["read_images"]
    runs = bench.measure({name: Task(bench.ours, "consensus", rule=name, images=images) for name in RULES})
    figures = [
        Figure(f"{name}, {3 * images:,} answers", "s", cpu_s(found), target=("<", 2.0), absolute=True)
        for name, found in runs.items()
    ]
    return Case(figures, runs, [f"three of 50 readers about each of {images:,} images"])


def _fastest(seconds: dict[str, float]) -> tuple[str, float] | None:
    return min(seconds.items(), key=lambda peer: peer[1], default=None)


CASES: Final[dict[str, Callable[[Bench], Case]]] = {
    "mc_scoring": mc_scoring,
    "batch_bald_1000_k2": partial(batch_bald, classes=2),
    "batch_bald_1000_k3": partial(batch_bald, classes=3),
    "batch_bald_100000": batch_bald_100000,
    "batch_bald_share": batch_bald_share,
    "pointwise": pointwise,
    "decode_jpeg": partial(decode, kind="jpeg"),
    "decode_png": partial(decode, kind="png"),
    "others": others,
    "of_100000": of_100000,
    "training": training,
    "pages": pages,
    "consensus": consensus,
}

if __name__ == "__main__":
    main(CASES, SIZES)
