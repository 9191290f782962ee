"""What a sweep asks for: the values of some settings, and the job of every combination. Pure, but for the job file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from galampi.errors import UserError
from galampi.job import Job, fields, find_modules, load_job
from galampi.launch.submit import slug


def parse_axes(sweeps: Sequence[str], num_seeds: int | None, first_seed: int) -> dict[str, list[str]]:
    """Read `key=a,b,c` texts into the axes of a sweep.

    Args:
        sweeps: One text for each key. A comma in brackets, braces or quotes does not separate.
        num_seeds: Also sweep `seed` over this many, from `first_seed`.
        first_seed: The job's own.

    Raises:
        UserError: A text is no axis, or two are of one key.
    """
    axes: dict[str, list[str]] = {}
    known = {key for key, _ in fields()}
    for text in sweeps:
        key, equals, values = text.partition("=")
        split = _split(values)
        if not equals or not all(split):
            raise UserError(f"--sweep {text}: must be KEY=VALUE,VALUE,...")
        if key in axes:
            raise UserError(f"--sweep {text}: {key} is swept twice")
        # load_job names the nearest key for one that is unknown; a known one must not be a whole section.
        if key in known and len(set(split)) < len(split):
            raise UserError(f"--sweep {text}: a value stands there twice")
        axes[key] = split
    if num_seeds is not None:
        if "seed" in axes:
            raise UserError("--array-seeds and --sweep seed=... are two ways to say one thing; give one")
        if num_seeds < 1:
            raise UserError(f"--array-seeds is {num_seeds}; must be at least 1")
        axes["seed"] = [str(first_seed + i) for i in range(num_seeds)]
    return axes


def _split(values: str) -> list[str]:
    """Split at commas outside of brackets, braces and quotes; where one of these lacks its other half, into nothing."""
    split, depth, quote = [""], 0, ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and not (depth or quote):
            split.append("")
        else:
            split[-1] += character
    return split if not (depth or quote) else [""]


def combinations(
    job_file: Path | None, overrides: Mapping[str, str], axes: Mapping[str, Sequence[str]]
) -> dict[str, Job]:
    """Return the job of every combination, by the name of its run.

    Raises:
        JobError: A combination is not allowed.
        UserError: Two are the same job.
    """
    jobs: dict[str, Job] = {}
    names: dict[str, str] = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        job = load_job(job_file, {**overrides, **chosen})
        find_modules(job)
        name = free_name(run_name(chosen), jobs)
        if (same := names.setdefault(job.model_dump_json(), name)) != name:
            raise UserError(f"--sweep: {same} and {name} are the same job, as 0.9 and 0.90 would be")
        jobs[name] = job
    return jobs


def run_name(chosen: Mapping[str, str]) -> str:
    """Name the run of some settings, each the text of its value."""
    parts = []
    for key, value in chosen.items():
        if key == "environment.id":
            parts.append(slug(value.rsplit("/", 1)[-1]))
        else:
            sign = "-" if re.match(r"-[.\d]", value) else ""
            parts.append(f"{key.rsplit('.', 1)[-1]}-{sign}{slug(value)}")
    return "_".join(parts)


def free_name(name: str, taken: Container[str]) -> str:
    """Return a name with as many dashes behind it as others have taken it."""
    while name in taken:
        name += "-"
    return name
