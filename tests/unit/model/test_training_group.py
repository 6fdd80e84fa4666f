"""Full fine-tuning by 1, 2 and 3 processes of gloo: the same batches, the same losses to rounding, the same errors."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
import torch
from PIL import Image
from torch import Tensor, distributed, nn
from torchvision.ops import StochasticDepth

from ml_backend.config import ProjectOptions
from ml_backend.images.source import FolderSource
from ml_backend.images.synthetic import draw_pool
from ml_backend.model.data import PixelExamples
from ml_backend.model.distributed import SINGLE, Group
from ml_backend.model.hardware import Precision, one_thread
from ml_backend.model.learner import McDropoutLearner
from ml_backend.model.training import EarlyStopping, OptimizerConfig, train
from ml_backend.schemas import FitReport, ImageRef, Label

CLASSES = ("normal", "moderate", "severe")
CONFIG = OptimizerConfig(epochs=3, patience=3, batch=8, learning_rate=1e-3, weight_decay=1e-4)
LEARNS: Final = ("plain", "soft", "bfloat16", "batch 4")
BATCHES: Final = {name: [4, 4, 4, 4, 2] if name == "batch 4" else [8, 8, 2] for name in LEARNS}
"""Of 18 images: 8 are not divisible by 3, and 2 are fewer than 3 processes."""


class Recorded(PixelExamples):
    """Notes the rows of every batch that is read for training."""

    rows: ClassVar[list[list[int]]] = []

    def inputs(self, rows: Tensor, augmentation: Any) -> Tensor:
        if augmentation is not None and len(self.targets) == 18:  # not of the trial before
            self.rows.append(rows.tolist())
        return super().inputs(rows, augmentation)


class Small(nn.Module):
    """Convolution, normalisation, stochastic depth and dropout, as the networks of timm and torchvision have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depth = StochasticDepth(0.3, "row")
        hidden = nn.Linear(8, 16, bias=False)
        self.head = nn.Sequential(nn.Dropout(0.5), hidden, nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        logits: Tensor = self.head((stem + self.depth(self.block(stem))).mean((2, 3)))
        return logits


class Fails(Small):
    """Raises an error in training with more than ``room`` images."""

    def __init__(self, error: Exception, room: int = 0) -> None:
        super().__init__()
        self.error, self.room = error, room

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) > self.room:
            raise self.error
        return super().forward(images)


def examples(count: int, seed: int) -> Recorded:
    """Grey squares, brighter from class to class; a single image is of the last class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    targets[-1] = 2
    noise = torch.randint(0, 120, (count, 32, 32), generator=generator)
    return Recorded((noise + 60 * targets[:, None, None]).to(torch.uint8), targets)


def soft(data: Recorded) -> Recorded:
    return replace(data, soft=0.1 + 0.7 * nn.functional.one_hot(data.targets, 3))


@dataclass(frozen=True)
class Case:
    """What one process trains; ``odd`` is the network of the last process."""

    network: Callable[[], nn.Module] = Small
    odd: Callable[[], nn.Module] | None = None
    data: Callable[[Recorded], Recorded] = lambda data: data
    config: OptimizerConfig = CONFIG
    dtype: torch.dtype = torch.float32


CASES: Final = {
    "plain": Case(),
    "soft": Case(data=soft),
    "bfloat16": Case(dtype=torch.bfloat16),
    "batch 4": Case(config=replace(CONFIG, batch=4)),
    "memory": Case(odd=lambda: Fails(torch.OutOfMemoryError("CUDA out of memory"), room=2)),
    "diverges": Case(config=replace(CONFIG, learning_rate=1e30)),
    "fails": Case(odd=lambda: Fails(ValueError("no such layer"))),
}


def run(case: Case, group: Group) -> dict[str, Any]:
    """The curve, the rows, the weights, or the error of one training."""
    found: dict[str, Any] = {"curve": []}
    Recorded.rows = []
    update = EarlyStopping.update

    def record(self: EarlyStopping, *losses: float) -> bool:
        found["curve"] += losses
        return update(self, *losses)

    EarlyStopping.update = record  # type: ignore[assignment,method-assign]
    network = case.odd() if case.odd is not None and group.rank == group.size - 1 else case.network()
    try:
        result = train(
            network,
            case.data(examples(18, 0)),
            examples(9, 1),
            CLASSES,
            config=case.config,
            precision=Precision(torch.device("cpu"), case.dtype),
            seed=3,
            progress=lambda *_: None,
            group=group,
        )
        found |= {"best": result.best_epoch}
    except Exception as error:  # noqa: BLE001 - compared below
        found |= {"error": f"{type(error).__name__}: {error}"}
    finally:
        EarlyStopping.update = update  # type: ignore[method-assign]
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return found | {"rows": Recorded.rows, "weights": weights}


def fit(folder: Path, group: Group) -> tuple[list[str], FitReport]:
    """By a learner with a cache of its own; every image is a file, and one of them no image."""
    fetched: list[str] = []

    class Source(FolderSource):
        def fetch(self, image: ImageRef) -> bytes:
            fetched.append(image.id)
            return super().fetch(image)

    options = ProjectOptions(
        backbone="resnet18", weights="none", image_side=32, finetune="full", epochs=1, train_batch=8, passes=2
    )
    cache = folder / f"cache {group.rank} of {group.size}"
    learner = McDropoutLearner(options, Source(folder), cache, device="cpu", group=group)
    labels = [
        Label(image=ImageRef(id=str(number), uri=f"{number}.png"), value=CLASSES[number % 3], raters=1)
        for number in range(15)
    ]
    return fetched, learner.fit(labels[:10], labels[10:], CLASSES)


def serve(rank: int, folder: str) -> dict[tuple[int, str], Any]:
    """In a process of its own: all cases in a group of 3, then, without the last process, of 2."""
    torch.set_num_threads(1)
    found: dict[tuple[int, str], Any] = {}
    for size in range(3, max(rank, 1), -1):
        distributed.init_process_group("gloo", f"file://{folder}/{size}", rank=rank, world_size=size)
        found |= {(size, name): run(case, Group(rank, size)) for name, case in CASES.items()}
        if size == 3:
            found[size, "learner"] = fit(Path(folder), Group(rank, size))
        distributed.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[Any]]:
    """Of every number of processes and case, what each process found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    folder = tmp_path_factory.mktemp("group")
    arrays, _, _ = draw_pool(15, (1, 1, 1), seed=0, side=32)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no image")
    with context.Pool(3) as pool:
        ranks = pool.starmap_async(serve, [(rank, str(folder)) for rank in range(3)], chunksize=1).get(timeout=300)
    grouped = {key: [each[key] for each in ranks if key in each] for key in ranks[0]}
    with one_thread():
        grouped[1, "learner"] = [fit(folder, SINGLE)]
        return grouped | {(1, name): [run(CASES[name], SINGLE)] for name in LEARNS}


@pytest.mark.parametrize("size", [2, 3])
class TestGroup:
    @pytest.mark.parametrize("name", LEARNS)
    def test_learns_as_one_process(self, found: Any, name: str, size: int) -> None:
        """The same batches in the same order, to the image; losses and weights up to the rounding of sums."""
        [alone], group = found[1, name], found[size, name]

        assert [len(each) for each in alone["rows"][: len(BATCHES[name])]] == BATCHES[name]
        for each in group:
            assert each["rows"] == alone["rows"]
            assert each["best"] == alone["best"]
            assert each["curve"] == pytest.approx(alone["curve"], abs=2e-2 if name == "bfloat16" else 2e-5)
            for parameter, values in each["weights"].items():
                assert values.tobytes() == group[0]["weights"][parameter].tobytes(), parameter
                if name != "bfloat16":
                    assert values == pytest.approx(alone["weights"][parameter], abs=2e-5), parameter

    def test_error_on_one_process_is_raised_on_all(self, found: Any, size: int) -> None:
        *others, failed = [each["error"] for each in found[size, "fails"]]

        assert failed == "ValueError: no such layer"
        assert set(others) == {f"RoundError: process {size - 1} of {size}: ValueError: no such layer"}

    def test_all_diverge(self, found: Any, size: int) -> None:
        assert {each["error"].partition(":")[0] for each in found[size, "diverges"]} == {"RoundError"}


def test_memory_full_on_one_process_halves_the_batch_of_all(found: Any) -> None:
    for each, smaller in zip(found[3, "memory"], found[3, "batch 4"], strict=True):
        assert each["curve"] == smaller["curve"] != []


def test_learner_reads_each_image_once(found: Any) -> None:
    """Also the one that is none, which is left out by all."""
    [(read, alone)], group = found[1, "learner"], found[3, "learner"]

    assert sorted(image for images, _ in group for image in images) == sorted(read)
    for _, each in group:
        assert [exclusion.image_id for exclusion in each.exclusions] == ["4"]
        assert (each.train_images, each.class_weights) == (alone.train_images, alone.class_weights)
        assert each.validation_loss == pytest.approx(alone.validation_loss, abs=1e-3)
