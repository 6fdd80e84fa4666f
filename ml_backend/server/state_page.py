"""The state of a project as one self-contained file, to be printed or kept; and two rounds side by side. Torch-free."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

from flask import Response, request

from ml_backend.analytics.overview import newest_record, overview
from ml_backend.analytics.readers import agreement_answer, foresight_answer
from ml_backend.charts import legend
from ml_backend.config import ProjectOptions
from ml_backend.errors import UnknownRound
from ml_backend.registry import STRATEGIES
from ml_backend.server.agreement_page import readers_of
from ml_backend.server.context import context
from ml_backend.server.figures import learning_lines, recall_lines, shares_chart
from ml_backend.server.options_page import option_changes
from ml_backend.server.status import status_of
from ml_backend.server.views import class_balance, find_project, find_round, pages, render
from ml_backend.storage import RoundSummary
from ml_backend.storage.rounds import MANIFEST, Manifest

Row = tuple[str, object, object]
"""A name, and its value in each of two rounds."""


@pages.get("/projects/<key>/state")
def state(key: str) -> Response:
    """All figures, options and versions of a project in one file that loads nothing else."""
    connection, project = find_project(key)
    status = status_of(connection, context().store, context().queue)
    found = overview(project, status.analysis, None if status.published is None else status.published.round_id)
    learning = learning_lines(found.rounds, found.control, found.proof)
    recall = recall_lines(found.rounds, found.confusions)
    last = found.rounds[-1] if found.rounds else None
    manifest = newest_record(project, MANIFEST, Manifest)
    found_readers, readers = readers_of(connection, project)
    options = {} if status.options is None else status.options.model_dump(mode="json")
    chosen = {"strategy": status.options.strategy} if status.options else {}
    # Defaults of other options follow from the strategy.
    defaults = ProjectOptions.model_validate({"profile": "paper", **chosen}).model_dump(mode="json")
    defaults["strategy"] = ProjectOptions.model_fields["strategy"].default
    return render(
        "state.html",
        {
            "status": status,
            "found": found,
            "last": last,
            "now": datetime.now(UTC),
            "created": f"{datetime.fromtimestamp(connection.project.created, UTC):%Y-%m-%d}",
            "version": version("label-studio-active-learning"),
            "manifest": None if manifest is None else manifest[1],
            "options": [
                (name, _written(value), value == defaults[name], ProjectOptions.model_fields[name].description)
                for name, value in options.items()
            ],
            "changes": option_changes(project),
            "strategies": STRATEGIES,
            "learning": shares_chart("learning", "Accuracy and AU ROC over the labels", learning) if learning else None,
            "legend": legend(learning),
            "recall": shares_chart("recall", "Recall of each class over the labels", recall) if recall else None,
            "balance": class_balance(found.chosen, found.rounds),
            "readers": readers,
            "found_readers": found_readers,
            "agreement": "" if found_readers is None else agreement_answer(found_readers),
            "foresight": foresight_answer(found.foresight),
        },
    )


def _written(value: object) -> str:
    """An option's value, as the documentation writes it."""
    if value is None:
        return "by default"
    return value if isinstance(value, str) else "none" if value == [] else json.dumps(value, ensure_ascii=False)


FIRST: Final = (20, 100, 500)
"""Numbers of images at the front of two orders of which those in both are counted."""


@pages.get("/projects/<key>/compare")
def compare(key: str) -> Response:
    """Two rounds side by side; by default the last two."""
    connection, project = find_project(key)
    rounds, _ = project.summaries()
    ids = [one.round_id for one in rounds]
    if len(ids) < 2:
        raise UnknownRound(
            f"the project has {len(ids)} round{'' if len(ids) == 1 else 's'}, and two are needed to compare them"
        )
    chosen = [request.args.get(name, default) for name, default in (("a", ids[-2]), ("b", ids[-1]))]
    a, b = (find_round(key, one)[1].summary(one) for one in chosen)
    orders = [project.ranked(one.round_id) for one in (a, b)]
    return render(
        "compare.html",
        {
            "connection": connection,
            "a": a,
            "b": b,
            "ids": ids[::-1],
            "options": _options(a, b),
            "labels": _labels(a, b),
            "figures": _figures(a, b),
            "overlap": _overlap(*orders),
            "common": len({*orders[0]}.intersection(orders[1])),
            "least": FIRST[0],
        },
    )


def _options(a: RoundSummary, b: RoundSummary) -> list[Row]:
    """Those that differ; of an option that a round's version did not have, a dash."""
    sides = [
        {"strategy": one.asked, "ordered by": one.strategy, "batch_size": of.batch_size, **of.options}
        for one, of in ((a, a.request), (b, b.request))
    ]
    names = dict.fromkeys(name for side in sides for name in side)
    rows = [(name, sides[0].get(name, "–"), sides[1].get(name, "–")) for name in names]
    return [(name, _written(one), _written(other)) for name, one, other in rows if one != other]


def _labels(a: RoundSummary, b: RoundSummary) -> list[Row]:
    classes = dict.fromkeys((*a.labels_per_class, *b.labels_per_class))
    rows: list[Row] = [("all", a.labels, b.labels)]
    return rows + [(name, a.labels_per_class.get(name, 0), b.labels_per_class.get(name, 0)) for name in classes]


def _figures(a: RoundSummary, b: RoundSummary) -> list[Row]:
    sides = [_figures_of(one) for one in (a, b)]
    names = dict.fromkeys((*sides[0], *sides[1]))
    return [(name, sides[0].get(name, "–"), sides[1].get(name, "–")) for name in names]


def _figures_of(one: RoundSummary) -> dict[str, object]:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.0f} %"

    found: dict[str, object] = {}
    if (fit := one.fit) is not None:
        found = {
            "trained on, images": fit.train_images,
            "validation images": fit.validation_images,
            "accuracy": share(fit.validation_accuracy),
            "AU ROC": "–" if fit.validation_auroc is None else f"{fit.validation_auroc:.2f}",
            "validation loss": f"{fit.validation_loss:.3f}",
            "best epoch": fit.best_epoch,
            **{f"recall of {name}": share(recall) for name, recall in fit.validation_recall.items()},
        }
    return found | {
        "images ranked": one.images,
        "images left out": one.excluded,
        "drawn at random": one.control,
        "computing, seconds": f"{sum(one.seconds.values()):.0f}",
    }


def _overlap(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int, int]]:
    """Number of images at the front of two orders, how many are in both, and how many would be in two random orders.

    Only images that are in both orders count: those labelled in between are in one.
    """
    common = {*a}.intersection(b)
    first, second = ([name for name in one if name in common] for one in (a, b))
    return [
        (most, len(set(first[:most]) & set(second[:most])), round(most * most / len(common)))
        for most in FIRST
        if most < len(common)
    ]
