import logging
import multiprocessing
import resource
import signal
import sqlite3
import time
from contextlib import closing
from itertools import islice
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from ml_backend.images.cache import TABLE, CacheTable

ROWS = {f"key {number}": bytes([number % 256]) * 3000 for number in range(1500)}


def test_finds_what_was_put_of_any_number_of_keys(tmp_path: Path) -> None:
    table = CacheTable(tmp_path / "new")
    assert table.find(["a"]) == {}
    table.trim()
    assert not (tmp_path / "new").exists()

    table.put(ROWS)
    table.put({"key 7": b"", "other": b"1"})

    assert table.find([*ROWS, "none", "key 7"]) == ROWS | {"key 7": b""}
    assert CacheTable(tmp_path / "new").find(["other", "none"]) == {"other": b"1"}


def test_a_damaged_entry_is_not_there(tmp_path: Path) -> None:
    CacheTable(tmp_path).put({"a": b"one", "b": b"two", "c": b"three"})
    with closing(sqlite3.connect(tmp_path / TABLE)) as table, table:
        table.execute("UPDATE entry SET value = (SELECT value FROM entry WHERE id = 2) WHERE id = 1")
        table.execute("UPDATE entry SET value = x'00' WHERE id = 3")

    assert CacheTable(tmp_path).find(["a", "b", "c"]) == {"b": b"two"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, *, whole: bool) -> None:
    CacheTable(tmp_path).put(ROWS)
    content = b"no database" if whole else bytes(8192)
    with (tmp_path / TABLE).open("r+b") as file:
        file.seek(0 if whole else 8192)
        file.write(content)
    table = CacheTable(tmp_path)

    assert table.find(ROWS) == {}
    table.put({"a": b"one"})

    assert table.find(["a"]) == CacheTable(tmp_path).find(["a"]) == {"a": b"one"}
    assert content in (tmp_path / "table.damaged").read_bytes()
    assert caplog.text.count("is damaged, and begun anew") == 1


def test_a_disk_that_refuses_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    table = CacheTable(tmp_path / "file", limit_bytes=1)
    for _ in range(3):
        table.put({"a": b"one"})

    assert table.find(["a"]) == {}
    assert caplog.text.count("continuing without it") == 1


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for about 80 of the entries, and the time of use known to the hour; the file shrinks to the limit."""
    now = 1e9
    monkeypatch.setattr(time, "time", lambda: now)
    table = CacheTable(tmp_path)
    for first in range(0, 300, 10):
        now += 60
        table.put({f"key {number}": ROWS[f"key {number}"] for number in range(first, first + 10)})
    now += 1e5
    assert len(table.find([f"key {number}" for number in range(40)])) == 40

    CacheTable(tmp_path, 350_000).trim()

    left = sorted(int(key.split()[1]) for key in table.find(ROWS))
    assert left[:40] == [*range(40)]
    assert left[40:] == [*range(300 - len(left[40:]), 300)]
    assert 70 < len(left) < 90
    assert (tmp_path / TABLE).stat().st_size <= 350_000


def test_the_limit_holds_while_entries_come_in(tmp_path: Path) -> None:
    table = CacheTable(tmp_path, 400_000)
    for first in range(0, 1500, 60):
        table.put({f"key {number}": ROWS[f"key {number}"] for number in range(first, first + 60)})
        assert (tmp_path / TABLE).stat().st_size <= 450_000 + 64 * 4096

    assert table.find(["key 1499"]) == {"key 1499": ROWS["key 1499"]}


def put_all(folder: str, rows: dict[str, bytes], room: int, told: "Queue[str]", turns: int) -> None:
    """In a process of its own, whose files may not grow beyond ``room`` bytes."""
    logging.getLogger("ml_backend").addHandler(handler := logging.Handler())
    handler.emit = lambda record: told.put(record.getMessage())  # type: ignore[method-assign]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    table, keys = CacheTable(Path(folder)), list(rows)
    for first in [*range(0, len(keys), 15)] * turns:
        table.put({key: rows[key] for key in keys[first : first + 15]})
        if first == 30:
            told.put("begun")
    told.put("end")


def test_processes_put_at_once_and_one_is_killed_and_one_has_no_disk(tmp_path: Path) -> None:
    """The table stays whole, and what a process that lives has put is there."""
    spawn = multiprocessing.get_context("spawn")
    rows = [{f"{number} {key}": value for key, value in islice(ROWS.items(), 300)} for number in range(3)]
    told: list[Queue[str]] = [spawn.Queue() for _ in rows]
    each = zip(rows, [10**9, 10**9, 300_000], told, [1, 10**6, 1], strict=True)
    both = [spawn.Process(target=put_all, args=(str(tmp_path), *arguments)) for arguments in each]
    for one in both:
        one.start()
    assert told[1].get(timeout=60) == "begun"
    both[1].kill()
    assert [told[0].get(timeout=60) for _ in range(2)] == ["begun", "end"]
    words = sorted(told[2].get(timeout=60) for _ in range(3))
    for one in both:
        one.join(60)

    assert [one.exitcode for one in both] == [0, -signal.SIGKILL, 0]
    assert [words[0], words[1], "continuing without it" in words[2]] == ["begun", "end", True]
    table = CacheTable(tmp_path)
    assert table.find(rows[0]) == rows[0]
    found = table.find(rows[1])
    assert found
    assert found.items() <= rows[1].items()
    with closing(sqlite3.connect(tmp_path / TABLE)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
