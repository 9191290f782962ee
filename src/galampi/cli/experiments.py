"""The command of planned experiments."""

from __future__ import annotations

import argparse
from pathlib import Path

from galampi.cli.settings import Parser, positive
from galampi.errors import UserError


def add_experiment(parser: Parser) -> None:
    """Add the arguments of `experiment`."""
    parser.epilog = "exit codes, with --runs: those of sweep"
    parser.add_argument("folder", type=Path, metavar="EXPERIMENT", help="folder with a plan.toml")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="first train what the plan lacks, and record it")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw it, as PNG")
    parser.add_argument("--at-once", type=positive, default=1, metavar="N", help="most runs at the same time [1]")
    parser.set_defaults(run=_experiment)


def _experiment(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise UserError(f"experiment needs {error.name}: pip install 'galampi[report]'") from None

    def tell(line: str) -> None:
        print(line, flush=True)

    from galampi.experiments import picture, speed
    from galampi.experiments.outcome import read_outcome, table
    from galampi.experiments.running import run_plan

    folder: Path = arguments.folder
    if speed.is_about_speed(folder):
        if arguments.runs is not None:
            speed.measure_plan(folder, tell)
        print(speed.speed_table(folder))
        if arguments.picture is not None:
            picture.save_ratios(*speed.compared_with_baseline(folder), arguments.picture)
        return 0
    code = 0
    if arguments.runs is not None:
        code = run_plan(folder, arguments.runs, arguments.at_once, tell)
    outcome = read_outcome(folder)
    print(table(outcome))
    if arguments.picture is not None:
        picture.save_picture(outcome, arguments.picture)
    return code
