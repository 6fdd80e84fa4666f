"""One round on fakes: what it learns from, saves and publishes, and where it ends early."""

from collections.abc import Sequence

import pytest

from ml_backend.consensus import Consensus
from ml_backend.consensus.rules import median
from ml_backend.errors import (
    EmptyPool,
    LabelStudioError,
    StaleRound,
    StorageError,
    UnusablePool,
    WeightsError,
    WorkerStopping,
)
from ml_backend.rounds import cold_start
from ml_backend.rounds.run import RoundResult, inputs_digest, run_round
from ml_backend.rounds.split import fixed_split, mix_in_holdout, stable_split
from ml_backend.schemas import Annotation, Exclusion, ImageRef, Label, PublishedRanking, RoundReport, RoundTrigger
from tests.fakes import (
    CLASSES,
    FakeLabels,
    FakeLearner,
    FakeProject,
    FakeStrategy,
    make_annotation,
    make_image,
    make_request,
    one_reader,
)

POOL = tuple(make_image(number) for number in range(100, 110))
FOUR_A_CLASS = [make_annotation(number, CLASSES[number % 3]) for number in range(12)]
LABELS = one_reader(FOUR_A_CLASS, CLASSES).labels
UNTRAINED = {"weights": "none"}


def trainable() -> FakeProject:
    """Four labels a class and a pool of ten."""
    return FakeProject(FakeLabels(FOUR_A_CLASS, POOL))


def run(project: FakeProject, learner: FakeLearner | None = None, **changes: object) -> RoundResult:
    return run_round(make_request(**changes), project, learner or FakeLearner(), FakeStrategy())


class Stopped(FakeLearner):
    def prepare(self, images: Sequence[ImageRef]) -> None:
        raise WorkerStopping(f"SIGTERM at stage 'features', 0 of {len(images)}")


class WithoutWeights(FakeLearner):
    def prepare(self, images: Sequence[ImageRef]) -> None:
        raise WeightsError(f"weights for {len(images)} images are missing: name a file")


class TestColdStart:
    @pytest.mark.parametrize("per_class", [(0, 0, 0), (2, 1, 1), (9, 0, 1)])
    def test_no_network_until_two_classes_have_their_labels(self, per_class):
        """Two labels a class are needed: many of one class do not make up for too few of another."""
        values = [name for name, count in zip(CLASSES, per_class, strict=True) for _ in range(count)]
        project = FakeProject(FakeLabels([make_annotation(n, value) for n, value in enumerate(values)], POOL))
        learner = FakeLearner()

        result = run(project, learner)

        report = result.report
        assert learner.fits == []
        assert (report.fit, result.training) == (None, None)
        assert report.labels_per_class == dict(zip(CLASSES, per_class, strict=True))
        assert report.ranking.strategy == "random"
        assert sorted(result.published.image_ids) == sorted(image.id for image in POOL)
        assert project.saved == [(report, None, None)]

    def test_the_order_stays_while_images_are_labelled(self):
        first = run(FakeProject(FakeLabels(pool=POOL))).report.ranking.image_ids
        left = [image for image in reversed(POOL) if image.id not in first[:3]]

        second = run(FakeProject(FakeLabels(pool=left)), round_id="r000002").report.ranking.image_ids

        assert second == first[3:]

    @pytest.mark.parametrize("annotations", [[], FOUR_A_CLASS], ids=["cold", "trained"])
    def test_a_holdout_is_mixed_into_what_a_strategy_ranks(self, annotations):
        """Before the first network the whole order is random, and no image is marked."""
        labels = FakeLabels(annotations, POOL)
        plain = run(FakeProject(labels)).report

        result = run(FakeProject(labels), control_share=0.3)

        expected = mix_in_holdout(plain.ranking, 0.3, seed=0, round_id="r000001")
        assert result.report.ranking == expected
        assert result.published.image_ids == expected.image_ids
        assert len(expected.control) == (3 if annotations else 0)

    def test_another_seed_is_another_order(self):
        orders = {run(FakeProject(FakeLabels(pool=POOL)), seed=n).report.ranking.image_ids for n in range(3)}

        assert len(orders) == 3

    def test_caches_fill_meanwhile(self):
        """Of labelled images and the pool, so that the first training need not wait for features."""
        learner = FakeLearner()

        run(FakeProject(FakeLabels([make_annotation(1, "severe")], POOL[:2])), learner)

        assert learner.prepared == ["1", "100", "101"]

    def test_readers_have_their_order_before_the_caches_fill(self):
        """Images may take hours to download, or weights be missing: readers do not wait for that."""
        project = FakeProject(FakeLabels(pool=POOL))

        with pytest.raises(WeightsError):
            run(project, WithoutWeights())

        assert project.journal == ["save", "publish"]
        assert project.stages[-1][0] == "features"

    def test_a_worker_that_is_stopped_while_they_fill_ends_the_round(self):
        """Its order is served: given back, the round would be run and published again."""
        result = run(FakeProject(FakeLabels(pool=POOL)), Stopped())

        assert result.published.image_ids == result.report.ranking.image_ids


class TestTypicalStart:
    """``cold_start: typiclust``."""

    def test_readers_do_not_wait_for_features(self):
        """Without a published order, the random one comes first."""
        project, learner = FakeProject(FakeLabels(pool=POOL), cold=True), FakeLearner()

        report = run(project, learner, cold_start="typiclust").report

        assert report.ranking == run(FakeProject(FakeLabels(pool=POOL))).report.ranking
        assert learner.embedded == []
        assert len(learner.prepared) == len(POOL)

    def test_once_they_have_an_order_a_better_one_follows(self):
        project, learner = FakeProject(FakeLabels([make_annotation(1, "severe")], POOL)), FakeLearner()

        result = run(project, learner, cold_start="typiclust")

        assert (result.report.ranking.strategy, result.report.fit) == ("typiclust", None)
        assert result.published.image_ids == result.report.ranking.image_ids
        assert sorted(result.published.image_ids) == sorted(image.id for image in POOL)
        assert learner.embedded == [[image.id for image in POOL], ["1"]]
        assert project.saved == [(result.report, None, None)]

    def test_of_a_large_pool_the_first_images_of_the_random_order_compete(self, monkeypatch):
        """Their features alone are waited for; the others follow in the random order, and their features fill last."""
        monkeypatch.setattr(cold_start, "CANDIDATES", 4)
        first, learner = FakeProject(FakeLabels(pool=POOL), cold=True), FakeLearner(["103"])
        order = run(first, learner, cold_start="typiclust").report.ranking.image_ids
        assert sorted(learner.prepared) == sorted(order[:4])

        second, learner = FakeProject(FakeLabels(pool=POOL)), FakeLearner([order[1]])
        ranking = run(second, learner, cold_start="typiclust", round_id="r000002").report.ranking

        assert [sorted(images) for images in learner.embedded] == [sorted(order[:4])]
        assert sorted(ranking.image_ids[:3]) == sorted([order[0], *order[2:4]])
        assert ranking.image_ids[3:] == order[4:]
        assert [one.image_id for one in ranking.exclusions] == [order[1]]
        assert 0 < min(ranking.scores) <= max(ranking.scores[3:]) < min(ranking.scores[:3])
        assert sorted(learner.prepared) == sorted(order)

    def test_unreadable_images_are_named_and_not_served(self):
        result = run(FakeProject(FakeLabels(pool=POOL)), FakeLearner(["103"]), cold_start="typiclust")

        assert "103" not in result.published.image_ids
        assert [exclusion.image_id for exclusion in result.report.exclusions] == ["103"]

    def test_untrained_features_leave_the_order_random_and_the_log_says_so(self, capsys):
        learner = FakeLearner()

        report = run(FakeProject(FakeLabels(pool=POOL)), learner, cold_start="herding", options=UNTRAINED).report

        assert report.ranking == run(FakeProject(FakeLabels(pool=POOL))).report.ranking
        assert learner.embedded == []
        assert "an untrained backbone hardly distinguishes images" in capsys.readouterr().out

    @pytest.mark.parametrize(("cold_start", "sought"), [("random", 0), ("typiclust", 5), ("herding", 5)])
    def test_a_class_is_sought_from_its_first_label_on(self, cold_start, sought):
        """Ids that end in 1 look like the severe image's: of five batches of two, every second place."""
        labelled = [make_annotation(11, "severe"), make_annotation(2, "normal"), make_annotation(3, "normal")]
        pool = [make_image(number) for number in range(100, 160)]

        ranking = run(FakeProject(FakeLabels(labelled, pool)), cold_start=cold_start, batch_size=2).report.ranking

        assert list(ranking.sought.values()) == ["severe"] * sought
        assert {image_id[-1] for image_id in ranking.sought} == ({"1"} if sought else set())
        assert [one for one in ranking.image_ids[:10] if one in ranking.sought] == list(ranking.sought)
        assert sorted(ranking.image_ids) == sorted(image.id for image in pool)

    def test_no_effect_once_a_network_is_trained(self):
        learner = FakeLearner()

        assert run(trainable(), learner, cold_start="typiclust").report.ranking.strategy == "fake"
        assert learner.embedded == []


class TestFewLabels:
    """A network exists, and a class has fewer labels than its minimum, or none."""

    def labelled(self, severe: int) -> FakeProject:
        values = ["normal"] * 9 + ["moderate"] * 6 + ["severe"] * severe
        annotations = [make_annotation(10 * number + 4, value) for number, value in enumerate(values, 1)]
        return FakeProject(FakeLabels(annotations, [make_image(number) for number in range(200, 260)]))

    def test_a_class_without_a_label_is_not_waited_for(self):
        project = self.labelled(0)

        report = run(project, min_labels_per_class=5, batch_size=4).report

        assert report.trained
        assert report.labels_per_class == {"normal": 9, "moderate": 6, "severe": 0}
        assert report.ranking.sought == {}
        assert project.published == [report]

    @pytest.mark.parametrize(
        ("severe", "changes", "sought"),
        [
            (1, {}, 10),
            (4, {}, 10),
            (5, {}, 0),  # the minimum
            (1, {"strategy": "random"}, 0),
            (1, {"options": UNTRAINED}, 0),
        ],
    )
    def test_its_images_are_sought(self, severe, changes, sought):
        learner = FakeLearner()
        project = self.labelled(severe)

        report = run(project, learner, min_labels_per_class=5, batch_size=4, **changes).report

        assert (report.trained, len(report.ranking.sought)) == (True, sought)
        assert len(learner.embedded) == (2 if sought else 0)
        places = [place for place, one in enumerate(report.ranking.image_ids, 1) if one in report.ranking.sought]
        assert places == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20][:sought]

    def test_without_two_patients_of_any_class_there_is_nothing_to_validate_on(self):
        annotations = [
            one.model_copy(update={"image": one.image.model_copy(update={"patient_id": one.value})})
            for one in self.labelled(0).labels.annotations()
        ]
        project = FakeProject(FakeLabels(annotations, [make_image(number) for number in range(200, 260)]))

        report = run(project, min_labels_per_class=5, batch_size=4).report

        assert (report.trained, report.ranking.strategy) == (False, "random")
        assert project.published == [report]

    def test_the_holdout_comes_after(self):
        plain = run(self.labelled(1), min_labels_per_class=5, batch_size=4).report.ranking
        mixed = run(self.labelled(1), min_labels_per_class=5, batch_size=4, control_share=0.25).report.ranking

        drawn = set(mixed.control)
        assert len(drawn) == 15
        assert [one for one in mixed.image_ids if one not in drawn] == [
            one for one in plain.image_ids if one not in drawn
        ]


class TestTrainedRound:
    def test_learns_from_every_label_and_ranks_the_pool(self):
        learner = FakeLearner()

        result = run(trainable(), learner)

        [(train, validation)] = learner.fits
        report = result.report
        assert sorted(train + validation, key=int) == [str(number) for number in range(12)]
        assert train
        assert validation
        assert report.fit is not None
        assert (report.ranking.strategy, report.ranking.batch_size) == ("fake", 3)
        assert list(report.ranking.scores) == sorted(report.ranking.scores, reverse=True)
        assert sorted(report.ranking.image_ids) == [image.id for image in POOL]
        assert result.published.image_ids == report.ranking.image_ids
        assert learner.needs == [frozenset({"probs"})]

    def test_returns_what_it_was_trained_on_and_predicted(self):
        learner = FakeLearner(unreadable=["100"])

        training = run(trainable(), learner).training

        assert training is not None
        assert ([x.image.id for x in training.train], [x.image.id for x in training.validation]) == learner.fits[0]
        assert list(training.pool) == list(POOL)
        assert training.predictions.image_ids == tuple(image.id for image in POOL[1:])
        assert training.predictions.features is None

    def test_split_is_the_projects(self):
        """By default the stable split of the request's own share and seed; a study fixes the validation images."""

        class Fixed(FakeProject):
            def split(self, labels, validation_share, seed):
                return fixed_split(["2", "7"])(labels, validation_share, seed)

        live, fixed, request = FakeLearner(), FakeLearner(), make_request(seed=5)
        run(trainable(), live, seed=5)
        run(Fixed(FakeLabels(FOUR_A_CLASS, POOL)), fixed)

        expected = stable_split(LABELS, request.validation_share, request.seed)
        assert live.fits == [tuple([label.image.id for label in side] for side in expected)]
        assert fixed.fits[0][1] == ["2", "7"]

    def test_exactly_the_minimum_is_enough(self):
        assert run(FakeProject(FakeLabels(FOUR_A_CLASS[:6], POOL))).report.fit is not None

    def test_the_network_and_its_predictions_are_saved_with_the_report(self):
        project, learner = trainable(), FakeLearner()

        report = run(project, learner).report

        [(saved, predictions, network)] = project.saved
        assert (saved, network) == (report, learner)
        assert predictions is not None
        assert set(predictions.image_ids) == set(report.ranking.image_ids)

    def test_stages_are_reported_and_timed(self):
        project = trainable()

        report = run(project).report

        names = ["labels", "train", "score", "rank", "save", "publish"]
        assert project.stages == [(name, done, 1) for name in names for done in (0, 1)]
        assert set(report.seconds) >= {"labels", "train", "score", "rank"}


class TestExclusions:
    def test_all_are_gathered_with_their_reasons(self):
        """From the readers, from the tasks, from scoring and from training."""
        unusable = [Exclusion(image_id="60", reason="the task has no image")]
        project = FakeProject(FakeLabels([*FOUR_A_CLASS, make_annotation(50, None)], POOL, unusable))

        result = run(project, FakeLearner(unreadable=["104", "2"]))

        assert {(e.image_id, e.reason) for e in result.report.exclusions} == {
            ("50", "no reader gave a class"),
            ("60", "the task has no image"),
            ("104", "unreadable while scoring"),
            ("2", "unreadable while training"),
        }
        assert "104" not in result.published.image_ids

    @pytest.mark.parametrize(("unreadable", "again"), [([], {"1", "2"}), (["2"], {"1"})])
    def test_an_image_that_cannot_be_read_is_not_read_again(self, unreadable, again):
        """Two readers are as far apart as can be about 1 and 2."""
        far = [make_annotation(n, value, who) for n in (1, 2) for value, who in zip(CLASSES[::2], "ab", strict=True)]
        labels = FakeLabels([*(one for one in FOUR_A_CLASS if one.image.id not in {"1", "2"}), *far], POOL)
        project, options = FakeProject(labels, consensus=median), {"reread_share": 0.5}
        found = run(project, FakeLearner(unreadable), options=options, batch_size=6).report.ranking.rereads

        assert {one.image_id for one in found} == again

    def test_disputed_labels_are_named(self):
        def disputing(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
            first, *others = one_reader(annotations, classes).labels
            return Consensus((first.model_copy(update={"disputed": True}), *others))

        assert run(FakeProject(FakeLabels(FOUR_A_CLASS, POOL), consensus=disputing)).report.disputed == ("0",)


LABELLED = Exclusion(image_id="1", reason="task 1 has no image", kind="label without image")
WHY = "task 339 has no image under 'film'; its data holds ['image']"
WITHOUT_IMAGE = tuple(Exclusion(image_id=str(number), reason=WHY, kind="no image") for number in range(24))


class TestEmptyPool:
    @pytest.mark.parametrize(
        ("labels", "error", "words"),
        [
            (FakeLabels(FOUR_A_CLASS, ()), EmptyPool, "all are labelled"),
            (FakeLabels((), ()), EmptyPool, "project 7 has no images yet: import images"),
            (FakeLabels((), (), (LABELLED,)), EmptyPool, "all are labelled"),
            (FakeLabels((), (), (LABELLED, *WITHOUT_IMAGE)), UnusablePool, f"24 were left out, the first: {WHY}"),
        ],
        ids=["all labelled", "no image yet", "labels without image", "images under another key"],
    )
    def test_says_why(self, labels, error, words):
        project, learner = FakeProject(labels), FakeLearner()

        with pytest.raises(EmptyPool) as refused:
            run(project, learner)

        assert refused.type is error
        assert words in str(refused.value)
        assert (project.journal, learner.fits) == ([], [])

    def test_no_readable_image_left(self):
        project = FakeProject(FakeLabels(FOUR_A_CLASS, POOL[:2]))

        with pytest.raises(UnusablePool, match=r"none of the 2 unlabelled images .*unreadable while scoring"):
            run(project, FakeLearner(unreadable=["100", "101"]))

        assert project.journal == []


class TestOrderOfEvents:
    def test_saved_before_published(self):
        """After a crash in between, publishing can be repeated; the other way round the round would be lost."""
        project = trainable()

        run(project)

        assert project.journal == ["save", "publish"]

    def test_what_cannot_be_saved_is_not_published(self):
        class FullDisk(FakeProject):
            def save(self, *_args, **_more):
                raise StorageError("no space left")

        project = FullDisk(FakeLabels(FOUR_A_CLASS, POOL))

        with pytest.raises(StorageError):
            run(project)

        assert project.published == []

    @pytest.mark.parametrize(("call", "journal"), [(1, []), (2, ["save"])])
    def test_a_run_that_becomes_stale_goes_no_further(self, call, journal):
        """A newer run has begun while this one trained, or while it saved."""
        project = FakeProject(FakeLabels(FOUR_A_CLASS, POOL), stale_at_call=call)

        with pytest.raises(StaleRound):
            run(project)

        assert project.journal == journal


class WithCopies(FakeProject):
    """Every image is in two tasks, which only reading the files shows."""

    def __init__(self) -> None:
        super().__init__(FakeLabels([*FOUR_A_CLASS, *map(make_annotation, range(20, 32), CLASSES * 4)], POOL))
        self.found = False

    def find_copies(self, images: Sequence[ImageRef]) -> bool:
        self.found = len(images) == 24
        self.labels = FakeLabels(FOUR_A_CLASS, POOL)
        return self.found


class TestCopies:
    def test_of_labelled_images_are_known_before_the_labels_are_split(self):
        report = run(WithCopies()).report

        assert sum(report.labels_per_class.values()) == 12
        assert report.fit is not None
        assert report.fit.train_images + report.fit.validation_images == 12

    def test_before_the_first_training_no_image_is_read_for_its_copies(self):
        """Readers wait for their order."""
        project = WithCopies()

        run(project, min_labels_per_class=9)

        assert not project.found


class TestResume:
    """Rounds that have the inputs of the last one."""

    class Resuming(FakeProject):
        """Its last round is unpublished while Label Studio is away, and served afterwards."""

        away = False

        def publish(self, report: RoundReport) -> PublishedRanking:
            if self.away:
                raise LabelStudioError("it is away")
            return super().publish(report)

        def unpublished_round(self, digest: str) -> RoundReport | None:
            last = self.saved[-1][0] if self.saved and not self.published else None
            return last if last and last.inputs == digest else None

        def served_round(self, digest: str) -> tuple[RoundReport, PublishedRanking] | None:
            served = [report for report in self.published if report.inputs == digest]
            return (served[-1], FakeProject.publish(FakeProject(self.labels), served[-1])) if served else None

    def test_what_could_not_be_published_is_on_the_next_attempt(self):
        """Without another training."""
        project, learner = self.Resuming(FakeLabels(FOUR_A_CLASS, POOL)), FakeLearner()
        project.away = True
        with pytest.raises(LabelStudioError):
            run(project, learner)
        project.away = False

        result = run(project, learner, round_id="r000002")

        assert result.report == project.saved[0][0] == project.published[0]
        assert (len(learner.fits), len(project.saved), result.training) == (1, 1, None)

    def test_a_label_of_since_then_is_trained_on(self):
        project, learner = self.Resuming(FakeLabels(FOUR_A_CLASS, POOL)), FakeLearner()
        project.away = True
        with pytest.raises(LabelStudioError):
            run(project, learner)
        project.away = False
        project.labels = FakeLabels([*FOUR_A_CLASS, make_annotation(100, CLASSES[0])], POOL[1:])

        assert run(project, learner, round_id="r000003").report.request.round_id == "r000003"
        assert len(learner.fits) == 2

    @pytest.mark.parametrize(
        ("reason", "per_class", "trained"),
        [("labels", 4, 1), ("forced", 4, 2), ("images", 4, 2), ("connected", 4, 2), ("labels", 1, 0)],
    )
    def test_what_is_served_already_is_not_trained_again(self, reason: RoundTrigger, per_class: int, trained: int):
        """Unless something else than labels triggers the round; and a cold start has no training to save."""
        project, learner = self.Resuming(FakeLabels(FOUR_A_CLASS[: 3 * per_class], POOL)), FakeLearner()
        run(project, learner)

        report = run(project, learner, round_id="r000002", reason=reason).report

        rounds = 1 if trained == 1 else 2
        assert report.request.round_id == f"r{rounds:06d}"
        assert len(learner.fits) == trained
        assert len(project.published) == len(project.saved) == rounds


class TestInputsDigest:
    def test_neither_order_nor_number_nor_trigger_matters(self):
        digest = inputs_digest(make_request(), LABELS, POOL)

        assert digest == inputs_digest(make_request(round_id="r000009", reason="forced"), LABELS[::-1], POOL[::-1])

    @pytest.mark.parametrize(
        ("request_", "labels", "pool"),
        [
            (make_request(seed=1), LABELS, POOL),
            (make_request(options={"passes": 100}), LABELS, POOL),
            (make_request(), LABELS[1:], POOL),
            (make_request(), (LABELS[0].model_copy(update={"value": CLASSES[1]}), *LABELS[1:]), POOL),
            (make_request(), LABELS, POOL[1:]),
            (make_request(), LABELS, (make_image(100, patient_id="p"), *POOL[1:])),
            (make_request(), (*LABELS, Label(image=POOL[0], value=CLASSES[0], raters=1)), POOL[1:]),
        ],
    )
    def test_all_that_decides_the_result_does(self, request_, labels, pool):
        assert inputs_digest(request_, labels, pool) != inputs_digest(make_request(), LABELS, POOL)

    def test_probabilities_count_where_they_are_learned_from(self):
        """Otherwise the digests of rounds stored before labels had probabilities stay valid."""
        soft = [one.model_copy(update={"probabilities": {one.value: 0.7, "other": 0.3}}) for one in LABELS]
        hard_request, soft_request = make_request(), make_request(options={"soft_labels": True})

        assert inputs_digest(hard_request, soft, POOL) == inputs_digest(hard_request, LABELS, POOL)
        assert inputs_digest(soft_request, soft, POOL) != inputs_digest(soft_request, LABELS, POOL)
