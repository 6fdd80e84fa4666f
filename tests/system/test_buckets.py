"""Images that stay in a bucket: a real Label Studio with a storage on an S3 server, presigned and through its proxy."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest

from ml_backend.config import ImageHosts
from ml_backend.demo.options import DemoImage, draw_images
from ml_backend.errors import ImageError, LabelStudioError, RequestRefused
from ml_backend.images.quarantine import STREAK, QuarantinedSource
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import read_image
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.storages import connect_storage
from ml_backend.schemas import ImageRef
from ml_backend.storage import Quarantine
from tests.bucket import Bucket, serving_bucket
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system

IMAGES = draw_images(40, seed=3, side=64)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with serving_bucket() as served:
        yield served


def connect(bucket: Bucket, client: LabelStudioClient, project_id: int, prefix: str = "chest/") -> int:
    keys = {"AWS_ACCESS_KEY_ID": "first-key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": bucket.url}
    return connect_storage(client, project_id, f"s3://{bucket.name}/{prefix}", environ=keys)


@pytest.fixture(scope="module")
def project(bucket: Bucket, live_project) -> LiveProject:
    def leave_in_place(
        client: LabelStudioClient, _token: str, project_id: int, image_key: str, images: Sequence[DemoImage]
    ) -> Iterator[int]:
        tasks = [{image_key: bucket.put(f"chest/a b/{image.name}", image.content)} for image in images]
        connect(bucket, client, project_id)
        client.send("POST", f"/api/projects/{project_id}/import", body=tasks)
        yield len(images)

    options = SMALL_NETWORK | {"batch_size": 4, "reserve": 20}
    found: LiveProject = live_project(IMAGES, options, upload=leave_in_place)
    return found


@pytest.fixture(scope="module")
def refs(project: LiveProject) -> list[ImageRef]:
    return [read_image(task, project.config) for task in project.client.unlabelled_tasks(project.id)]


@pytest.fixture(scope="module")
def storage(project: LiveProject) -> str:
    [row] = project.client.storages("s3", project.id)
    return f"/api/storages/s3/{row['id']}"


@pytest.fixture(params=[True, False], ids=["presigned", "proxied"])
def presigned(request: pytest.FixtureRequest, project: LiveProject, storage: str) -> bool:
    project.client.send("PATCH", storage, body={"presign": request.param})
    return bool(request.param)


@pytest.fixture
def source(presigned: bool, project: LiveProject, bucket: Bucket) -> Iterator[LabelStudioImages]:
    hosts = ImageHosts.parse(bucket.host if presigned else "")
    images = LabelStudioImages(project.client, project.client.url, hosts=hosts, backoff_s=0.01)
    yield images
    images.close()
    bucket.keys, bucket.ahead, bucket.refuse = {"first-key"}, timedelta(), lambda _path: None


def test_a_round(project, refs, bucket):
    """The worker reads the pool through Label Studio's proxy, without any setting."""
    project.label(project.first_of_each_class(4))

    report, published = project.train()

    assert report.exclusions == ()
    assert len(published.image_ids) == 24
    assert set(bucket.asked) == {f"/films/chest/a b/{image.name}" for image in IMAGES}


class TestStorage:
    def test_it_is_connected_once_and_makes_no_second_task(self, project, bucket, storage):
        assert connect(bucket, project.client, project.id) == int(storage.rpartition("/")[2])
        with pytest.raises(RequestRefused, match="not synchronizable"):
            project.client.send("POST", f"{storage}/sync")

    def test_one_that_label_studio_cannot_read_is_refused_with_the_remedy(self, project, bucket):
        with pytest.raises(LabelStudioError, match=r"cannot read s3://films/none: .*the prefix.*hides the reason"):
            connect(bucket, project.client, project.id, "none")


class TestFetch:
    def test_both_ways(self, source, refs, presigned, bucket):
        assert [source.fetch(ref) for ref in refs[:2]] == [image.content for image in IMAGES[:2]]
        assert source.cache_key(refs[0]).endswith(" s3://films/chest/a b/" + IMAGES[0].name)

    def test_a_url_that_expires_on_the_way_is_signed_anew(self, source, refs, presigned, bucket):
        if presigned:
            answers = iter([(403, "AccessDenied", "Request has expired")])
            bucket.refuse = lambda _path: next(answers, None)
            asked = len(bucket.asked)

            assert source.fetch(refs[0]) == IMAGES[0].content
            assert len(bucket.asked) == asked + 2

    def test_one_that_expires_again_is_explained_by_the_clocks(self, source, refs, presigned, bucket):
        bucket.ahead = timedelta(minutes=2)  # of a URL that is good for one
        if presigned:
            with pytest.raises(ImageError, match=r"403 \(AccessDenied\).*correct .* the clock of its machine"):
                source.fetch(refs[0])

    def test_a_busy_bucket(self, source, refs, bucket):
        answers = iter([(503, "SlowDown", "Please reduce your request rate.")] * 2)
        bucket.refuse = lambda _path: next(answers, None)

        assert source.fetch(refs[0]) == IMAGES[0].content

    def test_an_object_that_is_gone_concerns_one_image(self, source, refs, presigned, bucket):
        bucket.refuse = lambda _path: (404, "NoSuchKey", "The specified key does not exist.")

        with pytest.raises(ImageError, match=r"NoSuchKey" if presigned else "the object is gone") as error:
            source.fetch(refs[0])

        assert error.value.kind == ("missing" if presigned else "forbidden")

    def test_a_rotated_key_costs_no_image_its_place(self, source, refs, bucket, project, storage, tmp_path):  # noqa: PLR0917
        bucket.keys = {"second-key"}
        quarantine = Quarantine(tmp_path)
        with quarantine.settled():
            read = QuarantinedSource(source, quarantine)
            for ref in refs[: STREAK + 2]:
                with pytest.raises(ImageError, match=r"s3://films.*(credentials|connection) in Label Studio"):
                    read.fetch(ref)
        assert quarantine.listed() == ()

        try:
            project.client.send("PATCH", storage, body={"aws_access_key_id": "second-key"})
            with quarantine.settled():
                assert QuarantinedSource(source, quarantine).fetch(refs[0]) == IMAGES[0].content
        finally:
            bucket.keys = {"first-key"}
            project.client.send("PATCH", storage, body={"aws_access_key_id": "first-key"})
