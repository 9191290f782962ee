"""The commands that show what became of runs: `report`, `watch` and `mirror`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from galampi.cli.settings import Parser, positive, runs_in, worded
from galampi.errors import UserError


def add_report(parser: Parser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="RUN|SWEEP",
        help="folder of a run or of a sweep; runs that differ in nothing but the seed are one job",
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
    except ModuleNotFoundError as error:
        raise UserError(f"report needs {error.name}: pip install 'galampi[report]'") from None
    from galampi.analysis.report import follow, report

    runs, to_come = runs_in(arguments.folders)
    tell = partial(print, flush=True)
    if to_come:
        tell(f"{len(to_come)} of {len(runs) + len(to_come)} runs have not begun; the report is of the others")
    if arguments.follow:
        tell(follow(runs, arguments.out, mixed=arguments.mixed, tell=tell, to_come=to_come))
    else:
        tell(report(runs, arguments.out, mixed=arguments.mixed))
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

    runs: dict[Path, Path] = {}
    for folder in arguments.folders:
        for run in run_folders(folder):
            # One that is named by a link too is one.
            runs.setdefault(run.resolve(), run)
    watch(list(runs.values()) or arguments.folders)
    return 0


def add_mirror(parser: Parser) -> None:
    """Add the arguments of `mirror`."""
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="RUN|SWEEP",
        help="folder of a run or of a sweep, whose runs are followed as they begin",
    )
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="log folder of TensorBoard")
    parser.add_argument(
        "--wandb",
        type=worded,
        metavar="PROJECT",
        help="project of Weights & Biases, or ENTITY/PROJECT; a group for each run, WANDB_MODE=offline writes files",
    )
    parser.add_argument(
        "--mlflow",
        type=worded,
        metavar="URI",
        help="tracking server of MLflow; experiment MLFLOW_EXPERIMENT_NAME [galampi]",
    )
    parser.add_argument("--ranks", type=positive, metavar="N", help="only the first N ranks of each run [all]")
    parser.set_defaults(run=_mirror)


def _mirror(arguments: argparse.Namespace) -> int:
    from galampi.analysis.mirror.command import mirror
    from galampi.analysis.mirror.mlflow import MlflowPlace
    from galampi.analysis.mirror.place import OpenPlace
    from galampi.analysis.mirror.tensorboard import TensorBoardPlace
    from galampi.analysis.mirror.wandb import WandbProject

    places: list[OpenPlace] = []
    if arguments.tensorboard is not None:
        places.append(partial(TensorBoardPlace, folder=arguments.tensorboard))
    if arguments.wandb is not None:
        places.append(WandbProject(arguments.wandb))
    if arguments.mlflow is not None:
        places.append(partial(MlflowPlace, uri=arguments.mlflow))
    if not places:
        raise UserError("mirror needs a place: --tensorboard DIR, --wandb PROJECT or --mlflow URI, one or several")
    runs, to_come = runs_in(arguments.folders)
    tell = partial(print, flush=True)
    if to_come:
        tell(f"{len(to_come)} of {len(runs) + len(to_come)} runs have not begun; they are followed when they have")
    mirror(runs, places, arguments.ranks, tell, to_come=to_come)
    return 0
