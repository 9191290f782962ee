"""The commands that show what became of runs: `report`, `watch` and `mirror`."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from galampi.cli.settings import Parser
from galampi.errors import UserError


def add_report(parser: Parser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run; runs that differ in nothing but the seed are one job",
    )
    parser.add_argument("--out", type=Path, help="folder of the report [RUN/report; of several runs ./report]")
    parser.add_argument(
        "--mixed", action="store_true", help="compare runs of different environments or units all the same"
    )
    parser.add_argument(
        "--follow", action="store_true", help="write it again and again until the runs are finished; the page reloads"
    )
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise UserError(f"report needs {error.name}: pip install 'galampi[report]'") from None
    from galampi.analysis.report import follow, report

    write = follow if arguments.follow else report
    print(write(arguments.runs, arguments.out, mixed=arguments.mixed))
    return 0


def add_watch(parser: Parser) -> None:
    """Add the arguments of `watch`."""
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="RUN|SWEEP",
        help="folder of a run or of a sweep, here or on a file system shared with where it runs",
    )
    parser.set_defaults(run=_watch)


def _watch(arguments: argparse.Namespace) -> int:
    from galampi.analysis.watch.command import watch
    from galampi.launch.sweep import run_folders

    watch([run for folder in arguments.folders for run in run_folders(folder)])
    return 0


def add_mirror(parser: Parser) -> None:
    """Add the arguments of `mirror`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--tensorboard", type=Path, required=True, metavar="DIR", help="log folder of TensorBoard")
    parser.set_defaults(run=_mirror)


def _mirror(arguments: argparse.Namespace) -> int:
    from galampi.analysis.mirror import mirror

    with suppress(KeyboardInterrupt):
        mirror(arguments.runs, arguments.tensorboard, tell=lambda line: print(line, flush=True))
    return 0
