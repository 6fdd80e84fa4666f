"""What the golden tests have in common: figures out of a page, and a comparison with ``tests/golden``.

``AL_GOLDEN=write`` in the environment writes the files anew instead of comparing.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

__all__ = ["check", "digest", "figures", "numbers", "plain", "read_table", "tables", "words"]

GOLDEN = Path(__file__).parent / "golden"
NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


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
        if found != pytest.approx(expected, rel=rel, abs=1e-8):
            yield f"{where}: {expected} is now {found}"
    elif expected != found and not (rel > 1e-5 and _is_rounded_otherwise(expected, found)):
        yield f"{where}: {expected!r} is now {found!r}"


def _is_rounded_otherwise(expected: Any, found: Any) -> bool:
    """Whether these are the same figure in a page, but for one in the last of equally many digits after the point."""
    if not all(isinstance(text, str) and re.fullmatch(r"[-+]?\d+\.\d+", text) for text in (expected, found)):
        return False
    digits = len(expected.partition(".")[2])
    return digits == len(found.partition(".")[2]) and abs(float(expected) - float(found)) < 1.5 * 10**-digits


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


def words(html: str) -> str:
    """What stands between the tags, without charts: they may be drawn otherwise, and tables have their figures."""
    return unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<(style|svg|title)\b.*?</\1>", " ", html, flags=re.DOTALL)))


def figures(html: str) -> list[str]:
    """The numbers of a piece of a page, in their order, whatever they stand in."""
    return numbers(words(html))


def tables(html: str) -> list[list[list[str]]]:
    """Of every table the rows of its body: a row's heading, or "", and then the numbers of its cells in their order."""
    bodies = re.findall(r"<tbody.*?</tbody>", html, flags=re.DOTALL)
    rows = [[row.partition("</th>") for row in re.split("<tr", body)[1:]] for body in bodies]
    return [
        [[words(f"<{head}").strip() if tail else "", *figures(tail or f"<{head}")] for head, _, tail in one]
        for one in rows
    ]


def plain(value: Any) -> Any:
    """JSON with the figures of a sentence in place of the sentence."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return f"... {' '.join(numbers(value))}" if isinstance(value, str) and value.count(" ") > 2 else value
