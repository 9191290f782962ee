"""Places that keep what they were given, and what they show: wandb as a recording, mlflow with a store in files."""

from __future__ import annotations

import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from followed_runs import new_run

from galampi.analysis.mirror.following import RunMirror
from galampi.analysis.mirror.mlflow import MlflowPlace
from galampi.analysis.mirror.wandb import WandbPlace, WandbProject
from galampi.results import Run, open_run

Curves = dict[str, list[tuple[int, float]]]


@dataclass
class Shown:
    """What a place shows of a rank."""

    curves: Curves
    settings: dict[str, Any]
    status: str
    resumed: str | None


class RecordedWandb:
    """As much of wandb as is used, in memory; it stands where the module does."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.refused = ""
        self.is_offline = True
        self.takes_the_rest = True
        self.refused_id = ""
        self.before_row: Callable[[], object] = lambda: None

    def Settings(self, **settings) -> dict[str, Any]:  # noqa: N802
        return settings

    def init(self, *, id, group, name, config=None, **asked) -> SimpleNamespace:
        if self.refused or (self.refused_id and id.endswith(self.refused_id)):
            raise type("AnyError", (Exception,), {"__module__": "wandb.any"})(self.refused)
        run = self.runs.setdefault(id, SimpleNamespace(group=group, name=name, rows=[], config={}, exit_codes=[]))
        run.asked = asked

        def log(row) -> None:
            self.before_row()
            run.rows.append(row)

        def finish(exit_code) -> None:
            run.exit_codes.append(exit_code)
            if not self.takes_the_rest:
                raise TimeoutError("Timed out finishing run.")

        return SimpleNamespace(
            offline=self.is_offline,
            starting_step=len(run.rows),
            project_url="https://wandb.test/someone/project",
            log=log,
            config=SimpleNamespace(update=lambda values, allow_val_change: run.config.update(values)),
            define_metric=lambda name, step_metric=None: None,
            finish=finish,
        )


@dataclass
class WandbPlaces:
    """Runs in the recorded wandb."""

    folder: Path
    wandb: RecordedWandb = field(default_factory=RecordedWandb)
    what = "wandb"

    def kill(self, run: Path, before: Callable[[], object] = lambda: None) -> None:
        """Look once more, before and after something, and leave all as SIGKILL does."""
        with self.open(run) as mirror:
            mirror.look()
            before()
            mirror.look()
            (path,) = self.folder.glob(f"wandb/galampi/project/{run.name}/mirror.json")
            noted = path.read_text()
        path.write_text(noted)

    def open(self, run: Path, **settings) -> RunMirror:
        return RunMirror(open_run(run), [self.place], **settings)

    def place(self, run: Run) -> WandbPlace:
        return WandbProject("project")(run)

    def interrupt(self, at: int, patched: pytest.MonkeyPatch) -> None:
        """Send SIGINT before a row."""
        patched.setattr(self.wandb, "before_row", interrupting(at))

    def shown(self) -> dict[str, Shown]:
        return {run.name: self._shown(run) for run in self.wandb.runs.values()}

    def _shown(self, run: SimpleNamespace) -> Shown:
        codes = {0: "finished", 1: "failed", 255: "killed"}
        status = codes[run.exit_codes[-1]] if run.exit_codes else "running"
        return Shown(curves(run.rows), run.config, status, run.config.get("resumed"))


def interrupting(at: int) -> Callable[[], None]:
    """What sends SIGINT when it is called for so many times."""
    calls = iter(range(1, at + 1))

    def call() -> None:
        if next(calls, None) == at:
            signal.raise_signal(signal.SIGINT)

    return call


def curves(rows) -> Curves:
    """The curves of rows that wandb got."""
    found: Curves = {}
    for row in rows:
        for tag, value in row.items():
            if tag not in ("env_steps", "time_s"):
                found.setdefault(tag, []).append((row["env_steps"], value))
    return found


@dataclass
class MlflowPlaces:
    """Runs in a store in files."""

    folder: Path
    what = "mlflow"

    @property
    def uri(self) -> str:
        return (self.folder / "mlruns").as_uri()

    def open(self, run: Path, **settings) -> RunMirror:
        return RunMirror(open_run(run), [self.place], **settings)

    def place(self, run: Run) -> MlflowPlace:
        return MlflowPlace(run, self.uri)

    def interrupt(self, at: int, patched: pytest.MonkeyPatch) -> None:
        """Send SIGINT before one of the metrics of a row."""
        from mlflow.store.tracking.file_store import FileStore

        before_metric, log = interrupting(20 * at + 7), FileStore._log_run_metric
        patched.setattr(FileStore, "_log_run_metric", lambda *asked: (before_metric(), log(*asked))[1])

    def shown(self) -> dict[str, Shown]:
        return {run.info.run_name: self._shown(run) for run in self.runs() if "galampi.rank" in run.data.tags}

    def runs(self) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        return list(client.search_runs([client.get_experiment_by_name("galampi").experiment_id]))

    def _shown(self, run) -> Shown:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        found = {
            key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        return Shown(found, run.data.params, run.info.status.lower(), run.data.tags.get("galampi.resumed"))


@pytest.fixture
def run(tmp_path) -> Path:
    return new_run(
        tmp_path / "runs/run", job_toml="seed = 3\n[learner]\ngamma = 0.99\n[environment.kwargs]\n'a b!' = 1\n"
    )


def of(run: Path, tag: str, rank: int = 0) -> list[tuple[int, float]]:
    """The points of a curve, as the run's files have them."""
    table, column = tag.split("/")
    rows = open_run(run).ranks[rank].table(table).read("env_steps", column)
    return list(zip(rows["env_steps"].tolist(), rows[column].tolist(), strict=True))


@pytest.fixture
def wandb_places(tmp_path, monkeypatch) -> WandbPlaces:
    """The recorded wandb, empty, where the module is looked for."""
    made = WandbPlaces(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", made.wandb)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return made


@pytest.fixture(params=["wandb", "mlflow"])
def places(request, tmp_path, monkeypatch) -> WandbPlaces | MlflowPlaces:
    """Each of the places, empty."""
    if request.param == "wandb":
        return request.getfixturevalue("wandb_places")
    import_mlflow(monkeypatch)
    return MlflowPlaces(tmp_path)


def import_mlflow(monkeypatch) -> None:
    pytest.importorskip("mlflow", reason="pip install 'galampi[mirror]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def wandb_records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format, whose blocks of 32 KiB hold pieces of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    whole, at, record, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(whole):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", whole, at)
        record += whole[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # The whole of a record, or its last piece.
            records.append(Record.FromString(record))
            record = b""
    return records
