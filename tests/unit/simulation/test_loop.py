"""Rounds without Label Studio are the rounds of the live loop."""

import re
from itertools import islice
from pathlib import Path

import pytest

from ml_backend.errors import EmptyPool
from ml_backend.rounds.interfaces import RoundParts
from ml_backend.rounds.run import run_round
from ml_backend.rounds.split import fixed_split
from ml_backend.schemas import ImageRef, Label, PublishedRanking, RoundReport, RoundRequest
from ml_backend.simulation import loop
from ml_backend.simulation.loop import OracleReader, reveal_start, simulate, simulated_rounds
from ml_backend.simulation.oracle import Oracle
from ml_backend.storage import ProjectStore
from tests.fakes import CLASSES, FakeLearner, FakeStrategy, MemoryStore, make_request, one_reader

IMAGES = 30
ASSEMBLY = Path(loop.__file__).parents[1] / "rounds" / "live.py"


def make_oracle() -> Oracle:
    return Oracle(
        Label(image=ImageRef(id=f"{n}.png", uri=f"{n}.png", patient_id=f"p{n // 2}"), value=CLASSES[n % 3], raters=1)
        for n in range(IMAGES)
    )


def run(oracle: Oracle, rounds: int, learner: FakeLearner | None = None, **changes: object) -> tuple[RoundReport, ...]:
    return simulate(
        make_request(**changes),
        oracle,
        consensus=one_reader,
        learner=learner or FakeLearner(),
        strategy=FakeStrategy(),
        store=MemoryStore(),
        rounds=rounds,
    )


class TestSimulate:
    def test_is_the_live_loops_round(self, monkeypatch):
        """Once a round it calls the very function that the live loop is assembled around."""
        seen = []

        def watched(request: RoundRequest, parts: RoundParts) -> tuple[RoundReport, PublishedRanking]:
            seen.append(request.round_id)
            return run_round(request, parts)

        monkeypatch.setattr(loop, "run_round", watched)

        run(make_oracle(), rounds=3)

        # As text: importing the live assembly takes seconds of torch.
        assert re.search(r"from ml_backend.rounds.run import .*\brun_round\b", ASSEMBLY.read_text())
        assert seen == ["r000001", "r000002", "r000003"]

    def test_starts_from_the_minimum_of_every_class_and_trains_at_once(self):
        oracle = make_oracle()

        [report] = run(oracle, rounds=1)

        assert report.fit is not None
        assert report.labels_per_class == dict.fromkeys(CLASSES, 2)
        assert len(report.ranking.image_ids) == IMAGES - 6

    def test_every_batch_is_the_head_of_its_ranking(self):
        """After the six images of the start set: three a round, in the order of the round's ranking."""
        oracle = make_oracle()

        reports = run(oracle, rounds=4)

        batches = [report.ranking.image_ids[:3] for report in reports]
        assert oracle.revealed[6:] == tuple(image_id for batch in batches for image_id in batch)

    def test_labels_of_a_round_are_learnt_in_the_next(self):
        learner = FakeLearner()

        reports = run(make_oracle(), rounds=3, learner=learner)

        assert [sum(report.labels_per_class.values()) for report in reports] == [6, 9, 12]
        assert set(reports[0].ranking.image_ids[:3]) <= {image_id for ids in learner.fits[1] for image_id in ids}

    def test_the_same_seed_is_the_same_run(self):
        once, again = (
            [report.model_dump(exclude={"seconds", "started_at"}) for report in run(make_oracle(), rounds=3)]
            for _ in range(2)
        )

        assert once == again

    def test_ends_when_the_pool_is_used_up(self):
        """24 images in the pool, 10 a round: three rounds, the last one of four images."""
        oracle = make_oracle()

        reports = run(oracle, rounds=99, batch_size=10)

        assert len(reports) == 3
        assert len(oracle.revealed) == IMAGES

    def test_unreadable_images_stay_in_the_pool_and_end_it(self):
        oracle = make_oracle()

        reports = run(oracle, rounds=99, learner=FakeLearner(unreadable=["7.png", "8.png"]), batch_size=12)

        left = {image.id for image in oracle.unlabelled()[0]}
        assert left <= {"7.png", "8.png"}
        assert {e.image_id for e in reports[0].exclusions} <= {"7.png", "8.png"}

    def test_nothing_to_rank_in_the_first_round_is_an_error(self):
        """A simulation that never began must not look like one that ended."""
        oracle = make_oracle()
        oracle.reveal(image.id for image in oracle.unlabelled()[0])

        with pytest.raises(EmptyPool):
            run(oracle, rounds=1)

    def test_goes_on_where_it_was_left(self):
        """The first two batches are known from elsewhere: the third round is the third round."""
        whole = run(make_oracle(), rounds=4)
        oracle = make_oracle()
        reveal_start(oracle, 2, 0)
        for report in whole[:2]:
            oracle.reveal(report.ranking.image_ids[:3])
        parts = RoundParts(
            labels=oracle,
            consensus=one_reader,
            learner=FakeLearner(),
            strategy=FakeStrategy(),
            store=MemoryStore(),
            publisher=OracleReader(oracle),
        )

        rest = islice(simulated_rounds(make_request(), parts, first=3), 2)

        seconds = {"seconds", "started_at"}
        assert [r.model_dump(exclude=seconds) for r in rest] == [r.model_dump(exclude=seconds) for r in whole[2:]]

    def test_what_goes_on_without_a_pool_has_ended(self):
        oracle = make_oracle()
        oracle.reveal(image.id for image in oracle.unlabelled()[0])
        parts = RoundParts(oracle, one_reader, FakeLearner(), FakeStrategy(), MemoryStore(), OracleReader(oracle))

        assert list(simulated_rounds(make_request(), parts, first=2)) == []

    def test_can_hold_validation_fixed(self):
        """Images that are always known tell when to stop, and nothing else."""
        truth = list(make_oracle()._truth.values())
        oracle = Oracle(truth[6:], always_known=truth[:6])
        learner = FakeLearner()

        simulate(
            make_request(),
            oracle,
            consensus=one_reader,
            learner=learner,
            strategy=FakeStrategy(),
            store=MemoryStore(),
            rounds=2,
            split=fixed_split([label.image.id for label in truth[:6]]),
        )

        assert [len(train) for train, _ in learner.fits] == [6, 9]
        assert all(set(validation) == {label.image.id for label in truth[:6]} for _, validation in learner.fits)

    def test_needs_a_round(self):
        with pytest.raises(ValueError, match="at least 1 round, got 0"):
            run(make_oracle(), rounds=0)

    def test_rounds_are_kept_like_live_ones(self, tmp_path):
        store = ProjectStore(tmp_path / "simulation")

        reports = simulate(
            make_request(),
            make_oracle(),
            consensus=one_reader,
            learner=FakeLearner(),
            strategy=FakeStrategy(),
            store=store,
            rounds=2,
        )

        assert [store.report(round_id) for round_id in store.round_ids()] == list(reports)
        assert (store.folder / "rounds/r000002/model.txt").read_text() == "fits: 2\n"


class TestStartByTypiclust:
    def test_labels_an_image_of_every_group_first_and_then_trains(self):
        """Nobody waits in a simulation: the first batch of ten is already one of each of ten looks."""
        oracle = Oracle(
            Label(image=ImageRef(id=f"{n}", uri=f"{n}.png"), value=CLASSES[n % 3], raters=1) for n in range(100, 160)
        )
        learner = FakeLearner()
        parts = RoundParts(
            labels=oracle,
            consensus=one_reader,
            learner=learner,
            strategy=FakeStrategy(),
            store=MemoryStore(),
            publisher=loop.OracleReader(oracle),
        )
        request = make_request(cold_start="typiclust", batch_size=10)

        first, second = islice(loop.simulated_rounds(request, parts), 2)

        assert first.ranking.strategy == "typiclust"
        assert {image_id[-1] for image_id in first.ranking.image_ids[:10]} == set("0123456789")
        assert second.fit is not None
