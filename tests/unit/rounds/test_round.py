"""The story of one round, told with stand-ins for the world."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ml_backend.consensus import Consensus
from ml_backend.errors import EmptyPool, StaleRound, StorageError, UnusablePool, WeightsError
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds.holdout import mixed
from ml_backend.rounds.interfaces import Learner, RoundParts
from ml_backend.rounds.run import run_round
from ml_backend.rounds.split import fixed_split, stable_split
from ml_backend.schemas import Annotation, Exclusion, ImageRef, RoundReport, Stage
from tests.fakes import (
    CLASSES,
    FakeLabels,
    FakeLearner,
    FakePublisher,
    FakeStrategy,
    MemoryStore,
    make_annotation,
    make_image,
    make_request,
    one_reader,
)

POOL = tuple(make_image(number) for number in range(100, 110))
FOUR_A_CLASS = [make_annotation(number, CLASSES[number % 3]) for number in range(12)]


class ProjectContext:
    """The parts of a round, and a journal of what reached the store and the publisher."""

    def __init__(self, labels: FakeLabels, learner: FakeLearner | None = None, stale_at_call: int = 0) -> None:
        self.journal: list[str] = []
        self.stages: list[tuple[Stage, int, int]] = []
        self.learner = learner or FakeLearner()
        self.store = MemoryStore(self.journal)
        self.publisher = FakePublisher(self.journal)
        self._stale_at_call = stale_at_call
        self._guarded = 0
        self.parts = RoundParts(
            labels=labels,
            consensus=one_reader,
            learner=self.learner,
            strategy=FakeStrategy(),
            store=self.store,
            publisher=self.publisher,
            progress=lambda stage, done, total: self.stages.append((stage, done, total)),
            guard=self.guard,
        )

    def guard(self) -> None:
        self._guarded += 1
        if self._guarded == self._stale_at_call:
            raise StaleRound("a newer run holds the token")


class WithoutWeights(FakeLearner):
    """Its backbone's weights cannot be had."""

    def prepare(self, images: Sequence[ImageRef]) -> None:
        raise WeightsError(f"weights for {len(images)} images are missing: name a file")


class TestColdStart:
    @pytest.mark.parametrize("per_class", [(0, 0, 0), (2, 2, 1), (9, 9, 0)])
    def test_no_network_until_every_class_has_its_labels(self, per_class):
        """Two labels a class are wanted: many of one class do not make up for too few of another."""
        values = [name for name, count in zip(CLASSES, per_class, strict=True) for _ in range(count)]
        world = ProjectContext(FakeLabels([make_annotation(n, value) for n, value in enumerate(values)], POOL))

        report, published = run_round(make_request(), world.parts)

        assert world.learner.fits == []
        assert report.fit is None
        assert report.labels_per_class == dict(zip(CLASSES, per_class, strict=True))
        assert report.ranking.strategy == "random"
        assert sorted(published.image_ids) == sorted(image.id for image in POOL)
        assert world.store.saved == [(report, None, None)]

    def test_the_order_stays_while_images_are_labelled(self):
        """The readers work through one random order, not through a new one every round."""
        first, _ = run_round(make_request(), ProjectContext(FakeLabels(pool=POOL)).parts)
        done = first.ranking.image_ids[:3]
        left = [image for image in reversed(POOL) if image.id not in done]

        second, _ = run_round(make_request(round_id="r000002"), ProjectContext(FakeLabels(pool=left)).parts)

        assert second.ranking.image_ids == first.ranking.image_ids[3:]

    @pytest.mark.parametrize("annotations", [[], FOUR_A_CLASS], ids=["cold", "trained"])
    def test_a_control_share_is_mixed_into_what_a_strategy_ranks(self, annotations):
        """Before the first network all images come by chance, and none is marked."""
        plain, _ = run_round(make_request(), ProjectContext(FakeLabels(annotations, POOL)).parts)
        report, published = run_round(
            make_request(control_share=0.3), ProjectContext(FakeLabels(annotations, POOL)).parts
        )

        expected = mixed(plain.ranking, 0.3, seed=0, round_id="r000001")
        assert report.ranking == expected
        assert published.image_ids == expected.image_ids
        assert len(report.ranking.control) == (3 if annotations else 0)

    def test_another_seed_is_another_order(self):
        orders = {
            run_round(make_request(seed=seed), ProjectContext(FakeLabels(pool=POOL)).parts)[0].ranking.image_ids
            for seed in range(3)
        }

        assert len(orders) == 3

    def test_caches_fill_meanwhile(self):
        """Labelled images and the pool, so that the first training need not wait for features."""
        world = ProjectContext(FakeLabels([make_annotation(1, "severe")], POOL[:2]))

        run_round(make_request(), world.parts)

        assert world.learner.prepared == ["1", "100", "101"]

    def test_readers_have_their_order_before_the_caches_fill(self):
        """Hours of images to fetch, or weights that cannot be had, are no reason to let anybody wait."""
        world = ProjectContext(FakeLabels(pool=POOL), learner=WithoutWeights())

        with pytest.raises(WeightsError, match="name a file"):
            run_round(make_request(), world.parts)

        assert world.journal == ["save", "publish"]
        assert [stage for stage, _, _ in world.stages][-1] == "features"


class TestTypicalFirst:
    """``cold_start: typiclust``."""

    REQUEST = make_request(cold_start="typiclust")

    def test_readers_do_not_wait_for_features(self):
        """As long as nothing is served, chance is."""
        world = ProjectContext(FakeLabels(pool=POOL))
        parts = replace(world.parts, serving=lambda: False)

        report, _ = run_round(self.REQUEST, parts)

        assert report.ranking == run_round(make_request(), ProjectContext(FakeLabels(pool=POOL)).parts)[0].ranking
        assert world.learner.embedded == []
        assert len(world.learner.prepared) == len(POOL)

    def test_once_they_have_an_order_a_better_one_comes(self):
        world = ProjectContext(FakeLabels([make_annotation(1, "severe")], POOL))

        report, published = run_round(self.REQUEST, world.parts)

        assert report.ranking.strategy == "typiclust"
        assert report.fit is None
        assert published.image_ids == report.ranking.image_ids
        assert sorted(published.image_ids) == sorted(image.id for image in POOL)
        assert world.learner.embedded == [[image.id for image in POOL], ["1"]]
        assert world.store.saved == [(report, None, None)]

    def test_unreadable_images_are_named_and_not_served(self):
        report, published = run_round(self.REQUEST, ProjectContext(FakeLabels(pool=POOL), FakeLearner(["103"])).parts)

        assert "103" not in published.image_ids
        assert [exclusion.image_id for exclusion in report.exclusions] == ["103"]

    def test_no_say_once_a_network_is_trained(self):
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL))

        report, _ = run_round(self.REQUEST, world.parts)

        assert report.ranking.strategy == "fake"
        assert world.learner.embedded == []


class TestTrainedRound:
    def test_learns_from_every_label_and_ranks_the_pool(self):
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL))

        report, published = run_round(make_request(), world.parts)

        [(train, validation)] = world.learner.fits
        assert sorted(train + validation, key=int) == [str(number) for number in range(12)]
        assert train
        assert validation
        assert report.fit is not None
        assert report.ranking.strategy == "fake"
        assert list(report.ranking.scores) == sorted(report.ranking.scores, reverse=True)
        assert sorted(report.ranking.image_ids) == [image.id for image in POOL]
        assert report.ranking.batch_size == 3
        assert published.image_ids == report.ranking.image_ids
        assert world.learner.needs == [frozenset({"probs"})]

    def test_splits_as_a_live_round_does_unless_told_otherwise(self):
        """By default the stable split of the request's own share and seed; a study holds validation fixed."""
        labels = one_reader(FOUR_A_CLASS, CLASSES).labels
        request = make_request(seed=5)
        live, fixed = (ProjectContext(FakeLabels(FOUR_A_CLASS, POOL)) for _ in range(2))

        run_round(request, live.parts)
        run_round(request, replace(fixed.parts, split=fixed_split(["2", "7"])))

        wanted = stable_split(labels, request.validation_share, request.seed)
        assert live.learner.fits == [tuple([label.image.id for label in side] for side in wanted)]
        assert fixed.learner.fits[0][1] == ["2", "7"]

    def test_exactly_the_minimum_is_enough(self):
        two_a_class = [make_annotation(number, CLASSES[number % 3]) for number in range(6)]

        report, _ = run_round(make_request(), ProjectContext(FakeLabels(two_a_class, POOL)).parts)

        assert report.fit is not None

    def test_the_network_and_its_outputs_are_saved_with_the_report(self):
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL))

        report, _ = run_round(make_request(), world.parts)

        [(saved, outputs, learner)] = world.store.saved
        assert saved == report
        assert outputs is not None
        assert set(outputs.image_ids) == set(report.ranking.image_ids)
        assert learner is world.learner

    def test_stages_are_told_and_timed(self):
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL))

        report, _ = run_round(make_request(), world.parts)

        names = ["labels", "train", "score", "rank", "save", "publish"]
        assert world.stages == [(name, done, 1) for name in names for done in (0, 1)]
        assert set(report.seconds) >= {"labels", "train", "score", "rank"}


class TestExclusions:
    def test_all_are_gathered_with_their_reasons(self):
        """From the readers, from the tasks, from scoring and from training: nothing is dropped in silence."""
        world = ProjectContext(
            FakeLabels(
                [*FOUR_A_CLASS, make_annotation(50, None)],
                POOL,
                [Exclusion(image_id="60", reason="the task has no image")],
            ),
            FakeLearner(unreadable=["104", "2"]),
        )

        report, published = run_round(make_request(), world.parts)

        assert {(e.image_id, e.reason) for e in report.exclusions} == {
            ("50", "no reader gave a class"),
            ("60", "the task has no image"),
            ("104", "unreadable while scoring"),
            ("2", "unreadable while training"),
        }
        assert "104" not in published.image_ids

    def test_disputed_labels_are_named(self):
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL))

        def disputing(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
            first, *others = one_reader(annotations, classes).labels
            return Consensus((first.model_copy(update={"disputed": True}), *others))

        report, _ = run_round(make_request(), replace(world.parts, consensus=disputing))

        assert report.disputed == ("0",)


class TestEmptyPool:
    def test_no_image_left(self):
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, ()))

        with pytest.raises(EmptyPool, match="no image of project 7 waits for a label: all are labelled") as refused:
            run_round(make_request(), world.parts)

        assert refused.type is EmptyPool
        assert "import" not in str(refused.value)
        assert world.journal == []
        assert world.learner.fits == []

    def test_no_image_yet(self):
        with pytest.raises(EmptyPool, match="project 7 has no images yet: import images to begin"):
            run_round(make_request(), ProjectContext(FakeLabels((), ())).parts)

    def test_images_under_another_key(self):
        """They wait, and so the error says how many and why, and not that images are to be imported."""
        why = "task 339 has no image under 'film'; its data holds ['image']"
        unusable = [Exclusion(image_id=str(number), reason=why, kind="no image") for number in range(24)]
        labelled = Exclusion(image_id="1", reason="task 1 has no image", kind="label without image")
        world = ProjectContext(FakeLabels((), (), (labelled, *unusable)))

        with pytest.raises(UnusablePool, match="no image that can be used: 24 were left out, the first: ") as refused:
            run_round(make_request(), world.parts)

        assert str(refused.value).endswith(why)
        assert world.journal == []

    def test_labels_that_are_left_out_are_no_images_that_wait(self):
        labelled = Exclusion(image_id="1", reason="task 1 has no image", kind="label without image")

        with pytest.raises(EmptyPool) as refused:
            run_round(make_request(), ProjectContext(FakeLabels((), (), (labelled,))).parts)

        assert refused.type is EmptyPool

    def test_no_readable_image_left(self):
        """The message says what the first image's trouble was."""
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL[:2]), FakeLearner(unreadable=["100", "101"]))

        with pytest.raises(UnusablePool, match=r"none of the 2 unlabelled images .*unreadable while scoring"):
            run_round(make_request(), world.parts)

        assert world.journal == []


class TestOrderOfEvents:
    def test_saved_before_published(self):
        """After a crash between the two, the publish can be repeated; the other way round the round would be lost."""
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL))

        run_round(make_request(), world.parts)

        assert world.journal == ["save", "publish"]

    def test_what_cannot_be_saved_is_not_published(self):
        class FullDisk(MemoryStore):
            def save(self, report: RoundReport, outputs: PoolPredictions | None, learner: Learner | None) -> None:
                raise StorageError("no space left")

        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL))

        with pytest.raises(StorageError):
            run_round(make_request(), replace(world.parts, store=FullDisk()))

        assert world.publisher.published == []

    def test_a_stale_run_leaves_nothing(self):
        """A newer run has begun while this one trained: neither a saved round nor a published one."""
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL), stale_at_call=1)

        with pytest.raises(StaleRound):
            run_round(make_request(), world.parts)

        assert world.journal == []

    def test_a_run_that_becomes_stale_while_saving_publishes_nothing(self):
        """The publisher is handed the guard and asks it again."""
        world = ProjectContext(FakeLabels(FOUR_A_CLASS, POOL), stale_at_call=2)

        with pytest.raises(StaleRound):
            run_round(make_request(), world.parts)

        assert world.journal == ["save"]


class CopiesFound(FakeLabels):
    """Every image stands in two tasks, which only reading the files shows."""

    found = False

    def annotations(self) -> Sequence[Annotation]:
        return FOUR_A_CLASS if self.found else [*FOUR_A_CLASS, *map(make_annotation, range(20, 32), CLASSES * 4)]

    def find(self, images: Sequence[ImageRef]) -> bool:
        self.found = len(images) == 24
        return self.found


def test_copies_of_labelled_images_are_known_before_the_labels_are_split():
    labels = CopiesFound(pool=POOL)
    world = ProjectContext(labels)

    report, _ = run_round(make_request(), replace(world.parts, find_copies=labels.find))

    assert sum(report.labels_per_class.values()) == 12
    assert report.fit is not None
    assert report.fit.train_images + report.fit.validation_images == 12


def test_before_the_first_training_no_image_is_read_for_its_copies():
    """Readers wait for their order."""
    labels = CopiesFound(pool=POOL)

    run_round(make_request(min_labels_per_class=9), replace(ProjectContext(labels).parts, find_copies=labels.find))

    assert not labels.found
