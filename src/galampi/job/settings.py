"""The tree of settings, frozen and checked: every name and range a user can set.

The docstring below each field is its text in ``--help``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

Auto = Literal["auto"]


class Section(BaseModel):
    """A table of the job file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


def _names_something(reference: str) -> str:
    module, _, name = reference.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError("must be 'module:Name'")
    return reference


Reference = Annotated[str, AfterValidator(_names_something)]
"""What a module defines, as `package.module:Name`."""


class Wrapper(Section):
    """A wrapper of simulators and its arguments, as an entry of `environment.wrappers`."""

    wrapper: Reference
    kwargs: dict[str, Any] = {}


ATARI_PRESETS: dict[str, dict[str, Any]] = {
    "mnih": {},
    "machado": {
        "frame_skip": 5,
        "repeat_action_probability": 0.25,
        "max_noops": 0,
        "max_episode_frames": 18_000,
        "full_action_space": True,
    },
}
"""What the settings of Atari are where they are not given: those of Mnih et al. (2015, 2016), which are the
defaults, and those of Machado et al. (2018, arXiv 1709.06009), whose learner is not told of a lost life either."""


class Environment(Section):
    """The simulators of one rank."""

    id: str = "ALE/KungFuMaster-v5"
    """Any gymnasium environment id; 'module:id' imports the module first, 'module:Class' takes a class of it."""
    num_envs: int = Field(16, ge=1, le=65_536)
    """Simulators of each rank."""
    kwargs: dict[str, Any] = {}
    """Arguments for the environment; '{simulator}' becomes the simulator's number, which no other has on any rank."""
    wrappers: tuple[Reference | Wrapper, ...] = ()
    """Wrappers around each simulator, the innermost first."""
    action_mask: str = ""
    """Key of the observations that is the mask of allowed actions; without it, info['action_mask'] where there is."""
    max_episode_steps: int = Field(0, ge=0)
    """Env steps after which an episode is truncated; 0: what the environment says."""
    vectorization: Literal["auto", "sync", "async"] = "auto"
    """Simulators in the rank's own process, or in as many as it has cores; auto: in several if they are slow."""
    max_failures: int = Field(10, ge=0)
    """Failures of a rank's simulators that a job outlives; each starts its simulator anew."""
    preset: Literal["mnih", "machado"] = "mnih"
    """What the other settings of Atari are where they are not given: as Mnih et al. 2016, or Machado et al. 2018."""
    frame_skip: int = Field(4, ge=1, le=60)
    """Emulator frames that one action lasts (Atari)."""
    repeat_action_probability: float = Field(0.0, ge=0, le=1)
    """Probability that the emulator repeats the last action: 'sticky actions' (Atari)."""
    max_noops: int = Field(30, ge=0, le=1000)
    """An episode starts with fewer no-op actions than this, their number drawn (Atari)."""
    max_episode_frames: int = Field(108_000, ge=1, lt=1 << 31)
    """Emulator frames after which an episode is truncated (Atari)."""
    full_action_space: bool = False
    """Offer all 18 joystick actions rather than the game's own (Atari)."""
    image_size: int = Field(84, ge=8, le=1024)
    """Height and width of an image, pixels (Atari)."""
    grayscale: bool = True
    """Show shades of grey rather than colours (Atari)."""
    frame_stack: int = Field(4, ge=1, le=64)
    """Images that an observation holds, the newest last (Atari)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {**ATARI_PRESETS.get(str(given.get("preset", "mnih")), {}), **given}
        return given

    @property
    def is_atari(self) -> bool:
        """Whether the id is that of a game of Atari."""
        return self.id.rpartition(":")[2].startswith("ALE/")

    @property
    def wrappers_and_kwargs(self) -> tuple[Wrapper, ...]:
        """The wrappers, each with its arguments; the innermost first."""
        return tuple(entry if isinstance(entry, Wrapper) else Wrapper(wrapper=entry) for entry in self.wrappers)


ATARI_FIELDS = tuple(Environment.model_fields)[tuple(Environment.model_fields).index("preset") :]
"""Settings that only Atari has."""


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
    optimizer: Literal["rmsprop", "rmsprop-tf", "adam"] = "rmsprop"
    """RMSprop as torch has it (epsilon outside the root) or TensorFlow (inside; mean square starts at 1); or Adam."""
    rmsprop_alpha: float = Field(0.99, ge=0, lt=1)
    """Decay of the mean square gradient."""
    rmsprop_epsilon: float = Field(1e-5, gt=0, le=1)
    """Number that keeps RMSprop from dividing by zero."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of Adam's mean gradient."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of Adam's mean square gradient."""
    adam_epsilon: float = Field(1e-5, gt=0, le=1)
    """Number that keeps Adam from dividing by zero."""
    entropy_coefficient: float = Field(0.01, ge=0, le=100)
    """Weight of the entropy bonus."""
    entropy_coefficient_schedule: Literal["constant", "linear"] = "constant"
    """Keep the entropy bonus, or let it fall linearly to 0 at total_env_steps."""
    value_coefficient: float = Field(0.5, ge=0, le=100)
    """Weight of the value loss."""
    max_grad_norm: float = Field(0.5, ge=1e-6)
    """Norm to which the gradient is clipped."""
    clip_rewards: bool | Auto = "auto"
    """Learn from the sign-preserving clip of rewards to [-1, 1]; auto: for Atari."""
    end_return_on_life_loss: bool | Auto = "auto"
    """Let a lost life end the learner's return, though never the game; auto: for Atari but in its preset machado."""
    reward_scale: float = Field(1.0, gt=0, le=1e6)
    """Factor on the rewards the learner sees, before any clip."""
    normalize_observations: bool = False
    """Bring the numbers of observations to mean 0 and variance 1, by their running moments over all ranks."""
    normalize_returns: bool = False
    """Divide rewards by the standard deviation of the running return, over all ranks."""


class Network(Section):
    """The network of policy and value."""

    kind: Literal["auto", "cnn", "cnn-small", "cnn-tiny", "mlp"] | Reference = "auto"
    """cnn: 32-64-64-512; cnn-small: 32-64-32-512; cnn-tiny: 16-128, for images smaller than 36 x 36; mlp: hidden_sizes;
    auto: by size a cnn for each image, an mlp for all else, joined; 'module:Name': a torch module of your own."""
    kwargs: dict[str, Any] = {}
    """Arguments for a module of your own."""
    hidden_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(max_length=16)] = (64, 64)
    """Units of the hidden layers of mlp."""
    recurrent: Literal["none", "gru", "lstm"] = "none"
    """Memory between the network and its heads: a gated recurrent unit, a long short-term memory, or none."""
    recurrent_size: int = Field(128, ge=1, le=65_536)
    """Units of the memory."""


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
    message: Literal["full", "bfloat16", "int8"] = "full"
    """Form of a message: parameters as they are; their changes as bfloat16, half the bytes; as int8, a quarter."""
    delay_updates: int = Field(0, ge=0)
    """Updates that a message lies at its reader before it is averaged; above 0 to study stale messages."""
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

    every_updates: int = Field(1, ge=1, lt=1 << 63)
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
    max_time_s: float = Field(0.0, ge=0)
    """Job time after which the job ends with its budget unspent, s; 0 for no limit. Schedules follow the budget."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; auto: bfloat16 for convolutions where they are fast in it. Parameters stay float32."""
    modules_folder: str = ""
    """Folder in which modules that the job names are looked for first [that of the job file]."""
    environment: Environment = Environment()
    learner: Learner = Learner()
    network: Network = Network()
    gossip: Gossip = Gossip()
    checkpoint: Checkpoint = Checkpoint()
    record: Record = Record()


def by_key(job: Job) -> dict[str, Any]:
    """Return what a job says by dotted keys, as JSON has it, also within tables such as `environment.kwargs`."""
    return _flat(job.model_dump(mode="json"))


def difference_of(job: Job, other: Job) -> tuple[str, Any, Any] | None:
    """Return the first setting in which two jobs differ, and its two values; None if they train the same.

    Where modules were found says nothing of what they are.
    """
    own, theirs = by_key(job), by_key(other)
    for key in {**own, **theirs}:
        mine, other_value = own.get(key), theirs.get(key)
        if key != "modules_folder" and not are_equal(mine, other_value):
            return key, mine, other_value
    return None


def are_equal(value: Any, other: Any) -> bool:
    """Whether two values of a setting are the same, as NaN is the same as NaN."""
    return bool(value == other) or repr(value) == repr(other)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def fields(section: type[Section] = Job, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key a job may hold, with its field."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field
