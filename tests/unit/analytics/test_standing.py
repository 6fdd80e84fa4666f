"""The state of the labelling, and what the start set lacks."""

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.analytics.history import KnownNetwork
from ml_backend.analytics.standing import (
    FewLabels,
    Standing,
    classes_with_few_labels,
    project_standing,
    start_estimate,
)
from ml_backend.config import ProjectOptions
from ml_backend.errors import SettingsError
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.label_studio.sync import CachedTask, TaskCache
from tests.fakes import NOON

CONFIG = parse_label_config(
    """<View><Image name="image" value="$image"/><Choices name="severity" toName="image">
    <Choice value="normal"/><Choice value="moderate"/><Choice value="severe"/><Choice value="unreadable"/>
    </Choices></View>"""
)
NETWORK = KnownNetwork(round_id="r000002", classes=("normal", "moderate", "severe"), ranks=True)
IMAGE = {"image": "/a.png"}
FEW = {"min_labels_per_class": 2}


def said(choice: str | None, rater: int = 1, **changed: Any) -> dict[str, Any]:
    """An answer; None is a skip."""
    result = [{"from_name": "severity", "type": "choices", "value": {"choices": [choice]}}] if choice else []
    item = {"id": 1, "completed_by": rater, "was_cancelled": choice is None, "updated_at": NOON.isoformat()}
    return {**item, "result": result, **changed}


def task(*answers: dict[str, Any], data: object = IMAGE) -> CachedTask:
    return CachedTask(data=data, annotations=answers)


def mirror_of(*tasks: CachedTask, skip_queue: str | None = "REQUEUE_FOR_OTHERS") -> TaskCache:
    """Each with an image of its own."""
    own = {
        number: one.model_copy(update={"data": {"image": f"/{number}.png"}}) if one.data == IMAGE else one
        for number, one in enumerate(tasks, 1)
    }
    return TaskCache(read_at=NOON, whole_at=NOON, tasks=own, skip_queue=skip_queue)


def standing(
    *tasks: CachedTask,
    network: KnownNetwork | None = None,
    quarantined: dict[str, str] | None = None,
    skip_queue: str = "REQUEUE_FOR_OTHERS",
    **options: Any,
) -> Standing:
    chosen = ProjectOptions(**{**FEW, **options})
    mirror = mirror_of(*tasks, skip_queue=skip_queue)
    return project_standing(mirror, CONFIG, chosen, quarantined=quarantined or {}, network=network)


ALL = [task(said(name)) for name in ("normal", "moderate", "severe") for _ in range(2)]
OTHER_KEY = task(data={"picture": "/a.png"})


class TestVerdict:
    @pytest.mark.parametrize(
        ("tasks", "options", "verdict"),
        [
            ([], {}, "no images"),
            ([task()], {}, "waiting"),
            ([*ALL, task()], {"network": NETWORK}, "waiting"),
            (ALL, {"network": NETWORK}, "labelled"),
            (ALL, {}, "labelled"),
            ([*ALL, task(said(None))], {"network": NETWORK}, "labelled"),
            ([*ALL, task(said(None))], {"network": NETWORK, "skip_queue": "IGNORE_SKIPPED"}, "labelled"),
            ([*ALL, task(said("unreadable"))], {"network": NETWORK}, "labelled"),
            ([*ALL, OTHER_KEY], {"network": NETWORK}, "unusable"),
            ([OTHER_KEY], {}, "unusable"),
            ([*ALL, OTHER_KEY, task()], {"network": NETWORK}, "waiting"),
            ([*ALL, task()], {"quarantined": {"7": "cut off"}, "network": NETWORK}, "unusable"),
            ([*ALL, task(said(None))], {"quarantined": {"7": "cut off"}, "network": NETWORK}, "labelled"),
            (ALL, {"quarantined": {"99": "of a deleted task"}, "network": NETWORK}, "labelled"),
            (ALL[:3], {}, "blocked"),
            (ALL[:5], {"network": NETWORK}, "labelled"),
            (ALL[:3], {"network": NETWORK.model_copy(update={"classes": ("a", "b")})}, "blocked"),
            (ALL[:5], {"ignore_classes": "severe"}, "labelled"),
            (ALL, {"network": NETWORK, "annotations_per_task": 2}, "waiting"),
            ([task(said("normal"), said(None, 2))], {"network": NETWORK, "annotations_per_task": 2}, "waiting"),
            (
                [task(said("normal"), said(None, 2))],
                {"network": NETWORK, "annotations_per_task": 2, "skip_queue": "IGNORE_SKIPPED"},
                "labelled",
            ),
            ([task(said("normal"), said("severe", 2))], {"network": NETWORK, "annotations_per_task": 2}, "labelled"),
        ],
    )
    def test_by_what_waits(self, tasks, options, verdict):
        assert standing(*tasks, **options).verdict == verdict

    def test_a_copy_of_a_labelled_image_waits_for_nobody(self):
        again = [task(data={"image": "/again.png"}), task(said("normal"), data={"image": "/again.png"})]
        found = standing(*ALL, *again, network=NETWORK)

        assert (found.verdict, found.sentence) == ("labelled", "Every image is labelled: 7 images.")
        assert [(one.kind, one.count) for one in found.left_out] == [("same image", 1)]
        assert found.mendable == ()

    def test_the_end_sends_nobody_anywhere(self):
        end = standing(*ALL, network=NETWORK)

        assert end.sentence == "Every image is labelled: 6 images."
        some = standing(*ALL, task(said("unreadable")), network=NETWORK)
        assert some.sentence == "No image is left to read: 6 labelled, 1 left out."
        assert (end.start, end.left_out) == (None, ())

    def test_images_under_another_key_are_no_reason_to_import(self):
        found = standing(*ALL, OTHER_KEY, OTHER_KEY, network=NETWORK)

        assert found.sentence == (
            "None of the unlabelled images can be used: 2 are left out, the first: "
            "task 7 has no image under 'image'; its data holds ['picture']"
        )

    def test_what_waits_for_further_readers(self):
        found = standing(*ALL, network=NETWORK, annotations_per_task=2)

        assert (found.further, found.sentence) == (
            6, "Every one of 6 images has a label; 6 labelled ones need further readers."
        )  # fmt: skip

    def test_blocked_tells_the_ways_out(self):
        found = standing(*ALL[:3])

        assert found.sentence.startswith(
            "Every image is labelled, and no network can be trained yet: 1 more 'moderate' or 2 more 'severe' needed"
        )
        assert found.start is not None
        assert found.start.ways_out == ()  # the minimum is 2 already, and no image is left to seek

    def test_skipped_is_not_labelled(self):
        assert standing(task(said(None))).sentence.startswith("Every image was answered or skipped, and no network")

    @pytest.mark.parametrize(
        "answer", [said("grave"), said("normal", result=[{"from_name": "severity", "type": "taxonomy"}])]
    )
    def test_labels_that_are_left_out_are_no_reason_to_import(self, answer):
        found = standing(*ALL[:3], *[task(answer)] * 3)

        assert found.verdict == "blocked"
        assert "labels are left out. 3 " in found.sentence
        assert "import more" not in found.sentence


class TestLeftOut:
    @pytest.mark.parametrize(
        ("made", "options", "kind", "first"),
        [
            (OTHER_KEY, {}, "no image", "task 7 has no image under 'image'; its data holds ['picture']"),
            (task(data=None), {}, "no image", "task 7 has no image under 'image'; its data holds None"),
            (task(said("normal"), data={}), {}, "label without image", "task 7 has no image under 'image'"),
            (task(said("normal", updated_at="soon")), {}, "unreadable answer", "annotation 1 of task 7 cannot be read"),
            (
                task(said("normal", result=[{"from_name": "severity", "type": "taxonomy"}])),
                {},
                "unreadable answer",
                "answers 'severity' as taxonomy, and the label config asks it by Choices: import it again",
            ),
            (task(said("grave")), {}, "no class", "image 7 is labelled 'grave', which is not a class"),
            (task(said("severe")), {"ignore_classes": "Severe"}, "ignored class", "which ignore_classes leaves out"),
            (task(said("unreadable")), {}, "no answer", "its reader skipped image 7 or gave it no class"),
            (task(), {"quarantined": {"7": "image 7 is cut off"}}, "unreadable image", "image 7 is cut off"),
            (task(said("normal")), {"quarantined": {"7": "it is cut off"}}, "unreadable image", "it is cut off"),
        ],
    )
    def test_is_counted_with_its_kind_and_reason(self, made, options, kind, first):
        tasks = ALL[:4] + [task()] * 2 + [made]
        found = [one for one in standing(*tasks, **options).left_out if one.kind == kind]

        assert [one.count for one in found] == [1]
        assert first in found[0].first
        assert found[0].first in found[0].sentence

    def test_a_skipped_image_is_still_offered(self):
        found = standing(*ALL, task(said(None)), network=NETWORK)

        assert (found.left_out, found.skipped) == ((), 1)

    def test_each_task_once(self):
        """A skipped task without an image, and an unreadable image with a label that is no class."""
        found = standing(task(said(None), data={}), task(said("grave")), quarantined={"2": "cut off"})

        assert [(one.kind, one.count) for one in found.left_out] == [
            ("unreadable image", 1),
            ("label without image", 1),
        ]

    def test_several_are_told_in_one_sentence(self):
        (found,) = standing(task(said("grave")), task(said("worse")), task()).left_out

        assert found.sentence.startswith("2 images are labelled as no class, the first: image 1 is labelled 'grave'")

    def test_what_the_owner_wants_so_is_nothing_to_mend(self):
        tasks = [task(said(None)), task(said("severe")), task(said("grave")), OTHER_KEY]
        found = standing(*tasks, ignore_classes="severe", quarantined={"9": "gone"})

        assert [one.kind for one in found.mendable] == ["no image", "no class"]


class TestIgnoredClass:
    def test_its_labels_come_back_with_it(self):
        without, again = standing(*ALL, ignore_classes="severe"), standing(*ALL)

        assert without.labels_per_class == {"normal": 2, "moderate": 2}
        assert again.labels_per_class == {"normal": 2, "moderate": 2, "severe": 2}

    def test_one_that_is_no_choice_is_refused(self):
        with pytest.raises(SettingsError, match="ignore_classes='grave' is none of the classes 'normal', 'moderate'"):
            standing(*ALL, ignore_classes="grave")


class TestStart:
    def test_counts_what_was_labelled_since_the_last_round(self):
        found = standing(*ALL[:3], *[task()] * 9)

        assert found.labels_per_class == {"normal": 2, "moderate": 1, "severe": 0}
        assert found.start is not None
        assert found.start.missing == {"moderate": 1, "severe": 2}

    def test_none_where_a_network_was_trained_and_no_class_lacks_labels(self):
        assert standing(*ALL, task(), network=NETWORK).start is None

    def test_again_where_the_minimum_was_raised_after_a_training(self):
        found = standing(*ALL, task(), network=NETWORK, min_labels_per_class=4).start

        assert found is not None
        assert found.missing == {"normal": 2, "moderate": 2, "severe": 2}


class TestFewLabels:
    """Classes that no training waits for."""

    OPTIONS: ClassVar = {"min_labels_per_class": 5, "weights": "imagenet"}

    def few(self, normal: int, moderate: int, severe: int, **options: Any) -> FewLabels | None:
        counts = {"normal": normal, "moderate": moderate, "severe": severe}
        return classes_with_few_labels(counts, ProjectOptions(**{**self.OPTIONS, **options}))

    def test_none_where_every_class_has_its_minimum(self):
        assert self.few(5, 5, 5) is None

    def test_in_words(self):
        found = self.few(20, 9, 0)

        assert found is not None
        assert (found.missing, found.sought) == ({"severe": 5}, ())
        assert found.sentence == "No label yet of 'severe': the network cannot predict it."
        found = self.few(20, 9, 3)
        assert found is not None
        assert (found.missing, found.sought) == ({"severe": 2}, ("severe",))
        assert found.sentence == (
            "Only 3 of 'severe' labelled, fewer than 5. "
            "Images that resemble those of 'severe' come first in half of the places."
        )

    @pytest.mark.parametrize(
        ("cold_start", "sought"), [("random", None), ("typiclust", "severe"), ("herding", "severe")]
    )
    def test_before_the_first_training(self, cold_start, sought):
        found = self.few(4, 3, 1, cold_start=cold_start)

        assert (found and found.sought) == (sought and (sought,))

    @pytest.mark.parametrize("counts", [(20, 1, 0), (20, 9, 1)])
    def test_untrained_features_find_no_class(self, counts):
        found = self.few(*counts, weights="none", cold_start="herding")

        assert found is not None
        assert found.sought == ()
        assert "are not sought: with weights=none" in found.sentence

    def test_the_strategy_random_seeks_none(self):
        found = self.few(20, 9, 1, strategy="random")

        assert found is not None
        assert (found.sought, found.sentence) == ((), "Only 1 of 'severe' labelled, fewer than 5.")

    def test_stands_beside_what_waits_and_not_at_the_end(self):
        few = standing(*ALL[:5], task(), network=NETWORK).few

        assert few is not None
        assert few.missing == {"severe": 1}
        assert standing(*ALL, task(), network=NETWORK).few is None
        assert standing(*ALL[:5], network=NETWORK).few is None


labels = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 60), min_size=2)


class TestStartEstimate:
    @pytest.mark.parametrize(("share", "lacking"), [(0.4, 10), (0.25, 8), (0.1, 20)])
    def test_one_class_missing_with_a_known_share(self, share, lacking):
        """With thousands of labels the share is known: k / share images on the average, the median a little below."""
        minimum = 2000
        of_class = minimum - lacking
        found = start_estimate({"rare": of_class, "rest": round(of_class * (1 - share) / share)}, minimum, 10**6)
        expected = lacking / share
        spread = (lacking * (1 - share)) ** 0.5 / share

        assert found.missing["rare"] == lacking
        assert found.more == pytest.approx(expected, rel=0.08)
        assert found.low == pytest.approx(expected - 1.6 * spread, abs=0.35 * spread + 1)
        assert found.high == pytest.approx(expected + 1.7 * spread, abs=0.35 * spread + 1)

    def test_the_slowest_class_decides(self):
        """Two classes that lack 10 take longer than one alone."""
        one = start_estimate({"a": 990, "b": 1010}, 1000, 10**6)
        both = start_estimate({"a": 990, "b": 990}, 1000, 10**6)

        assert both.missing == {"a": 10, "b": 10}
        assert both.more is not None
        assert one.more is not None
        assert both.more > one.more

    def test_a_third_class_is_not_waited_for(self):
        """Of three like classes the second comes sooner than the last of two."""
        two = start_estimate({"a": 900, "b": 900}, 1000, 10**6)
        third = start_estimate({"a": 900, "b": 900, "c": 0}, 1000, 10**6)
        level = start_estimate({"a": 900, "b": 900, "c": 900}, 1000, 10**6)

        assert two.more is not None
        assert third.more == pytest.approx(two.more, rel=0.02)
        assert level.more == pytest.approx(300, rel=0.1)
        # One class is complete, and of the others one is enough.
        assert start_estimate({"a": 2000, "b": 990, "c": 0}, 1000, 10**6).more == pytest.approx(30, rel=0.1)

    @pytest.mark.parametrize(
        ("labels", "minimum"), [({"a": 3, "b": 1, "c": 0, "d": 2}, 6), ({"a": 9, "b": 2, "c": 1}, 5)]
    )
    def test_equals_a_simulation(self, labels, minimum):
        """Image by image, with shares from the posterior; medians of 4,000 draws are within 6 % of each other."""
        rng = np.random.default_rng(5)
        counts = []
        for shares in rng.dirichlet([1 + count for count in labels.values()], size=4000):
            have, number = list(labels.values()), 0
            for drawn in rng.choice(len(shares), p=shares, size=2000):
                if sum(one >= minimum for one in have) >= 2:
                    break
                have[drawn] += 1
                number += 1
            counts.append(number)
        found = start_estimate(labels, minimum, 10**6)

        assert found.more == pytest.approx(np.median(counts), rel=0.06, abs=1)
        assert found.high == pytest.approx(np.quantile(counts, 0.95), rel=0.12)

    @pytest.mark.parametrize(
        ("labels", "pool", "enough", "words"),
        [
            pytest.param({"normal": 25, "severe": 40}, 500, 1.0, "Two classes have the 25 labels", id="complete"),
            pytest.param(
                {"normal": 0, "severe": 0}, 500, None,
                "25 more 'normal' and 25 more 'severe' needed; no label yet, so nothing is known", id="no label",
            ),
            pytest.param({"normal": 10, "severe": 30}, 14, 0.0, "cannot hold them: import more", id="too few"),
            pytest.param(
                {"normal": 0, "severe": 100}, 500, pytest.approx(0.0, abs=0.05), "will probably not hold enough",
                id="a class that was never seen: after 100 labels about 1 in 100",
            ),
        ],
    )  # fmt: skip
    def test_in_words(self, labels, pool, enough, words):
        found = start_estimate(labels, 25, pool)

        assert found.enough == enough
        assert words in found.sentence
        assert found.missing == {name: 25 - count for name, count in labels.items() if count < 25}

    def test_an_estimate_in_words(self):
        found = start_estimate({"normal": 18, "severe": 100}, 25, 500)

        # 7 over a share of 19 / 120, on the average of the posterior.
        assert found.more == pytest.approx(7 * 120 / 19, rel=0.1)
        assert found.sentence == (
            f"7 more 'normal' needed; at the rate so far about {found.more} more images ({found.low} to {found.high})."
        )
        assert (
            "estimated for a random order" in start_estimate({"a": 18, "b": 60}, 25, 500, random_order=False).sentence
        )

    @pytest.mark.parametrize(
        ("labels", "needed"),
        [
            ({"a": 20, "b": 4, "c": 0}, "two of 5 more 'a', 21 more 'b' and 25 more 'c' needed; "),
            ({"a": 30, "b": 4, "c": 0}, "21 more 'b' or 25 more 'c' needed; "),
            ({"a": 20, "b": 4}, "5 more 'a' and 21 more 'b' needed; "),
            ({"a": 30, "b": 4}, "21 more 'b' needed; "),
        ],
    )
    def test_two_classes_are_enough_in_words(self, labels, needed):
        assert start_estimate(labels, 25, 500).sentence.startswith(needed)

    def test_a_pool_that_may_be_too_small(self):
        """About 43 images, at most 83: of 50 it is not certain."""
        found = start_estimate({"normal": 18, "severe": 100}, 25, 50)

        assert found.high == 50
        assert "the pool of 50 may not hold enough" in found.sentence

    @settings(deadline=None, max_examples=60)
    @given(labels, st.integers(2, 40), st.integers(0, 400), st.integers(0, 5))
    def test_laws(self, counts, minimum, pool, seed):
        """Never fewer than two classes lack, never more than the pool, and the same again for the same seed."""
        found = start_estimate(counts, minimum, pool, seed)

        assert found == start_estimate(counts, minimum, pool, seed)
        lacking = sum(sorted(max(0, minimum - count) for count in counts.values())[:2])
        assert (lacking == 0) == (found.missing == {})
        if found.more is not None and found.low is not None and found.high is not None:
            assert min(lacking, pool) <= found.low <= found.more <= found.high <= max(pool, 0)


class TestWaysOut:
    """Told where no second class will come, and not before."""

    @pytest.mark.parametrize(
        ("counts", "minimum", "pool", "told"),
        [
            ({"normal": 18, "moderate": 40, "severe": 60}, 25, 500, False),
            ({"normal": 18, "severe": 60}, 25, 500, False),
            ({"normal": 18, "severe": 60}, 25, 50, False),
            ({"normal": 0, "severe": 0}, 25, 500, False),
            ({"normal": 4, "severe": 1}, 25, 5000, False),
            ({"normal": 9, "severe": 0}, 2, 20, False),
            ({"normal": 30, "moderate": 40, "severe": 0}, 25, 0, False),
            ({"normal": 30, "moderate": 5, "severe": 5}, 25, 19, True),
            ({"normal": 0, "moderate": 0, "severe": 0}, 25, 49, True),
            ({"normal": 70, "severe": 0}, 25, 10**6, True),
            ({"normal": 25, "moderate": 25, "severe": 25}, 25, 0, False),
        ],
    )
    def test_when_they_are_due(self, counts, minimum, pool, told):
        assert bool(start_estimate(counts, minimum, pool).ways_out) == told

    def test_are_two(self):
        found = start_estimate({"normal": 30, "severe": 5}, 25, 9)

        assert found.sentence == "20 more 'severe' needed; the 9 images without a label cannot hold them: import more."
        assert found.ways_out == (
            "set the option cold_start=herding: images that resemble a class with few labels come first",
            "lower the option min_labels_per_class, 25 now and 2 at least",
        )
        assert found.advice == f"{found.sentence} Otherwise: {'; or '.join(found.ways_out)}."

    def test_none_that_was_taken(self):
        assert start_estimate({"normal": 9, "severe": 0}, 2, 5, random_order=False).ways_out == ()

    @pytest.mark.parametrize(
        ("severe", "pool", "options"),
        [(5, 0, {}), (0, 90, {}), (5, 90, {"can_seek": False}), (5, 90, {"random_order": False})],
    )
    def test_seeking_is_no_way_out_where_it_finds_nothing(self, severe, pool, options):
        """No image is left, no label of the class yet, features of an untrained network, or it is sought already."""
        found = start_estimate({"normal": 900, "severe": severe}, 25, pool, **options)

        assert found.ways_out == ("lower the option min_labels_per_class, 25 now and 2 at least",)
