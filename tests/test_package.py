"""The package as it would be uploaded: its two files, and that plain pip finds a set of packages for its extras.

`make release` sets ``AL_DIST``, a folder with the files, which are otherwise built, and ``AL_EACH_EXTRA``: every extra
is resolved by itself; otherwise `all` is, which includes the others.
"""

import os
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from ml_backend.demo.services import install_label_studio
from ml_backend.errors import ServiceError
from tests.manual import commands_run_by
from tests.package import BIN, PROJECT, ROOT, Built, Pip, build, built_in, pythons

RESOLVED_BY_PIP = [name for name in PROJECT["optional-dependencies"] if name != "label-studio-ml"]
EXTRAS = ["", *RESOLVED_BY_PIP] if os.environ.get("AL_EACH_EXTRA") else ["all"]
PYTHONS = pythons()
MINORS = ("3.11", "3.12", "3.13")
TRAINING = {"torch", "torchvision", "scikit-learn"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if folder := os.environ.get("AL_DIST"):
        return built_in(ROOT / folder)
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module", autouse=True)
def resolving(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Pip]]:
    """Extra and Python -> pip resolving one for the other, all at once and beside the other tests of this file.

    It mostly waits for the registry.
    """
    # Lazy wheels: where a registry serves no metadata, pip would fetch gigabytes to read some kilobytes.
    options = ["--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--no-input"]
    running = {
        (extra, minor): Pip(
            python,
            [*options, f"{built.wheel}[{extra}]" if extra else str(built.wheel)],
            tmp_path_factory.mktemp(f"pip-{minor}"),
        )
        for extra in EXTRAS
        for minor, python in PYTHONS.items()
    }
    yield running
    for pip in running.values():
        pip.stop()


class TestFiles:
    def test_are_accepted_by_the_registry(self, built):
        done = subprocess.run(
            [BIN / "twine", "check", "--strict", *built], capture_output=True, text=True, check=False, timeout=120
        )

        assert done.returncode == 0, done.stdout + done.stderr

    def test_are_rated_by_pyroma(self, built):
        """The two points to 10 are an e-mail address and a web address, which are the publisher's to add."""
        done = subprocess.run(
            [BIN / "pyroma", "--min", "8", built.sdist], capture_output=True, text=True, check=False, timeout=120
        )

        assert done.returncode == 0, done.stdout

    def test_wheel_holds_the_package_and_nothing_else(self, built):
        names = set(zipfile.ZipFile(built.wheel).namelist())
        data = {f"ml_backend/label_studio_config/{path.name}" for path in (ROOT / "label_studio_config").iterdir()}
        data.add("ml_backend/demo/requirements-label-studio.lock")
        tracked = subprocess.run(
            ["git", "ls-files", "-z", "ml_backend"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        package = {name for name in tracked.split("\0") if name and (ROOT / name).exists()}

        assert {name for name in names if ".dist-info/" not in name} == package | data
        done = subprocess.run(
            [BIN / "check-wheel-contents", built.wheel], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout

    def test_sdist_can_be_tested(self, built):
        """It holds the sources, the tests, and the files that the commands of README need."""
        with tarfile.open(built.sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}

        assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "requirements.lock"} <= names
        assert {str(Path(__file__).relative_to(ROOT)), "docs/operators.md", "docker/Dockerfile"} <= names


def lock_of(name: str) -> str:
    """What Label Studio's lock says of one package."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", (ROOT / "requirements-label-studio.lock").read_text(), flags=re.MULTILINE)
    [found] = [block for block in blocks if block.startswith(f"{name}==")]
    return found


class TestInstallLabelStudio:
    def test_once_for_a_lock(self, tmp_path):
        folder, lock = tmp_path / "environment", tmp_path / "label-studio.lock"
        lock.write_text(lock_of("pytz"))

        program = install_label_studio(folder, lock)

        assert program == folder / "bin" / "label-studio"
        python = program.with_name("python")
        assert subprocess.run([python, "-c", "import pytz"], check=False).returncode == 0
        python.unlink()  # which another installation would make again
        assert install_label_studio(folder, lock) == program
        assert not python.exists()
        # Another lock: a new environment, here one whose hashes are wrong.
        lock.write_text(re.sub(r"sha256:.{8}", "sha256:" + 8 * "0", lock_of("pytz")))
        with pytest.raises(ServiceError, match=r"(?s)could not be installed .*AL_LABEL_STUDIO_BIN.*HASHES"):
            install_label_studio(folder, lock)
        assert python.exists()


class TestResolution:
    @pytest.mark.parametrize("minor", MINORS)
    @pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: f"[{extra}]")
    def test_by_plain_pip(self, resolving, extra, minor):
        if (extra, minor) not in resolving:
            pytest.skip(f"no Python {minor} on this machine: its resolution is not tested")

        found = resolving[extra, minor].installed()

        assert found["label-studio-active-learning"] == PROJECT["version"]
        assert Version(found["flask"]) >= Version("3.1")
        trains = extra in {"worker", "simulate", "all"}
        assert TRAINING & set(found) == (TRAINING if trains else set())
        assert ("pydicom" in found) == (extra in {"dicom", "all"})

    def test_of_what_the_manual_installs(self):
        """Its lines install the checkout, with an extra or without."""
        shown = {re.sub(r"^\.(\[([\w-]+)\])?$", r"\2", one.words[2]) for one in commands_run_by(__file__)}

        assert shown
        assert shown <= {"", *RESOLVED_BY_PIP}

    def test_for_the_running_python_at_least(self):
        assert set(PYTHONS) & set(MINORS)

    def test_all_includes_every_extra_that_pip_can_resolve(self):
        [everything] = map(Requirement, PROJECT["optional-dependencies"]["all"])

        assert everything.name == PROJECT["name"]
        assert everything.extras == set(RESOLVED_BY_PIP) - {"all"}
