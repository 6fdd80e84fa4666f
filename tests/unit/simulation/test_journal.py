"""What a run has done is read back as it was written, and damage is named."""

import multiprocessing
import time
from pathlib import Path

import pytest

from ml_backend.errors import StorageError
from ml_backend.simulation.plan import Run
from ml_backend.simulation.run import do_run, journal_of
from ml_backend.simulation.run_log import Journal
from tests.unit.simulation.tiny import make_study

RUN = Run(strategy="entropy", variant="", seed=0, loss="weighted")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = journal_of(tmp_path, RUN)
    do_run(RUN, make_study(), journal)
    return journal


def hold(folder: Path, seconds: float) -> None:
    with Journal(folder).held():
        (folder / "held").touch()
        time.sleep(seconds)
        (folder / "let go").touch()


class TestJournal:
    def test_of_nothing_is_empty(self, tmp_path):
        journal = Journal(tmp_path / "none")

        assert journal.read() == journal.mend() == ((), ())
        assert journal.baseline() is None
        assert (journal.rounds_done(), journal.is_done) == (0, False)
        assert not (tmp_path / "none").exists()

    def test_counts_its_rounds(self, journal):
        assert journal.rounds_done() == len(journal.read()[0]) == 5
        assert journal.is_done

    def test_a_damaged_line_is_named_with_the_way_out(self, journal):
        lines = journal._rounds.read_bytes().splitlines(keepends=True)
        journal._rounds.write_bytes(lines[0] + b"{}\n" + b"".join(lines[2:]))

        with pytest.raises(StorageError, match=r"rounds.jsonl, line 2 is damaged: remove the folder .*/entropy-s0"):
            journal.read()

    def test_a_full_disk_is_an_error_in_words(self, journal):
        [row, *_], batch = journal.read()
        journal._rounds.unlink()
        journal._rounds.mkdir()

        with pytest.raises(StorageError, match=r"rounds.jsonl could not be written"):
            journal.append(row, batch[:5])

    def test_only_one_process_at_a_time_holds_a_run(self, tmp_path):
        """The second waits until the first has let go."""
        other = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, 0.5))
        other.start()
        while not (tmp_path / "held").exists():
            time.sleep(0.02)

        with Journal(tmp_path).held():
            assert (tmp_path / "let go").exists()
        other.join()
