"""Few images of one patient in a batch, and no near-duplicates."""

import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from ml_backend.acquisition import CatalogStrategy
from ml_backend.config import ProjectOptions
from ml_backend.errors import WeightsError
from ml_backend.images.source import FolderSource
from ml_backend.images.synthetic import plan_pool
from ml_backend.model.hardware import one_thread
from ml_backend.model.learner import McDropoutLearner
from ml_backend.predictions import ImageFeatures
from ml_backend.rounds.reuse import StoredPasses, rerank
from ml_backend.rounds.run import inputs_digest, run_round
from ml_backend.rounds.split import mix_in_holdout
from ml_backend.rounds.spread import BATCHES, REACH, near_duplicates, spread, spread_again, spread_batches
from ml_backend.schemas import ImageRef, PutOff, Ranking
from tests.fakes import CLASSES, FakeLabels, FakeLearner, FakeProject, make_annotation, make_image, make_request


def ranked(*image_ids: str, batch_size: int = 3, strategy: str = "entropy", control: tuple[str, ...] = ()) -> Ranking:
    scores = tuple(float(len(image_ids) - place) for place in range(len(image_ids)))
    return Ranking(strategy=strategy, image_ids=image_ids, scores=scores, batch_size=batch_size, control=control)


@st.composite
def pools(draw):
    """A ranking with holdout images, its patients, and near-duplicates."""
    count = draw(st.integers(0, 40))
    ids = [str(number) for number in draw(st.permutations(range(count)))]
    ranking = mix_in_holdout(
        ranked(*ids, batch_size=draw(st.integers(1, 6))), draw(st.sampled_from([0.0, 0.2, 0.5])), 0, "r000001"
    )
    patients = dict(
        zip(ids, draw(st.lists(st.sampled_from([None, *"abcd"]), min_size=count, max_size=count)), strict=True)
    )
    near: dict[str, set[str]] = {}
    if count > 1:
        for one, other in draw(st.lists(st.tuples(st.sampled_from(ids), st.sampled_from(ids)), max_size=8)):
            if one != other:
                near.setdefault(one, set()).add(other)
                near.setdefault(other, set()).add(one)
    return ranking, patients, near


def batches(ranking: Ranking) -> list[tuple[str, ...]]:
    """Those that are spread."""
    size = ranking.batch_size
    return [ranking.image_ids[start : start + size] for start in range(0, len(ranking.image_ids), size)][:BATCHES]


class TestSpread:
    def test_hand_worked(self):
        """Batches of three. 3 is the third image of patient a and waits for the second batch; so does 4 in its turn."""
        patients = dict.fromkeys("1234", "a") | {"5": "b"}

        found = spread(ranked(*"123456789"), patients, 2)

        assert found.image_ids == tuple("125346789")
        assert found.scores == (9.0, 8.0, 5.0, 7.0, 6.0, 4.0, 3.0, 2.0, 1.0)
        assert found.put_off == (PutOff(image_id="3", reason="more than 2 images of patient a in the batch"),)

    def test_nothing_is_fetched_from_far_behind(self):
        """A name that stands for many patients does not bring the last image of the ranking into the first batch."""
        ids = [str(number) for number in range(3 * REACH + 1)]

        found = spread(ranked(*ids), dict.fromkeys(ids[:-1], "ANON"), 2)

        assert found.image_ids[:3] == tuple(ids[:3])
        assert spread(ranked(*ids[1:]), dict.fromkeys(ids[:-1], "ANON"), 2).image_ids[2] == ids[-1]

    def test_near_duplicates_by_hand(self):
        patients = dict.fromkeys("1234", "a") | {"5": "b"}
        found = spread(ranked(*"123456789"), patients, 2, {"4": {"3"}, "3": {"4"}})

        assert found.image_ids == tuple("125367489")
        assert [one.image_id for one in found.put_off] == ["3", "4"]
        assert found.put_off[1] == PutOff(image_id="4", reason="nearly the same image as 3")
        assert found.near_duplicates == (("4", "3"),)

    def test_too_few_patients_leave_no_place_empty(self):
        """The batch of four wants two patients and has one: the images that were put off fill it, and are not named."""
        found = spread(ranked(*"12345", batch_size=4), dict.fromkeys("12345", "a"), 1)

        assert found == ranked(*"12345", batch_size=4)

    def test_a_holdout_image_keeps_its_place_and_counts(self):
        patients = dict.fromkeys("123", "a")
        found = spread(ranked(*"12345", control=("2",)), patients, 1)

        assert found.image_ids == tuple("42513")  # 1 would be the second of patient a, since 2 has its place
        assert found.control == ("2",)
        assert [one.image_id for one in found.put_off] == ["1", "3"]

    def test_a_random_order_stays_random(self):
        ranking = ranked(*"123", strategy="random")

        assert spread(ranking, dict.fromkeys("123", "a"), 1) is ranking

    def test_refuses_a_bound_of_none(self):
        with pytest.raises(ValueError, match="per_patient must be at least 1, got 0"):
            spread(ranked("1"), {}, 0)

    @given(pool=pools(), bound=st.integers(1, 3))
    def test_a_batch_holds_no_more_where_others_could_have_filled_it(self, pool, bound):
        ranking, patients, near = pool
        found = spread(ranking, patients, bound, near)
        control = set(found.control)

        for number, batch in enumerate(batches(found)):
            fitting = [image_id for image_id in batch if image_id in control]

            def fits(image_id: str, others: list[str] = fitting) -> bool:
                same = sum(patients[other] == patients[image_id] is not None for other in others)
                return same < bound and not near.get(image_id, set()) & set(others)

            fitting += [image_id for image_id in batch if image_id not in control and fits(image_id)]
            assert fitting
            if len(fitting) < len(batch):
                behind = found.image_ids[(number + 1) * found.batch_size :]
                assert not any(fits(image_id) for image_id in behind if image_id not in control)

    @given(pool=pools(), bound=st.integers(1, 3))
    def test_nothing_is_lost_and_the_holdout_stays(self, pool, bound):
        ranking, patients, near = pool
        found = spread(ranking, patients, bound, near)

        scores = dict(zip(ranking.image_ids, ranking.scores, strict=True))
        assert dict(zip(found.image_ids, found.scores, strict=True)) == scores
        assert len(found.image_ids) == len(ranking.image_ids)
        places = [place for place, image_id in enumerate(ranking.image_ids) if image_id in ranking.control]
        assert [found.image_ids[place] for place in places] == [ranking.image_ids[place] for place in places]

    @given(pool=pools(), bound=st.integers(1, 3))
    def test_the_images_that_nothing_is_wrong_with_keep_their_order(self, pool, bound):
        ranking, patients, near = pool
        found = spread(ranking, patients, bound, near)
        counts = Counter(patients.values())

        def harmless(image_id: str) -> bool:
            alone = patients[image_id] is None or counts[patients[image_id]] <= bound
            return alone and image_id not in near and image_id not in ranking.control

        assert [*filter(harmless, found.image_ids)] == [*filter(harmless, ranking.image_ids)]

    @given(pool=pools(), bound=st.integers(1, 3))
    def test_names_every_image_that_left_its_batch_for_a_later_one(self, pool, bound):
        ranking, patients, near = pool
        found = spread(ranking, patients, bound, near)

        before = {image_id: place // ranking.batch_size for place, image_id in enumerate(ranking.image_ids)}
        after = {image_id: place // ranking.batch_size for place, image_id in enumerate(found.image_ids)}
        later = [image_id for image_id, batch in before.items() if batch < after[image_id]]
        assert sorted(one.image_id for one in found.put_off) == sorted(later)

    @given(pool=pools(), bound=st.integers(1, 3))
    def test_repeated_it_changes_nothing(self, pool, bound):
        ranking, patients, near = pool
        once = spread(ranking, patients, bound, near)

        assert spread(once, patients, bound, near).image_ids == once.image_ids

    @given(pool=pools(), bound=st.integers(1, 3))
    def test_follows_again_from_what_it_has_put_off(self, pool, bound):
        """Replay has no features."""
        ranking, patients, near = pool
        found = spread(ranking, patients, bound, near)

        assert spread_again(ranking, patients, bound, found) == found


def features(*rows: tuple[float, ...]) -> ImageFeatures:
    return ImageFeatures(tuple(map(str, range(len(rows)))), np.array(rows, np.float32))


def one_hot(count: int, dims: int = 40) -> npt.NDArray[np.float32]:
    """Images as far from each other as can be: the square root of 2."""
    return np.eye(dims, dtype=np.float32)[:count]


class TestNearDuplicates:
    def test_hand_worked(self):
        """The usual distance is sqrt(2), half of it 0.7071: 0.70 is near, 0.71 is not. Length does not matter."""
        rows = one_hot(22)
        for row, distance in ((20, 0.70), (21, 0.71)):
            cosine = 1 - distance**2 / 2
            rows[row] = 0.0
            rows[row, row - 20], rows[row, 30 + row - 20] = cosine, np.sqrt(1 - cosine**2)
        rows *= np.arange(1, 23)[:, None]

        assert near_duplicates(features(*rows), {}) == {"0": {"20"}, "20": {"0"}}

    def test_too_few_images_show_nothing(self):
        rows = one_hot(19)
        rows[1] = rows[0]

        assert near_duplicates(features(*rows), {}) == {}

    def test_what_is_usual_comes_from_other_patients(self):
        """Four images of each patient, 0.1 apart: near-duplicates, though each finds three others so near."""
        rows = np.repeat(one_hot(10), 4, axis=0)
        rows[np.arange(40), 36 - np.arange(40) % 4] += 0.1 / np.sqrt(2)

        found = near_duplicates(features(*rows), {str(number): f"p{number // 4}" for number in range(40)})

        assert found["0"] == {"1", "2", "3"}
        assert near_duplicates(features(*rows), {str(number): "the same" for number in range(40)}) == {}

    @given(seed=st.integers(0, 1000), copies=st.integers(0, 10))
    def test_finds_copies_and_no_others_whatever_the_order(self, seed, copies):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(40, 64)).astype(np.float32)
        rows[40 - copies :] = rows[:copies] + rng.normal(scale=0.1, size=(copies, 64))
        images = features(*rows)
        order = rng.permutation(40)
        shuffled = ImageFeatures(tuple(images.image_ids[row] for row in order), images.features[order])

        found = near_duplicates(images, {})

        assert found == near_duplicates(shuffled, {})
        pairs = {(str(row), str(40 - copies + row)) for row in range(copies)}
        assert {(one, other) for one, others in found.items() for other in others} == pairs | {(b, a) for a, b in pairs}

    def test_finds_copies_of_drawn_images(self, tmp_path):
        """Compressed anew, cropped by 1 %, lighter and darker by 1 %; 16 other images are all told apart."""
        pictures = {str(n): Image.fromarray(plan.draw(224)) for n, plan in enumerate(plan_pool(16, (1, 1, 1), seed=0))}
        pictures |= {
            "100": jpeg(pictures["0"], 90),
            "101": jpeg(pictures["1"], 75),
            "102": pictures["2"].crop((2, 2, 222, 222)),
            "103": ImageEnhance.Brightness(pictures["3"]).enhance(1.01),
            "104": ImageEnhance.Brightness(pictures["4"]).enhance(0.99),
        }
        for name, picture in pictures.items():
            picture.save(tmp_path / f"{name}.png")
        options = ProjectOptions(backbone="resnet18", weights="none", image_side=96)
        learner = McDropoutLearner(options, FolderSource(tmp_path), tmp_path / "cache", device="cpu")
        with one_thread():
            embedded = learner.embed([ImageRef(id=name, uri=f"{name}.png") for name in pictures])

        found = near_duplicates(embedded, {})

        assert found == {a: {b} for n in range(5) for a, b in ((str(n), f"10{n}"), (f"10{n}", str(n)))}


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


POOL = tuple(make_image(number, f"p{number % 3}") for number in range(100, 130))
LABELLED = [make_annotation(number, CLASSES[number % 3]) for number in range(12)]


def a_round(*, pool: Sequence[ImageRef] = POOL, **changes: object) -> tuple[Ranking, FakeLearner]:
    """Images of the same last digit look almost alike."""
    project, learner = FakeProject(FakeLabels(LABELLED, pool)), FakeLearner()
    request = make_request(strategy="entropy", **{"batch_size": 5, "per_patient": 2, **changes})
    return run_round(request, project, learner, CatalogStrategy("entropy")).report.ranking, learner


class TestRounds:
    def test_spread_what_they_publish(self):
        patients = {image.id: image.patient_id for image in POOL}
        plain, _ = a_round(per_patient=0)
        found, learner = a_round()

        for batch in batches(found):
            assert max(Counter(patients[image_id] for image_id in batch).values()) <= 2
        assert len({image_id[-1] for image_id in found.image_ids[:5]}) == 5
        assert set(found.image_ids) == set(plain.image_ids)
        assert found.image_ids[0] == plain.image_ids[0]
        assert {one.reason.split()[0] for one in found.put_off} == {"more", "nearly"}
        assert [len(images) for images in learner.embedded] == [25]  # of the first five batches only

    def test_ranked_anew_from_stored_passes_are_spread_as_well(self):
        project = FakeProject(FakeLabels(LABELLED, POOL))
        request = make_request(strategy="margin", batch_size=5, per_patient=2)
        run_round(request, project, FakeLearner(), CatalogStrategy("margin"))
        [(base, passes, _)] = project.saved
        assert passes is not None
        again = request.model_copy(update={"round_id": "r000002", "reason": "rerank", "strategy": "entropy"})

        scorer = StoredPasses(base, passes)
        report = rerank(again, base, project, scorer, CatalogStrategy("entropy"), learner=FakeLearner()).report

        assert report.ranking == a_round()[0]

    def test_do_not_depend_on_the_order_of_arrival(self):
        assert a_round(pool=POOL[::-1])[0] == a_round()[0]

    def test_of_an_older_version_or_without_a_bound_keep_the_strategys_order(self):
        (old, learner), (free, _) = a_round(per_patient=None), a_round(per_patient=0)

        assert old == free
        assert old.put_off == ()
        assert learner.embedded == []

    def test_before_the_first_training_a_typical_order_is_spread_and_a_random_one_is_not(self):
        def start(cold_start: str, per_patient: int) -> Ranking:
            return a_round(min_labels_per_class=9, cold_start=cold_start, per_patient=per_patient)[0]

        assert start("random", 1) == start("random", 0)
        assert start("typiclust", 1).image_ids != start("typiclust", 0).image_ids

    def test_look_for_no_near_duplicates_where_the_backbone_is_untrained(self):
        found, learner = a_round(options={"weights": "none"})

        assert learner.embedded == []
        assert found.put_off
        assert found.near_duplicates == ()

    def test_whose_backbone_is_gone_bound_patients_alone(self):
        def gone(images: object) -> ImageFeatures:
            raise WeightsError("weights.pt does not exist")

        request = make_request(batch_size=5, per_patient=2)
        ranking = ranked(*(image.id for image in POOL), batch_size=5)
        patients = {image.id: image.patient_id for image in POOL}

        assert spread_batches(request, ranking, POOL, gone) == spread(ranking, patients, 2)

    def test_of_an_older_version_have_the_inputs_that_they_noted(self):
        """The digest of such a round, as that version computed it."""
        request = make_request()

        assert inputs_digest(request, [], []) == "c63a0ee33f244e54911730cef946994fee213edc39df0fef5ed6fbc595acc9fa"
        assert inputs_digest(request.model_copy(update={"per_patient": 0}), [], []) != inputs_digest(request, [], [])
