"""A library that makes no windows between nodes is one line for users, and `doctor` says what to set."""

import pytest


@pytest.mark.mpi(ranks=2)
def test_no_windows_between_nodes(comm, monkeypatch) -> None:
    from mpi4py import MPI

    from galampi import gossip
    from galampi.errors import UserError
    from galampi.gossip import ring
    from galampi.job import load_job
    from galampi.launch.doctor import exchange, network, windows

    class Elsewhere(MPI.Intracomm):
        """Ranks that lie on nodes of their own."""

        def Split_type(self, *_: object) -> MPI.Intracomm:  # noqa: N802 as mpi4py has it
            return MPI.COMM_SELF.Dup()

    class NoWin(MPI.Win):
        @classmethod
        def Create(cls, *_: object, **__: object) -> MPI.Win:  # noqa: N802 as mpi4py has it
            raise MPI.Exception(MPI.ERR_WIN)

        Allocate = Create

    apart = Elsewhere(comm)
    with monkeypatch.context() as patch:
        patch.setattr(MPI, "Win", NoWin)
        with pytest.raises(UserError, match="makes no windows between nodes"):
            gossip.Mailboxes(apart, ring(2), 10)
        for finding in (exchange.check_messages(load_job(None, {}), apart), network.check_network(apart, 100)):
            assert finding.state == "failed"
            assert "makes no windows between nodes" in finding.text
            assert finding.advice
        patch.setattr(MPI, "Get_library_version", lambda: "Open MPI v4.1.4")
        assert "OMPI_MCA_osc=pt2pt,sm" in windows.what_makes_windows()


@pytest.mark.mpi(ranks=1)
def test_every_library_has_its_carrier(comm, monkeypatch) -> None:
    from types import SimpleNamespace

    from mpi4py import MPI

    from galampi.launch.doctor.windows import carrier_of

    def carrier(version: str, *names: str) -> str:
        monkeypatch.setattr(MPI, "Get_library_version", lambda: version)
        return carrier_of([SimpleNamespace(Get_name=lambda name=name: name) for name in names])

    assert carrier("Open MPI v4.1.4, package", "", "ucx window 5") == "osc/sm, osc/ucx"
    assert carrier("Open MPI v5.0.11, package", "rdma window 7", "rdma window 8") == "osc/rdma"
    assert carrier("MPICH Version: 5.0.2\nMPICH Device:    ch4:ucx\n", "") == "ch4:ucx"
    monkeypatch.setenv("FI_PROVIDER", "tcp")
    assert carrier("Intel(R) MPI Library 2021.18 for Linux* OS", "") == "ch4:ofi, provider tcp"
    assert carrier("another", "") == ""
