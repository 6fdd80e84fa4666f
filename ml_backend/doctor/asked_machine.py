"""Checks of this machine: the data folder and its disk, the backbone's weights, the GPU.

What a worker needs is looked for here: run this on the worker's machine, with its environment.
"""

import shutil
from pathlib import Path

from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Outcome, failed, fine
from ml_backend.errors import WeightsError
from ml_backend.storage import write_atomically

__all__ = ["MACHINE_CHECKS", "fits"]

GB = 10**9
NETWORK = 110_000_000  # bytes of a ResNet50 with its head; what is larger is rare
PER_PROBABILITY = 4  # bytes, before compression
PER_FEATURES = 2048 * 4  # bytes of an image's features, of a ResNet50
HASHES = 4096  # bytes that a cache takes for the name of an image


def _data_folder(case: Case) -> Outcome:
    folder = case.settings.data_dir
    if not folder.is_dir():
        return failed(
            f"AL_DATA_DIR={folder} is no folder here",
            "set AL_DATA_DIR as it is set for `ml-backend serve`; in a new installation, make the folder",
        )
    probe = folder / ".doctor"
    try:
        write_atomically(probe, b"written by ml-backend doctor, which removes it at once")
        probe.unlink()
    except OSError as error:
        return failed(
            f"AL_DATA_DIR={folder} cannot be written: {error.strerror or error}",
            "make room, or let the user that runs `ml-backend` write there",
        )
    return fine(f"{folder.absolute()} can be written")


def _space(case: Case) -> Outcome:
    """A round must be able to keep its passes and its networks; its caches go on without a disk."""
    options, images = case.options, int(case.project.get("task_number") or 0)
    passes = images * options.passes * len(case.classes) * PER_PROBABILITY
    needed = passes + options.committee * NETWORK
    limit = case.settings.cache_gb * GB
    caches = min(images * (options.image_side**2 + HASHES), limit) + min(images * PER_FEATURES, limit)
    free = shutil.disk_usage(case.settings.data_dir).free
    told = f"{free / GB:.1f} GB free; a round of {images:,} images keeps up to {needed / GB:.1f} GB"
    if free < needed:
        return failed(told, "make room, or let AL_DATA_DIR name a folder on a larger disk")
    if free < needed + caches:
        told += f", and its caches want {caches / GB:.1f} GB: without room for them rounds are slower"
    return fine(told)


def _weights(case: Case) -> Outcome:
    from ml_backend.model.backbones import last_layer  # noqa: PLC0415 - torch takes seconds
    from ml_backend.model.weights import load_backbone, weights_file  # noqa: PLC0415

    options = case.options
    if options.weights == "none":
        last_layer(options.backbone)  # refuses a network that is not known
        return fine(f"none for {options.backbone}, as the options have it: it is untrained")
    path = weights_file(options.backbone, options.weights)
    if path is None:
        if options.weights == "imagenet":
            what = f"ImageNet's weights for {options.backbone}"
            way = f"let the worker fetch them at its first round; without internet put the file into {_hub()}"
        else:
            what, way = f"the file {options.weights}", "put it there"
        return failed(
            f"{what}: not on this machine",
            f"{way}; or set the option weights to a file of yours, or to none for an untrained network",
        )
    try:
        load_backbone(options.backbone, options.weights)
    except WeightsError as error:
        return failed(str(error), "take another file, or name the backbone that these weights are of")
    return fine(f"of {options.backbone}, from {path}")


def _hub() -> Path:
    """Where PyTorch keeps what it has downloaded."""
    import torch  # noqa: PLC0415

    return Path(torch.hub.get_dir()) / "checkpoints"


def _gpu(case: Case) -> Outcome:
    if case.settings.device == "cpu":
        return fine("not used, as AL_DEVICE=cpu has it: heads are trained on the CPU")
    import torch  # noqa: PLC0415 - it takes seconds

    from ml_backend.doctor.memory import step_memory  # noqa: PLC0415
    from ml_backend.model.precision import Arithmetic  # noqa: PLC0415

    options = case.options
    if not torch.cuda.is_available():
        if case.settings.device == "cuda":
            return failed("AL_DEVICE=cuda, and PyTorch finds no usable GPU", "mend the driver, or set AL_DEVICE=auto")
        if options.finetune == "full":
            return fine("none: the whole network is trained on the CPU, as finetune=full has it, which takes hours")
        return fine("none that PyTorch can use: heads are trained on the CPU")
    device = torch.device("cuda")
    free, total = torch.cuda.mem_get_info(device)
    there = f"{torch.cuda.get_device_name(device)}, {total / GB:.1f} GB, {free / GB:.1f} of them free now"
    if options.finetune == "head":
        return fine(f"{there}; only heads are trained, which takes little")
    arithmetic = Arithmetic.of(device, options.precision, channels_last=options.channels_last)
    step = step_memory(options.backbone, options.image_side, half=arithmetic.dtype == torch.bfloat16)
    return fits(there, total, step.of(options.train_batch), step.of(2), options.train_batch)


def fits(there: str, total: int, whole: int, least: int, batch: int) -> Outcome:
    """What the estimates mean; a batch that is too large for a GPU is halved by itself, down to 2 images.

    Args:
        there: the GPU, in words.
        total: bytes of its memory.
        whole: bytes that a step of the whole batch is estimated to take.
        least: bytes of a step of 2 images.
        batch: ``train_batch``.
    """
    if least > total:
        return failed(
            f"{there}; even 2 images a step take about {least / GB:.1f} GB",
            "halve image_side, or set finetune=head",
        )
    told = f"{there}; train_batch={batch} takes about {whole / GB:.1f} GB"
    return fine(told if whole <= total else f"{told}: it will be halved until it fits")


MACHINE_CHECKS = (
    Check("data folder", _data_folder, needs=("settings",)),
    Check("space", _space, needs=("data folder", "classes")),
    Check(
        "weights",
        _weights,
        needs=("options",),
        remedy="set the option `backbone` to one of the networks that are named",
    ),
    Check("GPU", _gpu, needs=("options",), remedy="set the options `backbone` and `precision` to what this GPU can do"),
)
