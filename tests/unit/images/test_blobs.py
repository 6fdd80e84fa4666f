import logging
import multiprocessing
import os
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from ml_backend.images.cache import DiskCache

ENTRY_BYTES = 8192  # with its checksum: two blocks, on a disk whose blocks are no larger
ENTRY = b"x" * (ENTRY_BYTES - 32)


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.is_file()]


def test_gives_back_what_was_put(tmp_path: Path) -> None:
    blobs = DiskCache(tmp_path)
    blobs.put("a", b"one")
    blobs.put("../b", b"")

    assert (blobs.get("a"), blobs.get("../b"), blobs.get("c")) == (b"one", b"", None)
    assert DiskCache(tmp_path).get("a") == b"one"
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
def test_damaged_entry_is_not_there_until_it_is_put_again(tmp_path: Path, damage: bytes) -> None:
    blobs = DiskCache(tmp_path)
    blobs.put("a", b"one")
    entries(tmp_path)[0].write_bytes(damage)

    assert blobs.get("a") is None
    blobs.put("a", b"one")
    assert blobs.get("a") == b"one"


def test_disk_that_refuses_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        DiskCache(tmp_path / "file").put("a", b"one")

    assert "cannot be written" in caplog.text
    assert DiskCache(tmp_path / "file").get("a") is None


def test_trim_drops_what_was_not_used_for_longest(tmp_path: Path) -> None:
    blobs = DiskCache(tmp_path)
    for age, key in enumerate(["new", "middle", "old"]):
        blobs.put(key, ENTRY)
        newest = max(entries(tmp_path), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1e9 - age, 1e9 - age))
    assert blobs.get("old") is not None  # which makes it the most recently used

    assert DiskCache(tmp_path, 2 * ENTRY_BYTES).trim() == ENTRY_BYTES
    assert [blobs.get(key) is None for key in ("new", "middle", "old")] == [False, True, False]
    assert DiskCache(tmp_path, 2 * ENTRY_BYTES).trim() == 0


def test_small_entries_count_as_what_they_take_on_the_disk(tmp_path: Path) -> None:
    DiskCache(tmp_path).put("a", b"xyz")

    assert DiskCache(tmp_path, 4095).trim() == 4096


def test_limit_holds_while_entries_come_in(tmp_path: Path) -> None:
    blobs = DiskCache(tmp_path, 16 * ENTRY_BYTES)
    for key in range(60):
        blobs.put(str(key), ENTRY)
        assert len(entries(tmp_path)) <= 16 + 2  # an eighth more

    assert blobs.get("59") is not None
    blobs.trim()
    assert len(entries(tmp_path)) <= 16


def test_walks_only_where_it_may_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []
    walk = DiskCache._walk

    def counting(self: DiskCache, limit_bytes: int) -> int:
        walked.append(limit_bytes)
        return walk(self, limit_bytes)

    monkeypatch.setattr(DiskCache, "_walk", counting)
    blobs = DiskCache(tmp_path, 10**6)
    blobs.put("a", b"one")
    blobs.trim()
    blobs.trim()
    DiskCache(tmp_path, 10**6).trim()  # another process, that put nothing
    DiskCache(tmp_path, 2 * 10**6).trim()
    assert walked == [10**6]

    DiskCache(tmp_path, 10**5).trim()  # the limit was lowered
    assert walked == [10**6, 10**5]

    DiskCache(tmp_path).put("b", b"two")  # by a process that died before it trimmed
    DiskCache(tmp_path, 10**6).trim()
    assert walked == [10**6, 10**5, 10**6]


def test_without_a_limit_nothing_is_dropped(tmp_path: Path) -> None:
    blobs = DiskCache(tmp_path)
    blobs.put("a", ENTRY)

    assert blobs.trim() == 0
    assert blobs.get("a") == ENTRY


def test_nothing_was_ever_put(tmp_path: Path) -> None:
    assert DiskCache(tmp_path / "none", 0).trim() == 0


def test_trim_sweeps_up_after_a_process_that_died(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    dead, running = tmp_path / "ab" / "1.beside", tmp_path / "ab" / "2.beside"
    for path in (dead, running):
        path.write_bytes(b"half")
    os.utime(dead, (1e9, 1e9))

    DiskCache(tmp_path, 0).trim()

    assert not dead.exists()
    assert running.exists()


def put_get_and_trim(folder: str, number: int, answers: "Queue[tuple[int, int, list[str]]]") -> None:
    """In a process of its own: the same keys as its twin, each with its own content, room for half of them."""
    spoken: list[str] = []
    logging.getLogger("ml_backend").addHandler(_Listener(spoken))
    blobs = DiskCache(Path(folder), 10 * ENTRY_BYTES)
    found = wrong = 0
    for turn in range(300):
        key = str((turn * 7 + number) % 20)
        content = key.encode() * 4000
        blobs.put(key, content)
        for other in ("3", "8", "15"):
            payload = blobs.get(other)
            found += payload is not None
            wrong += payload not in (None, other.encode() * 4000)
        if turn % 5 == 0:
            DiskCache(Path(folder), 10 * ENTRY_BYTES)._walk(5 * ENTRY_BYTES)
    blobs.trim()
    answers.put((found, wrong, spoken))


class _Listener(logging.Handler):
    def __init__(self, spoken: list[str]) -> None:
        super().__init__()
        self.spoken = spoken

    def emit(self, record: logging.LogRecord) -> None:
        self.spoken.append(record.getMessage())


def test_two_processes_put_read_and_trim_at_once(tmp_path: Path) -> None:
    """None reads half an entry or another's, none stumbles over what the other dropped, and the limit holds."""
    spawn = multiprocessing.get_context("spawn")
    answers: Queue[tuple[int, int, list[str]]] = spawn.Queue()
    twins = [spawn.Process(target=put_get_and_trim, args=(str(tmp_path), number, answers)) for number in range(2)]
    for twin in twins:
        twin.start()
    told = [answers.get(timeout=120) for _ in twins]
    for twin in twins:
        twin.join(60)

    assert [twin.exitcode for twin in twins] == [0, 0]
    assert all(found > 0 for found, _, _ in told)
    assert [(wrong, spoken) for _, wrong, spoken in told] == [(0, []), (0, [])]
    assert not list(tmp_path.glob("*/*.beside"))
    DiskCache(tmp_path, 10 * ENTRY_BYTES).trim()
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 10 * ENTRY_BYTES


def test_what_cannot_be_dropped_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blobs = DiskCache(tmp_path)
    (tmp_path / "aa" / "a folder").mkdir(parents=True)
    blobs.put("a", b"xyz")

    DiskCache(tmp_path, 0).trim()

    assert blobs.get("a") is None
    assert "a folder cannot be dropped" in caplog.text
