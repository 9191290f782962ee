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
    parser.add_argument("--runs", type=Path, metavar="DIR", help="first train there what the plan lacks, and record it")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw it, as PNG")
    parser.add_argument("--at-once", type=positive, default=1, metavar="N", help="most runs at the same time [1]")
    parser.set_defaults(run=_experiment)


def _experiment(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise UserError(f"experiment needs {error.name}: pip install 'galampi[report]'") from None
    from galampi.experiments.outcome import read_outcome, table
    from galampi.experiments.running import run_plan

    code = 0
    if arguments.runs is not None:
        code = run_plan(arguments.folder, arguments.runs, arguments.at_once, tell=lambda line: print(line, flush=True))
    outcome = read_outcome(arguments.folder)
    print(table(outcome))
    if arguments.picture is not None:
        from galampi.experiments.picture import save_picture

        save_picture(outcome, arguments.picture)
    return code
