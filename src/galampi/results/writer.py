"""Write the files of a run: `job.h5` by rank 0, and one results file by each rank.

A rank file is written in HDF5's single-writer-multiple-reader mode from the moment it has its name. Rows are
buffered in memory; `RankWriter.flush` writes the rows first and the number of rows last. That number is the
commit: a reader never looks past it, so a process killed between the two leaves nothing torn.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike

from galampi.errors import ResultsError
from galampi.results import sketch as sketching
from galampi.results.files import create, move_into_place, open_for_reading, partial_name, reading, replacing
from galampi.results.schema import (
    COMPONENT,
    EDGES,
    ENERGY,
    EPISODES,
    JOB_FILE_NAME,
    JOB_FORMAT,
    NUM_ROWS,
    NUM_ROWS_DESCRIPTION,
    RANK_FORMAT,
    RESTARTS,
    SKETCH,
    STATUSES,
    UPDATES,
    Column,
    TableSchema,
    rank_file_name,
)
from galampi.results.sketch import Sketch

Attribute = str | int | float | Sequence[str] | Sequence[int]


class JobFile:
    """`job.h5`, the file that describes a run and links to its rank files.

    It is never kept open: each change writes a new file that takes the old one's place.
    """

    @staticmethod
    def create(out: Path, attributes: Mapping[str, Attribute], num_ranks: int) -> None:
        """Write `job.h5` with status `running`, in place of one that is there.

        Args:
            out: Directory of the run; created if missing.
            attributes: Root attributes (`job_toml`, `argv`, versions, ...).
            num_ranks: Number of rank files to link to; they need not exist yet.
        """
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / JOB_FILE_NAME, JOB_FORMAT) as file:
            file.attrs.update({"status": "running", **attributes, "num_ranks": num_ranks})
            ranks = file.create_group("ranks")
            for rank in range(num_ranks):
                ranks[f"{rank:04d}"] = h5py.ExternalLink(rank_file_name(rank), "/")

    @staticmethod
    def set_status(out: Path, status: str, **attributes: Attribute) -> None:
        """Set the status, and add or replace other attributes.

        Args:
            out: Directory of the run.
            status: `running`, `finished`, `stopped` or `failed`.
            attributes: Further root attributes.

        Raises:
            ResultsError: `job.h5` is missing or damaged.
        """
        if status not in STATUSES:
            raise ValueError(f"status is {status!r}; must be one of {', '.join(STATUSES)}")
        path = out / JOB_FILE_NAME
        try:
            with reading(path, JOB_FORMAT) as file:
                old = dict(file.attrs)
        except FileNotFoundError as error:
            raise ResultsError(f"{path}: no such file") from error
        JobFile.create(out, {**old, **attributes, "status": status}, int(old["num_ranks"]))

    @staticmethod
    def fail(out: Path, rank: int) -> None:
        """Set the status `failed`; any number of ranks may at once.

        Args:
            out: Directory of the run.
            rank: Number of this rank.

        Raises:
            ResultsError: `job.h5` is damaged.
            OSError: It is missing, or the directory cannot be written.
        """
        with reading(out / JOB_FILE_NAME, JOB_FORMAT) as file:
            old = dict(file.attrs)
        # In a folder of its own, for two must not write one file; whoever renames last says the same.
        own = out / f"failed-{rank:04d}"
        try:
            JobFile.create(own, {**old, "status": "failed"}, int(old["num_ranks"]))
            (own / JOB_FILE_NAME).rename(out / JOB_FILE_NAME)
        finally:
            # On a full disk half a file is left.
            shutil.rmtree(own, ignore_errors=True)


class Position(NamedTuple):
    """How many rows of each table are written."""

    num_updates: int
    num_episodes: int
    num_sketches: int


@dataclass(frozen=True, kw_only=True)
class Restart:
    """What a resume records in the `restarts` table; the time of day is added when it is written."""

    update: int
    """Number of the last update that counts, that of the checkpoint."""
    time_s: float
    """Job time of the checkpoint."""
    reason: str
    """Why and how the job was restarted, for people."""
    weights_restarted: bool
    """Whether push-sum begins anew with every weight 1."""


class RankWriter:
    """The results file of one rank.

    The file appears under its name complete with all its (empty or copied) tables; until then it is being
    made beside it as `NAME.part`.
    """

    def __init__(
        self,
        path: Path,
        *,
        rank: int,
        thinning: int = 1,
        sketch: Sketch | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        resume_at: Position | None = None,
        restart: Restart | None = None,
    ) -> None:
        """Start a new file, or resume the one at `path`.

        To resume is to copy the rows up to `resume_at` into a fresh file that takes the old one's place: a
        file whose writer was killed cannot be opened for writing again. Until the new file is complete the
        old one stays.

        Args:
            path: The file, `OUT/rank-0000.h5`. Its folder is created.
            rank: Rank that writes it.
            thinning: Keep the rows of updates that are a multiple of it.
            sketch: The sketch whose values `write_sketch` gets; None if the job makes none.
            attributes: Further root attributes. When resuming they are added to the old ones.
            resume_at: Rows that count, as `position` gave them to the checkpoint; None for a new file.
            restart: What to record of the resume; given exactly if `resume_at` is.

        Raises:
            ResultsError: A new file would replace one; or the file to resume is missing, damaged, holds fewer
                rows than `resume_at`, or was written with another thinning or sketch.
        """
        if (resume_at is None) != (restart is None):
            raise ValueError("resume_at and restart belong together")
        if resume_at is None and path.exists():
            raise ResultsError(f"{path}: exists already; resume the run, or choose another directory")
        self.path = path
        self.thinning = thinning
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = create(partial_name(path), RANK_FORMAT)
        try:
            own = {"rank": rank, "thinning": thinning}
            self._file.attrs.update({**(attributes or {}), **own})
            self._updates = _TableWriter(self._file, UPDATES)
            self._episodes = _TableWriter(self._file, EPISODES)
            self._sketches = _TableWriter(self._file, SKETCH, sketch) if sketch is not None else None
            self._edges = _TableWriter(self._file, EDGES)
            self._energy = _TableWriter(self._file, ENERGY)
            restarts = _TableWriter(self._file, RESTARTS)
            if resume_at is not None and restart is not None:
                self._copy(resume_at, restart.update, restarts)
                now = datetime.now(UTC).isoformat(timespec="seconds")
                row = (restart.update, restart.time_s, now, restart.reason, int(restart.weights_restarted))
                restarts.rows.append((restarts.num_rows + 1, *row))
                restarts.write_rows()
                restarts.commit()
            self._sync()
            self._file.swmr_mode = True
        except BaseException:
            self._file.close()
            partial_name(path).unlink()
            raise
        move_into_place(path)

    def write_update(
        self,
        *,
        update: int,
        env_steps: int,
        time_s: float,
        policy_loss: float,
        value_loss: float,
        entropy: float,
        grad_norm: float,
        step_norm: float,
        learning_rate: float,
        weight: float,
        sent: int,
        received: int,
        skipped: int,
        message_age_s: float,
        env_s: float,
        act_s: float,
        learn_s: float,
        gossip_s: float,
        record_s: float,
    ) -> None:
        """Buffer one row of `updates`, unless thinning drops it. `schema.UPDATES` says what each value is."""
        if update % self.thinning:
            return
        self._updates.rows.append(
            (
                update,
                env_steps,
                time_s,
                policy_loss,
                value_loss,
                entropy,
                grad_norm,
                step_norm,
                learning_rate,
                weight,
                sent,
                received,
                skipped,
                message_age_s,
                env_s,
                act_s,
                learn_s,
                gossip_s,
                record_s,
            )
        )

    def write_episode(
        self, *, episodic_return: float, length: int, env_steps: int, time_s: float, simulator: int
    ) -> None:
        """Buffer one row of `episodes`. `schema.EPISODES` says what each value is."""
        table = self._episodes
        number = table.num_rows + len(table.rows) + 1
        table.rows.append((number, episodic_return, length, env_steps, time_s, simulator))

    def write_sketch(self, update: int, time_s: float, values: ArrayLike) -> None:
        """Buffer one row of `sketch`: the `[size]` sketch of z after an update."""
        assert self._sketches is not None, "the writer was made without a sketch"
        # A copy, for the caller may use its array again before the next flush.
        self._sketches.rows.append((update, time_s, np.array(values, np.float32)))

    def write_edges(
        self,
        update: int,
        time_s: float,
        hops: Iterable[int],
        sent: Iterable[int],
        received: Iterable[int],
        skipped: Iterable[int],
    ) -> None:
        """Buffer one row of `edges` for each hop: its counts since the last (re)start, each `[num_hops]`."""
        for counts in zip(hops, sent, received, skipped, strict=True):
            self._edges.rows.append((self._edges.num_rows + len(self._edges.rows) + 1, update, time_s, *counts))

    def write_energy(self, time_s: float, host: str, energy_j: Mapping[str, float]) -> None:
        """Buffer one row of `energy` for each source: what it has counted since the last (re)start."""
        for source, joules in energy_j.items():
            number = self._energy.num_rows + len(self._energy.rows) + 1
            names = (name.encode("ascii", "replace") for name in (host, source))
            self._energy.rows.append((number, time_s, *names, joules))

    def flush(self) -> None:
        """Write what is buffered and commit it, so that readers see it and `kill -9` cannot take it.

        Local. The rows reach the operating system, not necessarily the disk; `position` waits for that.
        """
        changed = [table for table in self._tables() if table.rows]
        if not changed:
            return
        for table in changed:
            table.write_rows()
        self._file.flush()
        for table in changed:
            table.commit()
        self._file.flush()

    def position(self) -> Position:
        """Flush, wait for the disk, and say how many rows there are; what a checkpoint stores to resume here.

        It flushes because a checkpoint must never count rows that are lost with the process.
        """
        self.flush()
        self._sync()
        num_sketches = self._sketches.num_rows if self._sketches is not None else 0
        return Position(self._updates.num_rows, self._episodes.num_rows, num_sketches)

    def close(self) -> None:
        """Flush and close. The writer cannot be used afterwards; closing twice does nothing."""
        if self._file:
            self.flush()
            self._file.close()

    def __enter__(self) -> Self:
        """Return the writer, to be closed at the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def _tables(self) -> list["_TableWriter"]:
        tables = (self._updates, self._episodes, self._sketches, self._edges, self._energy)
        return [table for table in tables if table is not None]

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.id.get_vfd_handle())

    def _copy(self, position: Position, update: int, restarts: "_TableWriter") -> None:
        """Copy the rows up to `position`, all restarts, and the attributes that are not given anew."""
        try:
            old = open_for_reading(self.path, RANK_FORMAT)
        except FileNotFoundError as error:
            raise ResultsError(f"{self.path}: no such file; the checkpoint cannot be resumed without it") from error
        with old:
            for name, value in old.attrs.items():
                if name not in self._file.attrs:
                    self._file.attrs[name] = value
            if old.attrs["thinning"] != self.thinning:
                raise ResultsError(
                    f"{self.path}: thinning is {old.attrs['thinning']}, the job now asks for {self.thinning}"
                )
            lengths = zip((UPDATES, EPISODES, SKETCH), position, strict=True)
            for table, (schema, num_rows) in zip((self._updates, self._episodes, self._sketches), lengths, strict=True):
                if table is not None:
                    table.copy(old, num_rows)
                elif schema.name in old:
                    raise ResultsError(f"{self.path}: holds sketches, the job now asks for none")
            if EDGES.name in old:
                edges = old[EDGES.name]
                updates = edges["update"][: edges[NUM_ROWS][()]]
                self._edges.copy(old, int(np.searchsorted(updates, update, side="right")))
            if ENERGY.name in old:
                # What was used after the checkpoint was used all the same.
                self._energy.copy(old, None)
            restarts.copy(old, None)


class _TableWriter:
    """One table of an open file: its buffered rows, its datasets, its committed length."""

    def __init__(self, file: h5py.File, schema: TableSchema, sketch: Sketch | None = None) -> None:
        """Create the group and its empty datasets, with units and dimension scales."""
        self.schema = schema
        self.rows: list[tuple[Any, ...]] = []
        self.num_rows = 0
        group = file.create_group(schema.name)
        group.attrs["description"] = schema.description
        self._num_rows = group.create_dataset(NUM_ROWS, data=np.int64(0))
        _describe(self._num_rows, "1", NUM_ROWS_DESCRIPTION)
        if sketch is not None:
            group.attrs["num_parameters"] = sketch.num_parameters
            group.attrs["relative_error"] = sketch.relative_error
            group.attrs["hash"] = sketching.HASH
            component = group.create_dataset(COMPONENT.name, data=np.arange(sketch.size, dtype=COMPONENT.dtype))
            _describe(component, COMPONENT.units, COMPONENT.description)
            component.make_scale(COMPONENT.name)
        self._datasets = [
            self._create(group, column, sketch.size if sketch is not None and column.per_component else None)
            for column in schema
        ]

    def _create(self, group: h5py.Group, column: Column, width: int | None) -> h5py.Dataset:
        tail = () if width is None else (width,)
        is_string = column.dtype == "string"
        dtype = h5py.string_dtype() if is_string else np.dtype(column.dtype)
        dataset = group.create_dataset(
            column.name,
            shape=(0, *tail),
            maxshape=(None, *tail),
            chunks=(self.schema.chunk_rows, *tail),
            dtype=dtype,
            # What an unfinished write leaves must not look like a value.
            fillvalue=None if column.is_text else (np.nan if dtype.kind == "f" else np.array(-1).astype(dtype)),
        )
        _describe(dataset, column.units, column.description)
        if column.name == self.schema.scale:
            dataset.make_scale(column.name)
        else:
            dataset.dims[0].attach_scale(group[self.schema.scale])
        if column.per_component:
            dataset.dims[1].attach_scale(group[COMPONENT.name])
        return dataset

    def write_rows(self) -> None:
        """Append the buffered rows to the datasets, uncommitted."""
        start, stop = self.num_rows, self.num_rows + len(self.rows)
        for dataset, values in zip(self._datasets, zip(*self.rows, strict=True), strict=True):
            dataset.resize(stop, axis=0)
            dataset[start:stop] = values if dataset.dtype == object else np.array(values, dataset.dtype)
        self.num_rows = stop
        self.rows.clear()

    def commit(self) -> None:
        """Make the written rows count."""
        self._num_rows[()] = self.num_rows

    def copy(self, old: h5py.File, num_rows: int | None) -> None:
        """Take over the first `num_rows` committed rows of another file, or all of them if None."""
        where = f"{old.filename}: {self.schema.name}"
        if self.schema.name not in old:
            raise ResultsError(f"{where} is missing; the job now asks for it")
        source = old[self.schema.name]
        committed = int(source[NUM_ROWS][()])
        if num_rows is None:
            num_rows = committed
        if num_rows > committed:
            raise ResultsError(f"{where} has {committed} rows, the checkpoint counts {num_rows}")
        for dataset in self._datasets:
            name = dataset.name.rsplit("/", 1)[1]
            if name not in source:
                # A column that galampi did not write yet: its rows read as what was never written.
                dataset.resize(num_rows, axis=0)
                continue
            column = source[name]
            if column.shape[1:] != dataset.shape[1:]:
                raise ResultsError(
                    f"{where} has sketches of size {column.shape[1]}, the job now asks for {dataset.shape[1]}"
                )
            dataset.resize(num_rows, axis=0)
            dataset[...] = column[:num_rows]
        self.num_rows = num_rows
        self.commit()


def _describe(dataset: h5py.Dataset, units: str, description: str) -> None:
    dataset.attrs["units"] = units
    dataset.attrs["description"] = description
