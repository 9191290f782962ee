"""The command that measures speed."""

from __future__ import annotations

import argparse
from pathlib import Path

from galampi.cli.settings import Parser, positive


def add_bench(parser: Parser) -> None:
    """Add the arguments of `bench`."""
    parser.add_argument(
        "--part",
        choices=["figures", "exchange", "all"],
        default="all",
        help="training, gossip by itself, or both [all]",
    )
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="rounds of all contestants [5]")
    parser.add_argument("--seconds", type=positive, default=10, metavar="S", help="time each one is measured for [10]")
    parser.add_argument("--sb3", type=Path, metavar="PYTHON", help="python of an environment with Stable-Baselines3")
    parser.add_argument(
        "--sample-factory", type=Path, metavar="PYTHON", help="python of an environment with Sample Factory"
    )
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder of the results' file [.]")
    parser.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from galampi.bench.command import Peers, bench

    return bench(
        num_rounds=arguments.rounds,
        seconds=arguments.seconds,
        part=arguments.part,
        peers=Peers(arguments.sb3, arguments.sample_factory),
        out=arguments.out,
    )
