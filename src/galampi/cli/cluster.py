"""The commands around jobs and sweeps, on a cluster or here: `submit`, `sweep`, `status` and `doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path

from galampi.cli.settings import JOB_HELP, Parser, add_settings, mute_output, positive, settings_given
from galampi.job import load_job
from galampi.ranks.reading import read_for_all


def add_submit(parser: Parser) -> None:
    """Add the arguments of `submit`."""
    from galampi.launch.submit import LAUNCHERS, SIGNALS

    parser.usage = (
        "python -m galampi submit JOB|SWEEP [--out DIR] [--sweep KEY=A,B ...] [--section.key VALUE ...] "
        "[-- OPTION OF SBATCH ...]"
    )
    parser.add_argument("job", metavar="JOB|SWEEP", help="job file or name, or a sweep's folder: what it lacks")
    parser.add_argument("--out", type=Path, help="folder of the run or of the sweep [runs/NAME-DATE-TIME]")
    _add_axes(parser)
    parser.add_argument(
        "--at-once",
        type=positive,
        metavar="M",
        help="most runs of an array at the same time; a large sweep has several arrays",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and do nothing")
    parser.add_argument(
        "--rehearse", action="store_true", help="interrupt short jobs in the likely ways, and say what comes of each"
    )
    parser.add_argument(
        "--script", type=Path, help="batch file of the run, or of each of a sweep [slurm/requeue.sbatch]"
    )
    slurm = parser.add_argument_group("what to ask of Slurm, over what the batch file asks")
    add = parser.recorded(slurm.add_argument)
    add("--nodes", type=int, help="number of nodes")
    add("--ntasks-per-node", type=int, metavar="RANKS", help="ranks on each node")
    add("--cpus-per-task", type=int, metavar="CORES", help="cores of a rank")
    add("--time", help="time limit of one stretch, as Slurm writes it: 04:00:00")
    add("--partition", help="partition")
    add("--account", help="account")
    add("--nodelist", help="nodes to use")
    add("--gpus", type=int, help="GPUs of each node")
    add("--launcher", choices=LAUNCHERS, help="what starts the ranks")
    add("--mpi", metavar="TYPE", help="what srun speaks: pmi2 for MPICH, pmix for Open MPI")
    add("--save-signal", choices=SIGNALS, help="signal that makes the ranks save")
    add("--notice-s", type=int, metavar="SECONDS", help="save this long before the time limit")
    add("--max-restarts", type=int, metavar="N", help="most times a run goes back to the queue")
    add("--chain", type=int, metavar="N", help="N jobs for a run, one after another: where requeue is forbidden")
    add_settings(parser)
    parser.set_defaults(run=_submit, sbatch_options=None)


def _submit(arguments: argparse.Namespace) -> int:
    from galampi.launch.commands import Request, submit
    from galampi.launch.submit import Resources

    given = {name: value for name in Resources.__dataclass_fields__ if (value := getattr(arguments, name)) is not None}
    return submit(
        Request(
            job=arguments.job,
            overrides=settings_given(arguments),
            out=arguments.out,
            script=arguments.script,
            resources=given,
            sweeps=arguments.sweep,
            num_seeds=arguments.array_seeds,
            at_once=arguments.at_once,
            dry_run=arguments.dry_run,
            rehearse=arguments.rehearse,
        )
    )


def add_sweep(parser: Parser) -> None:
    """Add the arguments of `sweep`."""
    parser.usage = (
        "python -m galampi sweep SWEEP [JOB] [--sweep KEY=A,B ...] [--at-once N] [--ranks N] [--section.key VALUE ...]"
    )
    parser.epilog = (
        "exit codes: 0 all runs are done; 1 one has failed; 2 a mistake in the command; 3 stopped by a signal, saved; "
        "4 some are not done"
    )
    parser.add_argument("folder", type=Path, metavar="SWEEP", help="folder of the sweep; one that is there goes on")
    parser.add_argument("job", nargs="?", metavar="JOB", help=JOB_HELP)
    _add_axes(parser)
    parser.add_argument("--at-once", type=positive, default=1, metavar="N", help="most runs at the same time [1]")
    parser.add_argument("--ranks", type=positive, metavar="N", help="ranks of each run [as before, else 2]")
    add_settings(parser)
    parser.set_defaults(run=_sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    from galampi.launch.here import Asked, sweep_here

    return sweep_here(
        Asked(
            folder=arguments.folder,
            job=arguments.job,
            overrides=settings_given(arguments),
            sweeps=arguments.sweep,
            num_seeds=arguments.array_seeds,
            at_once=arguments.at_once,
            num_ranks=arguments.ranks,
        )
    )


def _add_axes(parser: Parser) -> None:
    """Add the options that say what is swept."""
    parser.add_argument("--sweep", action="append", default=[], metavar="KEY=A,B", help="one run for each; repeatable")
    parser.add_argument("--array-seeds", type=int, metavar="K", help="one run for each of K seeds from the job's own")


def add_status(parser: Parser) -> None:
    """Add the arguments of `status`."""
    parser.epilog = (
        "exit codes, the largest of all folders: 0 finished; 1 failed; 2 no run there; "
        "3 stopped, or ended without some ranks, and saved; 4 running, or killed, or part of a sweep not done"
    )
    parser.add_argument("folder", nargs="+", type=Path, metavar="RUN|SWEEP", help="folder of a run or of a sweep")
    parser.add_argument("--failed", action="store_true", help="first record that the job failed (for batch files)")
    parser.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    from galampi.launch.commands import status_of

    text, code = status_of(arguments.folder, failed=arguments.failed)
    try:
        print(text, flush=True)
    except OSError as error:
        # Batch files ask for the code, whatever becomes of the text.
        mute_output(error)
    return code


def add_doctor(parser: Parser) -> None:
    """Add the arguments of `doctor`."""
    parser.usage = "mpirun|srun ... python -m galampi doctor [JOB] [--out DIR] [--json] [--section.key VALUE ...]"
    parser.epilog = "exit codes: 0 nothing failed; 1 something did; 2 a mistake in the command"
    parser.add_argument("job", nargs="?", metavar="JOB", help=JOB_HELP)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder its runs will be in [runs]")
    parser.add_argument("--json", action="store_true", help="print a JSON list of the findings")
    add_settings(parser)
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from galampi.launch.doctor import examine

    job = read_for_all(lambda: load_job(arguments.job, settings_given(arguments)))
    return examine(job, arguments.out, as_json=arguments.json)
