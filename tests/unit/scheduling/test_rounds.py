"""What needs no Redis; the queue itself is tested on a real one, in ``tests/integration/test_queueing.py``."""

import importlib

import pytest

from ml_backend.config import Settings
from ml_backend.errors import SettingsError
from ml_backend.scheduling import JOB, RoundQueue, connect_redis


class TestConnectRedis:
    @pytest.mark.parametrize(
        "url", ["localhost:6379", "http://:hidden@localhost", "redis://:hidden@localhost:port/0", "redis://[hidden/0"]
    )
    def test_refuses_what_is_no_url_without_telling_the_password(self, url):
        with pytest.raises(SettingsError, match="wanted is redis://") as caught:
            connect_redis(url)
        assert "AL_REDIS_URL" in str(caught.value)
        assert "hidden" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "address"),
        [("redis://u:hidden@10.0.0.1:7000/3", "10.0.0.1:7000/3"), ("unix:///run/valkey.sock", "/run/valkey.sock")],
    )
    def test_address(self, url, address):
        assert RoundQueue(connect_redis(url)).address == address


class TestFromSettings:
    def test_opens_no_connection(self):
        assert RoundQueue.from_settings(Settings(redis_url="redis://127.0.0.1:1/5")).address == "127.0.0.1:1/5"


def test_the_dotted_path_of_the_job_resolves():
    module, _, name = JOB.rpartition(".")

    assert callable(getattr(importlib.import_module(module), name))
