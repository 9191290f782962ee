"""Graphs of who sends to whom.

Every graph here is circulant: rank r sends along hop h to rank r + h and receives along it from rank r - h, modulo
the number of ranks. So an edge has the same index, that of its hop, at both of its ends. Knows no MPI.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topology:
    """A directed circulant graph.

    Attributes:
        num_ranks: Nodes of the graph.
        hops: Distances to the out-peers, each in [1, num_ranks) and once.
    """

    num_ranks: int
    hops: tuple[int, ...]

    def out_peers(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that `rank` sends to, in the order of the hops."""
        return tuple((rank + hop) % self.num_ranks for hop in self.hops)

    def in_peers(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that `rank` receives from, in the order of the hops."""
        return tuple((rank - hop) % self.num_ranks for hop in self.hops)


def exponential(num_ranks: int) -> Topology:
    """Return the graph with hops 1, 2, 4, ... below `num_ranks` (Assran et al., arXiv 1811.10792, section 3)."""
    return Topology(num_ranks, tuple(1 << k for k in range((num_ranks - 1).bit_length())))


def ring(num_ranks: int) -> Topology:
    """Return the directed ring: every rank sends to the next."""
    return Topology(num_ranks, (1,) if num_ranks > 1 else ())


def complete(num_ranks: int) -> Topology:
    """Return the graph in which every rank sends to every other."""
    return Topology(num_ranks, tuple(range(1, num_ranks)))


def edgeless(num_ranks: int) -> Topology:
    """Return the graph in which no rank sends to any other."""
    return Topology(num_ranks, ())


def topology_of(method: str, name: str, num_ranks: int) -> Topology:
    """Return the graph along which a method sends its messages.

    Args:
        method: `push-sum`, `gala`, `allreduce` or `none`; the last two send none.
        name: `exponential`, `ring` or `complete`.
        num_ranks: Nodes of the graph.
    """
    if method in ("allreduce", "none"):
        return edgeless(num_ranks)
    return {"exponential": exponential, "ring": ring, "complete": complete}[name](num_ranks)
