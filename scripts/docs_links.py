"""A hook of mkdocs: links between files of the repository hold in the built documentation too.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages, and a file outside docs/ that a page links to is copied into
the site.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
RELATIVE_LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that lie outside docs/."""
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite a page's links, which follow the repository's folders, to follow the site's."""
    folder = Path(page.file.abs_src_path or "").parent

    def in_site(link: re.Match[str]) -> str:
        target = (folder / link[0]).resolve()
        if not target.is_file():
            return link[0]  # which mkdocs reports
        uri = _site_uri(target, Path(config.docs_dir))
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(target), inclusion=InclusionLevel.INCLUDED))
        return os.path.relpath(uri, Path(page.file.src_uri).parent)

    return RELATIVE_LINK.sub(in_site, markdown)


def _site_uri(file: Path, docs: Path) -> str:
    if file.is_relative_to(docs):
        return file.relative_to(docs).as_posix()
    name = file.relative_to(ROOT).as_posix()
    return PAGES.get(name, name)
