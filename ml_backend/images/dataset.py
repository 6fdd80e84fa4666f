"""Many images at once: read ahead by threads, unreadable ones named and left out; copied from a bucket."""

import posixpath
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from ml_backend.blas import thread_count
from ml_backend.config import shown_address
from ml_backend.errors import ImageError, MissingExtra, SettingsError
from ml_backend.images.cache import DecodedImage
from ml_backend.schemas import Exclusion, ImageRef, Label

T = TypeVar("T")

# More threads than cores: over HTTP most of them wait.
THREADS = 4 + min(12, thread_count())


@dataclass(frozen=True, eq=False)
class LabelledImages(Dataset[tuple[UInt8[Tensor, "side side"], int]]):
    """Readable images with their class, resident in memory (50 kB an image at 224 pixels).

    Attributes:
        images: the readable ones, in the order of their labels.
        pixels: grey levels.
        targets: index of the class.
        exclusions: the images that could not be read.
    """

    images: tuple[ImageRef, ...]
    pixels: UInt8[Tensor, "images side side"]
    targets: Int64[Tensor, " images"]
    exclusions: tuple[Exclusion, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "side side"], int]:
        return self.pixels[index], int(self.targets[index])


def read_ahead(
    images: Sequence[ImageRef], read: Callable[[ImageRef], T], threads: int = THREADS
) -> Iterator[tuple[ImageRef, T | Exclusion]]:
    """Read images in threads, slightly ahead of the consumer, in their own order.

    Args:
        images: what to read; any number, at most ``4 * threads`` results are held.
        read: called in a thread; an ImageError makes an Exclusion of the image, any other error stops everything.
        threads: how many read at once.

    Yields:
        Every image with what ``read`` returned.
    """

    def attempt(image: ImageRef) -> T | Exclusion:
        try:
            return read(image)
        except ImageError as error:
            return Exclusion(image_id=image.id, reason=str(error))

    def submit(image: ImageRef) -> tuple[ImageRef, Future[T | Exclusion]]:
        # In a copy of this context: what is logged of an image names the project and the round.
        return image, pool.submit(copy_context().run, attempt, image)

    waiting = iter(images)
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        running = deque(map(submit, islice(waiting, 4 * threads)))
        try:
            while running:
                image, future = running.popleft()
                result = future.result()
                running.extend(map(submit, islice(waiting, 1)))
                yield image, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def load_labelled(
    labels: Sequence[Label],
    classes: Sequence[str],
    read: Callable[[ImageRef], DecodedImage],
    progress: Callable[[int], None],
) -> LabelledImages:
    """Read the images of all labels into memory.

    Args:
        labels: values must be among the classes.
        classes: in the order of the targets.
        read: ``ImageCache.read``, say.
        progress: called with the images done.

    Raises:
        ValueError: a label's value is no class.
    """
    index = {name: position for position, name in enumerate(classes)}
    if unknown := sorted({label.value for label in labels} - index.keys()):
        raise ValueError(f"labels {unknown} are none of the classes {list(classes)}")
    kept: list[ImageRef] = []
    targets: list[int] = []
    arrays = []
    exclusions = []
    results = read_ahead([label.image for label in labels], read)
    for done, (label, (image, result)) in enumerate(zip(labels, results, strict=True), start=1):
        if isinstance(result, Exclusion):
            exclusions.append(result)
        else:
            kept.append(image)
            targets.append(index[label.value])
            arrays.append(result.pixels)
        progress(done)
    pixels = torch.from_numpy(np.stack(arrays)) if arrays else torch.empty((0, 0, 0), dtype=torch.uint8)
    return LabelledImages(tuple(kept), pixels, torch.tensor(targets, dtype=torch.int64), tuple(exclusions))


def copy_files(uri: str, names: Sequence[str], folder: Path) -> Path:
    """Copy files of a bucket into a folder. One that is there already is not copied again.

    Args:
        uri: that the names are relative to, of any file system of fsspec: ``s3://bucket/prefix``, ``gs://``, ``https://``.
            A query, such as a signature, goes behind each name.
        names: of the files; those that the bucket does not have, and those that lead out of the folder, are left out.
        folder: the copies; made where it is missing.

    Returns:
        The folder.

    Raises:
        MissingExtra: the package for this scheme is not installed.
        SettingsError: the address is wrong, the bucket serves no files, or the folder has copies from another address.
    """
    shown, is_web = shown_address(uri), uri.startswith(("http://", "https://"))
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - optional

        bucket, prefix = url_to_fs(uri)
    except ImportError as error:
        raise MissingExtra(
            f"{shown}: {error}: `pip install 'label-studio-active-learning[s3]'` for s3:// and https://, else the "
            "package of that name"
        ) from error
    except ValueError as error:
        raise SettingsError(f"{shown!r}: {error}; expected s3://bucket/prefix, gs://... or https://...") from error
    root = folder.resolve()
    resolved = {posixpath.normpath(name): (root / name).resolve() for name in names}
    targets = {name: target for name, target in resolved.items() if target.is_relative_to(root)}
    root.mkdir(parents=True, exist_ok=True)
    origin = root / ".source"
    if (before := origin.read_text("utf-8") if origin.exists() else shown) != shown:
        raise SettingsError(f"{folder} has copies from {before}, not from {shown}: give another folder, or remove it")
    origin.write_text(shown, "utf-8")
    base, mark, query = prefix.partition("?") if is_web else (prefix, "", "")

    def copy(image: ImageRef) -> None:
        target = targets[image.uri]
        try:
            content = bucket.cat_file(f"{base.rstrip('/')}/{quote(image.uri) if is_web else image.uri}{mark}{query}")
        except FileNotFoundError:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.part")
        unfinished.write_bytes(content)
        unfinished.replace(target)

    wanted = [ImageRef(id=name, uri=name) for name, target in targets.items() if not target.exists()]
    copied, bar = read_ahead(wanted, copy), f"copying {len(wanted)} images"
    try:
        for _ in track(copied, bar, len(wanted), console=Console(stderr=True), disable=not wanted):
            pass
    except Exception as error:  # each file system raises errors of its own
        why = getattr(error, "status", "no answer") if is_web else error  # an address may hold a password
        raise SettingsError(
            f"{shown} cannot be copied: {type(error).__name__}: {why}; give keys and endpoint in the variables that "
            "the provider's own tools read, such as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        ) from error
    return root
