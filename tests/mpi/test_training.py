"""What the hall brings from one wing into another."""

from unittest import mock

import pytest

pytestmark = pytest.mark.mpi(ranks=1, timeout=60)


def test_training_takes_the_fast_ways(comm, tmp_path) -> None:
    """What was measured to pay is in use: freed memory is kept, and averaging is torch's one pass."""
    from galampi import training
    from galampi.job import load_job
    from galampi.learning import lerp

    job = load_job(None, {"environment.id": "CartPole-v1", "total_env_steps": "500", "device": "cpu"})
    init = training.PushSum.__init__
    with (
        mock.patch.object(training, "keep_freed_memory") as keep,
        mock.patch.object(training.PushSum, "__init__", autospec=True, side_effect=init) as made,
    ):
        training.train(job, tmp_path / "run", resume=False, argv=[], comm=comm, quiet=True)
    keep.assert_called_once_with()
    made.assert_called_once_with(mock.ANY, job.gossip.weight_floor, lerp)
