"""`simulate`: a table of what jobs of many ranks would come to, and seeds whose jobs are checked."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from galampi.errors import UserError
from galampi.ranks.launched import num_cores
from galampi.simulation.invariants import BrokenInvariantError, check, draw
from galampi.simulation.machine import Exchange, Machine, Method
from galampi.simulation.world import Measured, World, measure, measure_allreduce

_COLUMNS = ("ranks", "method", "updates/s", "of ideal", "effective step", "age", "skipped", "weights", "distance")
_FEWEST_UPDATES = 20


def simulate(
    exchanges: Sequence[Exchange], machine: Machine, *, num_updates: int, seed: int, out: Path | None = None
) -> Iterator[str]:
    """Simulate jobs, and yield the lines of a table of what they came to.

    Args:
        exchanges: Of the jobs.
        machine: What they run on.
        num_updates: Mean updates of a rank.
        seed: Of all that is drawn.
        out: JSON file to write, with what was stated and what came of it; None for none.

    Raises:
        UserError: There are too few updates to measure, the exchange sends nothing, or `out` cannot be written.
    """
    if num_updates < _FEWEST_UPDATES:
        raise UserError(f"--updates is {num_updates}; must be at least {_FEWEST_UPDATES}: a part of them is a warm-up")
    yield line(_COLUMNS)
    jobs = []
    # Nothing here is garbage until it is all over, and looking for some takes a fifth of the time.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for exchange in exchanges:
            if exchange.method == "allreduce":
                measured = measure_allreduce(exchange, machine, num_updates, seed)
            else:
                measured = measure(World(exchange, machine, seed), num_updates)
            jobs.append({"exchange": asdict(exchange), "measured": known(measured)})
            yield line(cells(exchange, measured))
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    if out is not None:
        record = {"machine": asdict(machine), "num_updates": num_updates, "seed": seed, "jobs": jobs}
        try:
            out.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


def cells(exchange: Exchange, measured: Measured) -> tuple[str, ...]:
    """Return a row of the table."""
    has_age = measured.age_updates == measured.age_updates
    is_weighted = exchange.method == "push-sum"
    return (
        f"{exchange.num_ranks}",
        exchange.method,
        f"{measured.updates_per_s:,.0f}",
        f"{measured.efficiency:.1%}",
        f"{measured.effective_step:.3f}",
        f"{measured.age_updates:.2f}" if has_age else "-",
        f"{measured.skipped:.1%}",
        f"{measured.weight_min:.2f}-{measured.weight_max:.2f}" if is_weighted else "-",
        f"{measured.distance:.2f}",
    )


def line(row: Sequence[str]) -> str:
    """Return a row as a line of text."""
    widths = (6, 9, 12, 8, 14, 6, 8, 10, 8)
    return "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def known(measured: Measured) -> dict[str, float | None]:
    """Return what was measured for JSON, which knows no NaN."""
    return {name: value if value == value else None for name, value in asdict(measured).items()}


def check_seeds(first: int, count: int, num_processes: int | None = None) -> Iterator[str]:
    """Simulate and check the jobs of some seeds, and yield a line for each that fails.

    What must hold is asserted, so `python -O` would check nothing.

    Args:
        first: First seed.
        count: How many.
        num_processes: Among which they are shared; None for the cores there are.
    """
    seeds = range(first, first + count)
    with ProcessPoolExecutor(num_processes or num_cores()) as pool:
        for seed, failure in zip(seeds, pool.map(failure_of, seeds, chunksize=8), strict=True):
            if failure is not None:
                yield f"seed {seed}: {failure}; again by: python -m galampi simulate --replay {seed}"


def failure_of(seed: int) -> str | None:
    """Simulate and check the job of a seed; return what does not hold of it, or None."""
    try:
        check(draw(seed))
    except BrokenInvariantError as error:
        return " ".join(str(error).split())
    return None


def exchanges_of(numbers_of_ranks: Sequence[int], methods: Sequence[Method], base: Exchange) -> list[Exchange]:
    """Return the jobs of a table: each number of ranks with each method."""
    return [replace(base, num_ranks=num_ranks, method=method) for num_ranks in numbers_of_ranks for method in methods]
