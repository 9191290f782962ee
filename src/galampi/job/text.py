"""How text becomes a Job, and how its faults are told in one line."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import date, time
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import annotated_types
import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from galampi.errors import JobError
from galampi.job.modules import named_modules
from galampi.job.settings import ATARI_FIELDS, Job, Reference, Wrapper, fields
from galampi.job.shipped import find_job
from galampi.paths import expanded


def load_job(
    path: Path | str | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    given_by: str = "command line",
) -> Job:
    """Read a job file and lay overrides over it.

    Args:
        path: TOML file; as text it may be the name of a shipped job; None for the built-in default job.
        overrides: Dotted key to a value, or to its text: that of a TOML value, or a bare string. Of a section it may be
            a table of such, which leaves the others as they are.
        given_by: Names the overrides in errors.

    Raises:
        JobError: The file cannot be read, or holds a key or value that is not allowed, or one that would do nothing.
    """
    if path is None:
        text, source, folder = "", "default job", Path()
    else:
        path = find_job(path) if isinstance(path, str) else path
        source, folder = str(path), path.parent
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise JobError(f"{path}: cannot be read: {reason}") from None
    job = parse_job(text, source, overrides, given_by)
    if fault := idle_setting(job):
        raise JobError(f"{source if idle_setting(parse_job(text, source)) == fault else given_by}: {fault}")
    if any(named_modules(job)):
        # An absolute folder is taken as it is.
        return job.model_copy(update={"modules_folder": str((folder / expanded(job.modules_folder)).resolve())})
    return job


def job_of_run(text: str, source: str, overrides: Mapping[str, Any]) -> Job:
    """Build the job of a run that goes on under other settings of the command line.

    Raises:
        JobError: The text is not TOML, or there is a key or value that is not allowed, or a new one that does nothing.
    """
    job = parse_job(text, source, overrides)
    if (fault := idle_setting(job)) and fault != idle_setting(parse_job(text, source)):
        raise JobError(f"command line: {fault}")
    return job


def parse_job(
    text: str, source: str, overrides: Mapping[str, Any] = MappingProxyType({}), given_by: str = "command line"
) -> Job:
    """Build a Job from TOML text; `source` names the text in errors, and `given_by` the overrides.

    Raises:
        JobError: The text is not TOML, or holds a key or value that is not allowed.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{source}: not TOML: {error}") from None
    # Checked on its own first, so that an error says whether the file or the overrides are wrong.
    _validate(tree, source)
    for key, value in _dotted(overrides, {key.rpartition(".")[0] for key, _ in fields()}):
        *sections, last = key.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise JobError(f"{given_by}: {_unknown(key, value)}")
        plain = _plain(value, f"{given_by}: {key}")
        table[last] = _toml_value(plain) if isinstance(plain, str) and not _is_text(key) else plain
    return _validate(tree, given_by)


def toml_text(key: str, value: Any) -> str:
    """Write a setting's value as `load_job` takes it: as TOML in a line, text as it is where it is read as text."""
    stays = isinstance(value, str) and (_is_text(key) or _toml_value(value) == value)
    return value if stays else _inline(value)


def _is_text(key: str) -> bool:
    known = dict(fields())
    return key in known and known[key].annotation is str


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_inline(str(key))} = {_inline(each)}" for key, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    # What JSON escapes within quotes TOML does too.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)


def dump_job(job: Job) -> str:
    """Write a Job as TOML that `parse_job` reads back to an equal Job; settings that would do nothing are left out."""
    idle: dict[str, set[str]] = {}
    for section, names, _ in _idle(job):
        idle.setdefault(section, set()).update(names)
    # Not as JSON, which has neither infinities nor dates.
    return tomli_w.dumps(as_lists(job.model_dump(exclude=idle)))


def idle_setting(job: Job) -> str:
    """Name the first setting that was given and does nothing in this job, and say why; '' if there is none."""
    for section, names, reason in _idle(job):
        given = getattr(job, section)
        for name in names:
            if name in given.model_fields_set:
                return f"{section}.{name} does nothing: {reason}"
    return ""


def _idle(job: Job) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yield sections, the settings of each that do nothing in this job, and why."""
    environment = job.environment
    if not environment.is_atari:
        yield "environment", ATARI_FIELDS, f"environment.id is {environment.id!r}, which is no game of Atari"
    if not environment.is_atari and job.learner.end_return_on_life_loss != "auto":
        reason = f"environment.id is {environment.id!r}, and only games of Atari have lives"
        yield "learner", ("end_return_on_life_loss",), reason
    if environment.is_atari and not (environment.kwargs or environment.wrappers):
        if environment.vectorization != "auto":
            yield "environment", ("vectorization",), "games of Atari have threads of their own"
        if environment.action_mask:
            yield "environment", ("action_mask",), "games of Atari have no masks"
    of_others = "rmsprop_" if job.learner.optimizer == "adam" else "adam_"
    names = [name for name in type(job.learner).model_fields if name.startswith(of_others)]
    yield "learner", names, f"learner.optimizer is {job.learner.optimizer!r}"
    clip = job.learner.clip_rewards
    if job.learner.normalize_returns and not (environment.is_atari if clip == "auto" else clip):
        yield "learner", ("reward_scale",), "learner.normalize_returns is true, and divides by it again"
    if job.gossip.method != "push-sum":
        yield "gossip", ("message",), f"gossip.method is {job.gossip.method!r}, whose messages are sent in full"
    if job.gossip.method in ("allreduce", "none"):
        yield "gossip", ("delay_updates",), f"gossip.method is {job.gossip.method!r}, which averages no messages"
    if job.network.recurrent == "none":
        yield "network", ("recurrent_size",), "network.recurrent is 'none'"
    kind = job.network.kind
    if ":" in kind:
        yield "network", ("hidden_sizes",), f"network.kind is {kind!r}, which takes network.kwargs"
    else:
        # Other observations than images may have vectors beside them, which the network tells once it sees them.
        sees_images_alone = (
            kind in ("cnn", "cnn-small", "cnn-tiny") and environment.is_atari and not environment.wrappers
        )
        yield "network", ("kwargs",) + ("hidden_sizes",) * sees_images_alone, f"network.kind is {kind!r}"


def allowed(field: FieldInfo) -> str:
    """Say in words what values a field takes."""
    choices = [repr(v) if isinstance(v, str) else str(v).lower() for v in _literals(field.annotation)]
    if choices:
        names_something = Reference in get_args(field.annotation)
        return "one of " + ", ".join(choices) + (", or 'module:Name'" if names_something else "")
    # A field whose type holds its own limits (the items of a tuple) is described by its type.
    annotation: Any = field.annotation
    kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict[str, Any]: "a table"}
    if annotation in kinds:
        kind = kinds[annotation]
    elif get_args(annotation)[0] == Reference | Wrapper:
        kind = "a list of 'module:Wrapper' and of { wrapper = 'module:Wrapper', kwargs = {...} }"
    else:
        kind = "a list of whole numbers, each at least 1"
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


def _dotted(overrides: Mapping[str, Any], sections: Set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values, those of sections one by one."""
    for name, given in overrides.items():
        key = f"{prefix}{name}"
        value = _toml_value(given) if key in sections and isinstance(given, str) else given
        if key in sections and isinstance(value, Mapping):
            yield from _dotted(value, sections, f"{key}.")
        else:
            yield key, value


def _plain(value: Any, what: str) -> Any:
    """Return a value from Python as TOML has it; arrays and their elements, which have `tolist`, as numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each, f"{what}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, what) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), what)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # Of bool and datetime too, which are an int and a date.
    if not isinstance(value, str | int | float | date | time):
        raise JobError(f"{what} is {value!r}; jobs are kept as TOML, which has no such value")
    return value


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
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree


def as_lists(tree: Any) -> Any:
    """Return a copy of a tree of a Job as TOML has it: with lists, where a Job, which is frozen, has tuples."""
    if isinstance(tree, dict):
        return {key: as_lists(value) for key, value in tree.items()}
    return list(map(as_lists, tree)) if isinstance(tree, tuple | list) else tree


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
            return _unknown(".".join(str(part) for part in fault["loc"]), fault["input"])
        return f"{fault['loc'][0]} is {fault['input']!r}; must be a table"
    field = known[key]
    text = f"{key} is {fault['input']!r}; must be {allowed(field)}"
    if fault["type"] == "value_error":
        text = f"{key} is {fault['input']!r}; {fault['msg'].removeprefix('Value error, ')}"
    return text + did_you_mean(str(fault["input"]), [str(v) for v in _literals(field.annotation)])


def _unknown(key: str, value: Any) -> str:
    names = [name for name, _ in fields()]
    tables = list(dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name))
    last = key.rpartition(".")[2]
    if isinstance(value, dict):
        hint = did_you_mean(key, tables, [f"[{table}]" for table in tables])
    elif "." in key and last in names:
        hint = f"; {last!r} is one of its own, above the first table of a file"
    else:
        # The right name in the wrong table is nearer than another name in the right one.
        ends = [name.rpartition(".")[2] for name in names]
        hint = "" if last in ends else did_you_mean(key, names)
        hint = hint or did_you_mean(last, ends, names)
    return f"{key} is not a key of a job{hint}"


def did_you_mean(word: str, words: Sequence[str], shown: Sequence[str] | None = None) -> str:
    """Name the nearest of some words, as `shown`, for the end of an error; '' if none is near."""
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {(shown or words)[words.index(near[0])]!r}?" if near else ""
