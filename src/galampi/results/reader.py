"""Read a run: finished, being written at this moment, or killed.

Files are open only while something is read from them, so that a notebook can open them otherwise at the same
time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from galampi.errors import ResultsError, UserError, one_of
from galampi.paths import expanded
from galampi.results.distance import ConsensusDistance, consensus_distance
from galampi.results.files import reading
from galampi.results.schema import (
    COMPONENT,
    EDGES,
    ENERGY,
    EPISODES,
    FAILURES,
    JOB_FILE_NAME,
    JOB_FORMAT,
    NUM_ROWS,
    RANK_FORMAT,
    RESTARTS,
    SKETCH,
    UPDATES,
    Column,
    TableSchema,
    rank_file_name,
    with_numbers,
)
from galampi.results.table import own_numbers

if TYPE_CHECKING:
    import pandas
    import xarray

TableName = Literal["updates", "episodes", "sketches", "edges", "energy", "restarts", "failures"]


def open_run(path: Path | str) -> "Run":
    """Open the run in a directory.

    What is returned is a picture of the moment: it holds the rows that were committed then. Open the run
    again to see newer ones.

    Args:
        path: The directory of the run, or its `job.h5`.

    Raises:
        ResultsError: There is no run, or a file is truncated, foreign or of a newer schema.
    """
    out = expanded(path)
    if out.name == JOB_FILE_NAME:
        out = out.parent
    return Run(out)


class Table(Mapping[str, NDArray[Any]]):
    """The committed rows of one table of one rank: column name to array, read when asked for.

    All columns have `num_rows` rows. A table of a file that does not exist yet has none.
    """

    def __init__(self, path: Path, schema: TableSchema, file: h5py.File | None) -> None:
        """Note how many rows are committed in `file`, the open file at `path`."""
        self.path = path
        self.schema = schema
        self.num_rows = 0
        self._width = self._num_restarts = 0
        if file is not None and schema.name in file:
            if COMPONENT.name in file[schema.name]:
                self._width = len(file[schema.name][COMPONENT.name])
            if schema is EPISODES:
                self.schema = with_numbers(own_numbers(file))
            self.num_rows = int(file[schema.name][NUM_ROWS][()])
            self._num_restarts = _num_restarts(file)
            if self.num_rows < 0:
                raise ValueError(f"{schema.name} has {self.num_rows} rows")

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read one column: `[num_rows]`, or `[num_rows, size]` for the values of a sketch."""
        return self.read(name)[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the columns."""
        return (column.name for column in self.schema)

    def __len__(self) -> int:
        """Count the columns."""
        return len(self.schema.columns)

    def __repr__(self) -> str:
        """Name file, table and size."""
        return f"<Table {self.schema.name} of {self.path}: {self.num_rows} rows, {len(self)} columns>"

    def read(self, *names: str, start: int = 0, stop: int | None = None) -> dict[str, NDArray[Any]]:
        """Read some rows of some columns, opening the file once.

        Args:
            names: The columns; all if none is named.
            start: First row, counted as in a slice: negative from the end.
            stop: Row after the last one; None for the last committed one.

        Returns:
            Column name to `[rows]` array. A column that an older galampi did not write holds NaN, -1 or ''.

        Raises:
            KeyError: There is no such column.
            ResultsError: The file was damaged, or the run resumed, since it was opened.
        """
        columns = {column.name: column for column in self.schema}
        chosen = [columns[name] for name in names] or list(self.schema)
        rows = slice(*slice(start, stop).indices(self.num_rows))
        if not self.num_rows:
            return {
                column.name: np.empty(
                    (0, self._width) if column.per_component else 0,
                    object if column.is_text else column.dtype,
                )
                for column in chosen
            }
        try:
            with reading(self.path, RANK_FORMAT) as file:
                group = file[self.schema.name]
                if group[NUM_ROWS][()] < self.num_rows or _num_restarts(file) != self._num_restarts:
                    raise ResultsError(
                        f"{self.path}: was resumed from a checkpoint since the run was opened; open it again"
                    )
                return {column.name: _column(group, column, rows) for column in chosen}
        except FileNotFoundError as error:
            raise ResultsError(f"{self.path}: was removed since the run was opened") from error

    def to_pandas(self) -> "pandas.DataFrame":
        """Read all into a data frame; the values of a sketch become columns `value_0`, `value_1`, ..."""
        with _of_notebooks():
            import pandas

        columns: dict[str, NDArray[Any]] = {}
        for name, values in self.read().items():
            if values.ndim == 1:
                columns[name] = values
            else:
                columns.update({f"{name}_{index}": values[:, index] for index in range(values.shape[1])})
        return pandas.DataFrame(columns)

    def to_xarray(self) -> "xarray.Dataset":
        """Read all into a dataset along the table's dimension, with units and descriptions as attributes."""
        with _of_notebooks():
            import xarray

        values = self.read()
        variables = {
            column.name: (
                (self.schema.scale, "component") if column.per_component else (self.schema.scale,),
                values[column.name],
                {"units": column.units, "description": column.description},
            )
            for column in self.schema
        }
        return xarray.Dataset(variables, attrs={"description": self.schema.description})


class RankFile:
    """The results file of one rank, as it was when the run was opened."""

    def __init__(self, path: Path, rank: int) -> None:
        """Read attributes and table lengths of the file at `path`; it need not exist yet."""
        self.path = path
        self.rank = rank
        self.exists = True
        """Whether the rank had begun to write."""
        self.attributes: dict[str, Any] = {}
        try:
            with reading(path, RANK_FORMAT) as file:
                self.attributes = _attributes(file)
                self._open_tables(file)
        except FileNotFoundError:
            self.exists = False
            self._open_tables(None)

    def _open_tables(self, file: h5py.File | None) -> None:
        self.updates = Table(self.path, UPDATES, file)
        self.episodes = Table(self.path, EPISODES, file)
        self.sketches = Table(self.path, SKETCH, file)
        self.edges = Table(self.path, EDGES, file)
        self.energy = Table(self.path, ENERGY, file)
        self.restarts = Table(self.path, RESTARTS, file)
        self.failures = Table(self.path, FAILURES, file)

    def table(self, name: TableName) -> Table:
        """Return one of the tables by its name.

        Raises:
            UserError: There is no such table.
        """
        tables = {
            "updates": self.updates,
            "episodes": self.episodes,
            "sketches": self.sketches,
            "edges": self.edges,
            "energy": self.energy,
            "restarts": self.restarts,
            "failures": self.failures,
        }
        return tables[one_of("table", name, tables)]


class Run:
    """One run: what `job.h5` says, and the files of its ranks."""

    def __init__(self, out: Path) -> None:
        """Read `job.h5` and the lengths of all tables in the directory `out`.

        Raises:
            ResultsError: `out` holds no file of a run, or one that is truncated, foreign or of a newer
                schema.
        """
        self.path = out
        # Files are read when they are asked for, wherever the process has gone meanwhile.
        self._folder = out.absolute()
        self.attributes: dict[str, Any] = {}
        """Root attributes of `job.h5`; empty if there is none."""
        try:
            with reading(out / JOB_FILE_NAME, JOB_FORMAT) as file:
                self.attributes = _attributes(file)
        except FileNotFoundError as error:
            if not _find_ranks(out):
                raise ResultsError(f"{out}: no run here; neither {JOB_FILE_NAME} nor {rank_file_name(0)}") from error

    @cached_property
    def ranks(self) -> tuple[RankFile, ...]:
        """The files of the ranks that are part of the job, by rank."""
        return tuple(RankFile(self._folder / rank_file_name(rank), rank) for rank in range(self.num_ranks))

    @cached_property
    def all_ranks(self) -> tuple[RankFile, ...]:
        """`ranks`, and after them the files of those that left when the run was resumed on fewer ranks.

        What counts from the start of the job, as steps, episodes and energy do, is a sum over these.
        """
        left = [rank for rank in _find_ranks(self._folder) if rank >= self.num_ranks]
        return self.ranks + tuple(RankFile(self._folder / rank_file_name(rank), rank) for rank in left)

    @property
    def missing_ranks(self) -> list[int]:
        """Ranks that are part of the job and have no file, for it was lost or they have not begun."""
        return [rank for rank in range(self.num_ranks) if not (self._folder / rank_file_name(rank)).exists()]

    @property
    def num_ranks(self) -> int:
        """Number of ranks that are part of the job; without `job.h5`, as many as the files' names say."""
        if "num_ranks" in self.attributes:
            return int(self.attributes["num_ranks"])
        return _find_ranks(self._folder)[-1] + 1

    @property
    def status(self) -> str:
        """`running`, `finished`, `stopped`, `partial` or `failed`; `unknown` without `job.h5`.

        A job that was killed has had no time to say so: it still says `running`.
        """
        return str(self.attributes.get("status", "unknown"))

    @property
    def job_toml(self) -> str:
        """The resolved job, as text that can be run again.

        Raises:
            ResultsError: There is no `job.h5`.
        """
        if "job_toml" not in self.attributes:
            raise ResultsError(f"{self.path / JOB_FILE_NAME}: missing, or without attribute job_toml")
        return str(self.attributes["job_toml"])

    def to_pandas(self, table: TableName = "updates") -> "pandas.DataFrame":
        """Read one table of `all_ranks` into one data frame, rank after rank, with a column `rank` in front."""
        with _of_notebooks():
            import pandas

        frames = []
        for file in self.all_ranks:
            frame = file.table(table).to_pandas()
            frame.insert(0, "rank", file.rank)
            frames.append(frame)
        # Empty frames have no part in the types of the columns.
        return pandas.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)

    def to_xarray(self, table: TableName = "updates") -> "xarray.Dataset":
        """Read one table of `all_ranks` into one dataset with a dimension `rank` in front.

        Ranks are joined by the table's own dimension (`update`, `episode`, ...). Where a rank has no such row
        there is NaN, and integers become floating-point numbers.
        """
        with _of_notebooks():
            import pandas
            import xarray

        present = [file for file in self.all_ranks if file.table(table).num_rows] or list(self.ranks[:1])
        datasets = [file.table(table).to_xarray() for file in present]
        ranks = pandas.Index([file.rank for file in present], name="rank")
        return xarray.concat(datasets, dim=ranks, join="outer", data_vars="all", combine_attrs="override")

    def consensus_distance(
        self, align: Literal["time", "update"] = "time", last: int | None = None, *, pairs: bool = True
    ) -> ConsensusDistance:
        """Estimate from the sketches how far each rank's parameters are from the mean of all ranks.

        For every moment m and rank i, ||S(z_i) - mean_j S(z_j)||, which is ||z_i - mean_j z_j|| with the
        error that `Sketch` states, for the sketch is linear.

        Args:
            align: `time` takes the moments at which rank 0 was sketched, and of each other rank the sketch
                nearest in time; ranks are sketched at the same times but for the length of an update (see
                record.sketch_every_s). `update` takes the updates after which every rank was sketched,
                whenever each of them was: right where ranks are in step, as with allreduce, and meaningless
                where some are slower.
            last: Read only so many of the newest sketches of each rank; None for all.
            pairs: Compute the distances between every two ranks too, which takes N^2 of everything.

        Returns:
            The distances; of no moment if there is none that all ranks' sketches reach.

        Raises:
            ResultsError: A rank has no sketches.
        """
        for file in self.ranks:
            if not file.sketches.num_rows:
                raise ResultsError(f"{file.path}: holds no sketches; see record.sketch_every_s")
        tables = [file.sketches.read(start=-last if last else 0) for file in self.ranks]
        if len({table["value"].shape[1] for table in tables}) > 1:
            raise ResultsError(f"{self.path}: the ranks' sketches differ in size")
        return consensus_distance(tables, align, pairs=pairs)


@contextmanager
def _of_notebooks() -> Iterator[None]:
    """Say how to get what the body imports.

    Raises:
        UserError: It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'galampi[notebook]'") from error


def _column(group: h5py.Group, column: Column, rows: slice) -> NDArray[Any]:
    """Read some rows of a column; one that is not in the file as what was never written.

    Raises:
        ValueError: It is no such column, or has fewer rows.
    """
    if column.name in group:
        dataset = group[column.name]
        check_column(dataset, column, rows.stop)
        return np.asarray((dataset.asstr() if column.is_text else dataset)[rows])
    if column.is_text:
        return np.full(rows.stop - rows.start, "", object)
    kind = np.dtype(column.dtype)
    return np.full(rows.stop - rows.start, np.nan if kind.kind == "f" else np.array(-1).astype(kind), kind)


def check_column(dataset: h5py.Dataset, column: Column, num_rows: int) -> None:
    """Raise ValueError unless a column is what the schema says and has as many rows as are asked for."""
    name = dataset.name
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 + column.per_component:
        raise ValueError(f"{name} is no column")
    kind = "text" if h5py.check_string_dtype(dataset.dtype) else dataset.dtype.kind
    if kind != ("text" if column.is_text else np.dtype(column.dtype).kind):
        raise ValueError(f"{name} holds {dataset.dtype}; must hold {column.dtype}")
    if len(dataset) < num_rows:
        raise ValueError(f"{name} has {len(dataset)} of {num_rows} rows")


def _num_restarts(file: h5py.File) -> int:
    return int(file[RESTARTS.name][NUM_ROWS][()]) if RESTARTS.name in file else 0


def _find_ranks(out: Path) -> list[int]:
    """The ranks whose files lie in a directory, in order."""
    return sorted(int(path.stem[5:]) for path in out.glob("rank-*.h5") if path.stem[5:].isdecimal())


def _attributes(file: h5py.File) -> dict[str, Any]:
    """Root attributes as plain Python values."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in file.attrs.items()
    }
