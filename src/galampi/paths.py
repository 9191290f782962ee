"""Paths as users write them, where no shell has seen them."""

from __future__ import annotations

import sys
from pathlib import Path

from galampi.errors import UserError


def refuse_undecoded(path: Path) -> None:
    """Refuse a path that is no text in this locale: files and pages could not name it.

    Raises:
        UserError: It holds bytes that are none.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = str(path).encode("ascii", "backslashreplace").decode()
        raise UserError(
            f"{shown}: is no text in this locale ({sys.getfilesystemencoding()}); choose another name, or set "
            "PYTHONUTF8=1 if it is UTF-8"
        ) from None


def expanded(path: Path | str) -> Path:
    """Return a path whose `~` at its start is the home folder; what is no user of this system stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
