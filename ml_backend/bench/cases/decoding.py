"""From a film's bytes to a square, beside every single call of a library."""

from ml_backend.bench.cases.bench import Bench, median_cpu_s, timings, versus
from ml_backend.bench.films import films_in, write_films
from ml_backend.bench.process import Prepared
from ml_backend.bench.report import CaseReport, Floor

__all__ = ["decode_jpeg", "decode_png"]

_WAYS = {
    "jpeg": (
        "Pillow",
        "Pillow, draft mode",
        "torchvision.io",
        "opencv",
        "opencv, reduced 4",
        "opencv, reduced 8",
        "pyvips",
    ),
    "png": ("Pillow", "torchvision.io", "opencv", "opencv, reduced 4", "opencv, reduced 8", "pyvips"),
}
# These drop pixels of a PNG instead of averaging them: another image, up to 190 grey levels off. Shown, no anchor.
_ALIASED: dict[str, tuple[str, ...]] = {"jpeg": (), "png": ("opencv, reduced 4", "opencv, reduced 8")}


def decode_jpeg(bench: Bench) -> CaseReport:
    """8-bit gray JPEG."""
    return _decode(bench, "jpeg")


def decode_png(bench: Bench) -> CaseReport:
    """8-bit gray PNG."""
    return _decode(bench, "png")


def _decode(bench: Bench, kind: str) -> CaseReport:
    scale = bench.scale
    films = films_in(bench.images, kind) if bench.images is not None else []
    drawn = not films
    films = films or write_films(bench.folder / "films", kind, scale.films, *scale.film)
    given = {"files": [str(path) for path in films], "side": scale.decoded_side, "rounds": scale.film_rounds}
    tasks: dict[str, Prepared] = {"ours": bench.ours.prepare("decode_films", **given)}
    if bench.peers is not None:
        for way in _WAYS[kind]:
            tasks[way] = bench.peers.prepare("decode_films", way=way, **given)
    found = bench.measure(tasks)
    count = len(films) * scale.film_rounds
    seconds = {name: median_cpu_s(found, name) / count for name in found}
    peers = {name: value for name, value in seconds.items() if name != "ours"}
    sound = [name for name in peers if name not in _ALIASED[kind]]
    fastest = min(sound, key=lambda name: peers[name]) if sound else None
    figure = versus(
        f"{kind.upper()} -> {scale.decoded_side} x {scale.decoded_side}, an image",
        "s",
        seconds["ours"],
        None if fastest is None else (fastest, peers[fastest]),
        floor=Floor(kind="at least", value=0.9),
        faster=True,
    )
    size = sum(path.stat().st_size for path in films) / len(films) / 1e6
    source = f"drawn, {scale.film[0]:,} x {scale.film[1]:,}" if drawn else f"from {bench.images}"
    notes = [f"{len(films)} films {source}, {size:.2f} MB each"]
    if skipped := [name for name in peers if name in _ALIASED[kind]]:
        notes.append(f"no anchor, because they skip pixels: {' and '.join(skipped)}")
    if peers:
        notes.append(", ".join(f"{name} {value * 1e3:.3g} ms" for name, value in sorted(peers.items(), key=_by_time)))
    return CaseReport(name=f"decode_{kind}", figures=(figure,), timings=timings(found), notes=tuple(notes))


def _by_time(entry: tuple[str, float]) -> float:
    return entry[1]
