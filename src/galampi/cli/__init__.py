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
from galampi.ranks.importing import heavy_imports

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
    # What follows -- is for sbatch, not for argparse.
    own = words.index("--") if words[0] == "submit" and "--" in words else len(words)
    arguments, unknown = parser.parse_known_args(words[:own])
    if words[own:]:
        arguments.sbatch_options = tuple(words[own + 1 :])
    if unknown:
        options = [option for action in by_command[words[0]]._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if words[0] == "submit":
            hint += "; what is for sbatch follows a --"
        raise UserError(f"{unknown[0]} is not an option{hint}")
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
    _add_settings(parser)
    parser.set_defaults(run=_train)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting of a job."""
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


def _overrides(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings given on the command line."""
    return {key: value for key, _ in fields() if (value := getattr(arguments, key)) is not None}


def _train(arguments: argparse.Namespace) -> int:
    overrides = _overrides(arguments)
    if arguments.resume and arguments.out is None:
        raise UserError("--resume needs --out, the folder of the run to go on with")
    if arguments.job is None and arguments.resume:
        from galampi.results import open_run

        job = parse_job(open_run(arguments.out).job_toml, f"{arguments.out}/job.h5", overrides)
    else:
        job = load_job(arguments.job, overrides)

    with heavy_imports():
        from mpi4py import MPI

        from galampi.training import train

    comm = MPI.COMM_WORLD
    level = logging.ERROR if arguments.quiet else logging.INFO
    logging.basicConfig(
        level=level, format=f"[rank {comm.rank} of {comm.size}] %(message)s", stream=sys.stderr, force=True
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
            is_atari = job.environment.id.startswith("ALE/")
            frames = f"; one is {job.environment.frame_skip} emulator frames" if is_atari else ""
            print(
                f"{outcome.status}: {out}\n"
                f"  env steps         {outcome.env_steps:,} ({outcome.steps_per_s:,.0f} a second{frames})\n"
                f"  mean return       {outcome.mean_return:.2f} (last 100 episodes, raw score of full games)\n"
                f"  gossip messages   {outcome.messages:,}\n"
                f"  push-sum weights  {low:.3f} to {high:.3f}, sum {total:.9g} of {comm.size}\n"
                f"  distance          {outcome.distance:.3g} (farthest rank to the mean; "
                f"{outcome.relative_distance:.2%} of the parameters' norm)",
                flush=True,
            )
    return 3 if outcome is not None and outcome.status == "stopped" else 0


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--episodes", type=_positive, default=10, metavar="N", help="episodes to play [10]")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--greedy", action="store_true", help="take the most probable action [this]")
    actions.add_argument("--sample", action="store_true", help="draw the action, as in training")
    _add_policy(parser)
    parser.add_argument("--seed", type=_whole, metavar="S", help="seed of games and actions [the job's]")
    parser.add_argument(
        "--stuck-after",
        type=_positive,
        default=3000,
        metavar="STEPS",
        help="env steps without reward or lost life after which a game is ended as stuck [3000]",
    )
    parser.add_argument("--video", type=Path, metavar="FILE.mp4", help="film the first episode; needs galampi[video]")
    parser.add_argument("--out", type=Path, metavar="FILE.h5", help="results file [RUN/evaluation.h5]")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from galampi.policies.stored import find_policy

    stored = find_policy(arguments.run_path, rank=arguments.rank, update=arguments.checkpoint)

    with heavy_imports():
        from galampi.policies.evaluation import evaluate, summary
    from galampi.results import open_run
    from galampi.results.evaluation import EVALUATION_FILE_NAME, EvaluatedEpisode

    def report(episode: EvaluatedEpisode) -> None:
        score = f"return {episode.episodic_return:10.2f}  length {episode.length:7,} env steps"
        print(f"episode {episode.episode:4}  {score}  {episode.end}", flush=True)

    # RUN may also be given as its job.h5.
    path = arguments.out or open_run(arguments.run_path).path / EVALUATION_FILE_NAME
    episodes = evaluate(
        stored,
        path,
        num_episodes=arguments.episodes,
        greedy=not arguments.sample,
        seed=arguments.seed,
        stuck_after=arguments.stuck_after,
        video=arguments.video,
        report=report,
    )
    print(f"{summary(stored, episodes)}\nwritten: {path}")
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_paths", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write TensorBoard's event files there")
    parser.add_argument(
        "--rliable", type=Path, metavar="FILE.json", help="write the runs' scores: {algorithm: [runs x games]}"
    )
    parser.add_argument(
        "--score",
        choices=["training", "evaluation"],
        default="training",
        help="of --rliable: mean return of the last 100 episodes of training, or of evaluation.h5 [training]",
    )
    parser.add_argument("--policy", type=Path, metavar="FILE.safetensors", help="write the policy for plain torch")
    parser.add_argument("--onnx", type=Path, metavar="FILE.onnx", help="write the policy as an ONNX graph")
    _add_policy(parser)
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    paths: list[Path] = arguments.run_paths
    if not any((arguments.tensorboard, arguments.rliable, arguments.policy, arguments.onnx)):
        raise UserError("export needs one of --tensorboard, --rliable, --policy, --onnx")
    if (arguments.policy or arguments.onnx) and len(paths) > 1:
        raise UserError(f"--policy and --onnx take the policy of one RUN; {len(paths)} are given")

    from galampi.analysis.export import write_rliable, write_tensorboard
    from galampi.results import open_run

    runs = [open_run(path) for path in paths]
    if arguments.tensorboard:
        num_events = sum(write_tensorboard(run, arguments.tensorboard) for run in runs)
        print(f"{arguments.tensorboard}: {num_events:,} events; tensorboard --logdir {arguments.tensorboard}")
    if arguments.rliable:
        games = write_rliable(runs, arguments.rliable, arguments.score)
        print(f"{arguments.rliable}: raw scores of {arguments.score}; games in order: {', '.join(games)}")
    if arguments.policy or arguments.onnx:
        from galampi.policies.export import export_onnx, export_policy
        from galampi.policies.stored import find_policy

        stored = find_policy(paths[0], rank=arguments.rank, update=arguments.checkpoint)
        for path, export in ((arguments.policy, export_policy), (arguments.onnx, export_onnx)):
            if path:
                export(stored, path)
                print(f"{path}: policy of the {stored.source} after {stored.env_steps:,} env steps")
    return 0


def _add_policy(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a stored policy."""
    parser.add_argument(
        "--rank", type=_rank, metavar="R|mean", help="whose policy: a rank's, or the weighted mean of all [mean]"
    )
    parser.add_argument(
        "--checkpoint",
        type=_positive,
        metavar="K",
        help="the policy kept after update K [newest]; see checkpoint.keep_every_updates",
    )


def _positive(text: str) -> int:
    if not _whole(text):
        raise argparse.ArgumentTypeError(f"is {text!r}; must be at least 1")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a whole number, 0 or more")
    return int(text)


def _rank(text: str) -> int | None:
    if text != "mean" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a rank or 'mean'")
    return None if text == "mean" else int(text)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    from galampi.launch.submit import LAUNCHERS, SIGNALS

    parser.usage = (
        "python -m galampi submit JOB.toml|SWEEP [--out DIR] [--sweep KEY=A,B ...] [--section.key VALUE ...] "
        "[-- OPTION OF SBATCH ...]"
    )
    parser.add_argument("job", type=Path, metavar="JOB.toml|SWEEP", help="job file, or a sweep's folder: what it lacks")
    parser.add_argument("--out", type=Path, help="folder of the run or of the sweep [runs/NAME-DATE-TIME]")
    parser.add_argument("--sweep", action="append", default=[], metavar="KEY=A,B", help="one run for each; repeatable")
    parser.add_argument("--array-seeds", type=int, metavar="K", help="one run for each of K seeds from the job's own")
    parser.add_argument("--at-once", type=int, metavar="M", help="most runs of a sweep at the same time")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and do nothing")
    parser.add_argument(
        "--script", type=Path, help="batch file of the run, or of each of a sweep [slurm/requeue.sbatch]"
    )
    slurm = parser.add_argument_group("what to ask of Slurm, over what the batch file asks")
    slurm.add_argument("--nodes", type=int, help="number of nodes")
    slurm.add_argument("--ntasks-per-node", type=int, metavar="RANKS", help="ranks on each node")
    slurm.add_argument("--cpus-per-task", type=int, metavar="CORES", help="cores of a rank")
    slurm.add_argument("--time", help="time limit of one stretch, as Slurm writes it: 04:00:00")
    slurm.add_argument("--partition", help="partition")
    slurm.add_argument("--account", help="account")
    slurm.add_argument("--nodelist", help="nodes to use")
    slurm.add_argument("--gpus", type=int, help="GPUs of each node")
    slurm.add_argument("--launcher", choices=LAUNCHERS, help="what starts the ranks")
    slurm.add_argument("--mpi", metavar="TYPE", help="what srun speaks: pmi2 for MPICH, pmix for Open MPI")
    slurm.add_argument("--save-signal", choices=SIGNALS, help="signal that makes the ranks save")
    slurm.add_argument("--notice-s", type=int, metavar="SECONDS", help="save this long before the time limit")
    slurm.add_argument("--max-restarts", type=int, metavar="N", help="most times a run goes back to the queue")
    slurm.add_argument(
        "--chain", type=int, metavar="N", help="N jobs for a run, each after the one before: where requeue is forbidden"
    )
    _add_settings(parser)
    parser.set_defaults(run=_submit, sbatch_options=None)


def _submit(arguments: argparse.Namespace) -> int:
    from galampi.launch.commands import Request, submit
    from galampi.launch.submit import Resources

    given = {name: value for name in Resources.__dataclass_fields__ if (value := getattr(arguments, name)) is not None}
    return submit(
        Request(
            job=arguments.job,
            overrides=_overrides(arguments),
            out=arguments.out,
            script=arguments.script,
            resources=given,
            sweeps=arguments.sweep,
            num_seeds=arguments.array_seeds,
            at_once=arguments.at_once,
            dry_run=arguments.dry_run,
        )
    )


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "exit codes, the largest of all folders: 0 finished; 1 failed; 2 no run there; 3 stopped, saved; "
        "4 running, or killed, or part of a sweep not done"
    )
    parser.add_argument("folder", nargs="+", type=Path, metavar="RUN|SWEEP", help="folder of a run or of a sweep")
    parser.add_argument("--failed", action="store_true", help="first record that the job failed (for batch files)")
    parser.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    from galampi.launch.commands import show_status

    return show_status(arguments.folder, failed=arguments.failed)


def _add_report(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise UserError(f"report needs {error.name}: pip install 'galampi[report]'") from None
    from galampi.analysis.report import report

    print(report(arguments.runs, arguments.out, mixed=arguments.mixed))
    return 0


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of a run, here or on a file system shared with where it runs"
    )
    parser.set_defaults(run=_watch)


def _watch(arguments: argparse.Namespace) -> int:
    from galampi.analysis.watch import watch

    watch(arguments.folder)
    return 0


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mpirun|srun ... python -m galampi doctor [JOB.toml] [--out DIR] [--json] [--section.key VALUE ...]"
    parser.epilog = "exit codes: 0 nothing failed; 1 something did; 2 a mistake in the command"
    parser.add_argument("job", nargs="?", type=Path, metavar="JOB.toml", help="job file; the built-in job without it")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder its runs will be in [runs]")
    parser.add_argument("--json", action="store_true", help="print a JSON list of the findings")
    _add_settings(parser)
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from galampi.launch.doctor import examine

    return examine(load_job(arguments.job, _overrides(arguments)), arguments.out, as_json=arguments.json)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part",
        choices=["figures", "exchange", "all"],
        default="all",
        help="training, gossip by itself, or both [all]",
    )
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="rounds of all contestants [5]")
    parser.add_argument("--seconds", type=_positive, default=10, metavar="S", help="time each one is measured for [10]")
    parser.add_argument("--sb3", type=Path, metavar="PYTHON", help="python of an environment with Stable-Baselines3")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder of the results' file [.]")
    parser.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from galampi.bench.command import bench

    return bench(
        num_rounds=arguments.rounds,
        seconds=arguments.seconds,
        part=arguments.part,
        sb3=arguments.sb3,
        out=arguments.out,
    )


_COMMANDS = {
    "train": (_add_train, "Train a job", "mpirun -n 4 python -m galampi train jobs/pong.toml --seed 3"),
    "submit": (_add_submit, "Submit a job to Slurm", "python -m galampi submit jobs/pong.toml --nodes 2"),
    "doctor": (_add_doctor, "Check what a job needs where it will run", "mpirun -n 4 python -m galampi doctor"),
    "status": (_add_status, "Say what became of runs", "python -m galampi status runs/pong"),
    "watch": (_add_watch, "Watch a running job", "python -m galampi watch runs/pong"),
    "report": (
        _add_report,
        "Write figures, a page and a summary of runs",
        "python -m galampi report runs/pong-1 runs/pong-2 --out pong",
    ),
    "evaluate": (
        _add_evaluate,
        "Play episodes with a run's policy",
        "python -m galampi evaluate runs/pong --episodes 10",
    ),
    "export": (
        _add_export,
        "Write results and policies for other programs",
        "python -m galampi export runs/pong --tensorboard logs --policy pong.safetensors",
    ),
    "bench": (_add_bench, "Measure speed on this machine", "python -m galampi bench --sb3 .venv-sb3/bin/python"),
}
"""Each command's arguments, its summary and an example."""
