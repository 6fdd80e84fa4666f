"""What the benchmarks run on: drawn pools, images and data folders; the same seed draws the same."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32, UInt8
from PIL import Image
from scipy.special import softmax

from ml_backend.analytics import INSIGHT
from ml_backend.images.synthetic import ImagePlan
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds.live import round_insight
from ml_backend.schemas import PublishedRanking, Ranking
from ml_backend.storage.project_state import ReadingStore
from tests.system.owner_data import CLASSES, KEY, prepare

Probs = npt.NDArray[np.float32]

COPIES = (1, 1, 2, 4, 8, 16, 32)  # images that show nearly the same, as those of one patient or one machine do
COPY_NOISE = 0.05  # distance of a copy from its original, in standard deviations between originals
FEATURES = 24
SHARPNESS = 2.5

NOISE = 3.0  # grey levels; without it a drawing compresses, and decodes, faster than a radiograph


def near_duplicate_pool(images: int, passes: int, classes: int, seed: int) -> Float32[Probs, "images passes classes"]:
    """Draw the softmax outputs of T dropout networks over a pool with 1 to 32 near copies of each image.

    Every pass is one linear network, ``softmax(sharpness * x W_t)`` with ``W_t = W + E_t``, where ``W`` and ``E_t`` are
    standard normal: the passes disagree about as much as they agree. The images with the best scores of their own are
    copies of one another, which only a batch-aware function sees.
    """
    generator = np.random.default_rng([4, seed])
    copies: list[int] = []
    while sum(copies) < images:
        copies.append(int(generator.choice(COPIES)))
    originals = generator.standard_normal((len(copies), FEATURES))
    features = np.repeat(originals, copies, axis=0)[:images]
    features = features + COPY_NOISE * generator.standard_normal(features.shape)
    shared = generator.standard_normal((FEATURES, 1, classes))
    weights = (shared + generator.standard_normal((FEATURES, passes, classes))) / np.sqrt(2 * FEATURES)
    features = features[generator.permutation(images)]
    pool = np.empty((images, passes, classes), dtype=np.float32)
    for start in range(0, images, 4096):  # float64 logits of the whole pool would take gigabytes
        logits = SHARPNESS * np.tensordot(features[start : start + 4096], weights, axes=1)
        pool[start : start + 4096] = softmax(logits, axis=-1)
    return pool


def plain_pool(images: int, passes: int, classes: int, seed: int) -> Float32[Probs, "images passes classes"]:
    """Draw softmax outputs that are uniform over the simplex, for functions that score each image alone."""
    generator = np.random.default_rng([5, seed])
    pool = generator.standard_exponential((images, passes, classes), dtype=np.float32)
    pool /= pool.sum(axis=-1, keepdims=True)
    return pool


def draw_radiograph(height: int, width: int, seed: int) -> UInt8[npt.NDArray[np.uint8], "height width"]:
    """Draw a chest radiograph of any size, with noise that neighbouring pixels share."""
    small = ImagePlan(seed % 3, 3, seed, seed).draw(512)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    noise = np.random.default_rng([6, seed]).standard_normal((height, width), dtype=np.float32)
    noise[:, 1:] += 0.5 * noise[:, :-1]
    drawn: npt.NDArray[np.uint8] = (large + NOISE * noise).clip(0.0, 255.0).round().astype(np.uint8)
    return drawn


def write_radiographs(folder: Path, kind: str, count: int, height: int, width: int) -> list[str]:
    """Write drawn radiographs as 8-bit gray ``jpeg`` (quality 90) or ``png``; returns their paths."""
    paths = [str(folder / f"{seed}.{kind}") for seed in range(count)]
    for seed, path in enumerate(paths):
        Image.fromarray(draw_radiograph(height, width, seed)).save(path, kind, quality=90)
    return paths


def write_classes(folder: Path, count: int, side: int) -> Path:
    """Write drawn images of three classes for a training, ``<class>-<number>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = ImagePlan(number % 3, 3, number, number).draw(side)
        Image.fromarray(image).save(folder / f"{number % 3}-{number:04d}.png")
    return folder


def stored_project(folder: Path, pool: int) -> Path:
    """Write a data folder whose newest round, published, has ranked a pool of that size; a few hundred labels."""
    store = prepare(folder, rounds=5)
    project, connection = store.project(KEY), store.connection(KEY.id)
    store.connect(connection.model_copy(update={"extra_params": {**connection.extra_params, "prelabel": True}}))
    last = project.latest()
    reading = ReadingStore(project.folder)
    mirror = reading.mirror(TaskCache)
    assert last is not None
    assert mirror is not None
    generator = np.random.default_rng(pool)
    names = tuple(map(str, range(100_000, 100_000 + pool)))
    probs = generator.dirichlet(np.ones(len(CLASSES)), (pool, 10)).astype(np.float32)
    mean = probs.mean(axis=1)
    report = last.model_copy(
        update={
            "request": last.request.model_copy(update={"round_id": "r000006"}),
            "ranking": Ranking(
                strategy="entropy",
                image_ids=names,
                scores=tuple(np.sort(generator.random(pool))[::-1].tolist()),
                batch_size=last.ranking.batch_size,
                suggestions={name: CLASSES[best] for name, best in zip(names, mean.argmax(axis=1), strict=True)},
                confidences=dict(zip(names, mean.max(axis=1).tolist(), strict=True)),
            ),
            "started_at": last.started_at + timedelta(days=1),
        }
    )
    outputs = PoolPredictions(names, CLASSES, probs)
    project.save(report, outputs, None, {INSIGHT: round_insight(report, outputs)})
    project.set_published(
        PublishedRanking(
            version="al-r000006",
            round_id="r000006",
            image_ids=names[:100],
            seconds={"import": 0.4, "switch": 0.1, "delete": 0.2},
            published_at=report.started_at + timedelta(minutes=3),
        )
    )
    tasks = mirror.tasks | {int(name): CachedTask(data={"image": f"/data/upload/{name}.png"}) for name in names}
    reading.keep_mirror(TaskCache(read_at=mirror.read_at, whole_at=mirror.whole_at, tasks=tasks))
    return folder
