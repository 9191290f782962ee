"""The commands. Thin: each reads its arguments and calls one function elsewhere.

Here lie the table of commands and what finds the one that was called; a module holds a group of them, `settings` what
they share. Commands that run on a login node import neither torch nor MPI: every import that is not needed by all
stands inside its command.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from galampi.cli.analysis import add_mirror, add_report, add_watch
from galampi.cli.bench import add_bench
from galampi.cli.cluster import add_doctor, add_status, add_submit, add_sweep
from galampi.cli.experiments import add_experiment
from galampi.cli.jobs import add_jobs
from galampi.cli.policies import add_evaluate, add_export, add_verify
from galampi.cli.settings import Parser, as_named, make_paths_absolute
from galampi.cli.simulation import add_simulate
from galampi.cli.train import add_train
from galampi.errors import UserError
from galampi.job import find_job
from galampi.ranks.launched import launched_size
from galampi.ranks.reading import read_for_all
from galampi.signals import StopSignals

_EXIT_CODES = (
    "exit codes: 0 done; 1 a bug or a lost rank; 2 a mistake in the command; 3 stopped by a signal, saved; "
    "4 ended without some ranks, saved; 130 Ctrl-C of a command that has nothing to save"
)


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Raises:
        UserError: The command cannot be carried out as given.
    """
    words = list(argv)
    if not words or (words[0] not in _COMMANDS and words[0] not in ("-h", "--help", "--version")):
        # Bare options belong to train, the command that needs no name.
        if words and not words[0].startswith("-"):
            raise UserError(f"{words[0]} is not a command; there is: {', '.join(_COMMANDS)}")
        words.insert(0, "train")
    parser, by_command = parsers()
    if words[0] in by_command:
        words[1:] = as_named(words[1:], by_command[words[0]])
    # What follows -- is for sbatch, not for argparse.
    own = words.index("--") if words[0] == "submit" and "--" in words else len(words)
    arguments, unknown = parser.parse_known_args(words[:own])
    if words[own:]:
        arguments.sbatch_options = tuple(words[own + 1 :])
    if unknown:
        options = [option for action in by_command[words[0]].actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if words[0] == "submit":
            hint += "; what is for sbatch follows a --"
        raise UserError(f"{unknown[0]} is not an option{hint}")
    if words[0] in _ONE_PROCESS:
        _refuse_several(words[0])
    if words[0] == "train":
        # MPI and torch take seconds to start, and nothing is to cut short what a job says last.
        arguments.signals = StopSignals()
    # Ranks read this together, so MPI starts. Not while the options are read: a mistake in one of them may make a job
    # of what is its value.
    if (job := getattr(arguments, "job", None)) is not None:
        arguments.job = read_for_all(lambda: find_job(job))
    make_paths_absolute(arguments)
    code: int = arguments.run(arguments)
    return code


def _refuse_several(command: str) -> None:
    """Raise UserError in each of several processes that would do the same thing at once."""
    name, size = launched_size()
    if size > 1:
        raise UserError(f"{command} takes one process, and {name} is {size}: start it without mpirun or srun")


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of all commands, and that of each."""
    from galampi import __version__

    parser = Parser(
        prog="python -m galampi",
        description="Deep reinforcement learning by gossip between MPI ranks.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"galampi {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    by_command: dict[str, Parser] = {}
    for name, (add_arguments, summary, example) in _COMMANDS.items():
        by_command[name] = commands.add_parser(
            name, help=summary, description=f"{summary}: {example}", epilog=_EXIT_CODES
        )
        add_arguments(by_command[name])
    return parser, by_command


_ONE_PROCESS = ("submit", "sweep", "mirror", "report", "experiment", "evaluate", "verify", "export", "simulate")
_COMMANDS = {
    "train": (add_train, "Train a job", "mpirun -n 4 python -m galampi train pong --seed 3"),
    "jobs": (add_jobs, "List the jobs that come with galampi", "python -m galampi jobs"),
    "submit": (add_submit, "Submit a job to Slurm", "python -m galampi submit pong --nodes 2"),
    "sweep": (
        add_sweep,
        "Train the runs of a sweep on this machine",
        "python -m galampi sweep runs/seeds cartpole --array-seeds 5",
    ),
    "doctor": (add_doctor, "Check what a job needs where it will run", "mpirun -n 4 python -m galampi doctor"),
    "status": (add_status, "Say what became of runs", "python -m galampi status runs/pong"),
    "watch": (add_watch, "Watch a running job", "python -m galampi watch runs/pong"),
    "mirror": (
        add_mirror,
        "Follow runs into TensorBoard, Weights & Biases or MLflow until they are finished",
        "python -m galampi mirror runs/pong --tensorboard logs",
    ),
    "report": (
        add_report,
        "Write figures, a page and a summary of runs",
        "python -m galampi report runs/pong-1 runs/pong-2 --out pong",
    ),
    "experiment": (
        add_experiment,
        "Train what a planned experiment lacks, and say what it comes to",
        "python -m galampi experiment experiments/robust-cartpole",
    ),
    "evaluate": (
        add_evaluate,
        "Play episodes with a run's policy",
        "python -m galampi evaluate runs/pong --episodes 10",
    ),
    "verify": (
        add_verify,
        "Replay what evaluate wrote, and say whether its returns are right",
        "python -m galampi verify runs/pong/evaluation.h5",
    ),
    "export": (
        add_export,
        "Write results and policies for other programs",
        "python -m galampi export runs/pong --tensorboard logs --policy pong.safetensors",
    ),
    "simulate": (
        add_simulate,
        "Simulate the exchange of thousands of ranks",
        "python -m galampi simulate --ranks 16 256 4096 --stragglers 2",
    ),
    "bench": (add_bench, "Measure speed on this machine", "python -m galampi bench --sb3 .venv-sb3/bin/python"),
}
"""Each command's arguments, its summary and an example."""
