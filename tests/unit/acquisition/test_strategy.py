"""The catalogue behind the engine's port."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.acquisition import STRATEGIES, CatalogStrategy
from ml_backend.predictions import LastLayerGradients, PoolPredictions
from ml_backend.rounds.cold_start import random_order
from ml_backend.rounds.interfaces import Strategy
from ml_backend.schemas import Exclusion, ImageRef

CLASSES = ("normal", "moderate", "severe")


def outputs(image_ids: tuple[str, ...], passes: int = 100) -> PoolPredictions:
    """An image's passes follow from its id alone; every third image is a copy of the one before it."""
    rows = [np.random.default_rng(int(i) - (int(i) % 3 == 2)).dirichlet(np.ones(3), size=passes) for i in image_ids]
    probs = np.array(rows, dtype=np.float32).reshape(len(image_ids), passes, 3)
    mean = probs.mean(axis=1)
    features = probs[:, :4].reshape(len(image_ids), -1)
    return PoolPredictions(
        image_ids,
        CLASSES,
        probs,
        features=features,
        labelled_features=features[:0],
        gradients=LastLayerGradients(mean - np.eye(3, dtype=np.float32)[mean.argmax(axis=-1)], features),
        exclusions=(Exclusion(image_id="99", reason="unreadable"),),
    )


class TestCatalogStrategy:
    def test_satisfies_the_port(self) -> None:
        """The types are held against the Protocol by mypy; the names must fit at run time."""
        strategies: list[Strategy] = [CatalogStrategy(name) for name in STRATEGIES]

        assert [strategy.name for strategy in strategies] == list(STRATEGIES)
        assert CatalogStrategy("entropy").needs == {"probs"}
        assert CatalogStrategy("random").needs == set()

    def test_ids_and_scores_go_together(self) -> None:
        """Image 10 is unsure, 9 less so, 11 sure: highest score first, each beside its id."""
        probs = np.array([[[0.5, 0.5]], [[0.8, 0.2]], [[1.0, 0.0]]], dtype=np.float32)

        ranking = CatalogStrategy("least_confidence").rank(
            PoolPredictions(("10", "9", "11"), ("no", "yes"), probs), 2, 0
        )

        assert ranking.image_ids == ("10", "9", "11")
        assert ranking.scores == pytest.approx((0.5, 0.2, 0.0))
        assert (ranking.strategy, ranking.batch_size) == ("least_confidence", 2)
        assert ranking.suggestions == {"10": "no", "9": "no", "11": "no"}

    def test_unreadable_images_stay_named(self) -> None:
        ranking = CatalogStrategy("entropy").rank(outputs(("1", "2")), 1, 0)

        assert [exclusion.image_id for exclusion in ranking.exclusions] == ["99"]

    @pytest.mark.parametrize("name", STRATEGIES)
    @settings(deadline=None, max_examples=10)
    @given(order=st.permutations([str(i) for i in range(1, 31)]))
    def test_the_order_of_arrival_decides_nothing(self, name: str, order: list[str]) -> None:
        strategy = CatalogStrategy(name)

        sorted_pool = strategy.rank(outputs(tuple(str(i) for i in range(1, 31))), 6, 5)

        assert strategy.rank(outputs(tuple(order)), 6, 5) == sorted_pool

    def test_random_is_the_order_of_the_start(self) -> None:
        """Turning from the start set to the strategy ``random`` reshuffles nothing."""
        ids = tuple(str(i) for i in range(40))

        ranking = CatalogStrategy("random").rank(outputs(ids, passes=2), 20, 3)
        start = random_order([ImageRef(id=i, uri=f"{i}.png") for i in ids], 20, 3)

        assert ranking.image_ids == start.image_ids
        assert ranking.scores == start.scores

    def test_a_read_only_array_will_do(self) -> None:
        given_outputs = outputs(("3", "1", "2"))
        for array in (given_outputs.probs, given_outputs.features, given_outputs.labelled_features):
            assert array is not None
            array.setflags(write=False)

        for name in ("batch_bald", "typiclust"):
            assert len(CatalogStrategy(name).rank(given_outputs, 2, 0).image_ids) == 3

    def test_what_the_learner_did_not_compute_is_named(self) -> None:
        probs = np.full((2, 2, 2), 0.5, dtype=np.float32)

        with pytest.raises(ValueError, match="badge needs gradients, got none"):
            CatalogStrategy("badge").rank(PoolPredictions(("1", "2"), ("no", "yes"), probs), 1, 0)

    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match=r"unknown strategy 'best': known are .*entropy"):
            CatalogStrategy("best")

    def test_a_network_gone_astray_is_named(self) -> None:
        """Of two bad images the one with the lower id, in whatever order they arrived."""
        broken = outputs(("12", "7", "3"))
        broken.probs[0, 3] = np.nan
        broken.probs[1, 3] = np.nan

        with pytest.raises(ValueError, match=r"image '7' has \[nan, nan, nan\] in pass 4"):
            CatalogStrategy("random").rank(broken, 2, 0)
