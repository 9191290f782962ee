"""The commands that put a stored policy to use: `evaluate`, `verify` and `export`."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from galampi.cli.settings import Parser, positive, rank, runs_in, whole
from galampi.digits import returned
from galampi.errors import UserError
from galampi.job import import_again
from galampi.ranks.importing import heavy_imports

if TYPE_CHECKING:
    from galampi.analysis.export import Score
    from galampi.policies.stored import StoredPolicy


def add_evaluate(parser: Parser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--episodes", type=positive, default=10, metavar="N", help="episodes to play each way [10]")
    add_action = parser.recorded(parser.add_mutually_exclusive_group().add_argument)
    add_action("--sample", action="store_true", help="only draw the actions, as in training [play both ways]")
    add_action("--greedy", action="store_true", help="only take the most probable actions, as in the paper")
    _add_policy(parser)
    parser.add_argument("--seed", type=whole, metavar="S", help="seed of games and actions [the job's]")
    parser.add_argument(
        "--stuck-after",
        type=positive,
        metavar="STEPS",
        help="env steps without reward or lost life after which a game of Atari is ended as stuck [3000]",
    )
    parser.add_argument(
        "--max-episode-steps",
        type=positive,
        metavar="STEPS",
        help="env steps after which an episode is ended [100000 where the environment has no time limit of its own]",
    )
    parser.add_argument(
        "--video",
        type=Path,
        metavar="FILE.mp4",
        help="film the first episode, played the better way; needs galampi[video]",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.h5",
        help="results file [RUN/evaluation.h5, of another policy evaluation-rank-R.h5]",
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from galampi.policies.stored import find_policy

    stored = _found(find_policy(arguments.run_path, rank=arguments.rank, update=arguments.checkpoint), arguments)

    with heavy_imports():
        from galampi.policies.evaluation import evaluate
        from galampi.policies.played import summary
    from galampi.results import open_run
    from galampi.results.evaluation import EVALUATION_FILE_NAME, Actions, EvaluatedEpisode

    def report(actions: Actions, episode: EvaluatedEpisode) -> None:
        score = f"return {returned(episode.episodic_return):>10}  length {episode.length:7,} env steps"
        print(f"{actions:6}  episode {episode.episode:4}  {score}  {episode.end}", flush=True)

    # RUN may also be given as its job.h5.
    run = open_run(arguments.run_path)
    # What the run comes to is that of its newest policy, which others do not replace. Ranks that exchange nothing have
    # none in common: the first stands for them.
    first = "rank 0" if stored.job.gossip.method == "none" else "mean"
    is_the_runs = stored.source == first or run.num_ranks == 1
    words = ["rank", str(arguments.rank)] if arguments.rank is not None and not is_the_runs else []
    words += ["update", str(arguments.checkpoint)] if arguments.checkpoint is not None else []
    name = "-".join([Path(EVALUATION_FILE_NAME).stem, *words])
    path = arguments.out or run.path / f"{name}{Path(EVALUATION_FILE_NAME).suffix}"
    ways: list[Actions] = ["sample"] if arguments.sample else ["greedy"] if arguments.greedy else ["sample", "greedy"]
    played = evaluate(
        stored,
        path,
        num_episodes=arguments.episodes,
        ways=ways,
        seed=arguments.seed,
        stuck_after=arguments.stuck_after,
        max_episode_steps=arguments.max_episode_steps,
        video=arguments.video,
        report=report,
        tell=lambda line: print(line, flush=True),
    )
    print(f"{summary(stored, played)}\nwritten: {path}")
    if arguments.video:
        print(f"film: {arguments.video}, {played.better} episode 1")
    return 0


def add_verify(parser: Parser) -> None:
    """Add the arguments of `verify`."""
    parser.epilog = "exit codes: 0 every return is what was claimed; 1 one is not; 2 a file cannot be replayed"
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="FILE.h5", help="what evaluate wrote, or the run in whose folder it lies"
    )
    _add_modules_folder(parser)
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from galampi.results.evaluation import EVALUATION_FILE_NAME

    with heavy_imports():
        from galampi.policies.replay import other_versions, verify

    code = 0
    paths: list[Path] = arguments.paths
    failures: list[UserError] = []
    for path in paths:
        file = path / EVALUATION_FILE_NAME if os.path.isdir(path) else path
        try:
            replayed = verify(file, lambda line: print(line, flush=True), arguments.modules_folder)
        except UserError as error:
            failures.append(error)
            if len(paths) > 1:
                print(error, flush=True)
            continue
        for way in replayed:
            num_right = way.num_episodes - len(way.mismatches)
            print(
                f"{file}: {way.actions}: {num_right} of {way.num_episodes} episodes went as the file says; "
                f"mean return {returned(way.mean_return)}"
            )
            print(*(f"  {line}\n" for line in way.mismatches), sep="", end="", flush=True)
        if any(way.mismatches for way in replayed):
            code = 1
            if others := other_versions(file):
                print(f"  simulated by other versions: {others}")
    # A false claim says more than a file of which nothing is known.
    if failures and not code:
        raise failures[0] if len(paths) == 1 else UserError(f"{len(failures)} of {len(paths)} files were not replayed")
    return code


def add_export(parser: Parser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN|SWEEP", help="folder of a run or of a sweep")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write TensorBoard's event files there")
    parser.add_argument(
        "--rliable", type=Path, metavar="FILE.json", help="write the runs' scores: {algorithm: [runs x games]}"
    )
    parser.add_argument(
        "--score",
        choices=["training", "evaluation", "evaluation-greedy"],
        help="of --rliable: mean return of the last 100 episodes of training, or of the episodes in evaluation.h5 "
        "whose actions were drawn, as in training, or of the greedy ones there [training]",
    )
    parser.add_argument("--policy", type=Path, metavar="FILE.safetensors", help="write the policy for plain torch")
    parser.add_argument("--onnx", type=Path, metavar="FILE.onnx", help="write the policy as an ONNX graph")
    _add_policy(parser)
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    if not any((arguments.tensorboard, arguments.rliable, arguments.policy, arguments.onnx)):
        raise UserError("export needs one of --tensorboard, --rliable, --policy, --onnx")
    if not (arguments.policy or arguments.onnx):
        for option in ("rank", "checkpoint", "modules_folder"):
            if getattr(arguments, option) is not None:
                raise UserError(f"--{option.replace('_', '-')} is of --policy and --onnx; neither is given")
    if arguments.score is not None and not arguments.rliable:
        raise UserError("--score is of --rliable, which is not given")
    score: Score = arguments.score or "training"
    paths, to_come = runs_in(arguments.folders)
    if to_come:
        print(f"{len(to_come)} of {len(paths) + len(to_come)} runs have not begun and are left out")
    if (arguments.policy or arguments.onnx) and len(paths) > 1:
        raise UserError(f"--policy and --onnx take the policy of one RUN; {len(paths)} are given")

    from galampi.analysis.export import write_rliable, write_tensorboard
    from galampi.results import open_run

    runs = [open_run(path) for path in paths]
    if arguments.tensorboard:
        num_events = sum(write_tensorboard(run, arguments.tensorboard) for run in runs)
        print(f"{arguments.tensorboard}: {num_events:,} events; tensorboard --logdir {arguments.tensorboard}")
    if arguments.rliable:
        games, told = write_rliable(runs, arguments.rliable, score)
        for line in told:
            print(line)
        which = {"evaluation": "evaluation, actions drawn", "evaluation-greedy": "evaluation, most probable actions"}
        scores = which.get(score, score)
        print(f"{arguments.rliable}: raw scores of {scores}; games in order: {', '.join(games)}")
    if arguments.policy or arguments.onnx:
        from galampi.policies.export import export_onnx, export_policy
        from galampi.policies.stored import find_policy

        stored = _found(find_policy(paths[0], rank=arguments.rank, update=arguments.checkpoint), arguments)
        import_again(stored.job, stored.modules, print)
        for path, export in ((arguments.policy, export_policy), (arguments.onnx, export_onnx)):
            if path:
                export(stored, path)
                print(f"{path}: policy of the {stored.source} after {stored.env_steps:,} env steps")
    return 0


def _add_policy(parser: Parser) -> None:
    """Add the options that name a stored policy."""
    parser.add_argument(
        "--rank", type=rank, metavar="R|mean", help="whose policy: a rank's, or the weighted mean of all [mean]"
    )
    parser.add_argument(
        "--checkpoint",
        type=positive,
        metavar="K",
        help="the policy kept after update K [newest]; see checkpoint.keep_every_updates",
    )
    _add_modules_folder(parser)


def _add_modules_folder(parser: Parser) -> None:
    """Add the option that says where a user's own modules are."""
    parser.add_argument(
        "--modules-folder", type=Path, metavar="DIR", help="where modules that the run's job names are now [as then]"
    )


def _found(stored: StoredPolicy, arguments: argparse.Namespace) -> StoredPolicy:
    """Return a policy whose job's modules are looked for where the command says."""
    if arguments.modules_folder is None:
        return stored
    return replace(
        stored, job=stored.job.model_copy(update={"modules_folder": str(arguments.modules_folder.resolve())})
    )
