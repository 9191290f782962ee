"""The machine and the job that are simulated, as stated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from galampi.gossip import Form

Method = Literal["push-sum", "gala", "allreduce", "none"]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How ranks exchange parameters, as in a job file.

    Attributes:
        num_ranks: Ranks of the job.
        method: How messages are weighed.
        topology: Graph of who sends to whom.
        all_peers: Send to every out-peer each update, instead of to one in rotation.
        weight_floor: Least push-sum weight a rank keeps.
        form: How vectors travel.
        message_bytes: Size of a message.
    """

    num_ranks: int
    method: Method = "push-sum"
    topology: str = "exponential"
    all_peers: bool = False
    weight_floor: float = 1 / 16
    form: Form = "full"
    message_bytes: float = 6.75e6


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What ranks run on, and what befalls them.

    Attributes:
        update_s: Mean time of an update without exchange, s.
        update_spread: Standard deviation of the times of one rank's updates over their mean.
        rank_spread: Standard deviation of the ranks' means over their mean.
        num_stragglers: Ranks that are slower than that by `slowdown`, spread evenly over the job.
        slowdown: Factor on the update times of stragglers.
        pauses: Mean number of pauses of a rank in 1,000 mean updates.
        pause_s: Mean length of a pause, s.
        num_deaths: Ranks that stop for ever, at moments drawn over the whole time.
        num_late: Ranks that begin late, by up to a tenth of the whole time.
        ranks_per_node: Ranks on each node, placed in blocks.
        latency_s: Mean time a message takes between nodes beside its bytes, s.
        latency_spread: Standard deviation of that time over its mean.
        node_bytes_per_s: Rate at which a node sends to others.
        memory_bytes_per_s: Rate at which a rank copies a message, and averages one.
    """

    update_s: float = 0.046
    update_spread: float = 0.15
    rank_spread: float = 0.03
    num_stragglers: int = 0
    slowdown: float = 3.0
    pauses: float = 0.0
    pause_s: float = 1.0
    num_deaths: int = 0
    num_late: int = 0
    ranks_per_node: int = 32
    latency_s: float = 5e-6
    latency_spread: float = 0.5
    node_bytes_per_s: float = 50e9 / 8
    memory_bytes_per_s: float = 7.5e9
