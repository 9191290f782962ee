"""Checkpoint files: what goes in comes out, whole or not at all."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from galampi.errors import ResultsError
from galampi.results import RankWriter, load_checkpoint, previous_checkpoint, save_checkpoint
from galampi.results.files import replace_text

KEYS = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
)
LEAVES = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"])),
    st_numpy.arrays(
        st.sampled_from(["f4", "f8", "i8", "u1", "u4", "u8", "?"]),
        st_numpy.array_shapes(min_dims=1, max_dims=3, min_side=0),
    ),
    st.sampled_from([np.float32(1.5), np.int64(-3), np.uint8(255), np.True_]),
)
STATES = st.recursive(
    st.dictionaries(KEYS.filter(lambda key: key != "."), LEAVES, max_size=4),
    lambda children: st.dictionaries(KEYS.filter(lambda key: key != "."), children, max_size=3),
    max_leaves=6,
)


def assert_same(found: object, expected: object) -> None:
    """Compare two states by type and bytes."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, np.ndarray | np.generic):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    else:
        assert repr(found) == repr(expected)


@given(state=STATES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path, state):
    save_checkpoint(tmp_path / "a.h5", state)
    assert_same(load_checkpoint(tmp_path / "a.h5"), state)


def test_states_of_numpy_generators_come_back(tmp_path):
    generator = np.random.default_rng(7)
    save_checkpoint(tmp_path / "new" / "folder" / "a.h5", generator.bit_generator.state)
    expected = generator.standard_normal(5)
    other = np.random.default_rng()
    other.bit_generator.state = load_checkpoint(tmp_path / "new" / "folder" / "a.h5")
    np.testing.assert_array_equal(other.standard_normal(5), expected)


@pytest.mark.parametrize(
    "state",
    [
        {"a": None},
        {"a": object()},
        {"a": [1, 2]},
        {"a": np.array([object()])},
        {"a": np.array(["text"])},
        {"a/b": 1},
        {"": 1},
        {1: 1},
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused_and_the_old_one_stays(tmp_path, state):
    path = tmp_path / "a.h5"
    save_checkpoint(path, {"old": 1})
    with pytest.raises(TypeError):
        save_checkpoint(path, {"first": 1, **state})
    assert load_checkpoint(path) == {"old": 1}


ENDLESS = """
import sys
from pathlib import Path
import numpy as np
from galampi.results import save_checkpoint

for n in range(1, 1_000_000):
    state = {"z": np.full(100_000, n, np.float32), "n": n, "more": {"m": np.full(9, n)}}
    save_checkpoint(Path(sys.argv[1]), state)
    print(n, flush=True)
"""


@pytest.mark.parametrize("moment", range(6))
def test_kill_at_any_moment_leaves_one_whole_checkpoint(tmp_path, moment):
    path = tmp_path / "a.h5"
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(random.Random(moment).uniform(0, 0.1))
    writer.send_signal(signal.SIGKILL)
    announced = writer.communicate()[0].split()
    state = load_checkpoint(path)
    assert state["n"] >= int(announced[-1] if announced else 1)
    assert (state["z"] == state["n"]).all()
    assert (state["more"]["m"] == state["n"]).all()


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept_and_the_newest_is_always_there(tmp_path, monkeypatch, links):
    path = tmp_path / "rank-0000.h5"
    found = []

    def rename(part: Path, target: Path) -> None:
        found.append(path.exists())
        part.replace(target)

    def no_link(link: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links between folders here", str(link))

    for update in range(3):
        if update == 1:
            monkeypatch.setattr(Path, "rename", rename)
            if not links:
                monkeypatch.setattr(Path, "hardlink_to", no_link)
        save_checkpoint(path, {"update": update}, keeps_previous=True)
        assert load_checkpoint(path) == {"update": update}
    assert load_checkpoint(previous_checkpoint(path)) == {"update": 1}
    assert found == [links, links]


def test_the_disk_has_the_bytes_before_the_file_has_the_name(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd))[1]
    )
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("rename"), rename(self, to))[1])
    save_checkpoint(tmp_path / "a.h5", {"n": 1})
    assert events == ["a.h5.part", "rename", tmp_path.name]


@pytest.mark.parametrize(("number", "saves"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_syncs_no_folders_will_do(tmp_path, monkeypatch, number, saves):
    """As some network file systems are; one that fails to write is another thing."""
    fsync = os.fsync

    def files_only(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", files_only)
    with nullcontext() if saves else pytest.raises(OSError, match=os.strerror(number)):
        save_checkpoint(tmp_path / "a.h5", {"n": 1})
    assert load_checkpoint(tmp_path / "a.h5")["n"] == 1


def assert_one_clear_line(path: Path, saying: str) -> None:
    """Loading must fail with one line that names the file."""
    with pytest.raises(ResultsError) as failure:
        load_checkpoint(path)
    text = str(failure.value)
    assert text.startswith(f"{path}: ")
    assert saying in text
    assert "\n" not in text


def test_missing_file(tmp_path):
    assert_one_clear_line(tmp_path / "a.h5", "no such checkpoint")


@pytest.mark.parametrize("kept", [0, 1, 11, 12, 100, 0.3, 0.9, 0.999])
def test_truncated_file(tmp_path, kept):
    path = tmp_path / "a.h5"
    save_checkpoint(path, {"z": np.ones(100_000), "n": {"m": 1}})
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert_one_clear_line(path, "truncated")


def test_damaged_file(tmp_path):
    path = tmp_path / "a.h5"
    save_checkpoint(path, {"z": np.ones(100)})
    whole = bytearray(path.read_bytes())
    where = whole.index(b"state")
    whole[where : where + 5] = b"stale"
    path.write_bytes(whole)
    assert_one_clear_line(path, "damaged")


def test_foreign_files(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("z = 1\n" * 1000)
    assert_one_clear_line(text, "no HDF5 file")
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["z"] = 1
    assert_one_clear_line(foreign, "must be 'galampi checkpoint'")
    RankWriter(tmp_path / "rank-0000.h5", rank=0).close()
    assert_one_clear_line(tmp_path / "rank-0000.h5", "format is 'galampi rank'; must be 'galampi checkpoint'")


def test_newer_schema(tmp_path):
    path = tmp_path / "a.h5"
    save_checkpoint(path, {"z": 1})
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 2
    assert_one_clear_line(path, "schema_version is 2, of a newer galampi; this one reads up to 1")


def test_a_full_disk_is_the_systems_own_error_and_leaves_no_part(tmp_path, monkeypatch):
    """HDF5 says it as a RuntimeError of several lines."""
    path = tmp_path / "rank-0000.h5"
    save_checkpoint(path, {"a": 1})

    def full(self):
        raise RuntimeError("Unable to flush (file write failed: time = now\n, errno = 28, error message = 'full')")

    monkeypatch.setattr("h5py.File.__exit__", lambda self, *exception: full(self))
    with pytest.raises(OSError, match="No space left on device") as raised:
        save_checkpoint(path, {"a": 2})
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["rank-0000.h5"]


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "text.json"
    replace_text(path, "old\n")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            replace_text(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
    replace_text(path, "new\n")
    assert path.read_text() == "new\n"
