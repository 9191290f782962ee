"""The file of an evaluation: every episode that was played with a stored policy.

Written as a whole when the last episode has ended, so it is never half there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from galampi.errors import ResultsError
from galampi.results.files import open_for_reading, reading, replacing
from galampi.results.job_file import Attribute
from galampi.results.reader import check_column
from galampi.results.schema import NUM_ROWS, NUM_ROWS_DESCRIPTION, Column, TableSchema

EVALUATION_FILE_NAME = "evaluation.h5"
EVALUATION_FORMAT = "galampi evaluation"

Actions = Literal["sample", "greedy"]
"""How a policy is played: actions are drawn from it, as in training, or the most probable one is taken."""

EVALUATED = TableSchema(
    "episodes",
    "one row for each episode that was played, in the order of their seeds",
    (
        Column("episode", "int64", "1", "number of the episode, from 1"),
        Column("return", "float64", "1", "episodic return: sum of the raw, unclipped rewards of the full game"),
        Column("length", "int64", "env step", "length of the episode"),
        Column("end", "string", "1", "how it ended: terminated, truncated, stuck (nothing happened any more) or cut"),
        Column("seed", "int64", "1", "seed of its simulator"),
    ),
    chunk_rows=64,
)


@dataclass(frozen=True, kw_only=True)
class EvaluatedEpisode:
    """One row of `episodes`, of which `EVALUATED` says what each value is; and the actions it took, [length(, k)]."""

    episode: int
    episodic_return: float
    length: int
    end: str
    seed: int
    taken: NDArray[Any] = field(repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation file holds.

    Attributes:
        attributes: Root attributes: whose policy, how it was played, versions.
        episodes: How the policy was played to its episodes, column name to [num_episodes].
        taken: How it was played to the actions of all episodes, one after the other, [sum of lengths] or
            [sum of lengths, k]; of files by older versions empty.
    """

    attributes: dict[str, Any]
    episodes: dict[Actions, dict[str, NDArray[Any]]]
    taken: dict[Actions, NDArray[Any]]


def save_evaluation(
    path: Path,
    episodes: Mapping[Actions, Sequence[EvaluatedEpisode]],
    attributes: Mapping[str, Attribute],
) -> None:
    """Write an evaluation in place of one that is there.

    The first kind of episodes becomes the table `episodes`, of which the root attribute `actions` says how they were
    played, as in files that hold one kind alone; a second one becomes `greedy_episodes`. The actions they took are in
    `taken/sample` and `taken/greedy`.

    Args:
        path: The file, `OUT/evaluation.h5`.
        episodes: The rows.
        attributes: Further root attributes.
    """
    with replacing(path, EVALUATION_FORMAT) as file:
        file.attrs.update({**attributes, "actions": next(iter(episodes))})
        for actions, rows in episodes.items():
            _write_table(file.create_group(_table_name(file, actions)), rows)
            _write_taken(file.require_group("taken"), actions, rows)


def _table_name(file: h5py.File, actions: Actions) -> str:
    return EVALUATED.name if file.attrs["actions"] == actions else f"{actions}_{EVALUATED.name}"


def _write_table(group: h5py.Group, episodes: Sequence[EvaluatedEpisode]) -> None:
    columns = zip(*((e.episode, e.episodic_return, e.length, e.end, e.seed) for e in episodes), strict=True)
    group.attrs["description"] = EVALUATED.description
    datasets = [group.create_dataset(NUM_ROWS, data=np.int64(len(episodes)))]
    for column, values in zip(EVALUATED, columns, strict=True):
        dtype = h5py.string_dtype() if column.dtype == "string" else column.dtype
        datasets.append(group.create_dataset(column.name, data=values, dtype=dtype))
        datasets[-1].attrs.update({"units": column.units, "description": column.description})
    datasets[0].attrs.update({"units": "1", "description": NUM_ROWS_DESCRIPTION})
    datasets[1].make_scale(EVALUATED.scale)
    for dataset in datasets[2:]:
        dataset.dims[0].attach_scale(datasets[1])


def _write_taken(group: h5py.Group, actions: Actions, episodes: Sequence[EvaluatedEpisode]) -> None:
    taken = np.concatenate([episode.taken for episode in episodes])
    if np.issubdtype(taken.dtype, np.integer):
        # The numbers of buttons fit into a byte.
        taken = taken.astype(np.result_type(np.min_scalar_type(taken.min()), np.min_scalar_type(taken.max())))
    dataset = group.create_dataset(actions, data=taken, compression="gzip", shuffle=True)
    description = "actions of all episodes, one after the other, as the policy has them; their lengths say whose"
    dataset.attrs.update({"units": "1", "description": description})


def _read_table(group: h5py.Group) -> dict[str, NDArray[Any]]:
    """Read the committed rows.

    Raises:
        ValueError: There are none, or a column is not what `EVALUATED` says.
    """
    num_rows = int(group[NUM_ROWS][()])
    if num_rows < 1:
        raise ValueError(f"{group.name} has {num_rows} rows")
    columns: dict[str, NDArray[Any]] = {}
    for column in EVALUATED:
        dataset = group[column.name]
        check_column(dataset, column, num_rows)
        columns[column.name] = np.asarray((dataset.asstr() if column.is_text else dataset)[:num_rows])
    return columns


def refuse_what_is_none(path: Path) -> None:
    """See that no file which is no evaluation would give way to one.

    Raises:
        ResultsError: Such a file lies there.
    """
    if path.exists():
        try:
            open_for_reading(path, EVALUATION_FORMAT).close()
        except ResultsError as error:
            raise ResultsError(f"{path}: is there already, and no evaluation; choose another name") from error


def load_evaluation(path: Path) -> Evaluation:
    """Read what `save_evaluation` wrote.

    Raises:
        ResultsError: The file is missing, truncated, foreign or of a newer schema.
    """
    try:
        with reading(path, EVALUATION_FORMAT) as file:
            if file.attrs["actions"] not in get_args(Actions):
                raise ValueError(f"actions is {file.attrs['actions']!r}; must be one of {get_args(Actions)}")
            names = {actions: _table_name(file, actions) for actions in get_args(Actions)}
            episodes = {actions: _read_table(file[name]) for actions, name in names.items() if name in file}
            if not episodes:
                raise KeyError(EVALUATED.name)
            attributes = {
                name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
                for name, value in file.attrs.items()
            }
            taken = {actions: file["taken"][actions][:] for actions in episodes} if "taken" in file else {}
            return Evaluation(attributes, episodes, taken)
    except FileNotFoundError as error:
        is_the_runs = path.name == EVALUATION_FILE_NAME
        kinds = ("rank", "update") if is_the_runs else ()
        others = sorted(each.name for kind in kinds for each in path.parent.glob(f"evaluation-{kind}-*.h5"))
        beside = f"; beside it lies {others[0]}, of another policy" if others else ""
        raise ResultsError(f"{path}: no such evaluation; python -m galampi evaluate writes it{beside}") from error
