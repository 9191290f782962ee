"""Which parameters a run's checkpoints give."""

import numpy as np
import pytest

from galampi.errors import ResultsError
from galampi.policies.stored import find_policy
from galampi.results import JobFile, load_checkpoint, open_run, save_checkpoint


def test_the_mean_is_weighted_by_push_sum_weight(store) -> None:
    out = store("CartPole-v1", weights=(0.25, 1.5, 1.25))
    z = load_checkpoint(out / "checkpoint/rank-0000.h5")["learner"]["z"]
    policy = find_policy(out)
    # Rank r holds z + r: the mean is z + (0.25 * 0 + 1.5 * 1 + 1.25 * 2) / 3.
    # Rounded where the terms are, which may cancel.
    np.testing.assert_allclose(policy.z, z + 4 / 3, rtol=0, atol=4 * np.spacing(np.abs(z).max() + 2))
    assert (policy.source, policy.updates, policy.env_steps) == ("mean", (70, 71, 72), 3000)


def test_one_rank_keeps_its_bytes(store) -> None:
    out = store("CartPole-v1", weights=(0.3, 1.7))
    policy = find_policy(out, rank=1)
    assert policy.z.tobytes() == load_checkpoint(out / "checkpoint/rank-0001.h5")["learner"]["z"].tobytes()
    assert (policy.source, policy.updates, policy.env_steps) == ("rank 1", (71,), 1000)


def test_a_kept_checkpoint_is_not_the_newest(store) -> None:
    out = store("CartPole-v1", kept=40)
    np.testing.assert_array_equal(find_policy(out, update=40).z, find_policy(out).z + 10)
    with pytest.raises(ResultsError, match=r"no checkpoint of update 41; kept are those of update 40$"):
        find_policy(out, update=41)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_kept_checkpoint_is_of_the_ranks_of_its_time(store, num_ranks) -> None:
    out = store("CartPole-v1", weights=(0.5, 1.5), kept=40)
    then = find_policy(out, update=40)
    JobFile.create(out, {"job_toml": open_run(out).job_toml}, num_ranks)
    assert find_policy(out, update=40).z.tobytes() == then.z.tobytes()
    assert find_policy(out, rank=1, update=40).updates == (71,)
    with pytest.raises(ResultsError, match=r"rank is 2; must lie in \[0, 1\]"):
        find_policy(out, rank=2, update=40)


def test_networks_that_were_trained_apart_have_no_mean(store) -> None:
    out = store("CartPole-v1", weights=(1.0, 1.0), settings={"gossip.method": "none"}, kept=40)
    for update in (None, 40):
        with pytest.raises(
            ResultsError, match=r"its 2 ranks never exchanged parameters, .* take that of one, --rank R"
        ):
            find_policy(out, update=update)
    assert find_policy(out, rank=1).source == "rank 1"


def test_one_rank_alone_is_its_own_mean(store) -> None:
    assert find_policy(store("CartPole-v1", settings={"gossip.method": "none"})).source == "mean"


def test_without_kept_checkpoints_the_setting_is_named(store) -> None:
    with pytest.raises(ResultsError, match=r"none is kept but the newest; see checkpoint\.keep_every_updates"):
        find_policy(store("CartPole-v1"), update=5)


def test_a_rank_that_is_not_there(store) -> None:
    with pytest.raises(ResultsError, match=r"rank is 2; must lie in \[0, 1\]"):
        find_policy(store("CartPole-v1", weights=(1.0, 1.0)), rank=2)


def test_a_missing_checkpoint_is_no_smaller_mean(store) -> None:
    out = store("CartPole-v1", weights=(1.0, 1.0))
    (out / "checkpoint/rank-0001.h5").unlink()
    with pytest.raises(ResultsError, match=r"rank-0001\.h5: no such checkpoint"):
        find_policy(out)
    assert find_policy(out, rank=0).source == "rank 0"


def test_a_truncated_checkpoint_is_named(store) -> None:
    out = store("CartPole-v1")
    path = out / "checkpoint/rank-0000.h5"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ResultsError, match=r"rank-0000\.h5: .*truncated") as error:
        find_policy(out)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("learner", [{}, {"z": np.zeros(3, np.float32)}])
def test_parameters_that_do_not_fit(store, learner) -> None:
    out = store("CartPole-v1", weights=(1.0, 1.0))
    state = load_checkpoint(out / "checkpoint/rank-0001.h5")
    save_checkpoint(out / "checkpoint/rank-0001.h5", {**state, "learner": learner})
    with pytest.raises(ResultsError, match=r"rank-0001\.h5: holds no parameters that fit"):
        find_policy(out)
