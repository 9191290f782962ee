"""Checkpoint files: a nested dictionary of arrays and plain values, replaced in one step, without pickle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from galampi.errors import ResultsError
from galampi.results.files import reading, replacing
from galampi.results.schema import CHECKPOINT_FORMAT

State = Mapping[str, Any]
"""A nested dictionary of numpy arrays and scalars (numbers, booleans), int of any size, float, bool, str."""

_KIND = "python_type"


def previous_checkpoint(path: Path) -> Path:
    """Return where the checkpoint before the newest is kept."""
    return path.parent / "previous" / path.name


def save_checkpoint(path: Path, state: State, *, keeps_previous: bool = False) -> None:
    """Write a state so that the old checkpoint or the new one is whole, whenever the process is killed.

    Local; waits for the disk.

    Args:
        path: The file, `OUT/checkpoint/rank-0000.h5`. Its folder is created.
        state: What to save; see `State`.
        keeps_previous: Keep the checkpoint that was there, at `previous_checkpoint`. Where the file system has no hard
            links, a kill between two renames leaves that one alone.

    Raises:
        TypeError: A leaf is of another type, or a key is not a non-empty string without `/`.
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = None
    if keeps_previous:
        previous = previous_checkpoint(path)
        previous.parent.mkdir(exist_ok=True)
    with replacing(path, CHECKPOINT_FORMAT, previous=previous) as file:
        _write(file.create_group("state"), state)


def load_checkpoint(path: Path, without: Sequence[str] = ()) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote: the same keys, types and bytes.

    A zero-dimensional array comes back as the numpy scalar.

    Args:
        path: The file.
        without: Keys of the state that are left out, for what they hold is large.

    Raises:
        ResultsError: The file is missing, truncated, foreign or of a newer schema.
    """
    try:
        with reading(path, CHECKPOINT_FORMAT) as file:
            return _read(file["state"], without)
    except FileNotFoundError as error:
        raise ResultsError(f"{path}: no such checkpoint") from error


def _write(group: h5py.Group, state: State) -> None:
    for key, value in state.items():
        if not isinstance(key, str) or not key or "/" in key or key == ".":
            raise TypeError(f"{group.name}: {key!r} is no key of a checkpoint; must be text without '/'")
        if isinstance(value, Mapping):
            _write(group.create_group(key), value)
            continue
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
            group[key] = value
        elif type(value) in (bool, int, float, str):
            # Integers as text: the states of numpy's generators are wider than any HDF5 integer.
            group[key] = str(value) if isinstance(value, int) else value
            group[key].attrs[_KIND] = type(value).__name__
        else:
            raise TypeError(f"{group.name}/{key}: a checkpoint cannot hold {type(value).__name__} {value!r:.80}")


def _read(group: h5py.Group, without: Sequence[str] = ()) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for key in group:
        if key in without:
            continue
        item = group[key]
        if isinstance(item, h5py.Group):
            state[key] = _read(item)
            continue
        match item.attrs.get(_KIND):
            case None:
                state[key] = item[()]
            case "float":
                state[key] = float(item[()])
            case "str":
                state[key] = item.asstr()[()]
            case "bool":
                state[key] = item.asstr()[()] == "True"
            case "int":
                state[key] = int(item.asstr()[()])
            case kind:
                raise ResultsError(f"{group.file.filename}: {item.name} is of unknown type {kind!r}")
    return state
