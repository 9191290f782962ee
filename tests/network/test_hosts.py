"""Gossip between hosts whose links are late, lose packets, and are cut."""

from functools import partial

import pytest
from exchanging import LATE, cut_for, end, ranks

from galampi.bench.hosts import Hosts


@pytest.mark.parametrize("form", ["full", "int8"])
def test_late_links_that_lose_packets_lose_no_message(tmp_path, num_hosts, form) -> None:
    settings = {"form": form, "update_s": 0.02, "after": str(tmp_path), "least": 20}
    with (
        Hosts(num_hosts, tmp_path, **LATE) as hosts,
        ranks(partial(hosts.mpirun, 4 // num_hosts), **settings) as process,
    ):
        end(process, 4)


def test_nobody_waits_for_a_link_that_is_cut_and_all_goes_on_when_it_is_back(tmp_path, cut_s) -> None:
    back = tmp_path / "back"
    settings = {"form": "int8", "update_s": 0.02, "after": str(back), "least": 5}
    with Hosts(2, tmp_path, **LATE) as hosts, ranks(partial(hosts.mpirun, 2), **settings) as process:
        cut_for(hosts, cut_s, back)
        # TCP tries again after twice the time each time: who waits for it waits for longer than the link was cut.
        assert end(process, 4)["longest_step_s"] < cut_s
