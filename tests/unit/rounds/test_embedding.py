"""Features on few axes: the axes are worked by hand, and what is kept is computed again only where images changed."""

import numpy as np
import pytest

from ml_backend.errors import RoundError, StaleRound
from ml_backend.rounds import embedding
from ml_backend.rounds.embedding import keep_embedding, principal_axes
from ml_backend.rounds.interfaces import assume_current
from ml_backend.schemas import Label
from ml_backend.storage import ProjectStore
from ml_backend.storage.rounds import INPUTS, RoundInputs, write_inputs
from tests.fakes import FakeLearner, make_image, make_report, make_request

REQUEST = make_request()


class TestPrincipalAxes:
    def test_hand_worked(self):
        """Along (1, 1) the points lie at +-2 sqrt 2, along (1, -1) at +-sqrt 2, along z nowhere: 16 and 4 of 20."""
        points = np.array([[2, 2, 5], [-2, -2, 5], [1, -1, 5], [-1, 1, 5]], np.float32)

        mean, axes, explained = principal_axes(points, 1)

        assert mean.tolist() == [0, 0, 5]
        assert axes.ravel() == pytest.approx([0.5**0.5, 0.5**0.5, 0])
        assert explained == pytest.approx(1.0)

    def test_the_two_first_of_three(self):
        """Variances 9, 4 and 1 on the axes themselves."""
        points = np.concatenate([np.diag([3.0, 1.0, 2.0]), -np.diag([3.0, 1.0, 2.0])]).astype(np.float32)

        _, axes, explained = principal_axes(points)

        assert axes.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
        assert explained == pytest.approx(13 / 14)

    @pytest.mark.parametrize("points", [np.ones((3, 4), np.float32), np.empty((0, 4), np.float32)])
    def test_nothing_varies(self, points):
        assert principal_axes(points)[2] == 0.0


@pytest.fixture
def store(tmp_path) -> ProjectStore:
    store = ProjectStore(tmp_path)
    store.save(make_report(), None, None)
    keep_inputs(store, 12)
    return store


def keep_inputs(store: ProjectStore, images: int) -> None:
    labels = tuple(Label(image=make_image(n), value="normal", raters=1) for n in range(3))
    pool = tuple(make_image(n) for n in range(3, images))
    write_inputs(store.folder / "rounds/r000001" / INPUTS, RoundInputs(labels=labels, pool=pool))


def keep(store: ProjectStore, learner: FakeLearner, check=assume_current, **changes: object):
    keep_embedding(store, REQUEST.model_copy(update=changes), learner, check)
    return store.embedding()


class TestKeepEmbedding:
    def test_labelled_and_unlabelled_images_with_like_ones_near(self, store, monkeypatch):
        """Of 0 to 11, only 0 and 10, and 1 and 11, look alike; in parts of five images at a time it is the same."""
        whole = keep(store, FakeLearner())
        monkeypatch.setattr(embedding, "CHUNK", 5)
        (store.folder / "embedding.npz").write_bytes(b"damaged")
        parts = keep(store, FakeLearner())

        assert whole.image_ids == parts.image_ids == tuple(map(str, range(12)))
        assert np.array_equal(whole.components, parts.components)
        rows = whole.components.astype(np.float32)
        likeness = rows @ rows.T / np.outer(*[np.linalg.norm(rows, axis=1)] * 2)
        alike = {(a, b) for a, b in np.argwhere(likeness > 0.9).tolist() if a < b}
        assert alike == {(0, 10), (1, 11)}
        assert 0.1 < whole.explained < 0.6

    def test_the_axes_do_not_need_every_image(self, store, monkeypatch):
        monkeypatch.setattr(embedding, "FITTED", 7)
        learner = FakeLearner()

        assert len(keep(store, learner).components) == 12
        assert [len(images) for images in learner.embedded] == [7, 12]

    def test_again_where_images_changed_or_one_could_not_be_read(self, store):
        learner = FakeLearner()
        learner.unreadable = {"5"}
        assert "5" not in keep(store, learner).image_ids
        learner.unreadable = set()
        assert "5" in keep(store, learner).image_ids
        computed = len(learner.embedded)
        keep(store, learner)
        assert len(learner.embedded) == computed

        keep_inputs(store, 13)
        assert keep(store, learner).image_ids[-1] == "12"

    def test_of_no_readable_image_nothing_is_kept(self, store):
        learner = FakeLearner()
        learner.unreadable = set(map(str, range(12)))

        assert keep(store, learner) is None
        assert not (store.folder / "embedding.npz").exists()

    @pytest.mark.parametrize("error", [StaleRound("another round waits"), RoundError("memory"), MemoryError()])
    def test_what_hinders_it_ends_no_round_and_leaves_the_former(self, store, error):
        def check() -> None:
            raise error

        before = keep(store, FakeLearner())
        keep_inputs(store, 20)

        assert keep(store, FakeLearner(), check).image_ids == before.image_ids
