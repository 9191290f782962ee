"""The command of planned experiments."""

from __future__ import annotations

import argparse
from pathlib import Path

from galampi.cli.settings import Parser, positive


def add_experiment(parser: Parser) -> None:
    """Add the arguments of `experiment`."""
    parser.epilog = "exit codes, with --runs: those of sweep"
    parser.add_argument("folder", type=Path, metavar="EXPERIMENT", help="folder with a plan.toml")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="first train there what the plan lacks, and record it")
    parser.add_argument("--at-once", type=positive, default=1, metavar="N", help="most runs at the same time [1]")
    parser.set_defaults(run=_experiment)


def _experiment(arguments: argparse.Namespace) -> int:
    from galampi.experiments.running import run_plan

    code = 0
    if arguments.runs is not None:
        code = run_plan(arguments.folder, arguments.runs, arguments.at_once, tell=lambda line: print(line, flush=True))
    return code
