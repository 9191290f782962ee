"""`doctor` says which messages leave their node, and which do not come."""

import pytest


def seen(comm, finding) -> tuple[str, str]:
    """Return what rank 0 found."""
    return comm.bcast((finding.state, finding.text))


@pytest.mark.mpi(ranks=4)
def test_messages(comm, monkeypatch) -> None:
    from mpi4py import MPI

    from galampi.gossip import Mailboxes
    from galampi.job import load_job
    from galampi.launch.doctor import exchange

    job = load_job(None, {})
    state, text = seen(comm, exchange.check_messages(job, comm))
    assert (state, "0% of the job's leave" in text) == ("ok", True)
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
    assert text == "no message in 1 s from rank 2 to 0, rank 2 to 3"
