"""The command that simulates jobs of many ranks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from galampi.cli.settings import Parser, positive, whole
from galampi.errors import UserError

_METHODS = ("push-sum", "gala", "allreduce")


def add_simulate(parser: Parser) -> None:
    """Add the arguments of `simulate`."""
    add = parser.add_argument
    add("--ranks", nargs="+", type=positive, default=[16], metavar="N", help="ranks; of several a row each [16]")
    add("--method", nargs="+", choices=_METHODS, default=_METHODS, help="how ranks exchange [all three]")
    add("--topology", choices=("exponential", "ring", "complete"), default="exponential", help="graph [exponential]")
    add("--peers", choices=("rotate", "all"), default="rotate", help="one out-peer an update in turn, or all [rotate]")
    add("--weight-floor", type=_share, default=1 / 16, metavar="W", help="least weight a rank keeps [1/16]")
    add("--message-mb", type=_positive, default=6.75, metavar="MB", help="size of a message [6.75]")
    add("--updates", type=positive, default=400, metavar="N", help="updates of a rank; 3 of 10 are a warm-up [400]")
    add("--update-ms", type=_positive, default=46, metavar="MS", help="mean time of an update [46]")
    add("--update-spread", type=_number, default=0.15, metavar="S", help="its standard deviation over its mean [0.15]")
    add("--rank-spread", type=_number, default=0.03, metavar="S", help="the same between the ranks' means [0.03]")
    add("--stragglers", type=whole, default=0, metavar="N", help="ranks that are slower [0]")
    add("--slowdown", type=_positive, default=3.0, metavar="F", help="by so much [3]")
    add("--pauses", type=_number, default=0.0, metavar="N", help="pauses of a rank in 1,000 updates [0]")
    add("--pause-s", type=_positive, default=1.0, metavar="S", help="mean length of a pause [1]")
    add("--deaths", type=whole, default=0, metavar="N", help="ranks that stop for ever [0]")
    add("--late", type=whole, default=0, metavar="N", help="ranks that begin late, by up to a tenth [0]")
    add("--ranks-per-node", type=positive, default=32, metavar="N", help="ranks on a node, in blocks [32]")
    add("--latency-us", type=_number, default=5.0, metavar="US", help="mean latency between nodes [5]")
    add("--latency-spread", type=_number, default=0.5, metavar="S", help="its standard deviation over its mean [0.5]")
    add("--gbit", type=_positive, default=50.0, metavar="G", help="Gbit/s that a node sends [50]")
    add("--memory-gb", type=_positive, default=7.5, metavar="GB", help="GB/s at which a rank copies or averages [7.5]")
    add("--seed", type=whole, default=0, metavar="N", help="of all that is drawn [0]")
    add("--like", type=Path, metavar="RUN", help="simulate the ranks of a run, and set beside it what the run measured")
    add("--out", type=Path, metavar="FILE", help="JSON file of the table")
    add("--check", type=positive, metavar="N", help="rather simulate N random jobs, and check what must hold of each")
    add("--first", type=whole, default=0, metavar="SEED", help="seed of the first of them [0]")
    add("--replay", type=whole, metavar="SEED", help="rather tell and check the random job of a seed")
    defaults = {action.dest: action.default for action in parser.actions if action.dest != "help"}
    parser.set_defaults(run=partial(_simulate, defaults=defaults))


def _simulate(arguments: argparse.Namespace, defaults: Mapping[str, object]) -> int:
    given = [name for name, default in defaults.items() if getattr(arguments, name) != default]
    for mode, with_it in (("replay", ()), ("check", ("first",)), ("like", ("seed",))):
        if mode in given and (idle := [name for name in given if name not in (mode, *with_it)]):
            raise UserError(f"--{idle[0].replace('_', '-')} does nothing beside --{mode}")
    from galampi.ranks.starting import start_mpi

    # It sends nothing; but who exchanges is the code of ranks, which imports it.
    start_mpi()
    if arguments.replay is not None:
        return _replay(arguments.replay)
    if arguments.check is not None:
        return _check(arguments.first, arguments.check)
    if arguments.like is not None:
        from galampi.simulation.real import compare

        print("\n".join(compare(arguments.like, seed=arguments.seed)))
        return 0
    from galampi.gossip import refuse_silence, topology_of
    from galampi.simulation.command import exchanges_of, simulate
    from galampi.simulation.machine import Exchange, Machine

    base = Exchange(
        num_ranks=1,
        topology=arguments.topology,
        all_peers=arguments.peers == "all",
        weight_floor=arguments.weight_floor,
        message_bytes=1e6 * arguments.message_mb,
    )
    machine = Machine(
        update_s=1e-3 * arguments.update_ms,
        update_spread=arguments.update_spread,
        rank_spread=arguments.rank_spread,
        num_stragglers=arguments.stragglers,
        slowdown=arguments.slowdown,
        pauses=arguments.pauses,
        pause_s=arguments.pause_s,
        num_deaths=arguments.deaths,
        num_late=arguments.late,
        ranks_per_node=arguments.ranks_per_node,
        latency_s=1e-6 * arguments.latency_us,
        latency_spread=arguments.latency_spread,
        node_bytes_per_s=1e9 / 8 * arguments.gbit,
        memory_bytes_per_s=1e9 * arguments.memory_gb,
    )
    if "push-sum" in arguments.method:
        for num_ranks in arguments.ranks:
            topology = topology_of("push-sum", base.topology, num_ranks)
            refuse_silence(topology, base.weight_floor, all_peers=base.all_peers)
    if arguments.deaths >= min(arguments.ranks):
        raise UserError(f"--deaths is {arguments.deaths}; must leave one of {min(arguments.ranks)} ranks")
    table = simulate(
        exchanges_of(arguments.ranks, arguments.method, base),
        machine,
        num_updates=arguments.updates,
        seed=arguments.seed,
        out=arguments.out,
    )
    for row in table:
        print(row, flush=True)
    return 0


def _check(first: int, count: int) -> int:
    from galampi.simulation.command import check_seeds

    num_failures = 0
    for failure in check_seeds(first, count):
        num_failures += 1
        print(failure, flush=True)
    print(f"{count - num_failures} of {count} simulated jobs are as they must be")
    return 1 if num_failures else 0


def _replay(seed: int) -> int:
    from galampi.simulation.command import failure_of
    from galampi.simulation.invariants import draw

    print(draw(seed))
    failure = failure_of(seed)
    print(failure or "is as it must be")
    return 1 if failure else 0


def _number(text: str) -> float:
    """Return a number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a number, 0 or more")
    return value


def _positive(text: str) -> float:
    """Return a number above 0."""
    value = _number(text)
    if not value:
        raise argparse.ArgumentTypeError(f"is {text!r}; must be above 0")
    return value


def _share(text: str) -> float:
    """Return a number in [0, 1)."""
    value = _number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; must be below 1")
    return value
