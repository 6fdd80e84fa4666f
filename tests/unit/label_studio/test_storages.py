"""Buckets of Google and Azure, which no server here speaks for; those of S3 are in tests/system/test_buckets.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.errors import LabelStudioError, SettingsError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.storages import connect_storage, stored_address


class Storages:
    """The storages of one project, by Label Studio's API."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        kind = request.url.path.strip("/").rpartition("/")[2]
        if request.method == "GET":
            rows = [fields | {"id": number} for number, (of, fields) in enumerate(self.made, 1) if of == kind]
            return httpx.Response(200, json=rows)
        self.made.append((kind, json.loads(request.content)))
        return httpx.Response(201, json=self.made[-1][1] | {"id": len(self.made)})


@pytest.fixture
def storages() -> Storages:
    return Storages()


@pytest.fixture
def client(storages: Storages) -> Iterator[LabelStudioClient]:
    with LabelStudioClient("http://studio", "key", transport=httpx.MockTransport(storages)) as opened:
        yield opened


COMMON = {"project": 7, "use_blob_urls": True, "recursive_scan": True, "synchronizable": False, "presign": False}


class TestConnectStorage:
    def test_google_gets_the_content_of_the_key_file(self, client, storages, tmp_path):
        key = tmp_path / "key.json"
        key.write_text('{"type": "service_account"}')

        assert connect_storage(client, 7, "gs://films", environ={"GOOGLE_APPLICATION_CREDENTIALS": str(key)}) == 1
        assert storages.made == [
            ("gcs", COMMON | {"bucket": "films", "google_application_credentials": key.read_text()})
        ]

    def test_azure_names_a_container(self, client, storages):
        account = {"AZURE_STORAGE_ACCOUNT_NAME": "hospital", "AZURE_STORAGE_ACCOUNT_KEY": "k"}

        assert connect_storage(client, 7, "az://films/chest/", environ=account) == 1
        fields = {"container": "films", "prefix": "chest", "account_name": "hospital", "account_key": "k"}
        assert storages.made == [("azure", COMMON | fields)]

    def test_one_that_is_there_is_used_again(self, client, storages):
        for uri, presign in [
            ("gs://films/a", False),
            ("gs://films/a/", False),
            ("gs://films/a", True),
            ("gs://x", False),
        ]:
            connect_storage(client, 7, uri, presign=presign, environ={})

        assert [(fields["bucket"], fields["presign"]) for _, fields in storages.made] == [
            ("films", False), ("films", True), ("x", False)
        ]  # fmt: skip

    @pytest.mark.parametrize("uri", ["https://films.example/a", "/films", "s3://", "s3a://films"])
    def test_what_is_no_bucket(self, client, uri):
        with pytest.raises(SettingsError, match="is no bucket: expected s3://bucket/prefix"):
            connect_storage(client, 7, uri, environ={})

    def test_a_key_file_that_is_not_there(self, client, tmp_path: Path):
        with pytest.raises(SettingsError, match=r"GOOGLE_APPLICATION_CREDENTIALS=.*none.json' cannot be read: No such"):
            connect_storage(
                client, 7, "gs://f", environ={"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}
            )

    def test_a_key_file_that_is_no_text(self, client, tmp_path: Path):
        (tmp_path / "key").write_bytes(b"\xff")
        with pytest.raises(SettingsError, match="cannot be read: it is no text"):
            connect_storage(client, 7, "gs://f", environ={"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key")})

    def test_a_key_that_expires_is_not_stored(self, client, storages):
        with pytest.raises(SettingsError, match=r"AWS_SESSION_TOKEN is set: .*a key of its own that may only read"):
            connect_storage(client, 7, "s3://films", environ={"AWS_SESSION_TOKEN": "secret"})
        assert storages.made == []

    def test_another_endpoint_is_another_storage(self, client, storages):
        for endpoint in ("http://a", "http://b", "http://a"):
            connect_storage(client, 7, "s3://films", environ={"AWS_ENDPOINT_URL": endpoint})
        assert [fields["s3_endpoint"] for _, fields in storages.made] == ["http://a", "http://b"]

    def test_what_label_studio_refuses_is_no_other_error(self):
        refusal = httpx.Response(400, json={"detail": "Container not found"})
        transport = httpx.MockTransport(
            lambda request: httpx.Response(200, json=[]) if request.method == "GET" else refusal
        )
        with (
            LabelStudioClient("http://studio", "key", transport=transport) as client,
            pytest.raises(
                LabelStudioError, match=r"cannot read azure-blob://films/: .*Container not found.*AZURE_STORAGE_"
            ),
        ):
            connect_storage(client, 7, "abfs://films", environ={})


def test_the_address_in_a_task():
    assert stored_address("az://films/a b.png") == "azure-blob://films/a b.png"
    assert stored_address("abfs://films@hospital.dfs.core.windows.net/a.png") == "azure-blob://films/a.png"
    assert stored_address("s3://films/a.png") == "s3://films/a.png"
