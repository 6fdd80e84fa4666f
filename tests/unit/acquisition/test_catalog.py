"""The catalogue: every strategy ranks the whole pool, the same every time, or says what is wrong."""

import math
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend import acquisition
from ml_backend.acquisition import STRATEGIES, rank
from ml_backend.acquisition.catalog import RANKERS
from ml_backend.acquisition.evidence import Gradients


def everything(images: int, seed: int = 0) -> dict[str, Any]:
    """What any strategy may need, of a small pool; every fourth image is a copy of the one before it."""
    generator = torch.Generator().manual_seed(seed)
    probs = pool(images, passes=4, seed=seed)
    features = torch.randn(images, 6, generator=generator).relu()
    for i in range(3, images, 4):
        probs[i], features[i] = probs[i - 1], features[i - 1]
    mean = probs.mean(dim=1)
    residuals = mean - torch.nn.functional.one_hot(mean.argmax(dim=-1), 3) if images else mean
    labelled = torch.randn(3, 6, generator=generator).relu()
    return {
        "probs": probs,
        "features": features,
        "labelled_features": labelled,
        "gradients": Gradients(residuals, features),
    }


def pool(images: int, passes: int = 10, classes: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(images, passes, classes, generator=generator), dim=-1)


class TestCatalogue:
    def test_every_strategy_has_a_ranker(self) -> None:
        assert list(RANKERS) == sorted(RANKERS)
        assert set(RANKERS) == set(STRATEGIES)

    def test_exports_exist(self) -> None:
        assert all(hasattr(acquisition, name) for name in acquisition.__all__)


class TestRank:
    def test_best_first(self) -> None:
        """Image 1 is unsure, 0 less so, 2 sure; scores stay in the pool's own order."""
        probs = torch.tensor([[[0.8, 0.2]], [[0.5, 0.5]], [[1.0, 0.0]]])

        ranking = rank("least_confidence", probs, 1)

        assert ranking.order.tolist() == [1, 0, 2]
        assert ranking.order.dtype == torch.int64
        assert ranking.scores.tolist() == pytest.approx([0.2, 0.5, 0.0])

    def test_ties_go_by_the_seeded_order_of_the_ids(self) -> None:
        """Votes of 10 passes leave few distinct scores: among equals the order is that of ``random``."""
        probs = pool(200)
        ids = [f"task {i}" for i in range(200)]
        chance = rank("random", probs, 20, seed=4, ids=ids).order.tolist()

        ranking = rank("variation_ratios", probs, 20, seed=4, ids=ids)

        by_hand = sorted(range(200), key=lambda i: (-ranking.scores[i].item(), chance.index(i)))
        assert ranking.order.tolist() == by_hand

    def test_ties_do_not_keep_the_pool_s_order(self) -> None:
        probs = torch.full((100, 4, 3), 1 / 3)

        assert rank("entropy", probs, 20, seed=0).order.tolist() != sorted(range(100))
        assert rank("entropy", probs, 20, seed=0).order.tolist() != rank("entropy", probs, 20, seed=1).order.tolist()

    def test_random_looks_at_nothing(self) -> None:
        first, second = rank("random", pool(30, seed=1), 5, seed=9), rank("random", pool(30, 2, 5), 20, seed=9)

        assert first.order.tolist() == second.order.tolist()
        assert first.scores[first.order].tolist() == sorted(first.scores.tolist(), reverse=True)
        assert len(set(first.scores.tolist())) == 30
        assert first.scores.min() > 0
        assert first.scores.max() == 1

    def test_batch_bald_puts_its_picks_first_and_the_rest_by_bald(self) -> None:
        probs = pool(60, passes=100)
        alone = rank("bald", probs, 5)

        ranking = rank("batch_bald", probs, 5)

        picks, rest = ranking.order[:5].tolist(), ranking.order[5:].tolist()
        assert picks == acquisition.batch_bald(probs, 5).images.tolist()
        assert rest == [i for i in alone.order.tolist() if i not in picks]
        assert ranking.scores[rest].tolist() == alone.scores[rest].tolist()
        assert ranking.scores[picks].tolist() == acquisition.batch_bald(probs, 5).gains.tolist()

    @pytest.mark.parametrize("name", STRATEGIES)
    @settings(deadline=None, max_examples=12)
    @given(images=st.integers(0, 12), batch_size=st.integers(1, 15), seed=st.integers(-3, 10**12))
    def test_the_whole_pool_and_the_same_again(self, name: str, images: int, batch_size: int, seed: int) -> None:
        evidence = everything(images, seed=abs(seed) % 100)

        ranking, again = (rank(name, batch_size=batch_size, seed=seed, **evidence) for _ in range(2))

        assert sorted(ranking.order.tolist()) == list(range(images))
        assert ranking.scores.shape == (images,)
        assert ranking.scores.dtype == torch.float64
        assert ranking.scores.isfinite().all()
        assert ranking.order.tolist() == again.order.tolist()
        assert ranking.scores.tolist() == again.scores.tolist()

    @pytest.mark.parametrize("name", STRATEGIES)
    @settings(deadline=None, max_examples=8)
    @given(order=st.permutations(range(14)), seed=st.integers(0, 99), labelled=st.booleans())
    def test_permuting_images_permutes_the_ranking(
        self, name: str, order: list[int], seed: int, *, labelled: bool
    ) -> None:
        """Ids go with their images, and settle every tie; the labelled images arrive in another order too."""
        evidence = everything(14, seed)
        if not labelled:
            evidence["labelled_features"] = None
        moved: dict[str, Any] = {key: evidence[key][order] for key in ("probs", "features")}
        moved["labelled_features"] = evidence["labelled_features"].flip(0) if labelled else None
        moved["gradients"] = Gradients(*(rows[order] for rows in evidence["gradients"]))
        ids = [f"image {i}" for i in range(14)]

        ranking = rank(name, batch_size=5, seed=seed, ids=ids, **evidence)
        other = rank(name, batch_size=5, seed=seed, ids=[ids[i] for i in order], **moved)

        assert [order[i] for i in other.order.tolist()] == ranking.order.tolist()
        assert other.scores.tolist() == ranking.scores[order].tolist()

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_the_same_whatever_the_thread_count(self, name: str) -> None:
        """Large enough that torch, BLAS and k-means would share the work."""
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(1200, 96, generator=generator).relu()
        probs = pool(1200, passes=20)
        residuals = probs.mean(dim=1) - torch.nn.functional.one_hot(probs.mean(dim=1).argmax(dim=-1), 3)
        before = torch.get_num_threads()
        try:
            rankings = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                rankings.append(
                    rank(
                        name,
                        probs,
                        15,
                        features=features,
                        labelled_features=features[:40] + 0.5,
                        gradients=Gradients(residuals, features),
                    )
                )
        finally:
            torch.set_num_threads(before)

        assert rankings[0].order.tolist() == rankings[1].order.tolist()
        assert rankings[0].scores.tolist() == rankings[1].scores.tolist()


class TestFewPasses:
    def test_batch_bald_warns(self) -> None:
        """20 labels of the batch against log 50 nats that 50 passes hold."""
        with structlog.testing.capture_logs() as logs:
            rank("batch_bald", pool(30, passes=50), 20)

        assert [(e["event"], e["log_level"], e["passes"], e["wanted"]) for e in logs] == [
            ("few_passes_for_batch_bald", "warning", 50, 100)
        ]

    @pytest.mark.parametrize(
        ("name", "passes", "batch_size"), [("batch_bald", 100, 20), ("batch_bald", 50, 10), ("bald", 5, 20)]
    )
    def test_enough_is_silent(self, name: str, passes: int, batch_size: int) -> None:
        with structlog.testing.capture_logs() as logs:
            rank(name, pool(30, passes=passes), batch_size)

        assert logs == []


class TestBadInput:
    @pytest.mark.parametrize(
        "bad", [[math.nan, 0.5, 0.5], [math.inf, 0.0, 0.0], [-0.1, 0.6, 0.5], [0.5, 0.5, 0.5], [2.0, -3.0, 4.0]]
    )
    @pytest.mark.parametrize("name", ["entropy", "random", "batch_bald"])
    def test_the_first_bad_image_is_named(self, name: str, bad: list[float]) -> None:
        """Far enough into the pool to stand in a later chunk; one further back is bad too."""
        probs = pool(10_000)
        probs[9_001, 7] = torch.tensor(bad)
        probs[9_500, 0] = torch.nan

        with pytest.raises(ValueError, match=r"image 't9001' has \[.*\] in pass 8: wanted probabilities of 0 or more"):
            rank(name, probs, 20, ids=[f"t{i}" for i in range(10_000)])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_may_miss_1_by_its_own_rounding(self, dtype: torch.dtype) -> None:
        assert rank("entropy", pool(500, classes=5).to(dtype), 20).order.shape == (500,)

    @pytest.mark.parametrize(
        ("probs", "message"),
        [
            (torch.full((4, 2), 0.5), r"\[images, passes, classes\] .* got \[4, 2\]"),
            (torch.full((4, 3, 1), 1.0), r"2 classes or more, got \[4, 3, 1\]"),
            (torch.zeros((4, 0, 2)), r"1 pass .* got \[4, 0, 2\]"),
            (torch.ones((4, 3, 2), dtype=torch.int64), "floating type, got torch.int64"),
            (np.full((4, 3, 2), 0.5), "torch tensor of a floating type, got ndarray"),
        ],
    )
    def test_no_softmax_output(self, probs: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            rank("entropy", probs, 2)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("entropy", "entropy needs probs, got none: pass probs, the softmax outputs"),
            ("core_set", "core_set needs features, got none: pass features, the pooled backbone features"),
            ("typiclust", "typiclust needs features, got none"),
            ("badge", "badge needs gradients, got none: pass gradients, the residuals"),
        ],
    )
    def test_a_missing_need_is_named(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            rank(name, None, 2, ids=["a", "b"])

    def test_what_a_strategy_does_not_need_may_be_missing(self) -> None:
        evidence = everything(6)

        assert len(rank("random", None, 2, ids=["a", "b", "c"]).order) == 3
        assert len(rank("core_set", None, 2, features=evidence["features"]).order) == 6
        assert len(rank("badge", None, 2, gradients=evidence["gradients"]).order) == 6
        with pytest.raises(ValueError, match="nothing says which images the pool holds: pass ids"):
            rank("random", None, 2)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize(
        ("key", "named"),
        [("features", "'i4'"), ("labelled_features", "'labelled 2'"), ("residuals", "'i4'"), ("hidden", "'i4'")],
    )
    def test_features_gone_astray_are_named(self, key: str, named: str, bad: float) -> None:
        evidence = everything(8)
        evidence["gradients"] = Gradients(*(rows.clone() for rows in evidence["gradients"]))
        rows = getattr(evidence["gradients"], key, None)
        rows = evidence[key] if rows is None else rows
        rows[2 if "labelled" in key else 4 :, 1] = bad
        evidence["features"][0] = 3e38  # finite, although their sum is not

        with pytest.raises(ValueError, match=f"image {named} has {bad} among its {key}: wanted finite numbers"):
            rank("typiclust", batch_size=2, ids=[f"i{i}" for i in range(8)], **evidence)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"features": torch.ones(4, 6)}, "5 ids but features of 4 images"),
            ({"features": torch.ones(5)}, r"features must be \[images, dims\] with 1 dim or more, got \[5\]"),
            ({"features": torch.ones(5, 6, dtype=torch.int64)}, "floating type, got torch.int64"),
            ({"features": np.ones((5, 6))}, "torch tensor of a floating type, got ndarray"),
            ({"labelled_features": torch.ones(2, 7)}, "labelled_features have 7 dims but features 6"),
            ({"gradients": Gradients(torch.ones(5, 3), torch.ones(3, 6))}, "5 ids but hidden of 3 images"),
        ],
    )
    def test_shapes_that_do_not_fit(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            rank("core_set", batch_size=2, **(everything(5) | change))

    def test_the_rest(self) -> None:
        probs = pool(3)
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            rank("entropy", probs, 0)
        with pytest.raises(ValueError, match="2 ids but probs of 3 images"):
            rank("entropy", probs, 1, ids=["a", "b"])
        with pytest.raises(ValueError, match="3 ids, but only 2 distinct"):
            rank("entropy", probs, 1, ids=["a", "b", "a"])
        with pytest.raises(ValueError, match="mean_std needs at least 2 passes, got 1"):
            rank("mean_std", probs[:, :1], 1)
        with pytest.raises(ValueError, match="unknown strategy 'best'"):
            rank("best", probs, 1)
