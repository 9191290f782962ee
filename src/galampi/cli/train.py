"""The command that trains."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from galampi.cli.settings import JOB_HELP, Parser, add_settings, settings_given
from galampi.digits import returned, score_of
from galampi.errors import UserError
from galampi.job import Job, job_of_run, load_job
from galampi.ranks.importing import heavy_imports
from galampi.ranks.reading import read_for_all
from galampi.ranks.starting import start_mpi, stop_before_training
from galampi.signals import StopNow, StopSignals

if TYPE_CHECKING:
    from galampi.training.ending import Outcome


def add_train(parser: Parser) -> None:
    """Add the arguments of `train`."""
    parser.usage = (
        "python -m galampi [train] [JOB] [--out DIR] [--resume] [--from RUN] [--quiet] [--section.key VALUE ...]"
    )
    parser.add_argument("job", nargs="?", metavar="JOB", help=JOB_HELP)
    parser.add_argument("--out", type=Path, help="folder of the run [runs/NAME-DATE-TIME]; with a run in it: --resume")
    parser.add_argument(
        "--resume",
        action="store_const",
        const="yes",
        default="no",
        help="go on with the run in --out; its own job unless one is given",
    )
    parser.add_argument(
        "--resume=auto",
        action="store_const",
        const="auto",
        dest="resume",
        help="go on with the run in --out if there is one, else start it: one line for every stretch of a job",
    )
    parser.add_argument(
        "--resume=anew",
        action="store_const",
        const="anew",
        dest="resume",
        help="begin the run in --out anew; its old files are kept in a folder beside the new ones",
    )
    parser.add_argument(
        "--from",
        dest="origin",
        type=Path,
        metavar="RUN",
        help="begin a new run with the policy of RUN: the mean of its parameters, and nothing else of it",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but mistakes")
    add_settings(parser)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    out = arguments.out
    if arguments.resume != "no" and out is None:
        raise UserError("--resume needs --out, the folder of the run to go on with")
    if arguments.origin is not None and arguments.resume == "yes":
        raise UserError("--from begins a new run, --resume goes on with one: choose")
    signals: StopSignals = arguments.signals
    try:
        with signals:
            job = read_for_all(lambda: _job(arguments))
    except StopNow:
        stop_before_training(signals)
    with heavy_imports():
        start_mpi()
        from mpi4py import MPI

        from galampi.training import train

    comm = MPI.COMM_WORLD
    level = logging.ERROR if arguments.quiet else logging.INFO
    logging.basicConfig(
        level=level, format=f"[rank {comm.rank} of {comm.size}] %(message)s", stream=sys.stderr, force=True
    )
    out, outcome = train(
        job,
        out,
        resume=arguments.resume,
        argv=sys.argv,
        comm=comm,
        origin=arguments.origin,
        quiet=arguments.quiet,
        signals=signals,
    )
    if comm.rank == 0 and not arguments.quiet:
        if outcome is None:
            print(f"{out}: finished already; raise total_env_steps (or max_time_s) to train further")
        else:
            print(_summary(job, out, outcome, comm.size), flush=True)
    if outcome is None:
        return 0
    if outcome.failure and comm.rank == 0:
        print(f"galampi: {outcome.failure}", file=sys.stderr, flush=True)
    return {"finished": 0, "failed": 1, "stopped": 3}[outcome.status]


def _job(arguments: argparse.Namespace) -> Job:
    """Return the job given, or that of the run to go on with."""
    overrides, out = settings_given(arguments), arguments.out
    if arguments.job is None and arguments.resume != "no":
        from galampi.launch.status import has_begun
        from galampi.results import open_run

        if arguments.resume != "yes" and not has_begun(out):
            return load_job(None, overrides)
        return job_of_run(open_run(out).job_toml, f"{out}/job.h5", overrides)
    return load_job(arguments.job, overrides)


def _summary(job: Job, out: Path, outcome: Outcome, num_ranks: int) -> str:
    from galampi.training import no_return

    low, high, total = outcome.weights
    is_atari = job.environment.is_atari
    frames = f"; one is {job.environment.frame_skip} emulator frames" if is_atari else ""
    mean_return = (
        f"{returned(outcome.mean_return)} (last 100 episodes, {score_of(in_wrappers=bool(job.environment.wrappers))})"
    )
    if math.isnan(outcome.mean_return):
        mean_return = f"- ({no_return(job.environment)})"
    return (
        f"{outcome.status}: {out}\n"
        f"  env steps         {outcome.env_steps:,} ({outcome.steps_per_s:,.0f} a second{frames})\n"
        f"  mean return       {mean_return}\n"
        f"  gossip messages   {outcome.messages:,}\n"
        f"  push-sum weights  {low:.3f} to {high:.3f}, sum {total:.9g} of {num_ranks}\n"
        f"  effective step    {outcome.effective_step:.3f} of the learning rate\n"
        f"  distance          {outcome.distance:.3g} (farthest rank to the mean; "
        f"{100 * outcome.relative_distance:.3g}% of the parameters' norm)"
    )
