"""A data folder as a project leaves it after some weeks: for the owner's pages, without a Label Studio."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from ml_backend.demo.films import draw_films
from ml_backend.images import decode
from ml_backend.images.thumbnail import thumbnail
from ml_backend.insight import INSIGHT, round_insight
from ml_backend.insight.rounds import uncertainties
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Connection, FitReport, ProjectKey, Published, Ranking, RoundReport
from ml_backend.storage import RoundStore
from ml_backend.storage.quarantine import Quarantine
from ml_backend.storage.thumbnails import Thumbnails
from tests.fakes import make_request

__all__ = ["CLASSES", "KEY", "prepare"]

KEY = ProjectKey(id=7, created=1_795_000_000)
CLASSES = ("normal", "moderate", "severe")
BEGAN = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
SETUP = Path(__file__).parents[1] / "data" / "payloads" / "setup.json"
POOL, BATCH = 240, 12


def prepare(root: Path, rounds: int = 9) -> RoundStore:
    """Save rounds of a project that learns; the first three while its start set grew, the last ones by BALD."""
    store, rng = RoundStore(root), np.random.default_rng(7)
    setup = json.loads(SETUP.read_text())
    store.connect(
        Connection(
            project=KEY,
            hostname="http://label-studio.example",
            label_config=setup["schema"],
            extra_params={"batch_size": BATCH, "retrain_after": 20, "strategy": "bald"},
        )
    )
    project = store.project(KEY)
    films = draw_films(BATCH, seed=5, side=256)
    for number in range(1, rounds + 1):
        report, outputs = _round(number, rng)
        beside = {} if outputs is None else {INSIGHT: round_insight(report, outputs)}
        project.save(report, outputs, None, beside)
        pictures = [
            (name, thumbnail(decode(film.content, 224, name)))
            for name, film in zip(report.ranking.image_ids[:BATCH], films, strict=True)
        ]
        # One of them could not be drawn.
        Thumbnails(project.folder).keep(report.request.round_id, pictures[:-1])
        published = Published(
            version=f"al-{report.request.round_id}",
            round_id=report.request.round_id,
            image_ids=report.ranking.image_ids[:100],
            seconds={"import": 0.4, "switch": 0.1, "delete": 0.2},
            published_at=report.started_at + timedelta(minutes=3),
        )
        project.set_published(published)
    quarantine = Quarantine(project.folder, lambda: BEGAN + timedelta(days=5))
    with quarantine.settled():
        quarantine.enter("91", "file", "damaged", "the file ends in the middle of the picture", passing=False)
    return store


def _round(number: int, rng: np.random.Generator) -> tuple[RoundReport, PoolOutputs | None]:
    trained = number > 3
    labels = 20 * number
    strategy = ("entropy" if number < 7 else "bald") if trained else "random"
    names = tuple(str(1000 + 300 * number + place) for place in range(POOL))
    outputs, scores = None, np.linspace(1, 0.01, POOL)
    if trained:
        logits = rng.normal(size=(POOL, 1, 3)) * (1 + 0.25 * number) + np.array([-0.8, 0.2, 0.5])
        logits = logits + rng.normal(size=(POOL, 20, 3)) * 0.7
        probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        told = np.argsort(-uncertainties(probs)[1])
        scores = uncertainties(probs)[1][told]
        outputs = PoolOutputs(names, CLASSES, probs[told].astype(np.float32))
    return (
        RoundReport(
            request=make_request(
                project=KEY,
                round_id=f"r{number:06d}",
                strategy=strategy if trained else "entropy",
                batch_size=BATCH,
                min_labels_per_class=12,
            ),
            labels_per_class={"normal": 3 * number, "moderate": 7 * number, "severe": 10 * number},
            fit=_fit(number, labels) if trained else None,
            ranking=Ranking(
                strategy=strategy,
                image_ids=names,
                scores=tuple(float(score) for score in scores),
                batch_size=BATCH,
                control=names[3:4] + names[40:44] if number > 7 else (),
            ),
            seconds={"labels": 0.6, "train": 74.0, "score": 41.0, "rank": 0.2} if trained else {"labels": 0.5},
            started_at=BEGAN + timedelta(days=2 * number, minutes=17 * number),
        ),
        outputs,
    )


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
