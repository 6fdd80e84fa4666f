"""The documentation as a site, and the files that GitHub reads: contributing, issue forms, citation."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import ml_backend.acquisition
from ml_backend.registry import STRATEGIES
from tests.manual import ROOT, commands_run_by, pages

BIN = Path(sys.executable).parent
# Only what a browser loads by itself; a link may lead anywhere.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bstylesheet\b[^>]*//|@import"""
)
[COMMAND] = re.findall(
    r"^docs: .*\n\t@NO_MKDOCS_2_WARNING=1 \$\(BIN\)/(mkdocs .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
)
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` does, into another folder."""
    program, *words = COMMAND.split()
    return subprocess.run(
        [BIN / program, *words, "--site-dir", site],
        cwd=folder, env={**os.environ, **NO_NETWORK, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assert "make docs" in {one.text for one in commands_run_by(__file__)}
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class TestSite:
    def test_holds_every_page(self, site):
        names = {Path(page).stem.lower() for page in pages()} - {"readme"}

        assert names | {"index", "changelog", "tutorial"} <= {path.stem for path in site.glob("*.html")}

    def test_a_browser_loads_nothing_from_another_host(self, site):
        found = {path.name: LOADED.findall(path.read_text()) for path in site.rglob("*.html")}

        assert {name: loads for name, loads in found.items() if loads} == {}

    def test_describes_every_acquisition_function(self, site):
        """A new one is missing in docs/api.md until somebody adds it."""
        page = (site / "api.html").read_text()
        functions = set(STRATEGIES) & set(ml_backend.acquisition.__all__)

        assert len(functions) >= 11
        assert {name for name in functions if f'id="ml_backend.acquisition.{name}"' not in page} == set()
        assert "Scores in nats: 0 where" in page

    def test_links_of_readme_lead_to_pages(self, site):
        text = (site / "index.html").read_text()

        assert 'href="owners.html#the-page"' in text
        assert 'src="loop.svg"' in text
        assert ".md" not in re.sub(r">[^<]*<", "><", text)

    def test_a_broken_link_or_anchor_fails_the_build(self, tmp_path):
        for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml"):
            shutil.copy(ROOT / name, tmp_path)
        shutil.copytree(ROOT / "docs", tmp_path / "docs")
        (tmp_path / "ml_backend").symlink_to(ROOT / "ml_backend")
        with (tmp_path / "docs" / "developers.md").open("a") as page:
            page.write("\n[broken](nowhere.md), [broken](owners.md#no-such-heading)\n")

        done = build(tmp_path, tmp_path / "site")

        assert done.returncode != 0
        assert "'nowhere.md'" in done.stderr
        assert "'#no-such-heading'" in done.stderr or "'owners.md#no-such-heading'" in done.stderr


class TestTutorial:
    """Its outputs are stored, so that GitHub shows them; ``AL_GOLDEN=write`` stores them again."""

    def test_runs_and_prints_what_is_stored(self, tmp_path):
        stored, made = ROOT / "docs" / "tutorial.ipynb", tmp_path / "tutorial.ipynb"
        own = {
            "IPYTHONDIR": tmp_path / "ipython",
            "JUPYTER_RUNTIME_DIR": tmp_path / "runtime",
            "MPLCONFIGDIR": tmp_path,
        }
        done = subprocess.run(
            [BIN / "jupyter", "execute", f"--output={made.with_suffix('')}", "--timeout=300", stored],
            env={**os.environ, **NO_NETWORK, "JUPYTER_CONFIG_DIR": str(tmp_path)} | {k: str(v) for k, v in own.items()},
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if os.environ.get("AL_GOLDEN") == "write":
            write(stored, json.loads(made.read_text()))

        assert shown(made) == shown(stored)
        assert sum("image/png" in kinds for kinds, _ in shown(stored)) == 2
        assert not any("stderr" in kinds for kinds, _ in shown(made))


def shown(notebook: Path) -> list[tuple[set[str], str]]:
    """Kinds and text of every output; figures are left out, which another processor may compute otherwise."""
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    texts = ["".join(one.get("text") or one["data"]["text/plain"]) for one in outputs]
    return [
        ({one.get("name", ""), *one.get("data", ())}, " ".join(re.sub(r"-?\d+(\.\d+)?", "0", text).split()))
        for one, text in zip(outputs, texts, strict=True)
    ]


def write(path: Path, notebook: dict[str, Any]) -> None:
    """Store a notebook without times and without what differs from run to run."""
    for cell in notebook["cells"]:
        cell["metadata"] = {}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


class TestCommunityFiles:
    @pytest.mark.parametrize(
        ("schema", "file"),
        [
            ("citation-file-format", "CITATION.cff"),
            ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
            ("github-issue-forms", ".github/ISSUE_TEMPLATE/feature.yml"),
            ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ],
    )
    def test_follows_its_schema(self, schema, file):
        done = subprocess.run(
            [BIN / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", ROOT / file],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

        assert done.returncode == 0, done.stdout

    def test_citation_has_the_version_and_licence_of_the_package(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())

        assert str(citation["version"]) == project["version"]
        assert citation["license"] == project["license"]
