"""A data folder of a project after some weeks: for the owner's pages, without Label Studio."""

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from ml_backend.acquisition.pointwise import bald
from ml_backend.analytics import INSIGHT
from ml_backend.analytics.agreement import AGREEMENT, NOISE, Agreement, PredictionSnapshot
from ml_backend.analytics.history import HELD_OUT, HeldOutPredictions
from ml_backend.demo.options import draw_images
from ml_backend.images.decode import decode_image
from ml_backend.images.thumbnail import thumbnail
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds.live import round_insight
from ml_backend.rounds.split import holdout_places
from ml_backend.scheduling.worker import keep_previews
from ml_backend.schemas import (
    Connection,
    FitReport,
    FrozenModel,
    HandPick,
    HeldOutImage,
    ProjectKey,
    PublishedRanking,
    Ranking,
    RoundReport,
)
from ml_backend.storage import RoundStore
from ml_backend.storage.outputs import Embedding
from ml_backend.storage.project_state import Quarantine, ReadingStore, Thumbnails
from tests.fakes import make_request

KEY = ProjectKey(id=7, created=1_795_000_000)
CLASSES = ("normal", "moderate", "severe")
BEGAN = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
SETUP = Path(__file__).parents[1] / "data" / "payloads" / "setup.json"
POOL, BATCH, READ = 240, 12, 40
UNTRAINED = 3  # rounds
SHARES = {"normal": 6, "moderate": 14, "severe": 20}  # of READ
CONTROL_SHARE = 0.15
SHAPES = ((256, 256), (320, 256), (256, 300), (290, 200))
"""Widths and heights of the images: few are square."""


def prepare(root: Path, rounds: int = 14) -> RoundStore:
    """Save rounds of a project that learns; the first three while its start set grew, the last ones by BALD."""
    store, rng = RoundStore(root), np.random.default_rng(7)
    setup = json.loads(SETUP.read_text())
    store.connect(
        Connection(
            project=KEY,
            hostname="http://label-studio.example",
            label_config=setup["schema"],
            extra_params={"batch_size": BATCH, "retrain_after": 20, "min_labels_per_class": 20, "strategy": "bald"},
        )
    )
    project = store.project(KEY)
    drawn = [_shaped(image.content, SHAPES[place % 4]) for place, image in enumerate(draw_images(BATCH, 5, side=256))]
    tasks: dict[int, CachedTask] = {}
    names: Sequence[str] = ()
    for number in range(1, rounds + 1):
        report, outputs = _round(number, rng)
        extra: dict[str, FrozenModel] = {}
        if outputs is not None and report.fit is not None:
            extra = {
                INSIGHT: round_insight(report, outputs),
                AGREEMENT: _marks(report, report.fit, number),
                HELD_OUT: _held_out(names[:READ], number),
            }
        names = report.ranking.image_ids
        project.save(report, outputs, None, extra)
        if outputs is not None:
            keep_previews(project, report)
        decoded = zip(report.ranking.image_ids[:BATCH], (decode_image(image, 224, "x") for image in drawn), strict=True)
        pictures = [(name, thumbnail(image.pixels, image.size)) for name, image in decoded]
        # One of them could not be drawn.
        Thumbnails(project.folder).keep(report.request.round_id, pictures[:-1])
        published = PublishedRanking(
            version=f"al-{report.request.round_id}",
            round_id=report.request.round_id,
            image_ids=report.ranking.image_ids[:100],
            seconds={"import": 0.4, "switch": 0.1, "delete": 0.2},
            published_at=report.started_at + timedelta(minutes=3),
        )
        project.set_published(published)
        if outputs is not None and number < rounds:
            tasks |= _answers(report, outputs, number, by_hand=30 if number == rounds - 1 else None)
        elif outputs is None and number < rounds <= UNTRAINED:
            tasks |= _first_answers(report)
    waiting = report.ranking.image_ids
    tasks |= {int(name): CachedTask(data={"image": f"/data/upload/{name}.png"}) for name in waiting}
    project.set_record(
        f"r{rounds - 1:06d}", NOISE, Agreement(images=300, agreed=0.95, kappa=0.92, weighted=0.94, error=0.02)
    )
    ReadingStore(project.folder).keep_mirror(TaskCache(read_at=BEGAN, whole_at=BEGAN, tasks=tasks))
    quarantine = Quarantine(project.folder, lambda: BEGAN + timedelta(days=5))
    with quarantine.settled():
        quarantine.enter("91", "file", "damaged", "the file ends in the middle of the picture", passing=False)
    return store


def add_embedding(store: RoundStore) -> str:
    """Features of all images, in three groups, and two images put next by hand; returns an image of the batch."""
    project, rng = store.project(KEY), np.random.default_rng(4)
    mirror = project.readings.mirror(TaskCache)
    assert mirror is not None
    names = tuple(map(str, sorted(mirror.tasks)))
    centres = rng.normal(size=(3, 64)) * 3
    rows = np.array([centres[int(name) % 3] for name in names]) + rng.normal(size=(len(names), 64))
    project.set_embedding(Embedding(project.round_ids()[-1], "", names, rows.astype(np.float16), 0.34))
    batch = project.head(project.round_ids()[-1]).batch
    picked = tuple(one.image_id for one in batch[2:4])
    project.add_hand_pick(HandPick(at=BEGAN, by="owner", like=batch[0].image_id, image_ids=picked))
    return batch[0].image_id


def add_readers(store: RoundStore) -> None:
    """A second and a third reader's answers about every image that has one; the third is often too severe."""
    readings, rng = store.project(KEY).readings, np.random.default_rng(3)
    cache = readings.mirror(TaskCache)
    assert cache is not None
    tasks = dict(cache.tasks)
    for number, task in tasks.items():
        for first in task.annotations:
            value = CLASSES.index(first["result"][0]["value"]["choices"][0])
            given = [first]
            for reader, up, down in ((2, 0.1, 0.1), (3, 0.35, 0.02)):
                step = rng.choice([1, -1, 0], p=(up, down, 1 - up - down))
                choice = CLASSES[int(np.clip(value + step * (2 if rng.random() < 0.2 else 1), 0, 2))]
                at = datetime.fromisoformat(first["created_at"]) + timedelta(hours=reader)
                result = [first["result"][0] | {"value": {"choices": [choice]}}]
                times = {"created_at": at.isoformat(), "updated_at": at.isoformat(), "lead_time": 10.0 * reader}
                given.append(first | times | {"id": 10**6 * reader + number, "completed_by": reader, "result": result})
            tasks[number] = task.model_copy(update={"annotations": tuple(given)})
    readings.keep_mirror(cache.model_copy(update={"tasks": tasks}))


def _round(number: int, rng: np.random.Generator) -> tuple[RoundReport, PoolPredictions | None]:
    trained = number > UNTRAINED
    labels = READ * number
    strategy = ("entropy" if number < 9 else "bald") if trained else "random"
    names = tuple(str(1000 + 300 * number + place) for place in range(POOL))
    outputs, scores = None, np.linspace(1, 0.01, POOL)
    holdout = holdout_places(POOL, CONTROL_SHARE if trained else 0.0, 0, f"r{number:06d}")
    if trained:
        logits = rng.normal(size=(POOL, 1, 3)) * (1 + 0.25 * number) + np.array([-0.8, 0.2, 0.5])
        logits = logits + rng.normal(size=(POOL, 20, 3)) * 0.7
        probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        order = np.argsort(-bald(probs).numpy())
        scores = bald(probs).numpy()[order]
        outputs = PoolPredictions(names, CLASSES, probs[order].astype(np.float32))
    return (
        RoundReport(
            request=make_request(
                project=KEY,
                round_id=f"r{number:06d}",
                strategy=strategy if trained else "entropy",
                batch_size=BATCH,
                min_labels_per_class=20,
                control_share=CONTROL_SHARE if trained else 0.0,
            ),
            labels_per_class={name: share * number for name, share in SHARES.items()},
            fit=_fit(number, labels) if trained else None,
            ranking=Ranking(
                strategy=strategy,
                image_ids=names,
                scores=tuple(float(score) for score in scores),
                batch_size=BATCH,
                control=tuple(names[place - 1] for place in holdout),
            ),
            seconds={"labels": 0.6, "train": 74.0, "score": 41.0, "rank": 0.2} if trained else {"labels": 0.5},
            started_at=BEGAN + timedelta(days=1.5 * number, minutes=17 * number),
        ),
        outputs,
    )


def _marks(report: RoundReport, fit: FitReport, number: int) -> PredictionSnapshot:
    """Predictions that change for fewer and fewer of the same images."""
    rng = np.random.default_rng(number)
    minds = np.random.default_rng(0).integers(3, size=300)
    turned = rng.random(300) < 0.3 / number
    minds[turned] = rng.integers(3, size=int(turned.sum()))
    predicted = {f"waiting-{place}": int(mind) for place, mind in enumerate(minds)}
    return PredictionSnapshot(
        round_id=report.request.round_id,
        labels=sum(report.labels_per_class.values()),
        accuracy=fit.validation_accuracy,
        auroc=fit.validation_auroc,
        classes=CLASSES,
        predicted=predicted,
    )


def _held_out(names: Sequence[str], number: int) -> HeldOutPredictions:
    """Of the images that the round before chose: every sixth is taken for another class than its reader's."""
    rng = np.random.default_rng(number)
    images = []
    for place, name in enumerate(names):
        means, label = rng.dirichlet((0.4, 0.4, 0.4)), place % 3
        means[[label, int(means.argmax())]] = means[[int(means.argmax()), label]]
        if place % 6 == 0:
            means = np.roll(means, 1)
        probs = dict(zip(CLASSES, means.tolist(), strict=True))
        images.append(HeldOutImage(image_id=name, label=CLASSES[label], probs=probs))
    return HeldOutPredictions(images=tuple(images))


def _answers(
    report: RoundReport, outputs: PoolPredictions, number: int, *, by_hand: int | None
) -> dict[int, CachedTask]:
    """The first images of an order, one after the other, but for one that somebody opened by hand.

    The later the round, the more often readers say what the network does.
    """
    rng, predicted = np.random.default_rng(number), outputs.probs.mean(axis=1).argmax(axis=1)
    tasks = {}
    for place, name in enumerate(report.ranking.image_ids[:READ]):
        minute = 1.5 if place == by_hand else place
        right = rng.random() < 0.75 + 0.012 * number
        tasks[int(name)] = _answered(report, minute, name, CLASSES[(predicted[place] + (0 if right else 1)) % 3])
    return tasks


def _first_answers(report: RoundReport) -> dict[int, CachedTask]:
    """The first images of an order from before the first training."""
    values = [name for name, share in SHARES.items() for _ in range(share)]
    answered = enumerate(zip(report.ranking.image_ids[:READ], values, strict=True))
    return {int(name): _answered(report, minute, name, value) for minute, (name, value) in answered}


def _answered(report: RoundReport, minute: float, name: str, value: str) -> CachedTask:
    at = report.started_at + timedelta(minutes=4 + minute)
    choice = {"from_name": "severity", "type": "choices", "value": {"choices": [value]}}
    return CachedTask(
        data={"image": f"/data/upload/{name}.png"},
        annotations=(
            {
                "id": int(name),
                "completed_by": 1,
                "was_cancelled": False,
                "result": [choice],
                "created_at": at.isoformat(),
                "updated_at": at.isoformat(),
                "lead_time": 25.0,
            },
        ),
    )


def _shaped(content: bytes, shape: tuple[int, int]) -> bytes:
    """The image in another shape, padded or cropped without scaling."""
    drawn, file = Image.open(io.BytesIO(content)), io.BytesIO()
    image = Image.new("L", shape, 12)
    image.paste(drawn, ((shape[0] - drawn.width) // 2, (shape[1] - drawn.height) // 2))
    image.save(file, "PNG")
    return file.getvalue()


def _fit(number: int, labels: int) -> FitReport:
    grown = 1 - 1.6 / number
    return FitReport(
        epochs=30,
        best_epoch=24,
        class_weights={},
        train_images=round(0.8 * labels),
        validation_images=round(0.2 * labels),
        validation_loss=0.9 - 0.4 * grown,
        validation_accuracy=0.45 + 0.4 * grown,
        validation_auroc=0.6 + 0.33 * grown,
        validation_recall={"normal": 0.2 + 0.6 * grown, "moderate": 0.35 + 0.4 * grown, "severe": 0.6 + 0.32 * grown},
    )
