import pytest
from hypothesis import given
from hypothesis import strategies as st

from galampi.gossip import Topology, complete, edgeless, exponential, ring, topology_of


@pytest.mark.parametrize(
    ("topology", "out_peers_of_0"),
    [
        (exponential(1), ()),
        (exponential(2), (1,)),
        (exponential(5), (1, 2, 4)),
        (exponential(8), (1, 2, 4)),
        (exponential(9), (1, 2, 4, 8)),
        (ring(1), ()),
        (ring(3), (1,)),
        (complete(1), ()),
        (complete(4), (1, 2, 3)),
        (edgeless(4), ()),
    ],
)
def test_out_peers_by_hand(topology: Topology, out_peers_of_0: tuple[int, ...]) -> None:
    assert topology.out_peers(0) == out_peers_of_0


@pytest.mark.parametrize("graph", [exponential, ring, complete])
@given(num_ranks=st.integers(1, 40))
def test_both_ends_of_an_edge_agree_on_its_index(graph, num_ranks: int) -> None:
    topology = graph(num_ranks)
    for rank in range(num_ranks):
        peers = topology.out_peers(rank)
        assert rank not in peers
        assert len(set(peers)) == len(peers)
        for edge, peer in enumerate(peers):
            assert topology.in_peers(peer)[edge] == rank


@pytest.mark.parametrize("graph", [exponential, ring, complete])
@given(num_ranks=st.integers(1, 40))
def test_every_rank_reaches_every_other(graph, num_ranks: int) -> None:
    topology = graph(num_ranks)
    reached, frontier = {0}, {0}
    while frontier:
        frontier = {peer for rank in frontier for peer in topology.out_peers(rank)} - reached
        reached |= frontier
    assert len(reached) == num_ranks


@pytest.mark.parametrize(("name", "graph"), [("exponential", exponential), ("ring", ring), ("complete", complete)])
def test_only_methods_that_send_messages_have_edges(name: str, graph) -> None:
    for method in ("push-sum", "gala"):
        assert topology_of(method, name, 5) == graph(5)
    for method in ("allreduce", "none"):
        assert topology_of(method, name, 5) == edgeless(5)
