"""What the site's build adds to docs/: pages made from other files of the repository."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from recipe_reference import PLACE, reference_text

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
"""Files outside docs/ that are pages of the site, with their place there."""

LINKED = ("benchmarks/results/*.csv", "examples/**/*.*", "LICENSE")
"""Files outside docs/ that pages link to; the site has a copy in `repository/`."""

_LINK = re.compile(r"(\[(?:[^\]\[]|\[[^\]]*\])*\])\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated page, the pages of the root and the linked files."""
    files.append(File.generated(config, PLACE, content=reference_text()))
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for pattern in LINKED:
        for path in sorted(ROOT.glob(pattern)):
            place = f"repository/{path.relative_to(ROOT).as_posix()}"
            # A page of Markdown in there would be one that no menu leads to.
            if path.is_file() and path.suffix != ".md":
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to the page or the copy that the site has."""
    names = {place: source for source, place in PAGES.items()}
    source = names.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def changed(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if (ROOT / path).is_dir():  # the site lists no directories
            return text[1:-1]
        place = place_of(path)
        if files.get_file_from_path(place) is None:
            return match[0]  # the build says that it leads nowhere
        here = posixpath.dirname(page.file.src_uri)
        return f"{text}({posixpath.relpath(place, here or '.')}{anchor})"

    return _LINK.sub(changed, markdown)


def place_of(path: str) -> str:
    """Return where the site has a file of the repository.

    >>> place_of("docs/tuning.md"), place_of("README.md"), place_of("LICENSE")
    ('tuning.md', 'index.md', 'repository/LICENSE')
    """
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the decisions in the menu, in their order."""
    decisions = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    entries: list[Any] = [f"adr/{path.name}" for path in decisions]
    menu: list[Any] = config.nav or []
    menu.insert(-1, {"Decisions": entries})
    return config
