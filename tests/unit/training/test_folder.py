"""The folder of a run."""

import time

from galampi.training import folder


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    names = [folder.new_folder("pong").name for _ in range(3)]
    assert names == ["pong-20260101-000000", "pong-20260101-000000-2", "pong-20260101-000000-3"]
