"""What the files of a run hold: every table and column, with type, unit and meaning.

This module is the only place where names, types and units are written down; writer, reader and the golden
test follow it. A change here that takes away, renames or redefines anything needs a new `SCHEMA_VERSION`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, get_type_hints

SCHEMA_VERSION = 1
"""Version of the layout, in the root of every file. It grows only when an old reader would be wrong."""

JOB_FORMAT = "galampi job"
RANK_FORMAT = "galampi rank"
CHECKPOINT_FORMAT = "galampi checkpoint"

NUM_ROWS = "num_rows"
"""Scalar int64 in every table: the rows that are committed. Beyond them lies a write that never finished."""

STATUSES = ("running", "finished", "stopped", "partial", "failed")
"""What the `status` of a job file can say."""


@dataclass(frozen=True)
class Column:
    """One dataset of a table; its first dimension is the row."""

    name: str
    dtype: str
    """`int64`, `uint8`, `float64`, `float32`, `string` (variable-length UTF-8) or as `S64` (64 bytes of ASCII)."""
    units: str
    """`1` where the value has no unit."""
    description: str
    per_component: bool = False
    """Whether a row is a vector along the `component` dimension, not one number."""

    @property
    def is_text(self) -> bool:
        """Whether the values are text."""
        return self.dtype == "string" or self.dtype.startswith("S")


@dataclass(frozen=True)
class TableSchema:
    """One group of a rank file: columns of one length, the first of them the dimension scale of the rows."""

    name: str
    description: str
    columns: tuple[Column, ...]
    chunk_rows: int
    """Rows a chunk of the file holds; a flush writes whole chunks, so about as many as come between two flushes."""

    def __iter__(self) -> Iterator[Column]:
        """Iterate over the columns."""
        return iter(self.columns)

    @property
    def scale(self) -> str:
        """Name of the column that is the dimension scale, and so of the dimension."""
        return self.columns[0].name


_TIME = "time since the start barrier of the job, without the time a stopped job lay still"


class UpdateRow(NamedTuple):
    """What is recorded of one update: the columns of `UPDATES`, each with its unit and meaning."""

    update: Annotated[int, "1", "number of the update on this rank, from 1"]
    env_steps: Annotated[int, "env step", "env steps this rank has taken so far"]
    time_s: Annotated[float, "s", _TIME]
    policy_loss: Annotated[float, "1", "policy loss of this update"]
    value_loss: Annotated[float, "1", "value loss of this update, before its coefficient"]
    entropy: Annotated[float, "nat", "mean entropy of the policy over the rollout"]
    grad_norm: Annotated[float, "1", "Euclidean norm of the gradient before clipping"]
    step_norm: Annotated[
        float,
        "1",
        "Euclidean norm of the optimizer's change of z: every row up to 100,000 parameters; above, the first "
        "eight rows and every 8th, NaN between",
    ]
    learning_rate: Annotated[float, "1", "learning rate this update used, before its scale"]
    step_scale: Annotated[float, "1", "factor on the learning rate by which push-sum moves the ensemble as asked"]
    step_weight: Annotated[float, "1", "push-sum weight w at the optimizer step of this update"]
    weight: Annotated[float, "1", "push-sum weight w after this update's gossip"]
    moved: Annotated[
        float,
        "1",
        "how far a parameter would have moved since the last (re)start that every optimizer step of every rank moves "
        "by its scale; over the mean of the ranks' updates since then it is the effective step",
    ]
    sent: Annotated[int, "message", "messages this rank has sent so far"]
    received: Annotated[int, "message", "messages this rank has averaged so far"]
    skipped: Annotated[int, "message", "sends skipped so far: the last message was unread, or the weight at its floor"]
    message_age_s: Annotated[float, "s", "mean age of the messages averaged in this update; NaN if there were none"]
    env_s: Annotated[float, "s", "time this update spent waiting for the simulators"]
    act_s: Annotated[float, "s", "time this update spent choosing actions"]
    learn_s: Annotated[float, "s", "time this update spent on gradient and optimizer step"]
    gossip_s: Annotated[float, "s", "time this update spent sending and averaging messages"]
    record_s: Annotated[float, "s", "time this rank spent on results and checkpoints before this update"]


def _columns(row: type[UpdateRow]) -> tuple[Column, ...]:
    """Return the columns of a table whose rows are of this type."""
    hints = get_type_hints(row, include_extras=True)
    dtypes = {int: "int64", float: "float64"}
    return tuple(Column(name, dtypes[hint.__origin__], *hint.__metadata__) for name, hint in hints.items())


UPDATES = TableSchema(
    "updates",
    "one row for each update (optimizer step) of this rank, or for each `thinning`-th one",
    _columns(UpdateRow),
    chunk_rows=256,
)

EPISODES = TableSchema(
    "episodes",
    "one row for each finished episode (full game) of this rank's simulators",
    (
        Column("episode", "int64", "1", "number of the episode on this rank, from 1, in the order they ended"),
        Column("return", "float64", "1", "episodic return: sum of the raw, unclipped rewards of the full game"),
        Column("length", "int64", "env step", "length of the episode"),
        Column("env_steps", "int64", "env step", "env steps this rank had taken when the episode ended"),
        Column("time_s", "float64", "s", _TIME),
        Column("simulator", "int64", "1", "index of the simulator on this rank, from 0"),
    ),
    chunk_rows=256,
)

MOST_NUMBERS = 64
"""Most columns that numbers of the environment's own add to `EPISODES`."""


def with_numbers(names: Iterable[str]) -> TableSchema:
    """Return `EPISODES` with a column for each number that the last info of an episode may hold."""
    columns = (Column(name, "float64", "1", "number of the last info of the episode") for name in names)
    return replace(EPISODES, columns=(*EPISODES.columns, *columns))


SKETCH = TableSchema(
    "sketch",
    "count-sketches of the de-biased parameters z; the same hash on every rank",
    (
        Column("update", "int64", "1", "number of the update on this rank after which z was sketched"),
        Column("time_s", "float64", "s", _TIME),
        Column("value", "float32", "1", "count-sketch of z", per_component=True),
    ),
    chunk_rows=16,
)

EDGES = TableSchema(
    "edges",
    "one row for each hop of the graph at each moment that was sketched; counts since the last (re)start",
    (
        Column("entry", "int64", "1", "number of the row, from 1"),
        Column("update", "int64", "1", "number of the update on this rank"),
        Column("time_s", "float64", "s", _TIME),
        Column("hop", "int64", "1", "h: sent to rank + h, received from rank - h, modulo the number of ranks"),
        Column("sent", "int64", "message", "messages sent along the hop since the last (re)start"),
        Column("received", "int64", "message", "messages averaged from the hop since the last (re)start"),
        Column("skipped", "int64", "message", "sends along the hop skipped since the last (re)start"),
    ),
    chunk_rows=256,
)

ENERGY = TableSchema(
    "energy",
    "one row for each source at each reading; only the first rank of a node reads, for the whole node",
    (
        Column("reading", "int64", "1", "number of the row, from 1"),
        Column("time_s", "float64", "s", _TIME),
        Column("host", "S64", "1", "node that was read; a restart may have moved the rank"),
        Column("source", "S64", "1", "what was read: a processor package, its dram, or a GPU"),
        Column("energy_j", "float64", "J", "energy the source has counted since the last (re)start of the job"),
    ),
    chunk_rows=256,
)

RESTARTS = TableSchema(
    "restarts",
    "one row each time this rank was resumed from a checkpoint",
    (
        Column("restart", "int64", "1", "number of the restart, from 1"),
        Column("update", "int64", "1", "number of the last update before the restart that counts"),
        Column("time_s", "float64", "s", _TIME),
        Column("wall_clock", "string", "ISO 8601", "time of the restart in UTC"),
        Column("reason", "string", "1", "why and how the job was restarted"),
        Column("weights_restarted", "uint8", "1", "1 if push-sum began anew with every weight 1, else 0"),
        Column("changes", "string", "1", "settings that hold since, where they differ from those before; '' if none"),
    ),
    chunk_rows=16,
)

FAILURES = TableSchema(
    "failures",
    "one row each time a simulator of this rank raised an exception and was started anew",
    (
        Column("failure", "int64", "1", "number of the row, from 1"),
        Column("update", "int64", "1", "number of the update on this rank whose rollout it was in"),
        Column("time_s", "float64", "s", _TIME),
        Column("simulator", "int64", "1", "index of the simulator on this rank, from 0"),
        Column("simulator_episode", "int64", "1", "number of the episode in this simulator, from 1 at each (re)start"),
        Column("error", "S256", "1", "the exception, in a line"),
        Column(
            "traceback", "S8192", "1", "its traceback, the end if it is long; '' where it is that of an earlier row"
        ),
    ),
    chunk_rows=4,
)

TABLES = {table.name: table for table in (UPDATES, EPISODES, SKETCH, EDGES, ENERGY, RESTARTS, FAILURES)}
"""The tables of a rank file."""

COMPONENT = Column("component", "int64", "1", "index of the component of a sketch", per_component=True)
"""Dimension scale of the second dimension of `sketch/value`."""

NUM_ROWS_DESCRIPTION = "rows that are committed; rows beyond it were never finished and are to be ignored"


def flush_period_s(num_ranks: int) -> float:
    """Return the time between two flushes of a rank's file, s.

    A flush is some 75 writes; with this period all ranks together make at most 10,000 a second up to 4,000 ranks.
    """
    return min(30.0, max(2.0, num_ranks / 128))


RANK_FILE = re.compile(r"rank-\d{4,}\.h5(\.part)?")
"""Name of the results, or of a checkpoint, of a rank, and of what becomes one of them."""
LEFT_JOB = "left the job"
"""How the reason begins that a rank gives which the job goes on without."""


def rank_file_name(rank: int) -> str:
    """Name of a rank's results file inside the directory of the run."""
    return f"rank-{rank:04d}.h5"


JOB_FILE_NAME = "job.h5"
