"""A folder for a run that is given none."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from galampi.errors import UserError


def new_folder(name: str, *, dry_run: bool = False) -> Path:
    """Create a folder for a new run that no other has, `runs/NAME-DATE-TIME`, and return it, absolute.

    Args:
        name: First part of its name.
        dry_run: Only say what it would be.

    Raises:
        UserError: It cannot be created.
    """
    first = (Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    for number in itertools.count(1):
        out = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            if not dry_run:
                out.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{out}: cannot be created: {error.strerror}") from None
        return out
    raise AssertionError
