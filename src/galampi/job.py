"""The Job: a frozen tree of settings, read from TOML and checked.

Owns every name and range a user can set. Knows neither MPI nor torch, so that a login node reads it at once.
The docstring below each field is its text in ``--help``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import annotated_types
import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from galampi.errors import JobError

Auto = Literal["auto"]


class Section(BaseModel):
    """A table of the job file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Environment(Section):
    """The simulators of one rank."""

    id: str = "ALE/KungFuMaster-v5"
    """Any gymnasium environment id."""
    num_envs: int = Field(16, ge=1, le=65_536)
    """Simulators of each rank."""
    frame_skip: int = Field(4, ge=1, le=60)
    """Emulator frames that one action lasts (Atari)."""
    repeat_action_probability: float = Field(0.0, ge=0, le=1)
    """Probability that the emulator repeats the last action: 'sticky actions' (Atari)."""
    max_noops: int = Field(30, ge=0, le=1000)
    """An episode starts with fewer no-op actions than this, their number drawn (Atari)."""
    max_episode_frames: int = Field(108_000, ge=1)
    """Emulator frames after which an episode is truncated (Atari)."""
    full_action_space: bool = False
    """Offer all 18 joystick actions rather than the game's own (Atari)."""


class Learner(Section):
    """Advantage actor-critic of one rank."""

    rollout_length: int = Field(5, ge=1, le=10_000)
    """Steps of every simulator between two updates."""
    gamma: float = Field(0.99, ge=0, le=1)
    """Discount of one step."""
    gae_lambda: float = Field(1.0, ge=0, le=1)
    """Lambda of generalised advantage estimation; 1 gives n-step returns."""
    learning_rate: float = Field(7e-4, gt=0, le=10)
    """Learning rate for 16 simulators in all."""
    learning_rate_scaling: Literal["sqrt", "none"] = "sqrt"
    """Multiply the learning rate by sqrt(simulators of all ranks / 16), or leave it."""
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Keep the learning rate, or let it fall linearly to 0 at total_env_steps."""
    optimizer: Literal["rmsprop", "rmsprop-tf"] = "rmsprop"
    """RMSprop as torch has it (epsilon outside the root), or as TensorFlow (inside; mean square starts at 1)."""
    rmsprop_alpha: float = Field(0.99, ge=0, lt=1)
    """Decay of the mean square gradient."""
    rmsprop_epsilon: float = Field(1e-5, gt=0, le=1)
    """Number that keeps RMSprop from dividing by zero."""
    entropy_coefficient: float = Field(0.01, ge=0, le=100)
    """Weight of the entropy bonus."""
    value_coefficient: float = Field(0.5, ge=0, le=100)
    """Weight of the value loss."""
    max_grad_norm: float = Field(0.5, ge=1e-6)
    """Norm to which the gradient is clipped."""
    clip_rewards: bool | Auto = "auto"
    """Learn from the sign-preserving clip of rewards to [-1, 1]; auto: for Atari."""
    end_return_on_life_loss: bool | Auto = "auto"
    """Let a lost life end the learner's return, though never the game; auto: for Atari."""
    reward_scale: float = Field(1.0, gt=0, le=1e6)
    """Factor on the rewards the learner sees, before any clip."""


class Network(Section):
    """The network of policy and value."""

    kind: Literal["auto", "cnn", "cnn-small", "mlp"] = "auto"
    """cnn: 32-64-64-512; cnn-small: 32-64-32-512; mlp: hidden_sizes; auto: cnn for images, mlp for vectors."""
    hidden_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(max_length=16)] = (64, 64)
    """Units of the hidden layers of mlp."""


class Gossip(Section):
    """How the ranks exchange parameters."""

    method: Literal["push-sum", "gala", "allreduce", "none"] = "push-sum"
    """push-sum; the GALA paper's Algorithm 1; synchronous A2C by allreduce of gradients; or no exchange."""
    topology: Literal["exponential", "ring", "complete"] = "exponential"
    """Graph of who sends to whom."""
    peers: Literal["rotate", "all"] = "rotate"
    """Send to one out-peer each update, in turn, or to all of them."""
    weight_floor: float = Field(1 / 16, ge=0, lt=1)
    """Least push-sum weight a rank keeps: a push that would leave less is skipped."""
    silent_after_s: float = Field(60.0, gt=0)
    """A rank that makes no update for so long, s, is called silent, and is waited for no longer when a job ends."""


class Checkpoint(Section):
    """Checkpoints on the way."""

    every_updates: int = Field(5000, ge=1)
    """Most updates of a rank between two of its checkpoints."""
    every_s: float = Field(300.0, gt=0)
    """Most time of a rank between two of its checkpoints, s; the first comes after a tenth of it."""
    keep_every_updates: int = Field(0, ge=0)
    """Updates between two checkpoints that are kept beside the newest, for evaluate --checkpoint; 0 keeps none."""


class Record(Section):
    """What is written of each update."""

    every_updates: int = Field(1, ge=1)
    """Updates between two rows of /updates."""
    sketch_every_s: float = Field(2.0, gt=0)
    """Job time between two parameter sketches, s: all ranks are sketched at the same times, to the next update."""
    sketch_size: int = Field(1024, ge=16, le=1 << 20)
    """Values of one sketch: the relative error of a distance is about sqrt(1 / (2 size))."""


def _name_is_usable(name: str) -> str:
    if not name.strip() or len(name) > 200 or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError("must be 1 to 200 characters without '/'")
    return name


class Job(Section):
    """Everything that defines a run."""

    name: Annotated[str, AfterValidator(_name_is_usable)] = "quick-start"
    """Name of the job; names the run's folder unless --out does."""
    seed: int = Field(1, ge=0, lt=1 << 31)
    """Seed of parameters, actions and simulators."""
    total_env_steps: int = Field(250_000, ge=1)
    """Env steps of all ranks together; one env step is one agent decision."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; auto: bfloat16 for convolutions where they are fast in it. Parameters stay float32."""
    environment: Environment = Environment()
    learner: Learner = Learner()
    network: Network = Network()
    gossip: Gossip = Gossip()
    checkpoint: Checkpoint = Checkpoint()
    record: Record = Record()


def load_job(path: Path | None = None, overrides: Mapping[str, str] = MappingProxyType({})) -> Job:
    """Read a job file and lay overrides over it.

    Args:
        path: TOML file; None for the built-in default job.
        overrides: Dotted key to the text of a TOML value, or of a bare string.

    Raises:
        JobError: The file cannot be read, or holds a key or value that is not allowed.
    """
    if path is None:
        return parse_job("", "default job", overrides)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise JobError(f"{path}: cannot be read: {reason}") from None
    return parse_job(text, str(path), overrides)


def parse_job(text: str, source: str, overrides: Mapping[str, str] = MappingProxyType({})) -> Job:
    """Build a Job from TOML text; `source` names the text in errors.

    Raises:
        JobError: The text is not TOML, or holds a key or value that is not allowed.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{source}: not TOML: {error}") from None
    # Checked on its own first, so that an error says whether the file or the command line is wrong.
    _validate(tree, source)
    known = dict(fields())
    for key, value in overrides.items():
        *sections, last = key.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise JobError(f"command line: {_unknown(key)}")
        is_text = key in known and known[key].annotation is str
        table[last] = value if is_text else _toml_value(value)
    return _validate(tree, "command line")


def dump_job(job: Job) -> str:
    """Write a Job as TOML that `parse_job` reads back to an equal Job."""
    return tomli_w.dumps(job.model_dump(mode="json"))


def fields(section: type[Section] = Job, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key a job may hold, with its field."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def allowed(field: FieldInfo) -> str:
    """Say in words what values a field takes."""
    choices = [repr(v) if isinstance(v, str) else str(v).lower() for v in _literals(field.annotation)]
    if choices:
        return "one of " + ", ".join(choices)
    # A field whose type holds its own limits (the items of a tuple) is described by its type.
    kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        field.annotation,  # type: ignore[arg-type]
        "a list of whole numbers, each at least 1",
    )
    low, high = "", ""
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Ge):
            low = f"at least {limit.ge:g}" if not isinstance(limit.ge, int) else f"at least {limit.ge}"
        if isinstance(limit, annotated_types.Gt):
            low = f"above {limit.gt}"
        if isinstance(limit, annotated_types.Le):
            high = f"at most {limit.le}"
        if isinstance(limit, annotated_types.Lt):
            high = f"below {limit.lt}"
    return " ".join(part for part in (kind, " and ".join(limit for limit in (low, high) if limit)) if part)


def _literals(annotation: Any) -> list[Any]:
    """Values of a Literal, of a union of them, and of bool inside a union."""
    members = get_args(annotation)
    values: list[Any] = []
    for member in members:
        if member is bool:
            values += [True, False]
        elif isinstance(member, (str, int)) and not isinstance(member, type):
            values.append(member)
        else:
            values += _literals(member) if get_args(member) and member is not Ellipsis else []
    return values


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _validate(tree: dict[str, Any], source: str) -> Job:
    try:
        return Job.model_validate(_tuples(tree))
    except ValidationError as error:
        raise JobError(f"{source}: {_first_fault(error)}") from None


def _tuples(tree: Any) -> Any:
    """TOML has lists where the frozen Job has tuples."""
    if isinstance(tree, dict):
        return {key: _tuples(value) for key, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    known = dict(fields())
    # The location of a union or a list goes deeper than the key.
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    while location and key not in known and fault["type"] != "extra_forbidden":
        location.pop()
        key = ".".join(location)
    if key not in known:
        if fault["type"] == "extra_forbidden":
            return _unknown(".".join(str(part) for part in fault["loc"]))
        return f"{fault['loc'][0]} is {fault['input']!r}; must be a table"
    field = known[key]
    text = f"{key} is {fault['input']!r}; must be {allowed(field)}"
    if fault["type"] == "value_error":
        text = f"{key} is {fault['input']!r}; {fault['msg'].removeprefix('Value error, ')}"
    return text + _did_you_mean(str(fault["input"]), [str(v) for v in _literals(field.annotation)])


def _unknown(key: str) -> str:
    names = [name for name, _ in fields()]
    hint = _did_you_mean(key, names)
    if not hint:
        last = key.rsplit(".", 1)[-1]
        hint = _did_you_mean(last, [name.rsplit(".", 1)[-1] for name in names], names)
    return f"{key} is not a key of a job{hint}"


def _did_you_mean(word: str, words: list[str], shown: list[str] | None = None) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {(shown or words)[words.index(near[0])]!r}?" if near else ""
