"""What the hall brings from one wing into another."""

from unittest import mock

import pytest

pytestmark = pytest.mark.mpi(ranks=1)


def test_training_takes_the_fast_ways(comm, tmp_path) -> None:
    """What was measured to pay is in use, and no more: freed memory is kept, averaging is torch's one pass, and a
    network without convolutions stays in float32 on any processor."""
    from galampi import training
    from galampi.job import load_job
    from galampi.learning import Learner, lerp
    from galampi.results import open_run
    from galampi.training import setup

    job = load_job(None, {"environment.id": "CartPole-v1", "total_env_steps": "500", "device": "cpu"})
    init = setup.PushSum.__init__
    compute, progress = Learner.compute_gradient, []

    def computing(learner, rollout, done):
        progress.append(done)
        return compute(learner, rollout, done)

    with (
        mock.patch.object(Learner, "compute_gradient", computing),
        mock.patch.object(training, "keep_freed_memory") as keep,
        mock.patch.object(setup.PushSum, "__init__", autospec=True, side_effect=init) as made,
        mock.patch("galampi.learning.kernels.multiplies_bfloat16", return_value=True),
    ):
        training.train(job, tmp_path / "run", resume="no", argv=[], comm=comm, quiet=True)
    keep.assert_called_once_with()
    made.assert_called_once_with(mock.ANY, job.gossip.weight_floor, lerp)
    assert open_run(tmp_path / "run").attributes["precision"] == "float32"
    # By which an entropy bonus falls.
    assert progress == sorted(progress) and progress[0] == 0 and 0.5 < progress[-1] < 1
