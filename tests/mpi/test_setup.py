"""What ranks see to before they train: that they are of one job, and begin alike."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest


class Learned(SimpleNamespace):
    """What a learner has of parameters and constants."""

    def __init__(self, z, constants=()):
        super().__init__(z=np.array(z, np.float32), constants=np.array(constants, np.uint8))
        self.parameters = self.z


@pytest.mark.mpi(ranks=[2])
def test_parameters_that_differ_by_rounding_become_the_first_ranks(comm) -> None:
    from galampi.job import parse_job
    from galampi.ranks.placement import together
    from galampi.training.setup import _begin_alike

    job = parse_job("", "test")
    drawn = np.random.default_rng(0).normal(size=1000)
    learner = Learned(drawn * (1 + 1e-5 * comm.rank), [comm.rank, 7])
    _begin_alike(job, learner, comm, None)
    assert len(set(comm.allgather(learner.z.tobytes()))) == 1
    assert learner.constants.tolist() == [0, 7]

    # A run that goes on has what it had, but for constants that checkpoints of an older galampi lack.
    for state, expected in (({"constants": 0}, comm.rank), ({}, 0)):
        own = Learned(drawn * (1 + comm.rank), [comm.rank])
        _begin_alike(job, own, comm, state)
        assert own.constants.tolist() == [expected]
        np.testing.assert_array_equal(own.z, np.float32(drawn * (1 + comm.rank)))

    for wrong, told in [
        (
            Learned(np.random.default_rng(comm.rank).normal(size=1000), [0] * 10**6),
            "begins with other parameters on each rank",
        ),
        (Learned(drawn[: 999 + comm.rank]), r"networks of different sizes: \[999, 1000\] parameters"),
        (Learned(drawn, [0] * (1 + comm.rank)), r"constants \(buffers\) are of different sizes"),
    ]:
        from galampi.errors import UserError

        with pytest.raises(UserError, match=told), together(comm):
            _begin_alike(job, wrong, comm, None)


@pytest.mark.mpi(ranks=[2])
def test_ranks_whose_simulators_differ_are_refused(comm) -> None:
    """As of levels by the simulator's number, where each rank has one simulator."""
    from galampi.errors import UserError
    from galampi.job import parse_job
    from galampi.training.setup import _refuse_other_spaces

    job = parse_job("", "test", {"environment.num_envs": "1"})

    def simulators(high):
        return SimpleNamespace(
            single_observation_space=gym.spaces.Discrete(4),
            single_action_space=gym.spaces.Box(-1, high, (2,), np.float32),
        )

    _refuse_other_spaces(job, simulators(1.0), comm)
    with pytest.raises(UserError, match=r"action_space of simulator 1 is Box.*must be that of the others, Box\(-1"):
        _refuse_other_spaces(job, simulators(1.0 + comm.rank), comm)


@pytest.mark.mpi(ranks=[2])
def test_a_folder_that_not_all_ranks_see_is_refused_on_all(comm, monkeypatch) -> None:
    import shutil
    import tempfile
    from contextlib import ExitStack
    from pathlib import Path

    from galampi import training
    from galampi.errors import UserError
    from galampi.job import parse_job
    from galampi.training import folder

    place = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None))
    job = parse_job("", "test")
    with ExitStack() as claim:
        assert training._claim(job, place / "run", "no", comm, claim) == (place / "run", False)
        assert [path.name for path in (place / "run").iterdir()] == ["lock"]
        comm.Barrier()
    comm.Barrier()
    # As if the second rank were on a node where the folder is another.
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: exists(path) and not (comm.rank and path.name.startswith(".seen")))
    monkeypatch.setattr(folder, "_SEEN_WITHIN_S", 0.5)
    with pytest.raises(UserError, match=r"run: rank 1 on .* does not see there what rank 0 on"), ExitStack() as claim:
        training._claim(job, place / "run", "no", comm, claim)
    comm.Barrier()
    assert not (place / "run").exists()
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(place)


@pytest.mark.mpi(ranks=[5])
def test_the_exchange_is_as_the_job_asks_for_it(comm, monkeypatch) -> None:
    """With five ranks a ring is no exponential graph."""
    from galampi.gossip.forms import edge_end
    from galampi.job import parse_job
    from galampi.training import setup
    from galampi.training.resuming import Start

    asked = {
        "topology": "ring",
        "peers": '"all"',
        "weight_floor": "0.125",
        "message": "int8",
        "delay_updates": "3",
    }
    job = parse_job("", "test", {f"gossip.{key}": value for key, value in asked.items()})
    made = {}
    gossip_class = setup.Gossip
    monkeypatch.setattr(setup, "Gossip", lambda *a, **k: made.update(k) or gossip_class(*a, **k))
    learner = SimpleNamespace(z=np.zeros(40, np.float32), moments=np.zeros(8, np.float32))
    start = Start(progress=np.zeros(5, np.int64))
    mailboxes, gossip, allreduce = setup._make_exchange(job, learner, comm, start, SimpleNamespace(caught=None))
    assert allreduce is None
    assert mailboxes.topology.hops == (1,)
    assert made == {"all_peers": True, "delay_updates": 3}
    assert gossip.mixing.weight_floor == 0.125
    # Of 40 numbers 8 travel as they are.
    sizes = [edge_end("int8", 40, np.float32, num_exact=number).num_bytes for number in (8, 0)]
    assert mailboxes._writers[0].num_bytes == sizes[0] != sizes[1]
    mailboxes.free()
