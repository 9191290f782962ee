"""What a place that runs are mirrored to must do, and how runs of one name get names of their own there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from galampi.analysis.mirror.rows import RankRows
from galampi.errors import ResultsError, UserError
from galampi.results.files import replace_text
from galampi.results.reader import RankFile, Run
from galampi.results.schema import rank_file_name

STATE = "mirror.json"


class Place(Protocol):
    """One run at a place.

    Attributes:
        news: Lines for the user, taken away when they are told.
    """

    news: list[str]

    def write(self, run: Run, ranks: Sequence[RankRows]) -> int:
        """Write what is not there yet, and the run's status; return how many rows that was.

        Raises:
            ResultsError: A file of the run is damaged, or being replaced.
            UserError: The place cannot be written.
        """

    def close(self) -> None:
        """Write all that was handed over, and end."""


OpenPlace = Callable[[Run], Place]
"""Finds what of a run is at a place already; sends nothing. Raises UserError where nobody or another may write."""


def names(run: Path) -> Iterator[str]:
    """Yield the names that a run may have at a place: its own, then with a number."""
    for number in count(1):
        yield run.name if number == 1 else f"{run.name}-{number}"


def own_folder(run: Path, folder: Path) -> Path:
    """Return the folder of a run's state: the first of its names that is free, or whose state is of this run.

    A run that was moved and has kept its name is known by its first row.
    """
    for name in names(run):
        state = read_state(folder / name)
        if state is None or (_is_of(state, run) and not state.get("was_begun_anew")):
            break
    return folder / name


def _is_of(state: dict[str, Any], run: Path) -> bool:
    if state["run"] == str(run):
        return True
    first_s = state.get("first_s")
    return first_s is not None and first_s == _first_s(run) != _first_s(Path(state["run"]))


def _first_s(run: Path) -> float | None:
    """Return the job time of rank 0's first update, which stays for good; None if it is not there, or not readable."""
    try:
        first = RankFile(run / rank_file_name(0), 0).updates.read("time_s", stop=1)["time_s"]
    except ResultsError:
        return None
    return float(first[0]) if len(first) else None


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what an earlier mirror has noted in a folder; None if there is none.

    Raises:
        UserError: What is noted there is damaged, or may not be read.
    """
    path = folder / STATE
    try:
        state = dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        state = {}
    if not (isinstance(state.get("run"), str) and isinstance(state.get("ranks"), dict)):
        raise UserError(f"{path}: damaged: it no longer tells what is here; choose another folder, or remove {folder}")
    return state


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Note what is at the place now, whole or not at all.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        replace_text(folder / STATE, json.dumps(state) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
