"""How the view of a run, or of several, is drawn on a terminal of some size. Reads no files."""

from __future__ import annotations

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from galampi.analysis.shown import number, shown, span
from galampi.analysis.watch.several import SeveralRuns
from galampi.analysis.watch.view import RankView, RunView
from galampi.digits import returned

_WIDE = 60
"""Characters of a line that has room for everything."""
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character's dots, by row from the top and column."""


def picture(view: RunView, width: int, height: int) -> Group:
    """Lay out the view for a terminal of some size."""
    job, silent = view.job, view.silent
    num_ranks = len(view.ranks)
    head = Text(overflow="ellipsis", no_wrap=True)
    head.append(shown(job.name), style="bold")
    about = f"  {job.environment.id}  {job.gossip.method}  {num_ranks} rank{'s' * (num_ranks > 1)}  "
    head.append(shown(about), style="dim")
    style = {"running": "green", "finished": "bold green"}.get(view.status, "bold yellow")
    head.append(shown(view.status), style=style)
    if view.effective_step == view.effective_step:
        head.append(f"  effective step {view.effective_step:.2f}", style="dim")

    done = min(1.0, view.env_steps / job.total_env_steps)
    left = f"left {span(view.left_s)}" if view.status == "running" and view.left_s is not None else ""
    progress = Table.grid(expand=True, padding=(0, 1))
    progress.add_column(no_wrap=True)
    progress.add_column(ratio=1)
    progress.add_column(no_wrap=True, justify="right")
    is_wide = width >= _WIDE
    steps = f"{view.env_steps:,} / {job.total_env_steps:,} steps {done:.0%}" if is_wide else f"{done:.0%}"
    rate = f"{view.env_steps_per_s:,.0f} steps/s  " if view.status == "running" else ""
    progress.add_row(Text(steps), ProgressBar(total=1.0, completed=done), Text(rate + left))

    lines = list(silent.values())
    # Of a terminal of few lines they leave the rest its place.
    num_lines = min(3, max(1, height - 11))
    if len(lines) > num_lines:
        num_others = len(lines) - num_lines + 1
        lines[num_lines - 1 :] = [
            f"and {num_others} more silent ranks" if num_lines > 1 else f"{num_others} silent ranks"
        ]
    warnings = [Text(line, style="bold red", overflow="ellipsis", no_wrap=True) for line in lines]
    leave = "q leaves; the job goes on" if view.status == "running" else "q leaves"
    # Above and below the table: head, progress, two gaps, the table's head, the title of the curve, the way out.
    room = height - 7 - len(warnings)
    num_shown = min(num_ranks, max(1, room - 5))
    ranks = sorted(view.ranks, key=lambda each: (each.rank not in silent, each.rank))[:num_shown]
    table = _rank_table(ranks, silent, is_wide=is_wide)
    if num_shown < num_ranks:
        table.add_row(f"+{num_ranks - num_shown}", style="dim")
    rows = max(2, room - num_shown - (num_shown < num_ranks))
    curve = _curve(view, width, rows)
    return Group(head, progress, *warnings, Text(""), table, Text(""), *curve, Text(leave, style="dim"))


def runs_picture(runs: SeveralRuns, width: int, height: int) -> Group:
    """Lay out several runs, those that are on their way first, for a terminal of some size."""
    order = {"running": 0, "failed": 1, "partial": 1, "stopped": 2, "missing": 3, "finished": 4}
    folders = sorted(runs.views, key=lambda folder: order.get(runs.state(folder), 2))
    # The line above, two gaps, the table's head, the way out.
    num_shown = len(folders) if len(folders) <= height - 5 else max(1, height - 6)
    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("run", ratio=1, min_width=6, no_wrap=True, overflow="ellipsis")
    wide = width >= 70
    for name in ("state", "done", *(("steps/s",) if wide else ()), "return", *(("left",) if wide else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for folder in folders[:num_shown]:
        state, view = runs.state(folder), runs.views[folder]
        cells = ["-"] * 4
        if view is not None:
            is_running = state == "running"
            cells = [
                f"{min(1.0, view.env_steps / view.job.total_env_steps):.0%}",
                f"{view.env_steps_per_s:,.0f}" if is_running else "-",
                returned(view.mean_return(), 1),
                span(view.left_s) if is_running and view.left_s is not None else "-",
            ]
        kept = cells if wide else [cells[0], cells[2]]
        style = {"running": "green", "finished": None, "missing": "dim"}.get(state, "bold yellow")
        table.add_row(Text(shown(folder.name)), Text(shown(state)), *kept, style=style)
    if num_shown < len(folders):
        table.add_row(f"+{len(folders) - num_shown}", style="dim")
    head = Text(runs.line(), style="bold", overflow="ellipsis", no_wrap=True)
    leave = "q leaves; the jobs go on" if runs.status == "running" else "q leaves"
    return Group(head, Text(""), table, Text(""), Text(leave, style="dim"))


def _rank_table(ranks: list[RankView], silent: dict[int, str], *, is_wide: bool) -> Table:
    table = Table(box=None, expand=is_wide, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("rank", justify="right", no_wrap=True)
    if is_wide:
        table.add_column("host", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("steps/s", "return", *(("weight", "msg age") if is_wide else ()), "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    for view in ranks:
        is_silent = view.rank in silent
        age = "-" if view.message_age_s != view.message_age_s else f"{view.message_age_s * 1e3:,.0f} ms"
        table.add_row(
            str(view.rank),
            *([Text(shown(view.hostname))] if is_wide else []),
            "silent" if is_silent else number(view.env_steps_per_s, ",.0f"),
            returned(view.mean_return, 1),
            *([number(view.weight, ".3f"), age] if is_wide else []),
            number(view.distance, ".2%"),
            style="bold red" if is_silent else None,
        )
    return table


def _curve(view: RunView, width: int, rows: int) -> list[Text]:
    """Draw the return over job time: a line that says what it is, and rows of braille."""
    end_s = max((each.time_ended_s[-1] for each in (*view.ranks, *view.retired) if each.time_ended_s), default=0.0)
    words = f"return, mean of 100 episodes of all ranks, over {span(end_s)} of job time"
    title = Text(words, style="dim", overflow="ellipsis", no_wrap=True)
    columns = max(1, width - 10)
    values = view.curve(2 * columns)
    known = [value for value in values if value == value]
    if not known:
        return [title, Text("no episode has ended yet", style="dim"), *(Text("") for _ in range(rows - 1))]
    low, high = min(known), max(known)
    lines = braille(values, rows)
    labels = {0: f"{high:.4g}", rows - 1: f"{low:.4g}"}
    return [title, *(Text(f"{labels.get(row, ''):>8} ") + Text(line, style="cyan") for row, line in enumerate(lines))]


def braille(values: list[float], rows: int) -> list[str]:
    """Draw values as a line of braille dots, two values and four levels a character; NaN leave a gap."""
    known = [value for value in values if value == value]
    low, span = min(known), max(known) - min(known)
    levels = 4 * rows - 1
    cells = [[0] * (len(values) // 2) for _ in range(rows)]
    before: int | None = None
    for index, value in enumerate(values[: 2 * (len(values) // 2)]):
        if value != value:
            before = None
            continue
        level = round((value - low) / span * levels) if span else levels // 2
        # Join it to its neighbour by filling the levels between.
        start = level if before is None else before + (level > before) - (level < before)
        for each in range(min(start, level), max(start, level) + 1):
            row, dot = divmod(levels - each, 4)
            cells[row][index // 2] |= _DOTS[dot][index % 2]
        before = level
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]
