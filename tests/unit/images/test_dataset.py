import threading
import time

import numpy as np
import pytest
from structlog.contextvars import bound_contextvars, get_contextvars

from ml_backend.errors import ImageError
from ml_backend.images.cache import DecodedImage
from ml_backend.images.dataset import load_labelled, read_ahead
from ml_backend.schemas import Exclusion, ImageRef, Label


def refs(count: int) -> list[ImageRef]:
    return [ImageRef(id=str(index), uri=f"{index}.png") for index in range(count)]


def read(image: ImageRef) -> DecodedImage:
    if image.id == "2":
        raise ImageError("image 2 is an HTML page")
    return DecodedImage(image.id, np.full((4, 4), int(image.id), dtype=np.uint8))


class TestReadAhead:
    def test_keeps_the_order_and_names_what_cannot_be_read(self) -> None:
        def slow_at_first(image: ImageRef) -> str:
            time.sleep(0.02 if image.id == "0" else 0.0)
            return read(image).key

        results = list(read_ahead(refs(40), slow_at_first, threads=3))

        assert [image.id for image, _ in results] == [str(index) for index in range(40)]
        assert results[2][1] == Exclusion(image_id="2", reason="image 2 is an HTML page")
        assert [result for _, result in results if not isinstance(result, Exclusion)][:3] == ["0", "1", "3"]

    def test_holds_a_bounded_number(self) -> None:
        started = []
        results = read_ahead(refs(100), lambda image: started.append(image.id), threads=2)
        next(results)
        time.sleep(0.05)

        assert len(started) <= 4 * 2 + 1
        results.close()  # type: ignore[attr-defined]
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]

    def test_any_other_error_stops_everything(self) -> None:
        def broken(image: ImageRef) -> None:
            raise ConnectionError("Label Studio is gone")

        with pytest.raises(ConnectionError, match="is gone"):
            list(read_ahead(refs(3), broken))

    def test_what_its_threads_log_names_the_round(self) -> None:
        with bound_contextvars(round="r000001"):
            told = [said for _, said in read_ahead(refs(20), lambda _image: get_contextvars(), threads=3)]

        assert told == [{"round": "r000001"}] * 20

    def test_nothing_to_read(self) -> None:
        assert list(read_ahead([], read)) == []


class TestLoadLabelled:
    def test_aligned_with_the_readable_labels(self) -> None:
        labels = [Label(image=image, value="ab"[int(image.id) % 2], raters=1) for image in refs(5)]
        seen: list[int] = []

        loaded = load_labelled(labels, ["a", "b"], read, seen.append)

        assert [image.id for image in loaded.images] == ["0", "1", "3", "4"]
        assert loaded.targets.tolist() == [0, 1, 1, 0]
        assert loaded.pixels[:, 0, 0].tolist() == [0, 1, 3, 4]
        assert [exclusion.image_id for exclusion in loaded.exclusions] == ["2"]
        assert seen == [1, 2, 3, 4, 5]
        assert len(loaded) == 4
        assert loaded[2][1] == 1

    def test_nothing_readable(self) -> None:
        loaded = load_labelled([Label(image=refs(3)[2], value="a", raters=1)], ["a", "b"], read, list[int]().append)

        assert len(loaded) == 0
        assert len(loaded.exclusions) == 1

    def test_refuses_a_value_that_is_no_class(self) -> None:
        with pytest.raises(ValueError, match=r"\['c'\] are none of the classes"):
            load_labelled([Label(image=refs(1)[0], value="c", raters=1)], ["a", "b"], read, list[int]().append)
