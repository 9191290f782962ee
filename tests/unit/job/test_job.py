import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galampi.errors import JobError, UserError
from galampi.job import (
    Job,
    difference_of,
    dump_job,
    fields,
    find_modules,
    import_modules,
    imported_sources,
    job_of_run,
    load_job,
    named_modules,
    parse_job,
)

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


def test_overrides_from_python() -> None:
    text = "[environment]\nid = 'CartPole-v1'\nkwargs = { a = 1, b = 2 }\n[learner]\ngamma = 0.9\n"
    given = {"environment": {"num_envs": 4, "kwargs": {"c": "3"}}, "learner": {}, "seed": 3}
    job = parse_job(text, "file", {**given, "network": {"hidden_sizes": (32, 16)}, "learner.normalize_returns": True})
    assert (job.environment.id, job.environment.num_envs) == ("CartPole-v1", 4)
    assert job.environment.kwargs == {"c": "3"}
    assert (job.learner.gamma, job.seed, job.network.hidden_sizes) == (0.9, 3, (32, 16))
    assert job.learner.normalize_returns is True
    assert parse_job(text, "file", {"environment": "{ num_envs = 4 }"}).environment.id == "CartPole-v1"
    parse_job(text, "file", {"environment": {"kwargs": (own := {})}, "environment.kwargs.size": 5})
    assert own == {}
    with pytest.raises(JobError, match=r"did you mean 'learner\.gamma'"):
        parse_job(text, "file", {"learner": {"gama": 0.5}})


def test_values_from_python_are_those_of_toml() -> None:
    kwargs = {"low": np.float64(0.5), "size": np.array([2, 3]), "is_hard": np.True_, "level": Path("a/b")}
    job = load_job("cartpole", {"environment": {"kwargs": kwargs}, "seed": np.int64(3)})
    assert parse_job(dump_job(job), "dump") == job
    assert job.environment.kwargs == {"low": 0.5, "size": (2, 3), "is_hard": True, "level": "a/b"} and job.seed == 3
    for value in (None, {1}, b"x", [None], object):
        with pytest.raises(
            JobError, match=r"^command line: environment\.kwargs\.a is .*; jobs are kept as TOML, which"
        ):
            load_job("cartpole", {"environment": {"kwargs": {"a": value}}})


def test_a_run_goes_on_under_other_settings() -> None:
    text = "modules_folder = '/before'\n[environment]\nid = 'my_env:Maze'\n[gossip]\nmethod = 'gala'\n"
    assert job_of_run(text, "job.h5", {}).modules_folder == "/before"
    with pytest.raises(JobError, match=r"^command line: gossip\.message does nothing"):
        job_of_run(text, "job.h5", {"gossip.message": "int8"})
    # Of a run that was begun before such settings were refused.
    assert job_of_run(text + "message = 'int8'", "job.h5", {"seed": "3"}).seed == 3


def test_what_is_installed_to_be_edited_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a finder of its own, as setuptools writes one."""

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            return ModuleSpec(name, None, origin="/work/edited/__init__.py") if name == "edited" else None

    job = load_job(None, {"environment.id": "edited:Maze"})
    with pytest.raises(UserError, match="names the module 'edited', which is neither in"):
        find_modules(job)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert find_modules(job) == {"edited": "/work/edited/__init__.py"}


def test_modules_without_a_job_file_are_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_job(None, {"environment.id": "my_env:Maze"}).modules_folder == str(tmp_path)
    assert load_job(None, {"environment.id": "CartPole-v1"}).modules_folder == ""


def test_a_list_from_the_command_line() -> None:
    assert parse_job("", "file", {"network.hidden_sizes": "[32, 16]"}).network.hidden_sizes == (32, 16)


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Job().learner.gamma = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[learner]\ngama = 1", "j.toml: learner.gama is not a key of a job; did you mean 'learner.gamma'?"),
        ("[lerner]\ngamma = 1", "j.toml: lerner is not a key of a job; did you mean '[learner]'?"),
        (
            "[environment]\ngamma = 1",
            "j.toml: environment.gamma is not a key of a job; did you mean 'learner.gamma'?",
        ),
        (
            "[environment]\nseed = 1",
            "j.toml: environment.seed is not a key of a job; 'seed' is one of its own, above the first table of a file",
        ),
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


ADAM = {"learner.optimizer": "adam"}


def test_arguments_of_any_kind_that_toml_has_come_back() -> None:
    text = """
[environment]
id = "CartPole-v1"
[environment.kwargs]
limit = inf
least = -inf
when = 2026-11-29T08:00:00
grid = [[1, 2], [{ deep = [1.5] }]]
"""
    job = parse_job(text, "test")
    assert job.environment.kwargs["limit"] == float("inf")
    assert parse_job(dump_job(job), "test") == job
    other = parse_job(text.replace("limit = inf", "limit = -inf"), "test")
    assert difference_of(job, other) == ("environment.kwargs.limit", float("inf"), -float("inf"))
    unknown = [parse_job(text.replace("limit = inf", "limit = nan"), "test") for _ in range(2)]
    assert difference_of(*unknown) is None
    assert job.model_dump_json() != other.model_dump_json()


def test_the_dump_holds_every_setting() -> None:
    def keys(tree: dict, prefix: str = "") -> set[str]:
        return {
            leaf
            for key, value in tree.items()
            for leaf in (keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key})
        }

    dumped = keys(tomllib.loads(dump_job(Job())))
    # An empty table has no leaves, and settings of what is not used would do nothing.
    unused = ("learner.adam_", "network.recurrent_size")
    assert dumped | {"environment.kwargs", "network.kwargs"} == {
        key for key, _ in fields() if not key.startswith(unused)
    }
    assert not any("rmsprop_" in key for key in keys(tomllib.loads(dump_job(parse_job("", "", ADAM)))))


ITS_OWN = """
[environment]
id = "my_env:Maze"
max_episode_steps = 50
wrappers = ["my_env:Shaped", { wrapper = "gymnasium.wrappers:TransformReward", kwargs = { func = "x" } }]
[environment.kwargs]
size = [4, 5]
port = "{simulator}"
goal = { x = 1.5, name = "exit" }
"""


def test_a_job_of_the_users_own_modules_survives_being_written(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(ITS_OWN)
    job = load_job(file)
    assert job.environment.kwargs == {"size": (4, 5), "port": "{simulator}", "goal": {"x": 1.5, "name": "exit"}}
    assert parse_job(dump_job(job), "dump") == job


def test_modules_are_looked_for_beside_the_job_file_wherever_the_job_goes(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "job.toml"
    file.write_text(ITS_OWN)
    job = load_job(file)
    assert job.modules_folder == str(tmp_path / "mine")
    copy = tmp_path / "submitted.toml"
    copy.write_text(dump_job(job))
    assert load_job(copy).modules_folder == str(tmp_path / "mine")
    file.write_text('modules_folder = "../shared"\n' + ITS_OWN)
    assert load_job(file).modules_folder == str(tmp_path / "shared")
    file.write_text("")
    assert load_job(file).modules_folder == ""


ITS_FILE = '[environment]\nid = "its_envs:E"\n'


def test_a_module_of_another_job_is_not_taken_for_that_of_this_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "its_envs.py").write_text("from its_parts import who\n")
        (tmp_path / name / "its_parts.py").write_text(f"who = {name!r}\n")
        (tmp_path / name / "job.toml").write_text(ITS_FILE)
    path = list(sys.path)
    try:
        for name in ("a", "b", "a"):
            import_modules(load_job(tmp_path / name / "job.toml"))
            assert sys.modules["its_envs"].who == name
        # Also where its own have other names, or those of the other could not be imported; and what is no job's stays.
        assert "__main__" in sys.modules
        (tmp_path / "a/job.toml").write_text(ITS_FILE + 'wrappers = ["its_gone:W"]\n')
        (tmp_path / "a/its_gone.py").write_text("import no_such_module\n")
        with pytest.raises(UserError, match="its_gone"):
            import_modules(load_job(tmp_path / "a/job.toml"))
        (tmp_path / "b/its_own.py").write_text("from its_parts import who\n")
        (tmp_path / "b/job.toml").write_text('[environment]\nid = "its_own:E"\n')
        import_modules(load_job(tmp_path / "b/job.toml"))
        assert sys.modules["its_own"].who == "b" and "its_envs" not in sys.modules
        # One without an __init__.py.
        for name in ("a", "b"):
            (tmp_path / name / "its_folder").mkdir()
            (tmp_path / name / "its_folder/envs.py").write_text(f"who = {name!r}\n")
            (tmp_path / name / "job.toml").write_text('[environment]\nid = "its_folder.envs:E"\n')
            import_modules(load_job(tmp_path / name / "job.toml"))
            assert sys.modules["its_folder.envs"].who == name
        (tmp_path / "a/platform.py").write_text("")
        (tmp_path / "a/job.toml").write_text('[environment]\nid = "platform:E"\n')
        with pytest.raises(UserError, match=r"module 'platform' .* is not what is imported already, from "):
            import_modules(load_job(tmp_path / "a/job.toml"))
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.startswith("its_")]:
            del sys.modules[name]


def test_a_module_that_was_edited_since_is_imported_anew(tmp_path: Path) -> None:
    """As beside a notebook that trains again."""
    (tmp_path / "its_envs.py").write_text("from its_parts import who\n")
    (tmp_path / "its_parts.py").write_text("who = 'first'\n")
    (tmp_path / "job.toml").write_text(ITS_FILE)
    path = list(sys.path)
    try:
        job = load_job(tmp_path / "job.toml")
        import_modules(job)
        module = sys.modules["its_envs"]
        import_modules(job)
        assert sys.modules["its_envs"] is module
        (tmp_path / "its_parts.py").write_text("who = 'second'\n")
        before = imported_sources(job)
        import_modules(job)
        assert sys.modules["its_envs"].who == "second"
        assert imported_sources(job) == before
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.startswith("its_")]:
            del sys.modules[name]


def test_modules_are_named_by_id_wrappers_and_nothing_else() -> None:
    assert list(named_modules(parse_job(ITS_OWN, "test"))) == [
        ("environment.id", "my_env"),
        ("environment.wrappers", "my_env"),
        ("environment.wrappers", "gymnasium.wrappers"),
    ]
    assert not list(named_modules(Job()))


CARTPOLE = '[environment]\nid = "CartPole-v1"\n'


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (CARTPOLE + "frame_skip = 4", {}, "FILE: environment.frame_skip does nothing: environment.id is 'CartPole-v1'"),
        (CARTPOLE, {"environment.preset": "machado"}, "command line: environment.preset does nothing"),
        ("[environment]\nframe_skip = 2", {"environment.id": "CartPole-v1"}, "command line: environment.frame_skip"),
        (CARTPOLE + "[learner]\nend_return_on_life_loss = true", {}, "FILE: learner.end_return_on_life_loss does"),
        ('[environment]\nvectorization = "async"', {}, "FILE: environment.vectorization does nothing: games of Atari"),
        ('[network]\nkind = "cnn"\nhidden_sizes = [8]', {}, "FILE: network.hidden_sizes does nothing: network.kind is"),
        (
            CARTPOLE + "[learner]\nnormalize_returns = true\nreward_scale = 0.1",
            {},
            "FILE: learner.reward_scale does nothing: learner.normalize_returns is true",
        ),
    ],
)
def test_a_setting_that_does_nothing_is_refused(tmp_path: Path, text: str, overrides: dict, message: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text)
    with pytest.raises(JobError) as error:
        load_job(file, overrides)
    assert str(error.value).startswith(message.replace("FILE", str(file)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("environment", ["clip_rewards = true", ""])
def test_a_scale_decides_what_a_clip_cuts_off(tmp_path: Path, environment: str) -> None:
    """So it does something where returns are normalised after the clip, as in Atari without a word of the job."""
    text = "[learner]\nnormalize_returns = true\nreward_scale = 0.1\n" + environment
    job = parse_job(text + ("\n" + CARTPOLE if environment else ""), "test")
    file = tmp_path / "job.toml"
    file.write_text(dump_job(job))
    assert load_job(file) == job
    assert load_job(file).learner.reward_scale == 0.1


def test_a_job_may_be_completed_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(CARTPOLE + "frame_skip = 2")
    assert load_job(file, {"environment.id": "ALE/Pong-v5"}).environment.frame_skip == 2
    # A resolved job, as a run keeps it, holds no setting that does nothing.
    file.write_text(CARTPOLE)
    resolved = dump_job(load_job(file))
    file.write_text(resolved)
    assert dump_job(load_job(file)) == resolved and "frame_skip" not in resolved


def test_presets_of_atari_fill_in_what_is_not_given() -> None:
    machado = parse_job('[environment]\npreset = "machado"\nmax_noops = 7', "test").environment
    assert (machado.repeat_action_probability, machado.full_action_space, machado.frame_skip) == (0.25, True, 5)
    assert (machado.max_noops, machado.max_episode_frames) == (7, 18_000)
    assert parse_job('[environment]\npreset = "mnih"', "test") == Job()


@pytest.mark.parametrize("name", ["Shaped", "my_env:", ":Shaped", "my env:Shaped", "my_env:Shaped:x"])
def test_a_wrapper_is_named_with_its_module(name: str) -> None:
    for entry in (f'"{name}"', f'{{ wrapper = "{name}" }}'):
        with pytest.raises(JobError, match=r"environment.wrappers is .*must be") as error:
            parse_job(f"[environment]\nwrappers = [{entry}]", "test")
        assert "\n" not in str(error.value)
