"""What a check came to, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    Attributes:
        check: Its name.
        state: `ok`, `warning` or `failed`.
        text: What was found.
        advice: What to do about it; empty if all is well.
        figures: What was measured, for `--json`.
    """

    check: str
    state: State
    text: str
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Write it as one line, or two with advice."""
        line = f"{self.state:<8} {self.check:<12} {self.text}"
        return f"{line}\n{'':<22}{self.advice}" if self.advice else line


def plural(number: int, noun: str) -> str:
    """Write a number with its noun: "1 rank", "2,000 ranks"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def mebibytes(num_bytes: float) -> str:
    """Write a number of bytes in MiB."""
    return f"{num_bytes / 2**20:,.{0 if num_bytes >= 1e8 else 2}f} MiB"
