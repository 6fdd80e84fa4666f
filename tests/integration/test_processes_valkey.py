"""A Valkey of ours, started for real."""

import stat
from pathlib import Path

import pytest
import redis
from rq import Queue, Worker

from ml_backend.errors import ServiceError
from ml_backend.processes import Valkey, free_port


class TestValkey:
    def test_answers_to_its_password_alone(self, tmp_path):
        with Valkey(tmp_path / "valkey").start().wait() as valkey:
            with redis.Redis.from_url(valkey.url) as friend:
                assert friend.ping()
            stranger = valkey.url.partition("@")[2]
            with (
                redis.Redis.from_url(f"redis://{stranger}") as connection,
                pytest.raises(redis.AuthenticationError),
            ):
                connection.ping()

    def test_nobody_else_can_read_the_password(self, tmp_path):
        with Valkey(tmp_path / "valkey").start().wait() as valkey:
            assert stat.S_IMODE((tmp_path / "valkey" / "valkey.conf").stat().st_mode) == 0o600
            assert valkey._child is not None
            password = valkey.url.split(":")[2].partition("@")[0]
            assert password not in Path(f"/proc/{valkey._child.pid}/cmdline").read_text()

    def test_keeps_what_was_written_when_it_stops(self, tmp_path):
        with (
            Valkey(tmp_path / "valkey").start().wait() as first,
            redis.Redis.from_url(first.url) as connection,
        ):
            connection.set("round", "7")
        with (
            Valkey(tmp_path / "valkey").start().wait() as second,
            redis.Redis.from_url(second.url) as connection,
        ):
            assert connection.get("round") == b"7"

    def test_uses_a_running_one_and_does_not_stop_it(self, tmp_path):
        with Valkey(tmp_path / "running").start().wait() as running:
            with Valkey(tmp_path / "other", url=running.url).start().wait() as other:
                assert other.url == running.url
            with redis.Redis.from_url(running.url) as connection:
                assert connection.ping()

    def test_a_given_one_that_does_not_answer_is_named_without_its_password(self, tmp_path):
        port = free_port()

        with pytest.raises(ServiceError, match=f"127.0.0.1:{port}, where no Redis answers") as error:
            Valkey(tmp_path, url=f"redis://:secret@127.0.0.1:{port}/0").start()

        assert "secret" not in str(error.value)

    def test_a_given_one_with_workers_is_refused_because_they_would_take_the_rounds(self, tmp_path):
        with (
            Valkey(tmp_path / "running").start().wait() as running,
            redis.Redis.from_url(running.url) as connection,
        ):
            worker = Worker([Queue("rounds", connection=connection)], connection=connection)
            worker.register_birth()

            with pytest.raises(ServiceError, match=r"1 worker\(s\) run already"):
                Valkey(tmp_path / "other", url=running.url).start()

            other_database = running.url.removesuffix("/0") + "/1"
            assert Valkey(tmp_path / "other", url=other_database).start().url == other_database
            worker.register_death()
