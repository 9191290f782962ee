"""What became of a run, from its files alone.

Its exit codes serve batch files, so it starts at once: no torch, no MPI.
"""

from __future__ import annotations

import time
from pathlib import Path

from galampi.errors import ResultsError
from galampi.results import JobFile, open_run

EXIT_CODES = {"finished": 0, "failed": 1, "missing": 2, "stopped": 3, "running": 4}
"""Exit code of `status` for each state of a run; a run whose job was killed still says `running`."""


def run_status(out: Path) -> str:
    """Return `finished`, `stopped`, `failed`, `running` (or killed), or `missing`."""
    if not (out / "job.h5").exists():
        return "missing"
    try:
        return str(open_run(out).status)
    except ResultsError:
        return "failed"


def describe(out: Path) -> str:
    """Say in a line what became of a run."""
    status = run_status(out)
    if status == "missing":
        return f"{out}: missing: no job.h5 there"
    text = f"{out}: {status}"
    written_s = [path.stat().st_mtime for path in out.glob("rank-*.h5")]
    if status == "running" and written_s:
        text += f" or killed; last wrote {max(0.0, time.time() - max(written_s)):.0f} s ago"
    return text


def mark_failed(out: Path) -> None:
    """Record that the job of a run ended by a failure; a run that never began is left alone."""
    if run_status(out) in ("running", "stopped"):
        JobFile.set_status(out, "failed")
