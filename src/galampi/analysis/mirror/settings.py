"""The settings of a run as these places take them."""

from __future__ import annotations

import tomllib
from typing import Any

from galampi.results.reader import Run


def job_settings(run: Run) -> dict[str, Any]:
    """Return the job's settings, nested as in its file; none where `job.h5` is missing."""
    return tomllib.loads(run.job_toml) if "job_toml" in run.attributes else {}


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by the keys of the command line: `learner.gamma`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
