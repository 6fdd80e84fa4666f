"""Hooks of mkdocs.yml: files of the root become pages, and links written for GitHub work in the site."""

import os
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""File in the root of the repository -> page of the site."""

_TARGET: Final = r"\((?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
_LINK: Final = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]" + _TARGET)
_END_OF_LINK: Final = re.compile(r"(?<=\])" + _TARGET)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that come from the root of the repository."""
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Point relative links at pages of the site; those to other files at ``repo_url``, or at nothing without one."""
    uri = page.file.src_uri
    folder = next((ROOT for made in PAGES.values() if made == uri), ROOT / "docs")

    def path_of(found: re.Match[str]) -> str:
        return os.path.relpath(folder / found["path"], ROOT)

    def to_source(found: re.Match[str]) -> str:
        path = path_of(found)
        if path in PAGES or path.startswith("docs/"):
            return found[0]
        return f"[{found['text']}]({config.repo_url}/blob/HEAD/{path})" if config.repo_url else found["text"]

    def to_page(found: re.Match[str]) -> str:
        path = path_of(found)
        return f"({PAGES.get(path, path.removeprefix('docs/'))}{found['anchor'] or ''})"

    return _END_OF_LINK.sub(to_page, _LINK.sub(to_source, markdown))
