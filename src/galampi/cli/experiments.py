"""The command of planned experiments."""

from __future__ import annotations

import argparse
from pathlib import Path

from galampi.cli.settings import Parser, positive
from galampi.errors import UserError


def add_experiment(parser: Parser) -> None:
    """Add the arguments of `experiment`."""
    parser.epilog = "exit codes, with --runs: those of sweep"
    parser.add_argument("folders", type=Path, nargs="+", metavar="EXPERIMENT", help="folder with a plan.toml")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="first train what the plan lacks, and record it")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw it, as PNG; of several what each is about"
    )
    parser.add_argument("--at-once", type=positive, metavar="N", help="most runs at the same time [1]")
    parser.add_argument(
        "--sb3",
        type=Path,
        metavar="PYTHON",
        help="Python with Stable-Baselines3, for the arms that are trained with it",
    )
    parser.set_defaults(run=_experiment)


def _experiment(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"experiment needs {error.name}: pip install 'galampi[report]'") from None

    from galampi.experiments import picture, speed
    from galampi.experiments.outcome import Outcome, read_outcome
    from galampi.experiments.tables import table

    folders: list[Path] = arguments.folders
    if arguments.runs is None and (words := _words_of_training(arguments)):
        raise UserError(f"{words[0]} says how runs are trained: it takes --runs DIR too")
    if arguments.runs is not None:
        if len(folders) > 1:
            raise UserError("--runs takes one EXPERIMENT")
        if code := _train(folders[0], arguments):
            return code
    found: dict[Path, Outcome | speed.Ratios] = {}
    for number, folder in enumerate(folders):
        if number:
            print()
        if speed.is_about_speed(folder):
            print(speed.speed_table(folder))
            found[folder] = speed.compared_with_baseline(folder)
        else:
            outcome = read_outcome(folder)
            print(table(outcome))
            found[folder] = outcome
    if arguments.picture is not None:
        picture.save_pictures(found, arguments.picture)
    return 0


def _train(folder: Path, arguments: argparse.Namespace) -> int:
    """Train or measure what a plan lacks, and return the exit code."""
    from galampi.experiments import speed
    from galampi.experiments.running import run_plan

    def tell(line: str) -> None:
        print(line, flush=True)

    if not speed.is_about_speed(folder):
        return run_plan(folder, arguments.runs, arguments.at_once or 1, tell, arguments.sb3)
    if words := _words_of_training(arguments):
        raise UserError(f"{words[0]} says how runs are trained: {folder} measures speed, one sample after the other")
    speed.measure_plan(folder, tell)
    return 0


def _words_of_training(arguments: argparse.Namespace) -> list[str]:
    """Return what was given that means something only where runs are trained."""
    return [word for word in ("--at-once", "--sb3") if getattr(arguments, word[2:].replace("-", "_")) is not None]
