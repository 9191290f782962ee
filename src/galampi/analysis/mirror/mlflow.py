"""MLflow as a place: a parent run for each run, with its status and settings, and a nested one for each rank.

The experiment is that of `MLFLOW_EXPERIMENT_NAME`, else `galampi`. A metric's step is the env steps of its rank, its
time the job time, counted from 1970 as TensorBoard's is here.

The server itself is asked how far the curves go, so nothing is kept beside it, and another machine can go on. A row
goes in one request and is there as a whole or not at all; a data base takes what is the same in step, time and value
once. In a file store each metric is a file of its own. There Ctrl-C waits for whole rows, and the metric that is asked
for is written last: of a row that SIGKILL has cut off the others may be there twice, with the same values.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from galampi.analysis.interrupts import uninterrupted
from galampi.analysis.mirror.lasting import LastingPlace, Sent
from galampi.analysis.mirror.place import names
from galampi.analysis.mirror.rows import RankRows, Scalars
from galampi.analysis.mirror.settings import flat, job_settings
from galampi.errors import UserError
from galampi.results.reader import Run
from galampi.results.sole import sole_writer

_STATUSES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "partial": "KILLED"}
_MARKERS = {"updates": "updates/update", "episodes": "episodes/length"}
"""Of each table a metric that every row has."""
_MOST_PARAMS = 100
_DATA_BASES = ("sqlite", "postgresql", "mysql", "mssql")
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class MlflowPlace(LastingPlace):
    """One run at a tracking server."""

    _what = "mlflow"
    # The most metrics of a request.
    _num_values_at_once = 1000

    def __init__(self, run: Run, uri: str) -> None:
        """Find where an earlier mirror has ended.

        Raises:
            UserError: mlflow is not installed, the server does not answer as it must, or another process writes there.
        """
        super().__init__()
        try:
            import mlflow
            from mlflow.entities import Metric, Param
        except ModuleNotFoundError:
            raise UserError("--mlflow needs mlflow: pip install 'galampi[mirror]'") from None
        self._metric, self._param, self._error = Metric, Param, mlflow.MlflowException
        if uri.startswith(_DATA_BASES) and find_spec("sqlalchemy") is None:
            raise UserError(f"--mlflow {uri}: a data base needs the whole of mlflow: pip install mlflow")
        self._uri = uri
        if not uri.startswith(("http:", "https:", "databricks")):
            self._shield = uninterrupted
        self._run = run.path.resolve()
        self._id = hashlib.sha256(str(self._run).encode()).hexdigest()[:16]
        self._parent = ""
        self._name = ""
        self._status = ""
        self._children: dict[int, str] = {}
        self._noted: dict[int, int] = {}
        """Restarts of each rank that its tag tells of."""
        self._stack = ExitStack()
        self._lock()
        try:
            with self._told(), _few_retries():
                self._client = mlflow.MlflowClient(uri)
                self._experiment = self._find_experiment()
                self._find_runs()
        except UserError:
            self._stack.close()
            raise

    def close(self) -> None:
        """Let others write; the status stays that of the run."""
        self._stack.close()

    def _lock(self) -> None:
        """Keep other mirrors of this user on this machine away: the server has no locks."""
        whole = hashlib.sha256(f"{self._uri}\n{self._run}".encode()).hexdigest()[:16]
        try:
            self._stack.enter_context(
                sole_writer(Path(tempfile.gettempdir()) / f"galampi-mirror-{os.getuid()}-{whole}")
            )
        except UserError:
            raise UserError(f"--mlflow {self._uri}: another process mirrors {self._run} there") from None

    def _find_experiment(self) -> str:
        """Return the id of the experiment, made if missing."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "galampi"
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _find_runs(self) -> None:
        """Find the newest parent of the run that was not given up, and what its ranks hold."""
        parents = self._search(f"tags.`galampi.id` = '{self._id}' and tags.`galampi.current` = 'yes'")
        if not parents:
            return
        self._parent, self._name = parents[0].info.run_id, parents[0].info.run_name
        for child in self._search(f"tags.`mlflow.parentRunId` = '{self._parent}'"):
            rank, run_id, tags = int(child.data.tags["galampi.rank"]), child.info.run_id, child.data.tags
            sent = Sent(float(tags["galampi.first_s"]), int(tags["galampi.num_restarts"]))
            for table, marker in _MARKERS.items():
                steps = [metric.step for metric in self._client.get_metric_history(run_id, marker)]
                if steps:
                    sent.tables[table] = (max(steps), steps.count(max(steps)))
            for key in child.data.metrics:
                if key.startswith("energy/"):
                    sent.num_readings[key] = len(self._client.get_metric_history(run_id, key))
            self._children[rank], self._sent[rank], self._noted[rank] = run_id, sent, sent.num_restarts

    def _search(self, condition: str) -> list[Any]:
        """Return every run of the experiment for which a condition holds, the newest first."""
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], condition, order_by=["attributes.start_time DESC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _create(self, run: Run, rows: RankRows) -> int:
        with self._told():
            if not self._parent:
                taken = {each.info.run_name for each in self._search("tags.`galampi.current` != ''")}
                self._name = next(name for name in names(self._run) if name not in taken)
                tags = {"galampi.id": self._id, "galampi.current": "yes"}
                self._parent = self._create_run(run, self._name, tags)
                self.news.append(f"{self._run}: mlflow: run {self._name} at {self._uri}")
            tags = {
                "mlflow.parentRunId": self._parent,
                "galampi.rank": str(rows.rank),
                "galampi.first_s": repr(rows.first_s),
                "galampi.num_restarts": str(rows.num_restarts),
            }
            self._children[rows.rank] = self._create_run(run, f"{self._name}/{rows.name}", tags)
            self._noted[rows.rank] = rows.num_restarts
            # What was ended goes on, or the new one ends as the others did.
            self._status = ""
        return 0

    def _create_run(self, run: Run, name: str, tags: dict[str, str]) -> str:
        """Make a run with the settings of the job, and return its id."""
        made = self._client.create_run(
            self._experiment, int(time.time() * 1000), {"galampi.run": str(self._run), **tags}, name
        )
        params = [self._param(_key(key), str(value)) for key, value in flat(job_settings(run)).items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(made.info.run_id, params=params[start : start + _MOST_PARAMS])
        return str(made.info.run_id)

    def _send(self, rank: int, rows: Scalars) -> None:
        tags = sorted(range(len(rows.tags)), key=lambda i: rows.tags[i] in _MARKERS.values())
        metrics = [
            self._metric(_key(rows.tags[i]), values[i], int(time_s * 1000), step)
            for values, step, time_s in zip(
                rows.values.tolist(), rows.steps.tolist(), rows.times_s.tolist(), strict=True
            )
            for i in tags
            if isfinite(values[i])
        ]
        with self._told():
            self._client.log_batch(self._children[rank], metrics=metrics)

    def _mark(self, rank: int, stretch: str) -> None:
        with self._told():
            self._client.set_tag(self._children[rank], "galampi.resumed", stretch)

    def _note(self, status: str) -> None:
        with self._told():
            for rank, sent in self._sent.items():
                if self._noted.get(rank) != sent.num_restarts:
                    self._client.set_tag(self._children[rank], "galampi.num_restarts", str(sent.num_restarts))
                    self._noted[rank] = sent.num_restarts
            if status != self._status and self._parent:
                for run_id in (self._parent, *self._children.values()):
                    self._client.update_run(run_id, status=_STATUSES.get(status, "RUNNING"))
                self._status = status

    def _begin_anew(self, run: Run) -> None:
        with self._told():
            for run_id in (self._parent, *self._children.values()):
                self._client.update_run(run_id, status="KILLED")
            self._client.set_tag(self._parent, "galampi.current", "no")
        self._parent, self._status = "", ""
        self._children.clear()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell in a line what mlflow refuses, and what it lacks for this address."""
        try:
            yield
        except (self._error, OSError, ImportError) as error:
            raise UserError(f"--mlflow {self._uri}: {' '.join(str(error).split())}") from None


@contextmanager
def _few_retries() -> Iterator[None]:
    """Let mlflow give up soon on a server that does not answer, where the user has not said when."""
    if _RETRIES in os.environ:
        yield
        return
    os.environ[_RETRIES] = "1"
    try:
        yield
    finally:
        del os.environ[_RETRIES]


def _key(name: str) -> str:
    """Return a name without what mlflow allows in none."""
    return re.sub(r"[^\w\-. :/]", "_", name)
