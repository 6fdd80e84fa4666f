"""Every acquisition function ranks the whole pool, the same every time, or says what is wrong."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend import acquisition
from ml_backend.acquisition import (
    STRATEGIES,
    CatalogStrategy,
    badge,
    bald,
    batch_bald,
    core_set,
    entropy,
    inputs,
    least_confidence,
    margin,
    mean_std,
    rank,
    typiclust,
    variation_ratios,
)
from ml_backend.acquisition.inputs import Gradients
from ml_backend.predictions import LastLayerGradients, PoolPredictions
from ml_backend.rounds.cold_start import random_order
from ml_backend.rounds.interfaces import Strategy
from ml_backend.schemas import Exclusion
from ml_backend.seeding import seeded_order


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

    def test_only_level_images_are_hashed_and_all_in_one_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A hash an image costs more than its score; 3, 4 and 7 have the passes of others."""
        probs = pool(10)
        probs[[3, 4, 7]] = probs[[1, 1, 9]]
        hashed: list[tuple[list[str], int]] = []

        def noted(names: list[str], seed: int) -> Any:
            hashed.append((sorted(names), torch.get_num_threads()))
            return seeded_order(names, seed)

        monkeypatch.setattr(inputs, "seeded_order", noted)
        rank("entropy", probs, 2)
        rank("entropy", pool(10), 2)
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        rank("core_set", None, 2, features=torch.eye(5))
        torch.set_num_threads(before)

        assert hashed[0][0] == ["1", "3", "4", "7", "9"]
        assert hashed[1] == (["0", "1", "2", "3", "4"], 1)

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


def _with_gradient(rows: Tensor) -> Tensor:
    return torch.nn.Parameter(rows.clone()) * 1.0


def _in_inference_mode(rows: Tensor) -> Tensor:
    with torch.inference_mode():
        return rows.clone()


def _read_only(rows: Tensor) -> Any:
    array = rows.numpy().copy()
    array.flags.writeable = False
    return array


SPELLINGS: dict[str, Callable[[Tensor], Any]] = {
    "a leaf with a gradient": lambda rows: torch.nn.Parameter(rows.clone()),
    "a non-leaf with a gradient": _with_gradient,
    "made in inference mode": _in_inference_mode,
    "strided": lambda rows: torch.stack([rows, rows], dim=-1)[..., 0],
    "transposed in memory": lambda rows: rows.transpose(0, -1).contiguous().transpose(0, -1),
    "sparse": lambda rows: rows.to_sparse(),
    "float64": lambda rows: rows.double(),
    "an array": lambda rows: rows.numpy().copy(),
    "an array of float64": lambda rows: rows.numpy().astype(np.float64),
    "an array in Fortran order": lambda rows: np.asfortranarray(rows.numpy()),
    "an array of the other byte order": lambda rows: rows.numpy().astype(">f4"),
    "an array read backwards": lambda rows: rows.numpy()[::-1].copy()[::-1],
    "an array of long doubles": lambda rows: rows.numpy().astype(np.longdouble),
    "a read-only array": _read_only,
}


def spelled(evidence: dict[str, Any], spell: Callable[[Tensor], Any]) -> dict[str, Any]:
    return {
        name: Gradients(*map(spell, rows)) if name == "gradients" else spell(rows) for name, rows in evidence.items()
    }


def bytes_of(values: dict[str, Any]) -> list[bytes]:
    flat = [values["probs"], values["features"], values["labelled_features"], *values["gradients"]]
    dense = [row.detach().to_dense() if isinstance(row, Tensor) else row for row in flat]
    return [np.asarray(row.float() if isinstance(row, Tensor) else row).tobytes() for row in dense]


class TestSpellings:
    """The same values as another kind of array give the same ranking, and the caller's array stays as it was."""

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("spelling", SPELLINGS)
    @pytest.mark.parametrize("name", STRATEGIES)
    def test_the_same_ranking(self, name: str, spelling: str) -> None:
        evidence = everything(40, seed=3) | {"probs": pool(40, passes=33, classes=5)}
        wide = "float64" in spelling or "long" in spelling
        plain = rank(name, batch_size=5, seed=1, **spelled(evidence, lambda rows: rows.double() if wide else rows))
        values = spelled(evidence, SPELLINGS[spelling])
        before = bytes_of(values)

        ranking = rank(name, batch_size=5, seed=1, **values)

        assert ranking.order.tolist() == plain.order.tolist()
        # To the last bit: strides must not decide in which order torch adds up.
        assert ranking.scores.tolist() == plain.scores.tolist()
        assert not ranking.scores.requires_grad
        assert bytes_of(values) == before

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", STRATEGIES)
    def test_half_precision_ranks_as_the_same_values_in_float32(self, name: str, dtype: torch.dtype) -> None:
        evidence = spelled(everything(16, seed=3), lambda rows: rows.to(dtype))
        wide = spelled(evidence, lambda rows: rows.float())
        # Sums of bfloat16 miss 1 by more than float32 is allowed to: of both, the same multiples of 1/8.
        evidence["probs"] = torch.tensor([[0.125, 0.375, 0.5], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0]], dtype=dtype)[
            torch.randint(3, (16, 4), generator=torch.Generator().manual_seed(0))
        ]
        wide["probs"] = evidence["probs"].float()

        ranking, plain = (rank(name, batch_size=5, seed=1, **values) for values in (evidence, wide))

        assert ranking.order.tolist() == plain.order.tolist()
        assert ranking.scores.tolist() == pytest.approx(plain.scores.tolist(), rel=1e-5)

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_an_expanded_tensor(self, name: str) -> None:
        """All images are one row in memory: every score is level, and the ids decide."""
        probs = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]]).requires_grad_().expand(9, 2, 3)
        features = torch.ones(1, 6).requires_grad_().expand(9, 6)
        evidence: dict[str, Any] = {
            "probs": probs,
            "features": features,
            "gradients": Gradients(probs[:, 0] - 0.5, features),
        }

        expanded = rank(name, batch_size=3, **evidence)
        copied = rank(name, batch_size=3, **spelled(evidence, lambda rows: rows.detach().clone()))

        assert expanded.order.tolist() == copied.order.tolist()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("name", STRATEGIES)
    def test_on_a_gpu_with_a_gradient(self, name: str) -> None:
        evidence = everything(16, seed=3)
        ranking = rank(name, batch_size=5, seed=1, **spelled(evidence, lambda rows: _with_gradient(rows).cuda()))

        plain = rank(name, batch_size=5, seed=1, **evidence)
        assert ranking.scores.tolist() == pytest.approx(plain.scores.tolist(), rel=1e-4, abs=1e-5)

    @pytest.mark.parametrize("function", [entropy, margin, least_confidence, bald, mean_std, variation_ratios])
    def test_a_score_alone_takes_them_too(self, function: Callable[[Any], Tensor]) -> None:
        probs = pool(16, passes=4)

        for spell in SPELLINGS.values():
            assert function(spell(probs)).tolist() == pytest.approx(function(probs).tolist(), rel=1e-5, abs=1e-6)

    def test_a_batch_alone_takes_them_too(self) -> None:
        evidence = everything(16)
        values = spelled(evidence, _with_gradient)
        ties = np.arange(16)

        def picks(given: dict[str, Any]) -> list[list[int]]:
            features, labelled = given["features"], given["labelled_features"]
            return [
                batch_bald(given["probs"], 3).images.tolist(),
                core_set(features, 3, ties=ties, labelled_features=labelled).picks.tolist(),
                typiclust(features, 3, ties=ties, labelled_features=labelled).picks.tolist(),
                badge(given["gradients"], 3, draws=np.arange(16, dtype=np.uint64), ties=ties).picks.tolist(),
            ]

        assert picks(values) == picks(evidence)

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (torch.ones(4, 3, 2).bool(), "got torch.bool: convert it with .float()"),
            (torch.ones(4, 3, 2, dtype=torch.complex64), "got torch.complex64"),
            (torch.ones(4, 3, 2).to(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
            (torch.ones(4, 3, 2, device="meta"), "on the meta device, without values"),
            (np.ones((4, 3, 2), bool), "got bool: convert it with .astype(numpy.float32)"),
            (np.ones((4, 3, 2), object), "got object"),
            (np.ma.masked_less(np.full((4, 3, 2), 0.5), [[[0.6, 0.1]]] * 4), "masked array with 12 masked entries"),
            ([torch.ones(3, 2)] * 4, "got list: wrap numbers in numpy.array(...), and stack a list of tensors"),
        ],
    )
    @pytest.mark.parametrize("key", ["probs", "features", "labelled_features"])
    def test_another_type_is_refused_by_name(self, key: str, value: Any, says: str) -> None:
        with pytest.raises(ValueError, match=f"^{key} ") as error:
            rank("random", **({"probs": None, "batch_size": 2, "ids": "abcd"} | {key: value}))

        assert says in str(error.value)

    def test_ids_may_be_numbers(self) -> None:
        probs = pool(9)
        wanted = rank("random", probs, 2, ids=[str(i) for i in range(9)]).order.tolist()

        for ids in (range(9), np.arange(9), torch.arange(9), None):
            assert rank("random", probs, 2, ids=ids).order.tolist() == wanted  # type: ignore[arg-type]


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
            (torch.ones((4, 3, 2), dtype=torch.int64), r"float64\), got torch.int64: convert it"),
            (np.ones((4, 3, 2), np.int64), "floating type, got int64: convert it with .astype"),
            ([[[0.5, 0.5]]], "floating type, got list: wrap numbers in numpy.array"),
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
            ({"features": torch.ones(5, 6, dtype=torch.int64)}, "features must be .* got torch.int64"),
            ({"gradients": torch.ones(5, 18)}, r"gradients must be Gradients\(residuals, hidden\).*got Tensor"),
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
        start = random_order(list(ids), 20, 3)

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
