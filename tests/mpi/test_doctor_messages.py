"""`doctor` says which messages leave their node, and which do not come."""

import pytest


def seen(comm, finding) -> tuple[str, str]:
    """Return what rank 0 found."""
    return comm.bcast((finding.state, finding.text))


@pytest.mark.library("doctor")
@pytest.mark.mpi(ranks=4)
def test_messages(comm, monkeypatch) -> None:
    from mpi4py import MPI

    from galampi.gossip import Mailboxes
    from galampi.job import load_job
    from galampi.launch.doctor import exchange

    job = load_job(None, {})
    state, text = seen(comm, exchange.check_messages(job, comm))
    assert (state, "0% of the job's leave" in text) == ("ok", True)
    # Each library tells what carries its windows.
    assert " by osc/sm, " in text or " by ch4:" in text
    of_none = load_job(None, {"gossip.method": "none"})
    assert "'none'" in seen(comm, exchange.check_messages(of_none, comm))[1]
    with monkeypatch.context() as patch:
        patch.setattr(MPI, "Get_processor_name", lambda: f"node-{comm.rank % 2}")
        found = comm.bcast(exchange.check_messages(job, comm))
        # Hops 1 and 2 from each rank: placed in turn, all of hop 1 leave; in blocks half of hop 1 and all of hop 2.
        assert found.figures["share_leaving_node"] == 0.5
        assert found.figures["share_in_blocks"] == 0.75
        ring = load_job(None, {"gossip.topology": "ring"})
        state, text = seen(comm, exchange.check_messages(ring, comm))
        assert (state, "100% of the job's leave" in text) == ("warning", True)
    monkeypatch.setattr(exchange, "_SILENCE_S", 1.0)
    if comm.rank == 2:
        monkeypatch.setattr(Mailboxes, "_raise_flag", lambda self, edge, number: None)
    state, text = seen(comm, exchange.check_messages(job, comm))
    assert state == "failed"
    assert text.startswith("no message in 1 s from rank 2 to 0, rank 2 to 3")


@pytest.mark.mpi(ranks=2)
def test_a_call_that_does_not_come_back_is_told_of(comm, monkeypatch) -> None:
    import threading

    from galampi.job import load_job
    from galampi.launch.doctor import exchange

    given_up = threading.Event()
    told = []

    def give_up(finding) -> None:
        told.append(finding)
        given_up.set()

    monkeypatch.setattr(exchange, "_HANG_S", 0.2)

    def send_and_receive(topology, comm, carriers) -> list[int]:
        if comm.rank == 1:
            comm.recv(source=0)
        else:
            given_up.wait()
            comm.send(None, 1)
        return []

    monkeypatch.setattr(exchange, "_send_and_receive", send_and_receive)
    finding = exchange.check_messages(load_job(None, {}), comm, give_up if comm.rank == 0 else None)
    assert finding.state == "ok"
    assert [each.state for each in told] == ["failed"] * (comm.rank == 0)
    assert comm.rank > 0 or "has not come back for 0 s" in told[0].text


@pytest.mark.parametrize(
    ("carrier", "setting"),
    [
        ("osc/ucx, osc/sm", "OMPI_MCA_osc=^ucx"),
        ("osc/rdma", "OMPI_MCA_btl_tcp_if_include"),
        ("ch4:ucx", "UCX_NET_DEVICES"),
        ("", "FI_PROVIDER"),
    ],
)
def test_advice_is_for_what_carries_the_windows(carrier, setting) -> None:
    from galampi.launch.doctor.windows import what_to_set

    assert setting in what_to_set(carrier)
