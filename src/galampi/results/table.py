"""One table of a file that is being written."""

from typing import Any

import h5py
import numpy as np

from galampi.errors import ResultsError
from galampi.results import sketch as sketching
from galampi.results.schema import COMPONENT, EPISODES, NUM_ROWS, NUM_ROWS_DESCRIPTION, Column, TableSchema
from galampi.results.sketch import Sketch

_COPIED_NUMBERS = 1 << 20
"""Numbers of a column that are copied at once."""


class TableWriter:
    """A table: its buffered rows, its datasets, its committed length."""

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
            # A run of days has gigabytes of sketches, and all ranks of a node copy at once.
            width = int(np.prod(column.shape[1:], dtype=np.int64))
            step = max(1, _COPIED_NUMBERS // max(1, width) // self.schema.chunk_rows) * self.schema.chunk_rows
            for start in range(0, num_rows, step):
                stop = min(start + step, num_rows)
                dataset[start:stop] = column[start:stop]
        self.num_rows = num_rows
        self.commit()


def own_numbers(file: h5py.File) -> list[str]:
    """Return the columns of `episodes` that are the environment's own, in the order of their names."""
    known = {column.name for column in EPISODES} | {NUM_ROWS}
    return [name for name in file[EPISODES.name] if name not in known]


def _describe(dataset: h5py.Dataset, units: str, description: str) -> None:
    dataset.attrs["units"] = units
    dataset.attrs["description"] = description
