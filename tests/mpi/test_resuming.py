"""How ranks read the checkpoints of a job of another number of ranks."""

import numpy as np
import pytest

NUM_OLD = 5


@pytest.mark.slow(ranks=[1, 6])
@pytest.mark.mpi(ranks=[1, 2, 5, 6])
def test_ranks_share_the_reading_of_checkpoints(comm, monkeypatch) -> None:
    import shutil
    import tempfile
    from pathlib import Path

    from galampi.job import dump_job, load_job
    from galampi.results import JobFile, load_checkpoint, save_checkpoint
    from galampi.training import checkpoint_set, resuming

    job = load_job(None, {"environment.id": "CartPole-v1"})
    out = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None))
    z = np.random.default_rng(1).normal(size=(NUM_OLD, 1000)).astype(np.float32)
    weights = np.array([0.25, 1.75, 1.0, 0.5, 1.5])
    if comm.rank == 0:
        JobFile.create(out, {"job_toml": dump_job(job), "num_restarts": 0}, NUM_OLD)
        for old in range(NUM_OLD):
            state = {
                "num_ranks": NUM_OLD,
                "num_restarts": 0,
                "exact": False,
                "time_s": 10.0 + old,
                "weight": float(weights[old]),
                "step_scale": {},
                "counters": {"update": 70 + old, "env_steps": 100 * old, "sent": 1, "received": 1, "skipped": 0},
                "position": {"num_updates": 7, "num_episodes": 0, "num_sketches": 0},
                "learner": {"z": z[old], "num_steps": 3},
            }
            save_checkpoint(out / f"checkpoint/rank-{old:04d}.h5", state)
    comm.Barrier()
    read: list[tuple[str, bool]] = []

    def load(path, without=()):
        read.append((path.name, not without))
        return load_checkpoint(path, without)

    monkeypatch.setattr(checkpoint_set, "load_checkpoint", load)
    start = resuming.find_start(job, out, comm)
    everything = [each for part in comm.allgather(read) for each in part]
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(out)

    names = sorted(f"rank-{old:04d}.h5" for old in range(NUM_OLD))
    assert sorted(name for name, is_whole in everything if not is_whole) == names
    assert sum(not is_whole for _, is_whole in read) <= -(-NUM_OLD // comm.size)
    assert start.time_s == 14.0
    assert start.progress.sum() + start.retired_env_steps == 1000
    if comm.size == NUM_OLD:
        assert [name for name, is_whole in read if is_whole] == [f"rank-{comm.rank:04d}.h5"]
        np.testing.assert_array_equal(start.learner["z"], z[comm.rank])
        return
    assert sorted(name for name, is_whole in everything if is_whole) == names
    assert sum(is_whole for _, is_whole in read) <= -(-NUM_OLD // comm.size)
    np.testing.assert_allclose(start.learner["z"], weights @ z / weights.sum(), rtol=1e-5, atol=1e-6)
    assert list(start.learner) == ["z"]
    assert len({bytes(each) for each in comm.allgather(start.learner["z"])}) == 1


@pytest.mark.mpi(ranks=[3])
@pytest.mark.parametrize("exact", [True, False])
def test_weights_and_the_scale_of_steps_go_on_after_a_drain(comm, exact) -> None:
    import shutil
    import tempfile
    from pathlib import Path
    from types import SimpleNamespace

    from galampi.gossip.mixing import StepScale
    from galampi.job import dump_job, load_job
    from galampi.results import JobFile, save_checkpoint
    from galampi.training import resuming
    from galampi.training.setup import _make_exchange

    job = load_job(None, {"environment.id": "CartPole-v1", "gossip.topology": "ring"})
    out = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None))
    scale = StepScale()
    for weight in (0.5, 0.7, 0.9):
        scale.next(weight)
    assert scale.state() != StepScale().state()
    weights = [0.25, 1.75, 1.0]
    if comm.rank == 0:
        JobFile.create(out, {"job_toml": dump_job(job), "num_restarts": 0}, 3)
        for rank, weight in enumerate(weights):
            state = {
                **{"num_ranks": 3, "num_restarts": 0, "exact": exact, "time_s": 1.0, "weight": weight},
                "step_scale": scale.state(),
                "counters": dict.fromkeys(("update", "env_steps", "sent", "received", "skipped"), 1),
                "position": {"num_updates": 7, "num_episodes": 0, "num_sketches": 0},
                "learner": {"z": np.zeros(10, np.float32)},
            }
            save_checkpoint(out / f"checkpoint/rank-{rank:04d}.h5", state)
    comm.Barrier()
    start = resuming.find_start(job, out, comm)
    learner = SimpleNamespace(z=np.zeros(10, np.float32), moments=np.zeros(0, np.float32))
    mailboxes, gossip, _ = _make_exchange(job, learner, comm, start, SimpleNamespace(caught=None))
    assert gossip.mixing.weight == (weights[comm.rank] if exact else 1.0)
    assert gossip.mixing.step_scale.state() == scale.state()
    mailboxes.free()
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(out)


@pytest.mark.mpi(ranks=[1])
def test_a_rank_that_has_only_begun_may_leave(comm, tmp_path) -> None:
    """As where a resume on more ranks was cut short: its file has room for sketches, and no row."""
    from galampi.results import JobFile, RankWriter, Sketch, open_run
    from galampi.training.checkpoint_set import _cut_rows

    JobFile.create(tmp_path, {"job_toml": "", "num_restarts": 0}, 2)
    for rank in range(2):
        RankWriter(tmp_path / f"rank-{rank:04d}.h5", rank=rank, sketch=Sketch(16, 100)).close()
    state = {
        "counters": {"update": 0},
        "time_s": 0.0,
        "position": {"num_updates": 0, "num_episodes": 0, "num_sketches": 0},
        "learner": {"z": np.zeros(100, np.float32)},
    }
    _cut_rows(tmp_path, 1, state, 1)
    left = open_run(tmp_path).all_ranks[1]
    assert left.restarts["reason"].tolist() == ["left the job, which went on with 1 ranks"]
    assert left.sketches.read("value")["value"].shape == (0, 16)
