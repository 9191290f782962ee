import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galampi.errors import JobError
from galampi.job import Job, dump_job, fields, load_job, parse_job

JOBS = sorted((Path(__file__).parents[3] / "jobs").glob("*.toml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_shipped_jobs_are_valid_and_named_after_their_file(path: Path) -> None:
    assert load_job(path).name == path.stem


def test_the_default_job_is_the_quick_start() -> None:
    assert load_job(Path(__file__).parents[3] / "jobs" / "quick-start.toml") == Job()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_survives_being_written(path: Path) -> None:
    job = load_job(path)
    assert parse_job(dump_job(job), "dump") == job


@given(name=st.text(min_size=1, max_size=50).filter(lambda t: "/" not in t and "\0" not in t and t.strip(". ")))
def test_hostile_names_survive_being_written(name: str) -> None:
    try:
        job = Job(name=name)
        text = dump_job(job)
        text.encode()
    except (JobError, UnicodeEncodeError, ValueError):
        return
    assert parse_job(text, "dump").name == name


def test_overrides_lie_over_the_file() -> None:
    text = "seed = 5\n[learner]\ngamma = 0.9\nlearning_rate = 0.1\n"
    job = parse_job(text, "file", {"learner.gamma": "0.5", "environment.id": "CartPole-v1", "name": "7"})
    assert (job.seed, job.learner.gamma, job.learner.learning_rate) == (5, 0.5, 0.1)
    assert (job.environment.id, job.name) == ("CartPole-v1", "7")


def test_a_list_from_the_command_line() -> None:
    assert parse_job("", "file", {"network.hidden_sizes": "[32, 16]"}).network.hidden_sizes == (32, 16)


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Job().learner.gamma = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[learner]\ngama = 1", "j.toml: learner.gama is not a key of a job; did you mean 'learner.gamma'?"),
        ("gamma = 1", "j.toml: gamma is not a key of a job; did you mean 'learner.gamma'?"),
        ("[learner]\ngamma = 1.5", "j.toml: learner.gamma is 1.5; must be a number at least 0 and at most 1"),
        ("[learner]\ngamma = nan", "j.toml: learner.gamma is nan; must be a number at least 0 and at most 1"),
        ("learner = 3", "j.toml: learner is 3; must be a table"),
        ("seed = 'x'", "j.toml: seed is 'x'; must be a whole number at least 0 and below 2147483648"),
        ("seed = true", "j.toml: seed is True; must be a whole number at least 0 and below 2147483648"),
        ("name = 'a/b'", "j.toml: name is 'a/b'; must be 1 to 200 characters without '/'"),
        (
            "[gossip]\nmethod = 'pushsum'",
            "j.toml: gossip.method is 'pushsum'; must be one of 'push-sum', 'gala', 'allreduce', 'none'; "
            "did you mean 'push-sum'?",
        ),
        (
            "[network]\nhidden_sizes = [3, -1]",
            "j.toml: network.hidden_sizes is -1; must be a list of whole numbers, each at least 1",
        ),
    ],
)
def test_a_mistake_is_one_line_with_what_is_allowed(text: str, expected: str) -> None:
    with pytest.raises(JobError) as error:
        parse_job(text, "j.toml")
    assert str(error.value) == expected


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match=r"job\.toml: cannot be read: not a text file"):
        load_job(tmp_path / "job.toml")


def test_every_setting_says_what_it_is() -> None:
    for key, field in fields():
        assert field.description, key


def test_the_dump_holds_every_setting() -> None:
    def keys(tree: dict, prefix: str = "") -> set[str]:
        return {
            leaf
            for key, value in tree.items()
            for leaf in (keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key})
        }

    assert keys(tomllib.loads(dump_job(Job()))) == {key for key, _ in fields()}
