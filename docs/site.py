"""What the site of the documentation has beside the pages of this folder: pages from the code, and other files.

mkdocs calls the functions whose names begin with `on_`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from galampi.cli import parsers
from galampi.job import allowed, fields

ROOT = Path(__file__).parents[1]
OTHERS = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/NOTES.md": "speed.md",
}
"""Files of the repository that are pages too, and their places in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in this folder."""
    made = {place: (ROOT / path).read_text(encoding="utf-8") for path, place in OTHERS.items()}
    made |= {"reference/settings.md": "\n".join(_settings()), "reference/commands.md": "\n".join(_commands())}
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at where their targets are in the site; what is not in it becomes the name it was linked under."""
    source = {place: path for path, place in OTHERS.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        of_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = OTHERS.get(of_repository, of_repository.removeprefix("docs/"))
        file = files.get_file_from_path(place)
        if file is None or file.inclusion.is_excluded():
            return words
        relative = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{words}]({relative}{'#' + anchor if anchor else ''})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, markdown)


def _settings() -> Iterator[str]:
    """Write every key of a job file, from the code."""
    yield "# Settings of a job\n"
    yield "Each key of a job file, and of the command line as `--section.key VALUE`.\n"
    section = None
    for key, field in fields():
        table, _, name = key.rpartition(".")
        if table != section:
            section = table
            yield f"\n## {f'`[{table}]`' if table else 'Top level'}\n"
            yield "| key | default | allowed | what it is |\n|---|---|---|---|"
        default = field.get_default(call_default_factory=True)
        cells = (f"`{name}`", f"`{default!r}`", allowed(field), field.description or "")
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _commands() -> Iterator[str]:
    """Write what every command says of itself; the settings, which all that take a job share, have their own page."""
    yield "# Commands\n"
    _, by_command = parsers()
    for name, parser in by_command.items():
        text = parser.format_help()
        # Settings are grouped by section at the end of the help.
        text = re.split(r"\n\n(?=(settings|environment|job)[^\n]*:\n)", text)[0]
        yield f"\n## {name}\n\n```text\n{text.rstrip()}\n```"
