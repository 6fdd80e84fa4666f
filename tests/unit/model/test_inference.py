from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ml_backend.images.cache import ImageCache
from ml_backend.model import inference
from ml_backend.model.data import BATCH, FeatureExtractor
from ml_backend.model.hardware import Precision
from ml_backend.model.inference import SHARD_IMAGES, FittedNetwork, hardware_fingerprint
from ml_backend.model.network import McDropoutClassifier
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.schemas import ImageRef
from tests.unit.model.synthetic_images import CLASSES, PROBS, RandomImages, random_refs

ALL: frozenset[Need] = frozenset({"probs", "features", "gradients"})


@pytest.fixture(scope="module")
def network() -> McDropoutClassifier:
    torch.manual_seed(0)
    network = McDropoutClassifier(3, "shufflenet_v2_x0_5", "none", 0.5)
    with torch.no_grad():
        network.head.output.weight.mul_(20)
    return network.eval()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, network: McDropoutClassifier) -> FittedNetwork:
    images = ImageCache(RandomImages(), tmp_path_factory.mktemp("images"), 32)
    extractor = FeatureExtractor(network.backbone, images, Precision(torch.device("cpu")), None)
    return FittedNetwork(network, CLASSES, extractor, network.head.masks(4, seed=0))


def outputs(fitted: FittedNetwork, pool: Sequence[ImageRef], needs: frozenset[Need] = PROBS) -> PoolPredictions:
    return fitted.outputs(pool, needs, list[int]().append)


def test_a_shard_is_whole_batches() -> None:
    """Otherwise the bits of a batch of the backbone would depend on the process that computes it."""
    assert all(SHARD_IMAGES % batch == 0 for batch in BATCH.values())


@pytest.mark.parametrize("count", [0, 5, 32, 33, 70, 96])
def test_single_shards_give_the_same_bits(fitted: FittedNetwork, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "SHARD_IMAGES", 32)
    pool = random_refs(count)

    whole = outputs(fitted, pool, ALL)
    parts = [outputs(fitted, pool[start : start + 32], ALL) for start in reversed(range(0, count, 32))][::-1]

    readable = [image.id for image in pool if int(image.uri) % 7 != 3]
    assert list(whole.image_ids) == readable
    assert [exclusion.image_id for exclusion in whole.exclusions] == [i.id for i in pool if i.id not in readable]
    assert whole.probs.shape == (len(readable), 4, 3)
    assert whole.gradients is not None
    assert whole.gradients.hidden.shape == (len(readable), 512)
    assert whole.features is not None
    assert whole.features.shape == (len(readable), 1024)
    assert tuple(image_id for part in parts for image_id in part.image_ids) == whole.image_ids
    for of in (
        lambda out: out.probs,
        lambda out: out.features,
        lambda out: out.gradients.hidden,
        lambda out: out.gradients.residuals,
    ):
        if parts:
            assert np.array_equal(np.concatenate([of(part) for part in parts]), of(whole))


def test_head_runs_once_a_shard(fitted: FittedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 images and a shard of 16, the head sees 16, 16 and 8, less the unreadable: 3, 10; 17, 24, 31; 38."""
    seen: list[int] = []
    passes = type(fitted.network.head).passes

    def counting(head: object, features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        seen.append(len(features))
        return passes(head, features, masks)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "SHARD_IMAGES", 16)
    monkeypatch.setattr(type(fitted.network.head), "passes", counting)

    outputs(fitted, random_refs(40))

    assert seen == [14, 13, 7]


def test_only_what_is_needed(fitted: FittedNetwork) -> None:
    plain = outputs(fitted, random_refs(3))
    assert (plain.features, plain.labelled_features, plain.gradients) == (None, None, None)
    # The passes are drawn in any case, for pre-labels.
    assert outputs(fitted, random_refs(3), frozenset()).probs.shape == (3, 4, 3)


def test_gradients_are_of_the_network_without_dropout(fitted: FittedNetwork) -> None:
    out = outputs(fitted, random_refs(3), ALL)

    assert out.features is not None
    assert out.gradients is not None
    with torch.inference_mode():
        probs = fitted.network.head(torch.from_numpy(out.features)).softmax(dim=-1).numpy()
    onehot = np.eye(3, dtype=np.float32)[probs.argmax(axis=1)]
    assert out.gradients.residuals == pytest.approx(probs - onehot, abs=1e-6)
    assert out.gradients.residuals.dtype == out.gradients.hidden.dtype == np.float32


def test_labelled_features_are_computed_on_demand(fitted: FittedNetwork) -> None:
    calls: list[int] = []

    def labelled() -> torch.Tensor:
        calls.append(1)
        return torch.ones(2, 1024)

    known = FittedNetwork(fitted.network, CLASSES, fitted.extractor, fitted.masks, labelled)
    assert outputs(known, random_refs(1)).labelled_features is None
    assert calls == []

    found = outputs(known, random_refs(1), frozenset({"features"})).labelled_features

    assert found is not None
    assert found.tolist() == np.ones((2, 1024)).tolist()
    # Unknown to a restored network.
    assert outputs(fitted, random_refs(1), frozenset({"features"})).labelled_features is None


def test_progress(fitted: FittedNetwork) -> None:
    seen: list[int] = []
    fitted.outputs(random_refs(40), PROBS, seen.append)

    assert seen == [16, 32, 40]


def test_same_bits_in_another_order_of_shards_and_with_cached_features(
    tmp_path: Path, network: McDropoutClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with one cache score alternate shards; then one process finds all features cached."""
    monkeypatch.setattr(inference, "SHARD_IMAGES", 16)
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        images = ImageCache(RandomImages(), folder / "images", 32)
        extractor = FeatureExtractor(network.backbone, images, Precision(torch.device("cpu")), folder / "features")
        one = FittedNetwork(network, CLASSES, extractor, network.head.masks(4, seed=0))
        if number:
            parts = {start: outputs(one, random_refs(40)[start : start + 16]) for start in (32, 0, 16)}
            found.append(np.concatenate([parts[start].probs for start in (0, 16, 32)]))
        found.append(outputs(one, random_refs(40)).probs)

    assert all(np.array_equal(each, found[0]) for each in found)


def test_another_number_of_threads_is_other_hardware() -> None:
    """Sums are added in another order."""
    threads = torch.get_num_threads()
    before = hardware_fingerprint("cpu")
    try:
        torch.set_num_threads(threads + 1)
        assert hardware_fingerprint("cpu") != before
    finally:
        torch.set_num_threads(threads)
