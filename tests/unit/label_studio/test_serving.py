"""What keeps readers from the published ranking, by what Label Studio holds."""

import httpx
import pytest

from ml_backend.config import ProjectOptions
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.publisher import Serving, is_lost, read_serving, serving_problems
from ml_backend.schemas import ImportedVersion, PublishedRanking
from tests.fakes import NOON

WHOLE = Serving(
    version="al-1",
    there=3,
    held=3,
    model_version="al-1",
    sampling="Uncertainty sampling",
    maximum_annotations=1,
    show_collab_predictions=True,
)


@pytest.mark.parametrize(
    ("change", "aspect", "words", "mended"),
    [
        ({"sampling": "Sequential sampling"}, "sampling", "'Sequential sampling'", False),
        ({"sampling": None}, "sampling", "None", False),
        ({"maximum_annotations": 3}, "readers per image", "shown to 3 readers", False),
        ({"show_collab_predictions": False}, "predictions on", "switched off", False),
        ({"model_version": ""}, "order served", "model_version is ''; the published ranking is al-1", True),
        ({"model_version": "Active learning"}, "order served", "the backend's title, which serves in random", True),
        ({"model_version": "my-resnet"}, "order served", "'my-resnet'", True),
        ({"held": 0}, "predictions", "holds 0 predictions of al-1, and 3 of its images are there", True),
        ({"held": 6}, "predictions", "holds 6 predictions", True),
        ({"there": 2}, "predictions", "2 of its images", True),
        ({"imported_again": True}, "predictions", "predictions of al-1 were imported again", True),
    ],
)
def test_each_problem_alone(change, aspect, words, mended):
    serving = WHOLE.model_copy(update=change)

    [problem] = serving_problems(serving, ProjectOptions(), "Active learning")

    assert (problem.aspect, problem.mended, is_lost(serving)) == (aspect, mended, mended)
    assert words in problem.seen


def test_the_whole_ranking_has_none():
    assert serving_problems(WHOLE, ProjectOptions(), "Active learning") == []
    assert not is_lost(WHOLE)


@pytest.mark.parametrize("change", [{"model_version": ""}, {"held": 0}, {"model_version": "Active learning"}])
def test_where_no_image_waits_nobody_misses_a_lost_ranking(change):
    serving = WHOLE.model_copy(update=change | {"sampling": None})

    [problem] = serving_problems(serving, ProjectOptions(), "Active learning", waits=False)

    assert problem.aspect == "sampling"


def test_readers_per_image_are_as_many_as_the_owner_chose():
    options = ProjectOptions(annotations_per_task=3)

    assert serving_problems(WHOLE.model_copy(update={"maximum_annotations": 3}), options, "t") == []
    [problem] = serving_problems(WHOLE, options, "t")
    assert "shown to 1 readers, and annotations_per_task is 3" in problem.seen


@pytest.mark.parametrize(("model_version", "problems"), [("", 0), ("my-resnet", 0), ("Active learning", 1)])
def test_before_the_first_ranking(model_version, problems):
    """Nothing of ours can be lost; the backend's title costs three requests an image."""
    serving = WHOLE.model_copy(update={"version": None, "held": 0, "there": 0, "model_version": model_version})

    assert len(serving_problems(serving, ProjectOptions(), "Active learning")) == problems
    assert not is_lost(serving)


@pytest.mark.parametrize("change", [{"model_version": "my-resnet"}, {"held": 0}])
def test_of_a_project_without_a_backend_nothing_is_mended(change):
    """Its owner has removed the backend; what is said stays true."""
    serving = WHOLE.model_copy(update=change | {"connected": False})

    [problem] = serving_problems(serving, ProjectOptions(), "Active learning")

    assert not problem.mended
    assert not is_lost(serving)
    assert "does not have this ML backend any more" in problem.seen


def test_of_another_installation_the_ranking_is_left_and_named():
    """Two that publish in one project would replace each other's ranking every minute."""
    serving = WHOLE.model_copy(update={"model_version": "al-r000009-bald-0a1b2c", "foreign": True})

    [problem] = serving_problems(serving, ProjectOptions(), "Active learning")

    assert (problem.mended, problem.foreign) == (False, True)
    assert not is_lost(serving)
    assert "another installation" in problem.seen


@pytest.mark.parametrize(
    ("model_version", "foreign"),
    [
        ("al-r000009-bald-0a1b2c", True),
        ("al-r1000009-mean_std-0a1b2c", True),
        ("al-r000001-entropy-aaaaaa", False),  # of this installation
        ("al-r50-imagenet", False),
        ("my-resnet", False),
        ("", False),
    ],
)
def test_another_installation_is_known_by_the_name_of_its_ranking(model_version, foreign):
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={}))

    serving = read_serving(
        LabelStudioClient("http://ls", "k", transport=transport),
        {"id": 7, "model_version": model_version},
        {1},
        None,
        lambda: [ImportedVersion(version="al-r000001-entropy-aaaaaa")],
    )

    assert serving.foreign == foreign


def test_the_published_ranking_is_our_own_whatever_is_on_record():
    """A data folder of an earlier version may lack it; what is lost is published again all the same."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=[{}] if "ml" in request.url.path else {}))
    name = "al-r000009-bald-0a1b2c"
    published = PublishedRanking(version=name, round_id="r000009", image_ids=("1",), seconds={}, published_at=NOON)

    client = LabelStudioClient("http://ls", "k", transport=transport)
    serving = read_serving(client, {"id": 7, "model_version": name}, {1}, published, pytest.fail)

    assert (serving.foreign, is_lost(serving)) == (False, True)


OURS, SAM = {"id": 1, "basic_auth_user": "al"}, {"id": 2, "basic_auth_user": None}


@pytest.mark.parametrize(
    ("held", "backends", "user", "connected"),
    [
        (1, [], "al", False),
        (1, [OURS], "al", True),
        (1, [SAM, OURS], "al", True),
        (1, [SAM], "al", False),
        (1, [SAM], None, True),  # without credentials any of them may be this backend
        (2, [], "al", True),
    ],
)
def test_backends_are_asked_for_only_where_the_ranking_is_lost(held, backends, user, connected):
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/ml":
            return httpx.Response(200, json=backends)
        return httpx.Response(200, json={"static": [{"model_version": "al-1", "count": held}]})

    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(answer))
    published = PublishedRanking(version="al-1", round_id="r1", image_ids=("1", "3"), seconds={}, published_at=NOON)
    serving = read_serving(client, {"id": 7, "model_version": "al-1"}, {1, 3}, published, list, user=user)

    assert serving.connected == connected


def test_is_read_from_the_project_and_its_versions():
    """Of the images 1, 2 and 3 the project has 1 and 3 still."""
    row = {"id": 7, "model_version": "al-1", "sampling": "Uncertainty sampling", "maximum_annotations": 1}
    answer = {"static": [{"model_version": "al-1", "count": 2}, {"model_version": "al-0", "count": 9}]}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    published = PublishedRanking(
        version="al-1", round_id="r1", image_ids=("1", "2", "3"), seconds={}, published_at=NOON
    )

    serving = read_serving(LabelStudioClient("http://ls", "k", transport=transport), row, {1, 3, 9}, published, list)

    assert (serving.version, serving.there, serving.held) == ("al-1", 2, 2)
    assert (serving.model_version, serving.show_collab_predictions) == ("al-1", False)


@pytest.mark.parametrize(
    ("imported_at", "newest", "again"),
    [
        (NOON, "2026-01-01T12:00:00.000001Z", True),  # deleted and imported over: as many as before
        (NOON, "2026-01-01T12:00:00Z", False),
        (NOON, "2026-01-01T11:59:59.9Z", False),  # the newest one is gone with its task
        (NOON, None, False),
        (None, "2026-01-01T12:00:01Z", False),  # published by an older version of this backend
    ],
)
def test_as_many_predictions_need_not_be_the_published_ones(imported_at, newest, again):
    answer = {"static": [{"model_version": "al-1", "count": 1, "latest": newest}]}
    backends = [{"id": 1}]
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, json=backends if request.url.path == "/api/ml" else answer)
    )
    published = PublishedRanking(
        version="al-1", round_id="r1", image_ids=("1",), seconds={}, published_at=NOON, imported_at=imported_at
    )
    client = LabelStudioClient("http://ls", "k", transport=transport)

    serving = read_serving(client, {"id": 7, "model_version": "al-1"}, {1}, published, list)

    assert serving.imported_again == again
