"""The owner's page of readers: whether they agree, how each of them answers, which images need a decision."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from flask import Response
from markupsafe import Markup

from ml_backend.analytics.evaluation import wilson
from ml_backend.analytics.overview import Analysis
from ml_backend.analytics.readers import (
    Estimate,
    ReaderAgreement,
    ReaderStatistics,
    agreement_answer,
    estimate_words,
    outlier_answer,
)
from ml_backend.analytics.stopping import count
from ml_backend.charts import Interval, bar_chart, interval_chart, shorten
from ml_backend.label_studio.disagreements import DisagreementsTab
from ml_backend.schemas import Connection
from ml_backend.server.status import config_of
from ml_backend.server.views import csv_response, csv_text, find_project, pages, render
from ml_backend.storage import ProjectStore

FIRST_DISPUTES: Final = 10
"""Images to decide that are shown unfolded."""
Named = Sequence[tuple[str, ReaderStatistics]]
"""Readers, each with the name that is shown."""


@pages.get("/projects/<key>/agreement")
def agreement(key: str) -> Response:
    """The readers of a project, for its owner."""
    connection, project = find_project(key)
    found, readers = readers_of(connection, project)
    charts = {}
    if found is not None:
        differences = _differences(found)
        charts = {
            "apart": _apart_chart(differences, found.images),
            "kappas": _chart("kappas", "Agreement with the others", "kappa", readers, "agreement"),
            "biases": _chart("biases", "Too severe or too mild", "classes, above 0: too severe", readers, "bias"),
        }
    return render(
        "agreement.html",
        {
            "connection": connection,
            "readers": readers,
            "named": _named(connection),
            "found": found,
            "answer": "" if found is None else f"{agreement_answer(found)} {outlier_answer(readers)}".strip(),
            "first": FIRST_DISPUTES,
            "image_count": image_count,
            "tab": project.readings.disagreements_tab(DisagreementsTab),
            **charts,
        },
    )


@pages.get("/projects/<key>/agreement.csv")
def agreement_table(key: str) -> Response:
    """Every reader of a project, one a row."""
    connection, project = find_project(key)
    return csv_response(connection, "readers", readers_csv(readers_of(connection, project)[1]))


def readers_of(connection: Connection, project: ProjectStore) -> tuple[ReaderAgreement | None, Named]:
    """The readers as they were last compared, and each by name; by number where the owner asks for no names.

    Nothing is computed: the reconciler renews it within a minute.
    """
    analysis = project.readings.analysis(Analysis)
    found = None if analysis is None else analysis.readers
    names: Mapping[str, str] = project.readings.reader_names() if _named(connection) else {}
    readers = () if found is None else found.readers
    return found, [(names.get(one.rater, f"Reader {place}"), one) for place, one in enumerate(readers, start=1)]


def _named(connection: Connection) -> bool:
    configured, _ = config_of(connection)
    return configured is not None and configured.options.reader_names


def readers_csv(readers: Named) -> Iterator[str]:
    """A row for each reader.

    Args:
        readers: in the order of their first answers.
    """
    figures = ("agreement", "bias", "drift", "repeats")
    classes = list(readers[0][1].confusion) if readers else []
    head = [
        *("reader", "reads", "skips", "seconds", "compared", "repeated"),
        *(f"{name}{end}" for name in figures for end in ("", "_low", "_high", "_images")),
        *(f"others_{one}_reader_{other}" for one in classes for other in classes),
    ]

    def cells(one: Estimate | None) -> Sequence[object]:
        return [""] * 4 if one is None else (*(f"{x:.4f}" for x in (one.value, one.low, one.high)), one.n)

    return csv_text(
        head,
        (
            [
                *(name, one.reads, one.skips, one.seconds, one.compared, one.repeated),
                *(cell for figure in figures for cell in cells(getattr(one, figure))),
                *(image_count(images) for row in one.confusion.values() for images in row.values()),
            ]
            for name, one in readers
        ),
    )


def image_count(images: float) -> str:
    """A number of images, some of which may count in part."""
    return f"{images:.1f}".removesuffix(".0")


def _differences(found: ReaderAgreement) -> dict[str, int]:
    far = ("one class apart", "two or more apart") if found.ordered and found.classes != 2 else ("different",)
    return dict(zip(("the same class", *far), found.apart, strict=False))


def _apart_chart(differences: Mapping[str, int], images: int) -> Markup | None:
    if not images:
        return None
    rows = {}
    for name, number in differences.items():
        low, high = wilson(number, images)
        rows[f"{name}: {number} of {images} ({100 * low:.0f} to {100 * high:.0f} %)"] = {"of-labels": number / images}
    words = "; ".join(f"{name}, {100 * bars['of-labels']:.0f} %" for name, bars in rows.items())
    return bar_chart("apart", "Images by the difference of their readers", words, rows)


def _chart(name: str, title: str, x_label: str, readers: Named, figure: str) -> Markup | None:
    """The intervals of one figure, a row a reader; None where no reader has it."""
    known = [(who, one) for who, reader in readers if (one := getattr(reader, figure)) is not None]
    if not known:
        return None
    rows = [
        Interval(1, shorten(who, 18), one.low, one.value, one.high, estimate_words(one, sign=figure == "bias"))
        for who, one in known
    ]
    words = "; ".join(
        f"{row.name}: {row.words} of {count(one.n, 'image')}" for row, (_, one) in zip(rows, known, strict=True)
    )
    return interval_chart(name, title, words, rows, x_label=x_label)
