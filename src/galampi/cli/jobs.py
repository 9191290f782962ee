"""The command that shows the jobs that come with this package."""

from __future__ import annotations

import argparse
from pathlib import Path

from galampi.cli.settings import Parser


def add_jobs(parser: Parser) -> None:
    """Add the arguments of `jobs`."""
    parser.add_argument(
        "--copy",
        type=Path,
        metavar="DIR",
        help="copy them to DIR/jobs, and the batch files to DIR/slurm, to be changed",
    )
    parser.set_defaults(run=_jobs)


def _jobs(arguments: argparse.Namespace) -> int:
    from galampi.job.shipped import copy_shipped, describe_jobs

    if arguments.copy is not None:
        copy_shipped(arguments.copy)
        print(f"written: {arguments.copy / 'jobs'}, {arguments.copy / 'slurm'}")
    else:
        print(describe_jobs())
    return 0
