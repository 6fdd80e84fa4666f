"""README and docs say what the program does: every command, setting, option and strategy, in its own words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

from ml_backend.cli import app
from ml_backend.config import OPTION_PREFIX, ProjectOptions, Settings
from ml_backend.label_studio.formats import parse_label_config, training_classes
from ml_backend.registry import markdown_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / f"docs/{name}.md").read_text() for name in ("owners", "operators", "researchers", "developers")}
MANUAL = "\n".join((README, *PAGES.values()))


def in_code(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def allowed(schema: dict[str, Any]) -> str:
    """What a value may be, from the field's JSON schema."""
    if "anyOf" in schema:
        return " or ".join(filter(None, (allowed(member) for member in schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(in_code(value) for value in schema.get("enum", [schema.get("const")]))
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    lower = f"from {low:g}" if low is not None else f"above {above:g}" if above is not None else ""
    upper = f"to {high:g}" if high is not None else f"below {below:g}" if below is not None else ""
    kinds = {"integer": "number", "number": "number", "boolean": "`true`, `false`"}
    return f"{lower} {upper}".strip() or kinds.get(schema.get("type", ""), "")


def rows(model: type[BaseModel], name: str) -> Iterator[str]:
    """The rows of README's table about a model; ``name`` says how a field is spelt there."""
    properties = model.model_json_schema()["properties"]
    for field, info in model.model_fields.items():
        default = "" if info.default is None or info.default_factory else in_code(info.default)
        spelt = in_code(name.format(field=field, FIELD=field.upper()))
        yield f"| {spelt} | {default} | {allowed(properties[field])} | {info.description} |"


def settings_rows() -> list[str]:
    return list(rows(Settings, "AL_{FIELD}"))


def option_rows() -> list[str]:
    return list(rows(ProjectOptions, "{field}"))


def strategy_rows() -> list[str]:
    return markdown_table().splitlines()[2:]


def has_line(text: str, line: str) -> bool:
    """Not ``in``: the failure would print the whole file."""
    return line in text.splitlines()


def headings(text: str) -> set[str]:
    """The anchors of a page's headings."""
    return {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }


class TestReadme:
    def test_leads_with_the_two_commands_and_the_picture(self):
        head = README.split("\n## ")[0]

        assert "make demo\n" in head
        assert "make test\n" in head
        assert "](docs/loop.svg)" in head

    @pytest.mark.parametrize("name", sorted(get_command(app).commands))  # type: ignore[attr-defined]
    def test_names_every_command(self, name):
        assert f"`ml-backend {name}" in README

    @pytest.mark.parametrize("row", settings_rows())
    def test_names_every_setting(self, row):
        assert has_line(PAGES["operators"], row), f"docs/operators.md lacks the row {row}"

    @pytest.mark.parametrize("row", option_rows())
    def test_names_every_option(self, row):
        assert has_line(PAGES["owners"], row), f"docs/owners.md lacks the row {row}"

    def test_holds_the_table_that_the_command_prints(self):
        """`ml-backend strategies --markdown`, word for word."""
        printed = CliRunner().invoke(app, ["strategies", "--markdown"])

        assert printed.exit_code == 0
        assert printed.stdout.strip() in README

    def test_names_nothing_that_is_gone(self):
        """A variable, command or table row about something that the program no longer has."""
        variables = {f"AL_{name.upper()}" for name in (*Settings.model_fields, *ProjectOptions.model_fields)}
        others = {
            "AL_GOLDEN",
            "AL_VERSION",
            "AL_LABEL_STUDIO_BIN",
            "AL_SCREENSHOTS",
        }  # of compose.yaml, of the demo, of the tests

        assert set(re.findall(r"\bAL_[A-Z_]+\b", MANUAL)) - {"AL_"} <= variables | others
        assert set(re.findall(r"`ml-backend (\w+)", MANUAL)) == set(get_command(app).commands)  # type: ignore[attr-defined]
        tables = {line for line in MANUAL.splitlines() if re.match(r"\| `(AL_\w+|[a-z_]+)` \|", line)}
        assert tables == {*settings_rows(), *option_rows(), *strategy_rows()}

    def test_its_label_config_is_one_that_we_can_read(self):
        """The example that people copy, with the option that it sets."""
        [xml] = re.findall(r"```xml\n(.*?)```", MANUAL, re.DOTALL)

        config = parse_label_config(xml)
        options = ProjectOptions.resolve(attributes=config.attributes, environ={})
        assert len(training_classes(config, options)) == 3
        assert any(name.startswith(OPTION_PREFIX) for name in config.attributes)

    def test_its_python_runs_as_it_stands(self, capsys):
        """On a network that needs no download; it prints a batch of 20 different images.

        ``test_manual_tables`` runs the simulation; the third block needs a network's published weights.
        """
        [code] = [block for block in re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL) if "rank(" in block]

        exec(code, {"__name__": "__main__"})

        out = capsys.readouterr().out
        printed = re.findall(r"tensor\(\[(.*?)\]", out, re.DOTALL)
        assert len({int(place) for place in printed[0].split(",")}) == 20
        assert out.strip().endswith("nats")

    @pytest.mark.parametrize(
        "page",
        ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))],
    )
    def test_its_links_lead_somewhere(self, page):
        """Files that are there, and headings that they have."""
        path = ROOT / page
        text = path.read_text()
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", text):
            found = path if not target else path.parent / target
            assert found.exists(), target
            if anchor:
                assert anchor in headings(found.read_text()), f"{target}#{anchor}"


class TestTroubleshooting:
    """A reader searches the page for the message that is on the screen."""

    ELSEWHERE = frozenset(
        {
            # Of Label Studio.
            "legacy token authentication has been disabled",
            "URL resolves to a reserved network address",
            # Composed of two messages of config/network.py.
            "through the proxy of HTTP_PROXY",
        }
    )

    def test_quotes_messages_that_the_program_has(self):
        rows = re.findall(r"^\| ([^|]*)\|", PAGES["operators"].split("## Troubleshooting")[1], re.MULTILINE)
        quoted = {text for row in rows for text in re.findall(r'"([^"]*)"', row)} - self.ELSEWHERE
        constants = (
            node.value
            for path in (ROOT / "ml_backend").rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        templates = (path.read_text() for path in (ROOT / "ml_backend").rglob("*.html"))
        words = "\n".join((*constants, *templates))

        assert len(quoted) >= 8
        assert [text for text in quoted if not all(part in words for part in text.split("..."))] == []


class TestPicture:
    def test_is_well_formed_and_described(self):
        root = ET.parse(ROOT / "docs" / "loop.svg").getroot()
        namespace = "{http://www.w3.org/2000/svg}"

        assert root.tag == f"{namespace}svg"
        assert root.findtext(f"{namespace}title")
        assert root.findtext(f"{namespace}desc")

    def test_suits_light_and_dark_pages(self):
        """Every class that has a colour of text, box or arrow has another one in the dark."""
        style = (ROOT / "docs" / "loop.svg").read_text().split("<style>")[1].split("</style>")[0]
        light, dark = style.split("@media (prefers-color-scheme: dark)")

        assert set(re.findall(r"\.(\w+)\s*{", light)) - {"spot"} == set(re.findall(r"\.(\w+)\s*{", dark))
