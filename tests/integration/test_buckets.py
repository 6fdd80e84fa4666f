"""A study and an import whose images lie in a bucket: on an S3 server, and for the study by plain HTTP."""

import functools
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import s3fs

from ml_backend.demo.options import draw_images
from ml_backend.errors import ImageError, MissingExtra, SettingsError
from ml_backend.images.files import RefusedFile, SourceFile, walk
from ml_backend.simulation.options import SimulateOptions, make_plan
from tests.bucket import Bucket, serving_bucket

IMAGES = draw_images(40, seed=3, side=32)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with serving_bucket() as served:
        for image in IMAGES:
            served.put(f"chest/a b/{image.name}", image.content)
        yield served


@pytest.fixture(autouse=True)
def keys(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"AWS_ACCESS_KEY_ID": "first-key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": bucket.url}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # which holds the server of another test
    bucket.keys = {"first-key"}


@pytest.fixture
def options(tmp_path: Path) -> SimulateOptions:
    rows = [f"a b/{image.name},{image.label},{image.patient_id}" for image in IMAGES]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["path,label,patient_id", *rows]))
    return SimulateOptions(labels, tmp_path / "out", "s3://films/chest/", device="cpu", budget="1.0")


def test_the_images_are_copied_once(options, bucket, capsys):
    plan, data = make_plan(options)

    folder = options.out / "images"
    assert data.folder == folder
    assert {image.uri: (folder / image.uri).read_bytes() for image in data.images} == {
        f"a b/{image.name}": image.content for image in IMAGES
    }
    assert plan.images == str(folder)
    assert "--images s3://films/chest/" in plan.command
    assert "copying 40 images" in capsys.readouterr().err

    bucket.keys = set()
    (folder / "a b" / IMAGES[0].name).write_bytes(b"the study's own")
    assert make_plan(options)[0].images == plan.images


def test_what_the_bucket_does_not_hold_is_named(options, bucket):
    bucket.put("chest/../out.png", IMAGES[0].content)
    options.labels.write_text(options.labels.read_text() + "\na b/none.png,normal,9\n../out.png,normal,9")

    with pytest.raises(SettingsError, match=r"1 paths of .*lead out of .*\.\./out\.png"):
        make_plan(options)
    assert not (options.out / "out.png").exists()
    options.labels.write_text(options.labels.read_text().rpartition("\n")[0])
    with pytest.raises(SettingsError, match=r"1 of 41 images .*a b/none\.png"):
        make_plan(options)


def test_a_key_that_is_refused(options, bucket):
    bucket.keys = set()

    with pytest.raises(SettingsError, match=r"s3://films/chest/ cannot be copied: .*give keys and endpoint"):
        make_plan(options)


def test_over_http(options, tmp_path):
    (tmp_path / "served/a b").mkdir(parents=True)
    for image in IMAGES:
        (tmp_path / "served/a b" / image.name).write_bytes(image.content)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        _, data = make_plan(replace(options, images=f"http://127.0.0.1:{server.server_port}/"))
        server.shutdown()

    assert len(data.images) == 40


@pytest.mark.parametrize(("uri", "error", "why"), [
    ("gs://films/chest", MissingExtra, r"gcsfs.*pip install"),
    ("s4://films/chest", SettingsError, r"s4.*expected s3://bucket/prefix"),
])  # fmt: skip
def test_an_address_that_cannot_be_read(options, uri, error, why):
    assert "gcs" in fsspec.available_protocols()
    with pytest.raises(error, match=why):
        make_plan(replace(options, images=uri))


class TestWalk:
    def test_a_prefix(self, bucket):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("in.png", b"packed")
        for key, content in {
            "z.zip": packed.getvalue(),
            "b [1]?.png": b"1",
            "a/deep.png": b"2",
            "a/0.png": bytes(999),
        }.items():
            bucket.put(f"walk/{key}", content)

        found = list(walk("s3://films/walk", max_bytes=500))

        assert [one.name for one in found] == ["a/0.png", "a/deep.png", "b [1]?.png", "z.zip/in.png"]
        assert isinstance(found[0], RefusedFile)
        files = [one for one in found if isinstance(one, SourceFile)]
        assert [file.read() for file in files] == [b"2", b"1", b"packed"]
        assert [file.address for file in files] == ["s3://films/walk/a/deep.png", "s3://films/walk/b [1]?.png", ""]

    def test_what_the_bucket_does_not_hand_out_is_one_image(self, bucket):
        [file] = [one for one in walk("s3://films/chest/a b/image-00000.png") if isinstance(one, SourceFile)]
        refusals = {"forbidden": (403, "AccessDenied", "no"), "missing": (404, "NoSuchKey", "no")}
        for kind, refusal in refusals.items():
            bucket.refuse = lambda _path, refusal=refusal: refusal
            with pytest.raises(ImageError, match=r"image-00000\.png cannot be read") as error:
                file.read()
            assert error.value.kind == kind
        bucket.refuse = lambda _path: None

    def test_a_bucket_that_refuses_its_list(self, bucket):
        bucket.keys = set()

        with pytest.raises(SettingsError, match="'s3://films/chest' cannot be listed"):
            walk("s3://films/chest")
