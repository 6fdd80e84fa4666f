"""How far the labelling is: what waits, what is left out and why, and what is the end."""

from datetime import timedelta
from typing import Any

import pytest

from ml_backend.analytics.history import KnownNetwork
from ml_backend.analytics.standing import Standing, another_look, project_standing
from ml_backend.config import ProjectOptions
from ml_backend.errors import SettingsError
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.storage.quarantine import QuarantinedImage
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
            (ALL[:5], {}, "blocked"),
            (ALL[:5], {"network": NETWORK}, "labelled"),
            (ALL[:5], {"network": NETWORK.model_copy(update={"classes": ("a", "b")})}, "blocked"),
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
        assert (end.start, end.left_out) == (None, ())

    def test_images_under_another_key_are_no_reason_to_import(self):
        found = standing(*ALL, OTHER_KEY, OTHER_KEY, network=NETWORK)

        assert found.sentence == (
            "No image that can be used waits for a label: 2 are left out, the first: "
            "task 7 has no image under 'image'; its data holds ['picture']"
        )

    def test_what_waits_for_further_readers(self):
        found = standing(*ALL, network=NETWORK, annotations_per_task=2)

        assert (found.further, found.sentence) == (
            6, "Every one of 6 images has a label; 6 labelled ones wait for further readers."
        )  # fmt: skip

    def test_blocked_tells_the_ways_out(self):
        found = standing(*ALL[:5])

        assert found.sentence.startswith("Every image is labelled, and no network can be trained yet: 1 more 'severe'")
        assert found.start is not None
        assert len(found.start.ways_out) == 3

    def test_skipped_is_not_labelled(self):
        assert standing(task(said(None))).sentence.startswith("Every image was answered or skipped, and no network")

    @pytest.mark.parametrize(
        "answer", [said("grave"), said("normal", result=[{"from_name": "severity", "type": "taxonomy"}])]
    )
    def test_labels_that_are_left_out_are_no_reason_to_import(self, answer):
        found = standing(*ALL[:5], *[task(answer)] * 3)

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
                "answers 'severity' as taxonomy, and the label config asks it by Choices: import it anew",
            ),
            (task(said("grave")), {}, "no class", "image 7 is labelled 'grave', which is no class"),
            (task(said("severe")), {"ignore_classes": "Severe"}, "ignored class", "which ignore_classes leaves out"),
            (task(said(None)), {}, "no answer", "skipped image 7"),
            (task(said("unreadable")), {}, "no answer", "image 7 or gave it no class"),
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
    def test_a_way_out_takes_none_back(self):
        config = parse_label_config(
            """<View><Image name="image" value="$image"/><Choices name="severity" toName="image">
            <Choice value="normal"/><Choice value="mild"/><Choice value="moderate"/><Choice value="severe"/>
            </Choices></View>"""
        )
        tasks = [task(said(name)) for name in ("normal", "mild") for _ in range(2)]
        options = ProjectOptions(min_labels_per_class=2, ignore_classes=("moderate",))
        start = project_standing(mirror_of(*tasks), config, options, quarantined={}, network=None).start

        assert start is not None
        assert "the option ignore_classes=moderate,severe leaves" in start.ways_out[-1]

    def test_its_labels_come_back_with_it(self):
        without, again = standing(*ALL, ignore_classes="severe"), standing(*ALL)

        assert without.labels_per_class == {"normal": 2, "moderate": 2}
        assert again.labels_per_class == {"normal": 2, "moderate": 2, "severe": 2}

    def test_one_that_is_no_choice_is_refused(self):
        with pytest.raises(SettingsError, match="ignore_classes='grave' is none of the classes 'normal', 'moderate'"):
            standing(*ALL, ignore_classes="grave")


class TestStart:
    def test_counts_what_was_labelled_since_the_last_round(self):
        found = standing(*ALL[:4], *[task()] * 9)

        assert found.labels_per_class == {"normal": 2, "moderate": 2, "severe": 0}
        assert found.start is not None
        assert found.start.missing == {"severe": 2}

    def test_none_where_a_network_was_trained_and_no_class_lacks_labels(self):
        assert standing(*ALL, task(), network=NETWORK).start is None

    def test_again_where_the_minimum_was_raised_after_a_training(self):
        found = standing(*ALL, task(), network=NETWORK, min_labels_per_class=4).start

        assert found is not None
        assert found.missing == {"normal": 2, "moderate": 2, "severe": 2}


def barred(image_id: str, minutes: int) -> QuarantinedImage:
    return QuarantinedImage(
        image_id=image_id, trouble="damaged", reason="cut off", mark="m", first_seen=NOON, last_tried=NOON,
        next_try=NOON + timedelta(minutes=minutes), times=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("waiting", "quarantined", "worth"),
    [
        ("", [], False),
        ("1", [], True),
        ("1", [barred("1", 1)], False),
        ("1", [barred("1", -1)], True),
        ("12", [barred("1", 1)], True),
    ],
)
def test_another_look_only_where_something_may_have_changed(waiting, quarantined, worth):
    assert another_look(waiting, quarantined, NOON) == worth
