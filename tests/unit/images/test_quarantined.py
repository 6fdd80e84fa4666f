import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_backend.errors import ImageError, LabelStudioError
from ml_backend.images.cache import ImageCache
from ml_backend.images.quarantine import SPARED_S, STREAK, QuarantinedSource
from ml_backend.images.source import FolderSource
from ml_backend.schemas import ImageRef


@dataclass
class Notebook:
    """A quarantine that only remembers what it was told."""

    barred: dict[str, str] = field(default_factory=dict)
    entered: dict[str, tuple[str, bool]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def bars(self, image_id, file, version):
        return self.barred.get(image_id)

    def enter(self, image_id, file, trouble, reason, *, passing, version=""):
        assert image_id in reason
        self.entered[image_id] = (trouble, passing)
        self.files.append(file)

    def withdraw(self, image_ids):
        for image_id in image_ids:
            self.entered.pop(image_id, None)


@dataclass
class Web:
    """Answers as it is told, by host and path; other addresses have an image."""

    failures: dict[str, Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def fetch(self, image):
        self.asked.append(image.uri)
        for beginning, cause in self.failures.items():
            if image.uri.startswith(beginning):
                if isinstance(cause, LabelStudioError):
                    raise cause
                kind = ImageError.kind_of(cause) if isinstance(cause, OSError) else "refused"
                raise ImageError(f"image {image.id}: {cause}", kind) from cause
        return b"bytes"

    def cache_key(self, image):
        return image.uri


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def notebook():
    return Notebook()


@pytest.fixture
def web():
    return Web()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def source(web, notebook, clock):
    return QuarantinedSource(web, notebook, clock)


def image(number: object, host: str = "http://pacs") -> ImageRef:
    return ImageRef(id=str(number), uri=f"{host}/{number}.png")


class TestFetch:
    def test_a_good_image_leaves_no_trace(self, source, notebook):
        assert source.fetch(image(1)) == b"bytes"
        assert source.cache_key(image(1)) == "http://pacs/1.png"
        assert notebook.entered == {}

    @pytest.mark.parametrize(
        ("cause", "entered"),
        [(FileNotFoundError("gone"), ("missing", True)), (TimeoutError("slow"), ("timed-out", True))],
    )
    def test_a_bad_image_is_entered_with_its_trouble(self, source, web, notebook, cause, entered):
        web.failures["http://pacs/2"] = cause

        with pytest.raises(ImageError, match="image 2"):
            source.fetch(image(2))

        assert notebook.entered == {"2": entered}
        assert notebook.files[0].endswith("|http://pacs/2.png")

    def test_a_barred_image_is_not_asked_for(self, source, web, notebook):
        notebook.barred["3"] = "image 3 is half a film"

        for read in (source.fetch, source.cache_key):
            with pytest.raises(ImageError, match="image 3 is half a film"):
                read(image(3))

        assert web.asked == []
        assert notebook.entered == {}

    def test_a_source_that_is_down_stops_the_round_and_blames_no_image(self, source, web, notebook):
        web.failures["http://pacs"] = LabelStudioError("no answer")

        with pytest.raises(LabelStudioError):
            source.fetch(image(1))

        assert notebook.entered == {}


class TestHostThatIsDown:
    def fail(self, source, numbers, host="http://pacs"):
        for number in numbers:
            with pytest.raises(ImageError):
                source.fetch(image(number, host))

    def test_none_of_its_images_is_blamed(self, source, web, notebook):
        web.failures["http://pacs"] = ConnectionRefusedError("down")

        self.fail(source, range(100))

        assert notebook.entered == {}
        assert len(web.asked) == STREAK

    def test_the_reason_names_the_host(self, source, web):
        web.failures["http://pacs"] = ConnectionRefusedError("down")
        self.fail(source, range(STREAK))

        with pytest.raises(ImageError, match=r"image 77 was not asked for: pacs gave none of 20 .*image 19: down"):
            source.fetch(image(77, "http://me:secret@pacs"))

    def test_other_hosts_go_on(self, source, web):
        web.failures["http://pacs"] = ConnectionRefusedError("down")
        self.fail(source, range(STREAK))

        assert source.fetch(image(1, "http://archive")) == b"bytes"
        assert source.fetch(ImageRef(id="1", uri="/data/upload/1/x.png")) == b"bytes"

    def test_it_is_asked_again_after_a_while(self, source, web, clock):
        web.failures["http://pacs"] = ConnectionRefusedError("down")
        self.fail(source, range(STREAK))
        web.failures.clear()
        self.fail(source, [98])
        clock.seconds = SPARED_S

        assert source.fetch(image(99)) == b"bytes"

    def test_fewer_in_a_row_are_the_images_own_fault(self, source, web, notebook):
        web.failures["http://pacs/bad"] = TimeoutError("slow")
        self.fail(source, [f"bad{n}" for n in range(STREAK - 1)])
        source.fetch(image(1))
        self.fail(source, [f"bad{n}" for n in range(STREAK - 1, 2 * STREAK - 2)])

        assert len(notebook.entered) == 2 * STREAK - 2

    def test_a_host_that_answers_badly_is_not_down(self, source, web, notebook):
        web.failures["http://pacs/bad"] = FileNotFoundError("gone")

        self.fail(source, [f"bad{n}" for n in range(3 * STREAK)])

        assert len(web.asked) == len(notebook.entered) == 3 * STREAK


class TestHostThatRefuses:
    """A key that was rotated, or objects that are gone, which a bucket may refuse in the same words."""

    def read(self, source, *names):
        for name in names:
            with contextlib.suppress(ImageError):
                source.fetch(image(name))

    def test_all_from_here_on(self, source, web, notebook):
        self.read(source, "good1", "good2")
        web.failures["http://pacs"] = PermissionError("denied")

        self.read(source, *range(5 * STREAK))

        assert notebook.entered == {}
        assert len(web.asked) == 2 + 2 * STREAK + 3  # of the last 60 each twentieth
        with pytest.raises(ImageError, match=r"image 7 was not asked for: pacs gave none .*The last error: .*denied"):
            source.fetch(image(7))

    def test_good_ones_behind_many_are_found(self, source, web, notebook):
        web.failures["http://pacs/bad"] = PermissionError("denied")

        self.read(source, *(f"bad{n}" for n in range(2 * STREAK)), *range(3 * STREAK))

        assert len(web.asked) == 2 * STREAK + 2 * STREAK + 1  # 19 good ones wait for the next round
        assert len(notebook.entered) == 2 * STREAK

    @pytest.mark.parametrize("number", [STREAK - 1, STREAK, 2 * STREAK - 1])
    def test_those_between_good_ones_are_named(self, source, web, notebook, number):
        web.failures["http://pacs/bad"] = PermissionError("denied")
        bad = [f"bad{n}" for n in range(number)]

        self.read(source, "good1", *bad, "good2")

        assert notebook.entered == dict.fromkeys(bad, ("forbidden", True))


class TestOverFiles:
    """With the real folder and the real cache."""

    @pytest.fixture
    def cache(self, tmp_path, notebook):
        source = QuarantinedSource(FolderSource(tmp_path), notebook)
        return ImageCache(source, tmp_path / "cache", side=8)

    def png(self, path: Path) -> None:
        file = io.BytesIO()
        Image.fromarray(np.full((9, 9), 77, np.uint8)).save(file, "PNG")
        path.write_bytes(file.getvalue())

    def test_what_is_no_picture_is_entered(self, cache, notebook, tmp_path):
        (tmp_path / "x.png").write_bytes(b"<html>log in</html>")

        with pytest.raises(ImageError, match="HTML"):
            cache.read(ImageRef(id="4", uri="x.png"))

        assert notebook.entered == {"4": ("not-an-image", False)}

    def test_a_file_that_is_not_there_is_entered(self, cache, notebook):
        with pytest.raises(ImageError, match="image 4"):
            cache.read(ImageRef(id="4", uri="x.png"))

        assert notebook.entered == {"4": ("missing", True)}

    def test_a_changed_file_has_another_name_in_the_list(self, cache, notebook, tmp_path):
        for content in (b"one", b"other"):
            (tmp_path / "x.png").write_bytes(content)
            with pytest.raises(ImageError):
                cache.read(ImageRef(id="4", uri="x.png"))

        assert len(set(notebook.files)) == 2

    def test_a_file_is_tried_again_when_more_formats_are_read(self, cache, notebook, tmp_path, monkeypatch):
        (tmp_path / "a.png").write_bytes(b"an image of a new format")
        image = ImageRef(id="a", uri="a.png")
        for formats in (("PNG",), ("PNG", "NEW")):
            monkeypatch.setitem(QuarantinedSource.undecodable.__globals__, "FORMATS", formats)
            with pytest.raises(ImageError):
                cache.read(image)

        assert len(set(notebook.files)) == 2

    def test_a_good_film_is_read(self, cache, notebook, tmp_path):
        self.png(tmp_path / "x.png")

        assert (cache.read(ImageRef(id="4", uri="x.png")).pixels == 77).all()
        assert notebook.entered == {}
