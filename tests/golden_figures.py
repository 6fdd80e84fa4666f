"""What the golden tests have in common: figures out of a page, and a comparison with ``tests/golden``.

``AL_GOLDEN=write`` in the environment writes the files anew instead of comparing.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

__all__ = ["check", "digest", "figures", "lines", "numbers", "plain", "read_table", "tables"]

GOLDEN = Path(__file__).parent / "golden"
NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
SILENT = {"style", "script", "svg", "title", "template"}
"""Elements whose text is not read: a chart may be drawn otherwise, and its figures stand in a table too."""
BLOCKS = {"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "caption", "summary", "figcaption", "legend", "div", "section"}
VOID = {"meta", "link", "input", "br", "img", "hr"}


def check(name: str, found: Any, rel: float = 1e-6) -> None:
    """Compare with ``tests/golden/<name>.json``: floats to a relative tolerance, everything else exactly."""
    path = GOLDEN / f"{name}.json"
    if os.environ.get("AL_GOLDEN") == "write":
        path.write_text(_text(found) + "\n")
    expected = json.loads(path.read_text())
    different = list(_differences(expected, json.loads(json.dumps(found)), rel))

    assert not different, f"{len(different)} differences from {path.name}:\n" + "\n".join(different[:20])


def _text(value: Any, indent: str = "") -> str:
    """JSON of a line for each innermost list or object."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(one, dict | list) for one in inner):
        return json.dumps(value, ensure_ascii=False)
    deeper = f"\n{indent} "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name, ensure_ascii=False)}: {_text(one, indent + ' ')}" for name, one in value.items()]
        return f"{{{deeper}{f',{deeper}'.join(parts)}\n{indent}}}"
    return f"[{deeper}{f',{deeper}'.join(_text(one, indent + ' ') for one in value)}\n{indent}]"


def _differences(expected: Any, found: Any, rel: float, where: str = "") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*expected, *found]):
            yield from _differences(expected.get(key, "absent"), found.get(key, "absent"), rel, f"{where}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, pair in enumerate(zip(expected, found, strict=True)):
            yield from _differences(*pair, rel, f"{where}/{place}")
    elif isinstance(expected, float) and isinstance(found, float):
        if found != pytest.approx(expected, rel=rel, abs=1e-9):
            yield f"{where}: {expected} is now {found}"
    elif expected != found:
        yield f"{where}: {expected!r} is now {found!r}"


def digest(values: Any) -> str:
    """Of an order, short enough to be read in a diff."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def read_table(path: Path) -> dict[str, list[Any]]:
    """A CSV file by its columns, numbers as numbers."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [_value(row[name]) for row in rows] for name in rows[0]}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def numbers(text: str) -> list[str]:
    """Of a sentence, in their order and as they are written; without the 95 % that only name an interval."""
    return NUMBER.findall(re.sub(r"95\s*%", "", text))


def plain(value: Any) -> Any:
    """JSON with the figures of a sentence in place of the sentence."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return f"... {' '.join(numbers(value))}" if isinstance(value, str) and value.count(" ") > 2 else value


def tables(html: str) -> list[list[list[Any]]]:
    """Of every table the rows of its body: a row's heading, or "", and then the numbers of its cells in their order."""
    return _Page(html).tables


def figures(html: str) -> list[str]:
    """The numbers of a piece of a page, in their order, whatever they stand in."""
    page = _Page(html)
    return [number for text in page.texts for number in numbers(text)] + [
        number for table in page.tables for row in table for number in row[1:]
    ]


def lines(html: str) -> list[list[str]]:
    """The numbers of every piece of text outside tables that has any, in the order of the page."""
    return [found for text in _Page(html).texts if (found := numbers(text))]


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[Any]]] = []
        self.texts: list[str] = [""]
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and "tbody" in self._open:
            self.tables[-1].append([""])
        if tag in BLOCKS:
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass
        if tag in BLOCKS:
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if not SILENT.isdisjoint(self._open):
            return
        if "tbody" not in self._open:
            self.texts[-1] += data
        elif "th" in self._open:
            self.tables[-1][-1][0] += data.strip()
        elif "td" in self._open:
            self.tables[-1][-1] += numbers(data)
