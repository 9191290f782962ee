"""The command: rounds of all contestants in turns, a table, and a file of everything that was measured."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from galampi.bench import contestants, figures, machine
from galampi.bench.contestants import SAMPLE_FACTORY_SETTINGS, SB3_SETTINGS, Sample
from galampi.bench.figures import FIGURES
from galampi.bench.timed_train import Disturbance
from galampi.errors import UserError
from galampi.learning import resolve_precision
from galampi.results.files import replace_text

FORMAT_VERSION = 1
EXCHANGE_SIZES = tuple(1 << power for power in range(10, 27, 2))
"""1 KiB to 64 MiB."""
_EXCHANGE_SECONDS = 1.0
_FILE_WIDTH = 140

Contestant = Callable[[], Sample]


@dataclass(frozen=True)
class Peers:
    """Pythons of environments with what is measured beside this project; what has none is left out.

    Attributes:
        sb3: With Stable-Baselines3.
        sample_factory: With Sample Factory.
    """

    sb3: Path | None = None
    sample_factory: Path | None = None


def bench(*, num_rounds: int, seconds: float, part: str, peers: Peers, out: Path) -> int:
    """Measure, print the table and write the file, after each round anew. Starts ranks of its own.

    Args:
        num_rounds: Rounds of all contestants.
        seconds: Time that counts of each contestant in each round.
        part: `figures`, `exchange` or `all`.
        peers: What is measured beside this project.
        out: Folder of the file.

    Returns:
        The command's exit code.

    Raises:
        UserError: A contestant cannot run.
    """
    to_terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not to_terminal, width=None if to_terminal else _FILE_WIDTH)
    precision = resolve_precision("auto", "cpu", convolutions=True)
    found = machine.facts()
    path = out / machine.file_name(found, part)
    _require(out, peers)
    results: dict[str, Any] = {
        "format": "galampi bench",
        "version": FORMAT_VERSION,
        "command": ["python", "-m", "galampi", *sys.argv[1:]],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": found,
        "precision": precision,
    }
    flags = " ".join(found["processor_flags"]) or "none of AVX2, AVX-512, AMX"
    console.print(f"{found['processor']} ({flags}), {found['cores']} cores; {found['mpi']}; fastest in {precision}")
    rounds: list[dict[str, Sample]] = []
    if part != "exchange":
        players = list(_players(seconds, precision, peers))
        for number in range(1, num_rounds + 1):
            samples: dict[str, Sample] = {}
            # What a round disturbs at its end, the next disturbs at its beginning.
            for name, player in players if number % 2 else players[::-1]:
                samples[name] = player()
                _say(console, f"round {number} of {num_rounds}  {name:<34}", samples[name])
            samples[figures.TWO] = samples[f"2 ranks, {precision}"]
            if peers.sb3 is not None:
                samples[figures.SB3] = max((samples[_sb3_name(*each)] for each in SB3_SETTINGS), key=_steps_per_s)
            if peers.sample_factory is not None:
                of_each = (samples[_sample_factory_name(each)] for each in SAMPLE_FACTORY_SETTINGS)
                samples[figures.SAMPLE_FACTORY] = max(of_each, key=_steps_per_s)
            rounds.append(samples)
            results["figures"] = [figures.summary(figure, rounds) for figure in FIGURES]
            results["rounds"] = rounds
            _write(path, results)
    if rounds:
        console.print(_table_of_figures(results["figures"]))
        for line in _not_measured(results["figures"], peers):
            console.print(line)
        console.print(_table_of_phases(rounds))
    if part != "figures":
        results["exchange"] = []
        for num_ranks, over, measured in _exchanges():
            results["exchange"] += [{"num_ranks": num_ranks, "path": over, **sample} for sample in measured]
            _write(path, results)
            console.print(f"exchange of {num_ranks} ranks, {over}")
        console.print(_table_of_exchange(results["exchange"]))
    console.print(f"written: {path}")
    return 0


def _require(out: Path, peers: Peers) -> None:
    """Raise UserError unless the file can be written and the peers' pythons, if any, are programs."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    if not os.access(out, os.W_OK):
        raise UserError(f"{out}: cannot be written")
    for option, name, python in (
        ("--sb3", "Stable-Baselines3", peers.sb3),
        ("--sample-factory", "Sample Factory", peers.sample_factory),
    ):
        if python is not None and not os.access(python, os.X_OK):
            raise UserError(f"{option} is {python}; must be the python of an environment with {name}")


def _exchanges() -> Iterator[tuple[int, str, list[Sample]]]:
    """Yield the number of ranks, what lies between them, and their samples of all sizes."""
    for network in (False, True):
        for num_ranks in (2, 3, 4):
            over = "network" if network else "shared memory"
            yield num_ranks, over, contestants.exchange(num_ranks, EXCHANGE_SIZES, _EXCHANGE_SECONDS, network=network)


def _players(seconds: float, precision: str, peers: Peers) -> Iterator[tuple[str, Contestant]]:
    """Yield the contestants in the order of a round: those that are compared follow each other."""
    train = partial(contestants.training, seconds=seconds)
    if peers.sample_factory is not None:
        for num_envs in SAMPLE_FACTORY_SETTINGS:
            yield (
                _sample_factory_name(num_envs),
                partial(contestants.sample_factory, peers.sample_factory, num_envs, seconds),
            )
    if peers.sb3 is not None:
        for setting in SB3_SETTINGS:
            yield _sb3_name(*setting), partial(contestants.sb3, peers.sb3, *setting, seconds)
    yield figures.F32, partial(train, 2, precision="float32")
    if precision == "bfloat16":
        yield figures.BF16, partial(train, 2, precision="bfloat16")
    yield figures.ONE, partial(train, 1, precision=precision)
    yield figures.EMULATORS, partial(contestants.emulators, seconds)
    slowed = partial(train, 4, precision=precision, disturbance=Disturbance(slow_rank=3))
    yield figures.SLOWED, slowed
    yield figures.SLOWED_ALLREDUCE, partial(slowed, method="allreduce")
    for name, num_ranks in ((figures.EXCHANGE_2, 2), (figures.EXCHANGE_4, 4)):
        yield name, partial(contestants.pong_exchange, num_ranks, _EXCHANGE_SECONDS)


def _sb3_name(num_envs: int, subprocesses: bool) -> str:
    return f"{figures.SB3}, {num_envs} {'processes' if subprocesses else 'in-process'}"


def _sample_factory_name(num_envs: int) -> str:
    return f"{figures.SAMPLE_FACTORY}, 2 x {num_envs}"


def _steps_per_s(sample: Sample) -> float:
    return float(sample["steps_per_s"])


def _say(console: Console, name: str, sample: Sample) -> None:
    text = f"{sample['steps_per_s']:8,.0f} steps/s" if "steps_per_s" in sample else f"{1e3 * sample['step_s']:8.2f} ms"
    console.print(f"{name} {text}")


def _table_of_figures(summaries: list[dict[str, Any]]) -> Table:
    table = Table(title="Figures: median of the rounds", title_justify="left")
    table.add_column("figure")
    for name in ("median", "range", "goal", "stretch", "reached"):
        table.add_column(name, justify="right")
    for each in summaries:
        if each["value"] is None:
            continue
        sign = ">" if each["better"] == "more" else "<"
        goals = [f"{sign}{each[key]:g}" if each[key] is not None else "" for key in ("goal", "stretch")]
        reached = "stretch" if each["reaches_stretch"] else "goal" if each["reaches_goal"] else "no"
        between = f"{each['least']:.3g}-{each['greatest']:.3g}"
        table.add_row(
            each["name"],
            f"{each['value']:.3g} {each['unit']}",
            between,
            *goals,
            "" if each["goal"] is None else reached,
        )
    return table


def _not_measured(summaries: list[dict[str, Any]], peers: Peers) -> Iterator[str]:
    for each in summaries:
        if each["value"] is None:
            why = "this processor has no bfloat16"
            if "Stable" in each["name"] and peers.sb3 is None:
                why = "needs --sb3"
            if "Sample Factory" in each["name"]:
                why = "needs --sample-factory"
            yield f"not measured ({why}): {each['name']}"


def _table_of_phases(rounds: list[dict[str, Sample]]) -> Table:
    table = Table(title="An update of a rank: ms, mean over the last round", title_justify="left")
    table.add_column("contestant")
    trained = {
        name: sample["phases_s"] for name, sample in rounds[-1].items() if "phases_s" in sample and name != figures.TWO
    }
    for phase in next(iter(trained.values())):
        table.add_column(phase.removesuffix("_s"), justify="right")
    table.add_column("all", justify="right")
    for name, phases_s in trained.items():
        table.add_row(
            name, *(f"{1e3 * value:.2f}" for value in phases_s.values()), f"{1e3 * sum(phases_s.values()):.1f}"
        )
    return table


def _table_of_exchange(samples: list[Sample]) -> Table:
    table = Table(title="Exchange: microseconds, median; bytes of a message", title_justify="left")
    keys = ("copy_s", "put_s", "flag_s", "message_s", "step_s", "allreduce_s")
    for name in ("path", "ranks", "bytes", *(key.removesuffix("_s") for key in keys)):
        table.add_column(name, justify="left" if name == "path" else "right")
    for sample in samples:
        times = [f"{1e6 * sample[key]:,.1f}" for key in keys]
        table.add_row(sample["path"], str(sample["num_ranks"]), f"{sample['num_bytes']:,}", *times)
    return table


def _write(path: Path, results: dict[str, Any]) -> None:
    replace_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")
