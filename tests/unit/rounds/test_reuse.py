"""What is served without another training: the last round again, more of its ranking, another strategy."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.contextvars import bound_contextvars, get_contextvars

from ml_backend.acquisition import CatalogStrategy, seeded_order
from ml_backend.errors import EmptyPool, LabelStudioError, StaleRound, UnusablePool, WeightsError
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Scorer
from ml_backend.rounds.reuse import (
    StoredPasses,
    remaining_ranking,
    rerank,
    run_periodically,
    served_round,
    top_up,
    unpublished_round,
)
from ml_backend.rounds.run import RoundResult, inputs_digest, run_round
from ml_backend.rounds.split import mix_in_holdout
from ml_backend.schemas import Annotation, Exclusion, ImageRef, PublishedRanking, Ranking, Reread, RoundReport
from ml_backend.storage import ProjectStore
from tests.fakes import (
    CLASSES,
    NOON,
    FakeLabels,
    FakeLearner,
    FakeProject,
    make_annotation,
    make_image,
    make_report,
    make_request,
    one_reader,
)


def published(round_id: str = "r000001", image_ids: Sequence[str] = ("2",), **seconds: float) -> PublishedRanking:
    return PublishedRanking(
        version="v", round_id=round_id, image_ids=tuple(image_ids), seconds=seconds, published_at=NOON
    )


LAST = make_report("r000002").model_copy(update={"inputs": "same"})


@pytest.fixture
def last(tmp_path: Path) -> Callable[[PublishedRanking | None], ProjectStore]:
    """A store with round 2, saved, and what is published."""

    def saved(served: PublishedRanking | None) -> ProjectStore:
        store = ProjectStore(tmp_path)
        store.save(LAST, None, None)
        if served is not None:
            store.set_published(served)
        return store

    return saved


INCOMPLETE = [None, published("r000001", delete=1.0), published("r000002", switch=0.1)]
COMPLETE = published("r000002", delete=0.2)


class TestLastRound:
    """Deleting the order before it is the last step of publishing one."""

    @pytest.mark.parametrize("served", INCOMPLETE, ids=str)
    def test_is_published_where_it_is_not_complete(self, last, served):
        store = last(served)

        assert unpublished_round(store, "same") == LAST
        assert served_round(store, "same") is None

    def test_is_served_where_it_is_complete(self, last):
        store = last(COMPLETE)

        assert unpublished_round(store, "same") is None
        assert served_round(store, "same") == (LAST, COMPLETE)

    @pytest.mark.parametrize("served", [None, COMPLETE], ids=["unpublished", "served"])
    def test_only_with_the_same_inputs(self, last, served):
        store = last(served)

        assert unpublished_round(store, "other") is None
        assert served_round(store, "other") is None

    def test_none_in_an_empty_store(self, tmp_path):
        assert unpublished_round(ProjectStore(tmp_path), "same") is None

    def test_none_that_was_saved_before_there_were_digests(self, tmp_path):
        ProjectStore(tmp_path).save(make_report(), None, None)

        assert unpublished_round(ProjectStore(tmp_path), "same") is None

    def test_a_damaged_one_stops_no_round(self, last):
        store = last(COMPLETE)
        (store.folder / "rounds" / "r000002" / "report.json").write_text("{")

        assert unpublished_round(store, "same") is None
        assert served_round(store, "same") is None


def report_of(*image_ids: str, unreadable: Sequence[str] = ()) -> RoundReport:
    """A round that ranked these, with falling scores; a batch is 2."""
    scores = tuple(1.0 - 0.01 * place for place in range(len(image_ids)))
    return make_report().model_copy(
        update={
            "ranking": Ranking(strategy="fake", image_ids=image_ids, scores=scores, batch_size=2),
            "exclusions": tuple(Exclusion(image_id=name, reason="damaged") for name in unreadable),
        }
    )


def images(*numbers: int):
    return [make_image(number) for number in numbers]


class TestRemainingRanking:
    def test_scored_images_in_their_order_then_new_ones_then_skipped_ones(self):
        """Of 5, 3, 1, 4 the 3 is labelled and the 5 skipped; 8 and 9 are new."""
        ranking = remaining_ranking(report_of("5", "3", "1", "4"), [make_annotation(5, None)], images(1, 4, 5, 8, 9))

        new = [("8", "9")[index] for index in seeded_order(["8", "9"], 0)]
        assert ranking.image_ids == ("1", "4", *new, "5")
        assert ranking.scores == (0.98, 0.97, 0.97, 0.97, 1.0)

    def test_holdout_images_stay_marked(self):
        """Of 5, 3 and 1 the 3 is labelled and the 5 skipped."""
        report = report_of("5", "3", "2", "1")
        mixed = report.model_copy(update={"ranking": report.ranking.model_copy(update={"control": ("5", "3", "1")})})

        ranking = remaining_ranking(mixed, [make_annotation(5, None)], images(1, 2, 5))

        assert (ranking.image_ids, ranking.control) == (("2", "1", "5"), ("1", "5"))

    def test_what_the_round_could_not_read_is_not_new(self):
        assert remaining_ranking(report_of("1", unreadable=["7"]), [], images(1, 7)).image_ids == ("1",)

    @pytest.mark.parametrize("kind", ["same image", "no image", "unreadable answer"])
    def test_what_the_round_left_out_for_another_reason_is_new(self, kind):
        """Its copy was deleted, its data were corrected, its answer was withdrawn."""
        left_out = Exclusion(image_id="7", reason="as its task was", kind=kind)
        report = report_of("1").model_copy(update={"exclusions": (left_out,)})

        assert remaining_ranking(report, [], images(1, 7)).image_ids == ("1", "7")

    def test_new_images_keep_their_order_while_others_come_and_go(self):
        many = remaining_ranking(report_of("1"), [], images(1, *range(10, 30))).image_ids
        few = remaining_ranking(report_of("1"), [], images(1, *range(10, 20))).image_ids

        assert few == tuple(name for name in many if name in set(few))


COPY = (Exclusion(image_id="4", reason="task 4 holds the same image as task 1"),)
SKIPPED = [make_annotation(3, None)]


class TestTopUp:
    @pytest.fixture
    def store(self, tmp_path) -> ProjectStore:
        return ProjectStore(tmp_path)

    def top_up(
        self,
        store: ProjectStore,
        labels: FakeLabels,
        ranked: Sequence[str],
        served: Sequence[str],
        *,
        low: int = 2,
        held: bool = True,
        quarantined: frozenset[str] = frozenset(),
    ):
        """The rankings that are published, and the result."""
        store.save(report_of(*ranked), None, None)
        if served:
            store.set_published(published(image_ids=served))
        project = FakeProject(labels)
        done = top_up(labels, store, low, project.publish, lambda _: held, quarantined=quarantined)
        return [report.ranking.image_ids for report in project.published], done

    @pytest.mark.parametrize(
        ("labels", "ranked", "served", "wanted"),
        [
            # 1 and 2 are labelled: one is left and two are wanted.
            (FakeLabels([make_annotation(n, "normal") for n in (1, 2)], images(3, 4, 5)), "12345", "123", "345"),
            (FakeLabels(pool=images(3, 4, 5)), "345", "34", None),
            # Readers who skipped 3 do not see it again.
            (FakeLabels(SKIPPED, images(3, 4, 5)), "345", "34", "453"),
            (FakeLabels(pool=images(5)), "345", "345", None),
            (FakeLabels(pool=images(1)), "1", "", None),
            # 4 is a copy: of a labelled image, or of one with a lower number.
            (FakeLabels([make_annotation(1, "normal")], images(3, 5), COPY), "345", "345", "35"),
            (FakeLabels([make_annotation(1, "normal")], images(3, 5), COPY), "345", "35", None),
            (FakeLabels([make_annotation(1, "normal")], [], COPY), "14", "14", None),
        ],
        ids=[
            "few are left",
            "enough are left",
            "a skipped image is not left",
            "every image is served",
            "before the first round",
            "a copy is served",
            "a copy is not served",
            "nothing but a copy is left",
        ],
    )
    def test_publishes_where_it_is_needed(self, store, labels, ranked, served, wanted):
        rankings, done = self.top_up(store, labels, ranked, served)

        assert rankings == ([] if wanted is None else [tuple(wanted)])
        assert (done is None) == (wanted is None)

    def test_the_round_is_what_it_was(self, store):
        _, done = self.top_up(store, FakeLabels(pool=images(2, 3)), "123", "1")

        assert done is not None
        assert (done[0].ranking.image_ids, done[1].round_id) == (("1", "2", "3"), "r000001")

    @pytest.mark.parametrize("held", [True, False])
    def test_publishes_what_label_studio_has_lost(self, store, held: bool):
        rankings, _ = self.top_up(store, FakeLabels(pool=images(3, 4, 5)), "345", "34", held=held)

        assert rankings == ([] if held else [("3", "4", "5")])

    @pytest.mark.parametrize(
        ("labels", "unreadable", "wanted"),
        [
            (FakeLabels(pool=images(3, 4, 5)), "4", [("3", "5")]),
            # None could be read, so that images are not to blame.
            (FakeLabels(pool=images(3, 4, 5)), "345", []),
            (FakeLabels([make_annotation(1, "normal")], images(3, 4, 5)), "45", [("3",)]),
            (FakeLabels([make_annotation(1, "normal")], images(4, 5)), "45", []),
        ],
    )
    def test_an_unreadable_image_is_served_no_longer(self, store, labels, unreadable, wanted):
        assert self.top_up(store, labels, "345", "345", quarantined=frozenset(unreadable))[0] == wanted

    @pytest.mark.parametrize(
        ("labels", "picked", "shown", "wanted"),
        [
            (FakeLabels(pool=images(3, 4, 5)), "5", "", ["345"]),
            (FakeLabels(pool=images(3, 4, 5)), "5", "5", []),
            (FakeLabels([make_annotation(5, "normal")], images(3, 4)), "5", "", []),
            (FakeLabels(pool=images(3, 4, 5)), "7", "", []),
        ],
        ids=["not yet in front", "in front", "labelled meanwhile", "gone"],
    )
    def test_publishes_what_was_put_next_once(self, store, labels, picked, shown, wanted):
        store.save(report_of(*"345"), None, None)
        store.set_published(published(image_ids="345").model_copy(update={"by_hand": tuple(shown)}))
        project = FakeProject(labels)

        top_up(labels, store, 1, project.publish, lambda _: True, first=picked)

        assert ["".join(report.ranking.image_ids) for report in project.published] == wanted

    def test_publishes_nothing_lost_where_only_skipped_images_are_left(self, store):
        assert self.top_up(store, FakeLabels(SKIPPED, images(3)), "3", "3", low=1, held=False) == ([], None)


class TestRunPeriodically:
    def test_continues_after_an_error_and_ends_with_the_block(self):
        looked = threading.Semaphore(0)

        def look():
            looked.release()
            raise LabelStudioError("restarting")

        with run_periodically(look, every_s=0.001):
            assert looked.acquire(timeout=30)
            assert looked.acquire(timeout=30)
        assert not [thread for thread in threading.enumerate() if thread.name == "top-up"]

    def test_what_it_logs_names_the_round_of_the_block(self):
        looked, seen = threading.Event(), []

        def look():
            seen.append(get_contextvars())
            looked.set()

        with bound_contextvars(project="2.1", round="r000001"), run_periodically(look, every_s=0.001):
            assert looked.wait(30)
        assert seen[0] == {"project": "2.1", "round": "r000001"}

    def test_not_at_once(self):
        """A round that is short, or has just published, needs none."""
        looks = []
        with run_periodically(lambda: looks.append(1), every_s=60):
            pass

        assert looks == []


POOL = tuple(make_image(number) for number in range(100, 112))
LABELLED = [make_annotation(number, CLASSES[number % 3]) for number in range(12)]


class Reranking:
    """A round by one strategy that trained, and a reranking of it by another."""

    def __init__(self, strategy: str = "entropy", unreadable: Sequence[str] = ()) -> None:
        self.learner = FakeLearner(unreadable)
        self.base, self.passes = self.trained(strategy)

    def trained(self, strategy: str) -> tuple[RoundReport, PoolPredictions]:
        project = FakeProject(FakeLabels(LABELLED, POOL))
        run_round(make_request(strategy=strategy), project, self.learner, CatalogStrategy(strategy))
        [(report, predictions, _)] = project.saved
        assert predictions is not None
        return report, predictions

    def run(
        self,
        strategy: str = "margin",
        *,
        annotations: Sequence[Annotation] = LABELLED,
        pool: Sequence[ImageRef] = POOL,
        control_share: float = 0.0,
        project: FakeProject | None = None,
        scorer: Scorer | None = None,
    ) -> RoundResult:
        self.request = self.base.request.model_copy(
            update={"strategy": strategy, "round_id": "r000002", "reason": "rerank", "control_share": control_share}
        )
        self.project = project or FakeProject(FakeLabels(annotations, pool))
        scorer = scorer or StoredPasses(self.base, self.passes)
        return rerank(self.request, self.base, self.project, scorer, CatalogStrategy(strategy), learner=FakeLearner())


class WithoutBackbone(FakeLearner):
    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        raise WeightsError(f"weights for {len(images)} images are missing")


class TestFromStoredPasses:
    def test_a_backbone_that_is_gone_only_ends_the_search_for_few_labels(self):
        again = Reranking()
        request = again.base.request.model_copy(
            update={"strategy": "margin", "round_id": "r000002", "reason": "rerank", "min_labels_per_class": 4}
        )
        values = ["normal"] * 6 + ["moderate"] * 6 + ["severe"]
        project = FakeProject(FakeLabels([make_annotation(n, one) for n, one in enumerate(values)], POOL))
        scorer = StoredPasses(again.base, again.passes)

        found = [
            rerank(request, again.base, project, scorer, CatalogStrategy("margin"), learner=learner).report.ranking
            for learner in (FakeLearner(), WithoutBackbone())
        ]

        assert [bool(ranking.sought) for ranking in found] == [True, False]

    @pytest.mark.parametrize("strategy", ["margin", "bald", "mean_std", "power_bald", "random"])
    def test_the_order_is_that_of_a_round_that_had_this_strategy_from_the_start(self, strategy):
        again = Reranking("entropy")
        expected, _ = Reranking(strategy).trained(strategy)

        result = again.run(strategy)

        assert result.report.ranking == expected.ranking
        assert result.report.ranking.image_ids != again.base.ranking.image_ids
        assert result.published.image_ids == result.report.ranking.image_ids
        assert len(again.learner.fits) == len(again.learner.needs) == 1  # of the round before

    def test_is_a_round_of_its_own_that_learned_what_its_base_did(self):
        again = Reranking()

        report = again.run(annotations=[*LABELLED, make_annotation(100, "severe")], pool=POOL[1:]).report

        request = report.request
        assert (request.round_id, request.reason, request.strategy) == ("r000002", "rerank", "margin")
        assert (report.base, report.fit) == ("r000001", None)
        assert report.labels_per_class == again.base.labels_per_class == dict.fromkeys(CLASSES, 4)
        assert again.project.journal == ["save", "publish"]
        [(saved, predictions, learner)] = again.project.saved
        assert (saved, learner) == (report, None)
        assert predictions is not None
        assert predictions.image_ids == tuple(image.id for image in POOL[1:])

    def test_labelled_images_are_left_out(self):
        again = Reranking()
        first = again.run().report.ranking.image_ids

        assert again.run(pool=[one for one in POOL if one.id != first[0]]).report.ranking.image_ids == first[1:]

    def test_re_reads_keep_their_places_until_a_ground_truth_decides(self):
        """The first image is labelled since, the owner has decided about image 2, and image 4 has had its read."""
        again = Reranking()
        rereads = [Reread(image_id=str(n), after=n, value=0.5, answers=1) for n in (1, 2, 3, 4)]
        base = again.base.model_copy(
            update={
                "ranking": again.base.ranking.model_copy(update={"rereads": tuple(rereads)}),
                "request": again.base.request.model_copy(update={"options": {"reread_share": 0.5}}),
            }
        )
        again.base = base
        star = make_annotation(2, "severe", "owner").model_copy(update={"ground_truth": True})
        again_read = [make_annotation(4, "severe", reader) for reader in ("ann", "ben")]
        pool = [one for one in POOL if one.id != base.ranking.image_ids[0]]

        ranking = again.run(annotations=[*LABELLED, star, *again_read], pool=pool).report.ranking

        assert [(one.image_id, one.after) for one in ranking.rereads] == [("1", 0), ("3", 2)]

    def test_new_images_come_last_in_seeded_order_with_the_lowest_score(self):
        new = images(900, 901, 902)

        ranking = Reranking().run(pool=[*new, *POOL]).report.ranking

        assert ranking.image_ids[-3:] == tuple(new[i].id for i in seeded_order([one.id for one in new], 0))
        assert ranking.scores[-3:] == (min(ranking.scores[:-3]),) * 3

    def test_new_images_may_be_drawn_for_the_holdout(self):
        """Otherwise it would be a sample of the older images alone."""
        again, new = Reranking(), images(*range(900, 912))
        plain = again.run(pool=[*POOL, *new]).report.ranking

        ranking = again.run(pool=[*POOL, *new], control_share=0.5).report.ranking

        assert ranking == mix_in_holdout(plain, 0.5, 0, "r000002")
        assert {image.id for image in new} & set(ranking.control)

    def test_new_images_alone(self):
        result = Reranking().run(pool=images(900, 901))

        assert sorted(result.published.image_ids) == ["900", "901"]
        assert result.report.ranking.strategy == "margin"

    def test_what_the_round_could_not_read_is_named_and_not_new(self):
        report = Reranking(unreadable=["105"]).run().report

        assert "105" not in report.ranking.image_ids
        assert Exclusion(image_id="105", reason="unreadable while scoring") in report.exclusions

    def test_no_image_is_left(self):
        with pytest.raises(EmptyPool) as refused:
            Reranking().run(pool=())
        assert refused.type is EmptyPool

    def test_no_image_that_is_left_can_be_read(self):
        with pytest.raises(UnusablePool, match="none of the 1 unlabelled images could be read; the first: unreadable"):
            Reranking(unreadable=["105"]).run(pool=images(105))

    def test_they_give_nothing_but_passes(self):
        with pytest.raises(ValueError, match="stores its passes, and no features"):
            Reranking().run("core_set")


class TestByTheNetwork:
    def test_labelled_images_count_as_covered(self):
        """At 0, 1 and 11 lies a label; of 2, 6 and 13 the 6 is farthest from all of them."""

        class Located(FakeLearner):
            """An image's feature is its number."""

            def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
                predictions = super().outputs(pool, needs)
                rows = np.array([[float(name)] for name in predictions.image_ids], dtype=np.float32)
                return replace(predictions, features=rows if "features" in needs else None)

        learner = Located()
        learner._classes = CLASSES

        report = (
            Reranking()
            .run(
                "core_set",
                annotations=[make_annotation(number, "severe") for number in (0, 1, 11)],
                pool=images(2, 6, 13),
                scorer=learner,
            )
            .report
        )

        assert report.ranking.image_ids == ("6", "13", "2")
        assert learner.fits == []


class TestOrderOfEvents:
    def test_a_newer_run_leaves_nothing_saved(self):
        project = FakeProject(FakeLabels(LABELLED, POOL), stale_at_call=1)

        with pytest.raises(StaleRound):
            Reranking().run(project=project)

        assert project.journal == []

    def test_saved_before_it_is_published(self):
        class Away(FakeProject):
            def publish(self, report):
                raise LabelStudioError("it is away")

        project = Away(FakeLabels(LABELLED, POOL))

        with pytest.raises(LabelStudioError):
            Reranking().run(project=project)

        assert project.journal == ["save"]


class TestRerankedDigest:
    """A later round compares it with its own."""

    def test_is_that_of_a_training_with_the_new_strategy_while_nothing_else_has_changed(self):
        again = Reranking()

        assert again.run().report.inputs == inputs_digest(again.request, one_reader(LABELLED, CLASSES).labels, POOL)

    @pytest.mark.parametrize("changed", ["labels", "pool"])
    def test_is_not_once_labels_or_pool_have_changed(self, changed):
        """A round that trains on the change is due."""
        again = Reranking()
        annotations = [*LABELLED, make_annotation(100, "severe")] if changed == "labels" else LABELLED

        inputs = again.run(annotations=annotations, pool=POOL[1:]).report.inputs

        assert inputs
        assert inputs != inputs_digest(again.request, one_reader(annotations, CLASSES).labels, POOL[1:])
