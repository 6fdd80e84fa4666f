"""Another strategy at once, on fakes: what an earlier round's network said is ranked anew."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ml_backend.acquisition import CatalogStrategy, seeded_order
from ml_backend.errors import EmptyPool, LabelStudioError, StaleRound, UnusablePool
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.holdout import mixed
from ml_backend.rounds.interfaces import RoundParts
from ml_backend.rounds.reuse import RerankParts, StoredPasses, rerank
from ml_backend.rounds.run import inputs_digest, run_round
from ml_backend.schemas import Annotation, Exclusion, ImageRef, PublishedRanking, RoundReport
from tests.fakes import (
    CLASSES,
    FakeLabels,
    FakeLearner,
    FakePublisher,
    MemoryStore,
    make_annotation,
    make_image,
    make_request,
    one_reader,
)

POOL = tuple(make_image(number) for number in range(100, 112))
LABELLED = [make_annotation(number, CLASSES[number % 3]) for number in range(12)]


def trained(strategy: str = "entropy", pool: Sequence[ImageRef] = POOL, unreadable: Sequence[str] = ()):
    """A round that trained, and the parts it left behind: its report, what it kept, its learner."""
    learner, store = FakeLearner(unreadable), MemoryStore()
    parts = RoundParts(
        labels=FakeLabels(LABELLED, pool),
        consensus=one_reader,
        learner=learner,
        strategy=CatalogStrategy(strategy),
        store=store,
        publisher=FakePublisher(),
    )
    report, _ = run_round(make_request(strategy=strategy), parts)
    [(_, outputs, _)] = store.saved
    assert outputs is not None
    return report, outputs, learner


class ProjectContext:
    """What a re-ranking of a trained round is made of, and a journal of what reached store and publisher."""

    def __init__(
        self,
        base: RoundReport,
        kept: PoolPredictions,
        *,
        strategy: str = "margin",
        annotations: Sequence[Annotation] = LABELLED,
        pool: Sequence[ImageRef] = POOL,
        control_share: float = 0.0,
    ) -> None:
        self.base = base
        self.journal: list[str] = []
        self.store = MemoryStore(self.journal)
        self.publisher = FakePublisher(self.journal)
        self.request = base.request.model_copy(
            update={"strategy": strategy, "round_id": "r000002", "reason": "rerank", "control_share": control_share}
        )
        self.parts = RerankParts(
            labels=FakeLabels(annotations, pool),
            consensus=one_reader,
            scorer=StoredPasses(base, kept),
            strategy=CatalogStrategy(strategy),
            store=self.store,
            publisher=self.publisher,
        )

    def run(self) -> tuple[RoundReport, PublishedRanking]:
        return rerank(self.request, self.base, self.parts)


class TestFromStoredPasses:
    @pytest.mark.parametrize("strategy", ["margin", "bald", "mean_std", "power_bald", "random"])
    def test_the_order_is_that_of_a_round_that_had_this_strategy_from_the_start(self, strategy):
        base, kept, learner = trained("entropy")
        expected, _, _ = trained(strategy)

        report, published = ProjectContext(base, kept, strategy=strategy).run()

        assert report.ranking == expected.ranking
        assert report.ranking.image_ids != base.ranking.image_ids
        assert published.image_ids == report.ranking.image_ids
        assert len(learner.fits) == len(learner.needs) == 1  # of the round before

    def test_is_a_round_of_its_own_that_knows_what_its_base_knew(self):
        base, kept, _ = trained()
        world = ProjectContext(base, kept, annotations=[*LABELLED, make_annotation(100, "severe")], pool=POOL[1:])

        report, _ = world.run()

        assert (report.request.round_id, report.request.reason, report.request.strategy) == (
            "r000002",
            "rerank",
            "margin",
        )
        assert (report.base, report.fit) == ("r000001", None)
        assert report.labels_per_class == base.labels_per_class == dict.fromkeys(CLASSES, 4)
        assert world.journal == ["save", "publish"]
        [(saved, outputs, learner)] = world.store.saved
        assert (saved, learner) == (report, None)
        assert outputs is not None
        assert outputs.image_ids == tuple(image.id for image in POOL[1:])

    def test_what_is_labelled_meanwhile_is_left_out(self):
        base, kept, _ = trained()
        first = ProjectContext(base, kept).run()[0].ranking.image_ids

        second = (
            ProjectContext(base, kept, pool=[image for image in POOL if image.id != first[0]])
            .run()[0]
            .ranking.image_ids
        )

        assert second == first[1:]

    def test_images_of_since_then_come_last_in_seeded_order_with_the_lowest_score(self):
        base, kept, _ = trained()
        new = [make_image(number) for number in (900, 901, 902)]

        ranking = ProjectContext(base, kept, pool=[*new, *POOL]).run()[0].ranking

        assert ranking.image_ids[-3:] == tuple(new[i].id for i in seeded_order([one.id for one in new], 0))
        assert ranking.scores[-3:] == (min(ranking.scores[:-3]),) * 3

    def test_images_of_since_then_may_come_by_chance_as_any_other(self):
        """Else the control images would be a sample of the older images alone."""
        base, kept, _ = trained()
        new = [make_image(number) for number in range(900, 912)]
        plain = ProjectContext(base, kept, pool=[*POOL, *new]).run()[0].ranking

        ranking = ProjectContext(base, kept, pool=[*POOL, *new], control_share=0.5).run()[0].ranking

        assert ranking == mixed(plain, 0.5, 0, "r000002")
        assert {image.id for image in new} & set(ranking.control)

    def test_where_only_newer_images_wait_they_come_in_seeded_order(self):
        base, kept, _ = trained()
        new = [make_image(number) for number in (900, 901)]

        report, published = ProjectContext(base, kept, pool=new).run()

        assert sorted(published.image_ids) == ["900", "901"]
        assert report.ranking.strategy == "margin"

    def test_what_the_round_could_not_read_is_named_and_not_taken_for_new(self):
        base, kept, _ = trained(unreadable=["105"])

        report, _ = ProjectContext(base, kept).run()

        assert "105" not in report.ranking.image_ids
        assert Exclusion(image_id="105", reason="unreadable while scoring") in report.exclusions

    def test_nothing_waits(self):
        base, kept, _ = trained()

        with pytest.raises(EmptyPool, match="no image of project 7 waits for a label"):
            ProjectContext(base, kept, pool=()).run()

    def test_nothing_that_waits_can_be_read(self):
        """An order without an image is none that was used up by readers."""
        base, kept, _ = trained(unreadable=["105"])

        with pytest.raises(UnusablePool, match="none of the 1 unlabelled images could be read; the first: unreadable"):
            ProjectContext(base, kept, pool=[make_image(105)]).run()

    def test_no_more_than_passes_can_be_had_from_them(self):
        base, kept, _ = trained()

        with pytest.raises(ValueError, match="keeps the passes, and no features"):
            ProjectContext(base, kept, strategy="core_set").run()


class Seeing(FakeLearner):
    """Sees where an image lies, too: at its number, in one dimension."""

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        outputs = super().outputs(pool, needs)
        if "features" not in needs:
            return outputs
        return replace(outputs, features=np.array([[float(name)] for name in outputs.image_ids], dtype=np.float32))


class TestByTheNetwork:
    def test_labelled_images_count_as_what_the_pool_is_far_from(self):
        """At 0, 1 and 11 lies a label; of 2, 6 and 13 the 6 is farthest from all of them."""
        base, _, _ = trained()
        learner = Seeing()
        learner._classes = CLASSES
        labels = [make_annotation(number, "severe") for number in (0, 1, 11)]
        world = ProjectContext(
            base,
            learner.outputs([], frozenset()),
            strategy="core_set",
            annotations=labels,
            pool=[make_image(n) for n in (2, 6, 13)],
        )

        report, _ = rerank(world.request, base, replace(world.parts, scorer=learner))

        assert report.ranking.image_ids == ("6", "13", "2")
        assert learner.fits == []


class TestGuards:
    def test_a_newer_run_leaves_nothing_saved(self):
        base, kept, _ = trained()
        world = ProjectContext(base, kept)

        def stale() -> None:
            raise StaleRound("a newer run holds the token")

        with pytest.raises(StaleRound):
            rerank(world.request, base, replace(world.parts, guard=stale))

        assert world.journal == []

    def test_saved_before_it_is_published(self):
        base, kept, _ = trained()
        world = ProjectContext(base, kept)

        class Away(FakePublisher):
            def publish(self, report, guard):
                raise LabelStudioError("it is away")

        with pytest.raises(LabelStudioError):
            rerank(world.request, base, replace(world.parts, publisher=Away()))

        assert world.journal == ["save"]


class TestDigest:
    """By it a later round knows whether it would come to the same."""

    def labels(self, annotations: Sequence[Annotation]):
        return one_reader(annotations, CLASSES).labels

    def test_is_that_of_a_training_with_the_new_strategy_while_nothing_else_has_changed(self):
        base, kept, _ = trained()
        world = ProjectContext(base, kept)

        report, _ = world.run()

        assert report.inputs == inputs_digest(world.request, self.labels(LABELLED), POOL)

    @pytest.mark.parametrize("changed", ["labels", "pool"])
    def test_is_no_trainings_digest_once_the_network_is_behind(self, changed):
        """A round that learns from what changed since is not spared."""
        base, kept, _ = trained()
        annotations = [*LABELLED, make_annotation(100, "severe")] if changed == "labels" else LABELLED
        world = ProjectContext(base, kept, annotations=annotations, pool=POOL[1:])

        report, _ = world.run()

        assert report.inputs != inputs_digest(world.request, self.labels(annotations), POOL[1:])
        assert report.inputs
