"""A folder for a run that is given none."""

import time

from galampi.results import new_folder


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    names = [new_folder("pong").name for _ in range(3)]
    assert names == ["pong-20260101-000000", "pong-20260101-000000-2", "pong-20260101-000000-3"]
