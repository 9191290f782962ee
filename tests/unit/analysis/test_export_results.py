"""TensorBoard's files read back record by record, and rliable's scores."""

import numpy as np
import pytest
from event_records import records
from made_runs import make_run

from galampi.analysis.export import rliable_scores, write_rliable, write_tensorboard
from galampi.errors import ResultsError, UserError
from galampi.job import dump_job, parse_job
from galampi.results import JobFile, RankWriter, open_run
from galampi.results.evaluation import EvaluatedEpisode, save_evaluation


def write_run(out, *, game="CartPole-v1", seed=1, method="push-sum", returns=(), ranks=1):
    job = parse_job(f'seed = {seed}\n[environment]\nid = "{game}"\n[gossip]\nmethod = "{method}"', "test")
    JobFile.create(out, {"job_toml": dump_job(job)}, ranks)
    for rank in range(ranks):
        with RankWriter(out / f"rank-{rank:04d}.h5", rank=rank) as writer:
            for k, value in enumerate(returns):
                writer.write_episode(
                    episodic_return=value + rank, length=7, env_steps=10 * k, time_s=float(k), simulator=0
                )
    return open_run(out)


def test_every_row_becomes_an_event(tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    run = write_run(tmp_path / "run", returns=[3.0, -2.5, 8.0], ranks=2)
    assert write_tensorboard(run, tmp_path / "logs") == 6
    (path,) = (tmp_path / "logs/run/rank-0001").iterdir()
    head, *others = records(path)
    events = [event for event in others if event.HasField("summary")]
    assert head.file_version == "brain.Event:2"
    assert [event.step for event in events] == [0, 10, 20]
    assert [event.wall_time for event in events] == [0.0, 1.0, 2.0]
    values = [{value.tag: value.simple_value for value in event.summary.value} for event in events]
    assert [value["episodes/return"] for value in values] == [4.0, -1.5, 9.0]
    assert set(values[0]) == {"episodes/return", "episodes/length", "episodes/simulator"}


def shown(folder):
    """Return the steps and returns of the episodes that TensorBoard shows of a folder."""
    pairs: list[tuple[int, float]] = []
    for event in (event for path in sorted(folder.iterdir()) for event in records(path)):
        if event.HasField("session_log"):
            pairs = [pair for pair in pairs if pair[0] < event.step]
        pairs += [(event.step, value.simple_value) for value in event.summary.value if "return" in value.tag]
    return pairs


def test_written_again_a_run_is_brought_up_to_date_and_another_of_its_name_is_told_apart(tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    run = write_run(tmp_path / "a/run", returns=[1.0, 2.0])
    logs = tmp_path / "logs"
    assert write_tensorboard(run, logs) == 2
    with RankWriter(tmp_path / "later.h5", rank=0) as writer:
        for k in range(3):
            writer.write_episode(episodic_return=k + 1.0, length=7, env_steps=10 * k, time_s=float(k), simulator=0)
    (tmp_path / "later.h5").rename(run.path / "rank-0000.h5")
    other = write_run(tmp_path / "b/run", returns=[5.0])
    for each in (open_run(run.path), other, other):
        write_tensorboard(each, logs)
    assert shown(logs / "run/rank-0000") == [(0, 1.0), (10, 2.0), (20, 3.0)]
    assert shown(logs / "run-2/rank-0000") == [(0, 5.0)]


def test_ranks_that_have_left_are_written_too(tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    run = write_run(tmp_path / "run", returns=[3.0, -2.5, 8.0], ranks=2)
    JobFile.create(run.path, {"job_toml": run.job_toml}, 1)
    assert write_tensorboard(open_run(run.path), tmp_path / "logs") == 6


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_for_logs_that_cannot_be_written(tmp_path, place) -> None:
    pytest.importorskip("tensorboardX")
    run = write_run(tmp_path / "run", returns=[1.0])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run: cannot be written: "):
        write_tensorboard(run, tmp_path / place)


def test_scores_are_runs_by_games(tmp_path) -> None:
    runs = []
    for seed in (2, 1):
        for game, base in (("Pong", 10.0), ("Breakout", 100.0)):
            for method in ("push-sum", "none"):
                # More than are averaged: the first do not count.
                returns = [-1000.0] * 50 + [base + seed + (method == "none")] * 100
                out = tmp_path / f"{game}-{seed}-{method}"
                runs.append(write_run(out, game=f"ALE/{game}-v5", seed=seed, method=method, returns=returns))
    scores, games = rliable_scores(runs, "training")
    assert games == ["ALE/Breakout-v5", "ALE/Pong-v5"]
    assert scores == {
        "push-sum, 1 rank": [[101.0, 11.0], [102.0, 12.0]],
        "none, 1 rank": [[102.0, 12.0], [103.0, 13.0]],
    }
    with pytest.raises(ResultsError, match=r"none, 1 rank: .*has: ALE/Breakout-v5 1, ALE/Pong-v5 2"):
        rliable_scores([run for run in runs if run.path.name != "Breakout-1-none"], "training")


def test_scores_of_evaluations(tmp_path) -> None:
    run = write_run(tmp_path / "run", ranks=2, returns=[0.0] * 20)
    with pytest.raises(ResultsError, match=r"evaluation\.h5: no such evaluation"):
        rliable_scores([run], "evaluation")
    path = run.path / "evaluation.h5"
    drawn, greedy = (
        [
            EvaluatedEpisode(
                episode=k, episodic_return=float(k), length=3, end="stuck", seed=k, taken=np.zeros(3, np.int64)
            )
            for k in returns
        ]
        for returns in ((1, 2, 6), (0, 2))
    )
    save_evaluation(path, {"sample": drawn, "greedy": greedy}, {})
    assert rliable_scores([run], "evaluation")[0] == {"push-sum, 2 ranks": [[3.0]]}
    assert rliable_scores([run], "evaluation-greedy")[0] == {"push-sum, 2 ranks": [[1.0]]}
    # A file of greedy episodes alone, as all once were, is not taken for the other kind.
    save_evaluation(path, {"greedy": greedy}, {})
    assert rliable_scores([run], "evaluation-greedy")[0] == {"push-sum, 2 ranks": [[1.0]]}
    with pytest.raises(
        ResultsError, match=r"evaluation\.h5: holds no episodes of --score evaluation, .* but of 'greedy'"
    ):
        rliable_scores([run], "evaluation")
    save_evaluation(path, {"sample": drawn}, {})
    assert write_rliable([run], tmp_path / "scores.json", "evaluation") == (["CartPole-v1"], [])
    assert np.isclose(rliable_scores([run], "training")[0]["push-sum, 2 ranks"][0][0], 0.5)


def test_a_run_without_episodes_has_no_score(tmp_path) -> None:
    with pytest.raises(ResultsError, match="too few episodes have ended"):
        rliable_scores([write_run(tmp_path / "run")], "training")


def test_runs_that_are_no_seeds_of_one_algorithm_are_told(tmp_path) -> None:
    settings = [{"seed": "1"}, {"seed": "2", "record.sketch_size": "64"}, {"seed": "2"}, {"learner.gamma": "0.9"}]
    runs = [open_run(make_run(tmp_path / f"run-{i}", settings=each, slope=i + 1)) for i, each in enumerate(settings)]
    _, told = write_rliable(runs, tmp_path / "scores.json", "training")
    assert told == [
        f"{tmp_path}/run-2: of seed 2, as {tmp_path}/run-1 is",
        f"{tmp_path}/run-3: learner.gamma is 0.9, and 0.99 in {tmp_path}/run-0; both count as one algorithm",
        f"{tmp_path}/run-3: of seed 1, as {tmp_path}/run-0 is",
    ]


def test_an_evaluation_of_an_earlier_policy_is_told(tmp_path) -> None:
    run = open_run(make_run(tmp_path / "run", num_updates=200))
    episode = EvaluatedEpisode(episode=1, episodic_return=2.0, length=3, end="cut", seed=1, taken=np.zeros(3, np.int64))
    for updates, told in (
        ([200, 200], []),
        ([200], []),
        ([199, 199], ["of the policy after 199 updates; the run has made 200"]),
    ):
        save_evaluation(run.path / "evaluation.h5", {"sample": [episode]}, {"updates": updates})
        lines = write_rliable([run], tmp_path / "scores.json", "evaluation")[1]
        assert [line.partition("evaluation.h5: ")[2] for line in lines] == told
