"""The commands. Thin: each reads its arguments and calls one function elsewhere.

Commands that run on a login node import neither torch nor MPI: every import that is not needed by all stands inside
its command.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from galampi.errors import UserError
from galampi.job import Job, allowed, fields, load_job, parse_job

_EXIT_CODES = "exit codes: 0 done; 1 a bug or a lost rank; 2 a mistake in the command; 3 stopped by a signal, saved"


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
    parser, by_command = _parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        options = [option for action in by_command[words[0]]._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
        raise UserError(f"{unknown[0]} is not an option{f'; did you mean {near[0]}?' if near else ''}")
    code: int = arguments.run(arguments)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ours to report: once, not once for each rank."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UserError(f"{self.prog}: {message}")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of all commands, and that of each."""
    from galampi import __version__

    parser: argparse.ArgumentParser = _Parser(
        prog="python -m galampi",
        description="Deep reinforcement learning by gossip between MPI ranks.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"galampi {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    by_command: dict[str, argparse.ArgumentParser] = {}
    for name, (add_arguments, summary, example) in _COMMANDS.items():
        by_command[name] = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}: {example}",
            epilog=_EXIT_CODES,
            allow_abbrev=False,
        )
        add_arguments(by_command[name])
    return parser, by_command


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.usage = "python -m galampi [train] [JOB.toml] [--out DIR] [--resume] [--quiet] [--section.key VALUE ...]"
    parser.add_argument("job", nargs="?", type=Path, metavar="JOB.toml", help="job file; the built-in job without it")
    parser.add_argument("--out", type=Path, help="folder of the run [runs/NAME-DATE-TIME]; must be empty or new")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out; its own job unless one is given"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but mistakes")
    settings = parser.add_argument_group("settings of the job, over those of the file")
    defaults = Job()
    for key, field in fields():
        value: object = defaults
        for part in key.split("."):
            value = getattr(value, part)
        text = (field.description or "").replace("%", "%%")
        settings.add_argument(
            f"--{key}", metavar="VALUE", help=f"{text} Takes {allowed(field)} [{value}]".replace("True", "true")
        )
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    overrides = {key: value for key, _ in fields() if (value := getattr(arguments, key)) is not None}
    if arguments.resume and arguments.out is None:
        raise UserError("--resume needs --out, the folder of the run to go on with")
    if arguments.job is None and arguments.resume:
        from galampi.results import open_run

        job = parse_job(open_run(arguments.out).job_toml, f"{arguments.out}/job.h5", overrides)
    else:
        job = load_job(arguments.job, overrides)

    from mpi4py import MPI

    from galampi.training import train

    comm = MPI.COMM_WORLD
    level = logging.ERROR if arguments.quiet else logging.INFO
    logging.basicConfig(
        level=level, format=f"[rank {comm.rank}/{comm.size}] %(message)s", stream=sys.stderr, force=True
    )
    # The first rank's clock names the folder for all.
    default = Path("runs") / f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = comm.bcast(arguments.out or default)
    outcome = train(job, out, resume=arguments.resume, argv=sys.argv, comm=comm, quiet=arguments.quiet)
    if comm.rank == 0 and not arguments.quiet:
        if outcome is None:
            print(f"{out}: finished already; raise --total_env_steps to train further")
        else:
            low, high, total = outcome.weights
            print(
                f"{outcome.status}: {out}\n"
                f"  env steps         {outcome.env_steps:,} ({outcome.steps_per_s:,.0f} a second; "
                f"one is {job.environment.frame_skip} emulator frames in an Atari game)\n"
                f"  mean return       {outcome.mean_return:.2f} (last 100 episodes, raw score of full games)\n"
                f"  gossip messages   {outcome.messages:,}\n"
                f"  push-sum weights  {low:.3f} to {high:.3f}, sum {total:.9g} of {comm.size}\n"
                f"  distance          {outcome.distance:.3g} (farthest rank to the mean; "
                f"{outcome.relative_distance:.2%} of the parameters' norm)",
                flush=True,
            )
    return 3 if outcome is not None and outcome.status == "stopped" else 0


_COMMANDS = {
    "train": (_add_train, "Train a job", "mpirun -n 4 python -m galampi train jobs/pong.toml --seed 3"),
}
"""Each command's arguments, its summary and an example."""
