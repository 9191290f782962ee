"""Which nodes `doctor` measures with each other."""

import pytest

from galampi.launch.doctor.network import choose_pairs


@pytest.mark.parametrize("num_nodes", [2, 3, 8, 15, 16])
def test_every_pair_of_a_few(num_nodes: int) -> None:
    ends = [10 * node for node in range(num_nodes)]
    pairs = choose_pairs(ends)
    assert sorted(pairs) == [(a, b) for i, a in enumerate(ends) for b in ends[i + 1 :]]


@pytest.mark.parametrize("num_nodes", [17, 64, 121, 240])
def test_every_node_of_many(num_nodes: int) -> None:
    pairs = choose_pairs(range(num_nodes))
    assert len(set(pairs)) == len(pairs) == 120
    assert all(a < b for a, b in pairs)
    assert {end for pair in pairs for end in pair} == set(range(num_nodes))


@pytest.mark.parametrize("num_nodes", [241, 1000])
def test_more_pairs_where_they_would_not_reach_every_node(num_nodes: int) -> None:
    pairs = choose_pairs(range(num_nodes))
    assert len(pairs) == (num_nodes + 1) // 2
    assert {end for pair in pairs for end in pair} == set(range(num_nodes))


def test_pairs_are_far_apart_first() -> None:
    assert choose_pairs(range(4)) == [(0, 2), (1, 3), (0, 1), (1, 2), (2, 3), (0, 3)]
