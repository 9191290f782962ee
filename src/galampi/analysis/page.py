"""The page of a report: one HTML file that needs nothing else, light and dark.

Owns the markup. Every text goes through `text`, so that nothing a run holds can become markup. A template of the
standard library suffices: the page has no loops that plain joins would not say as well.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from string import Template

from galampi.analysis.shown import shown

_COLORS = {
    "#fefefe": "paper",
    "#1b1e22": "ink",
    "#6d747c": "faint",
    "#dfe2e6": "grid",
    "#0068a8": "s1",
    "#cf5200": "s2",
    "#00875a": "s3",
    "#b8588f": "s4",
    "#9a7400": "s5",
}
"""Colours of the figures to names of the page's own, which follow the reader's light or dark."""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">$refresh
<title>$title</title>
<style>
:root { --paper: #ffffff; --raised: #f6f7f8; --line: #dfe2e6; --ink: #1b1e22; --faint: #6d747c; --grid: #dfe2e6;
  --s1: #0068a8; --s2: #cf5200; --s3: #00875a; --s4: #b8588f; --s5: #9a7400; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --raised: #1d2125; --line: #343a40; --ink: #e7e9eb; --faint: #9ba3ab; --grid: #2b3137;
    --s1: #5ab0ea; --s2: #ff8f4a; --s3: #3ccf9b; --s4: #eaa0cb; --s5: #e3bd45; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .25rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 1rem; max-width: 48rem; }
.faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { text-align: left; padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
th { font-weight: 600; white-space: nowrap; }
td.name { min-width: 8rem; max-width: 24rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr));
  gap: 2rem 2.5rem; margin-top: 1.25rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: .85rem; line-height: 1.45; margin-top: .4rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--faint); }
pre { background: var(--raised); padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
@media (max-width: 40rem) {
  thead { display: none; }
  table, tbody, tr { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: .4rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; }
  td::before { content: attr(data-column); color: var(--faint); }
  td.name { max-width: none; font-weight: 600; }
  td.name::before { content: none; } }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
</style>
</head>
<body>
$body
</body>
</html>
""")


def text(value: object) -> str:
    """Return a value as text of the page, whatever it holds."""
    return html.escape(shown(value))


def page(title: str, body: Iterable[str], refresh_s: float | None = None) -> str:
    """Return the whole page; `body` is markup. After `refresh_s` seconds it loads itself anew, if that is given."""
    refresh = "" if refresh_s is None else f'\n<meta http-equiv="refresh" content="{refresh_s:g}">'
    return _PAGE.substitute(title=text(title), body="\n".join(body), refresh=refresh)


def heading(level: int, words: str) -> str:
    """Return a heading."""
    return f"<h{level}>{text(words)}</h{level}>"


def paragraph(words: str, *, faint: bool = False) -> str:
    """Return a paragraph."""
    return f"<p class='faint'>{text(words)}</p>" if faint else f"<p>{text(words)}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column holds names; on a narrow page each row becomes a list."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = zip(columns[1:], row[1:], strict=True)
        others = "".join(f'<td data-column="{text(column)}">{text(cell)}</td>' for column, cell in cells)
        lines.append(f'<tr><td class="name">{text(row[0])}</td>{others}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def folded(summary: str, content: Mapping[str, str]) -> str:
    """Return named blocks of plain text behind a line that opens them."""
    blocks = "".join(f"<h3>{text(name)}</h3><pre>{_lines(block)}</pre>" for name, block in content.items())
    return f"<details><summary>{text(summary)}</summary>{blocks}</details>"


def figures(pictures: Iterable[tuple[str, str, str, str]]) -> str:
    """Return figures side by side, each given as name, title, caption and SVG."""
    items = [
        f'<figure id="{name}"><h3>{text(title)}</h3>{_inline(svg, name, title)}'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for name, title, caption, svg in pictures
    ]
    return f'<div class="figures">{"".join(items)}</div>'


def _lines(block: str) -> str:
    return "\n".join(text(line) for line in block.splitlines())


def _inline(svg: str, name: str, title: str) -> str:
    """Turn an SVG file into a part of the page: its own ids, the page's colours, no size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    for color, variable in _COLORS.items():
        svg = svg.replace(color, f"var(--{variable})")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None, "matplotlib writes a viewBox"
    return f'<svg role="img" aria-label="{text(title)}" {view_box[0]}>{svg[svg.index(">") + 1 :]}'
