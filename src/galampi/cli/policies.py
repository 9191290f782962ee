"""The commands that put a stored policy to use: `evaluate` and `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from galampi.cli.settings import Parser, positive, rank, whole
from galampi.errors import UserError
from galampi.ranks.importing import heavy_imports


def add_evaluate(parser: Parser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--episodes", type=positive, default=10, metavar="N", help="episodes to play [10]")
    add_action = parser.recorded(parser.add_mutually_exclusive_group().add_argument)
    add_action("--greedy", action="store_true", help="take the most probable action [this]")
    add_action("--sample", action="store_true", help="draw the action, as in training")
    _add_policy(parser)
    parser.add_argument("--seed", type=whole, metavar="S", help="seed of games and actions [the job's]")
    parser.add_argument(
        "--stuck-after",
        type=positive,
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


def add_export(parser: Parser) -> None:
    """Add the arguments of `export`."""
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
