"""What the commands share: the parser, the options for a job's settings, and the types of arguments."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

from galampi.errors import UserError
from galampi.job import Job, allowed, fields
from galampi.paths import expanded, refuse_undecoded
from galampi.streams import lead_nowhere

JOB_HELP = "job file, or the name of one that `jobs` lists; the built-in job without it"


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ours to report: once, not once for each rank.

    Attributes:
        actions: What was added, in that order; argparse keeps its own list to itself.
    """

    def __init__(self, **settings: Any) -> None:
        self.actions: list[argparse.Action] = []
        super().__init__(allow_abbrev=False, **settings)

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an argument."""
        return self.recorded(super().add_argument)(*names, **settings)

    def recorded(self, add_argument: Callable[..., argparse.Action]) -> Callable[..., argparse.Action]:
        """Return the `add_argument` of a group of this parser, such that what it adds is kept in `actions` too."""

        def add(*names: str, **settings: Any) -> argparse.Action:
            if settings.get("type") is Path:
                settings["type"] = _path
            self.actions.append(add_argument(*names, **settings))
            return self.actions[-1]

        return add

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UserError(f"{self.prog}: {message}")


def as_named(words: Sequence[str], parser: Parser) -> list[str]:
    """Return the words of a command with its options spelled as they are: dashes count as underscores."""
    options = {_folded(option): option for action in parser.actions for option in action.option_strings}
    end = words.index("--") if "--" in words else len(words)
    named = []
    for word in words[:end]:
        name, equals, value = word.partition("=")
        # `--resume=auto` is an option of its own.
        named.append(options.get(_folded(word)) or options.get(_folded(name), name) + equals + value)
    return [*named, *words[end:]]


def _folded(option: str) -> str:
    return option.replace("_", "-")


def make_paths_absolute(arguments: argparse.Namespace) -> None:
    """Make every path among the arguments absolute: an environment is the user's code, and may change the folder.

    Raises:
        UserError: The path of this folder or of an argument is no text in this locale, as files of a run have it.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, value.absolute())
        elif isinstance(value, list):
            setattr(arguments, name, [each.absolute() if isinstance(each, Path) else each for each in value])
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path):
                refuse_undecoded(path.absolute())


def add_settings(parser: Parser) -> None:
    """Add an option for every setting of a job."""
    add = parser.recorded(parser.add_argument_group("settings of the job, over those of the file").add_argument)
    defaults = Job()
    for key, field in fields():
        value = attrgetter(key)(defaults)
        text = (field.description or "").replace("%", "%%")
        add(f"--{key}", metavar="VALUE", help=f"{text} Takes {allowed(field)} [{value}]".replace("True", "true"))


def settings_given(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings given on the command line; a folder is the shell's, wherever the job is read and goes."""
    given = {key: value for key, _ in fields() if (value := getattr(arguments, key)) is not None}
    if given.get("modules_folder"):
        given["modules_folder"] = str(expanded(given["modules_folder"]).resolve())
    return given


def mute_output(error: OSError) -> None:
    """Let what is printed go nowhere from now on. Who read it, as `head` does, has seen enough; a full disk is news."""
    lead_nowhere(sys.stdout)
    if error.errno == errno.ENOSPC:
        print(f"galampi: what it prints cannot be written: {error.strerror}", file=sys.stderr, flush=True)


def _path(text: str) -> Path:
    """Return a path; no text is that of a variable that is not set, and does not mean this folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; must be a path")
    return expanded(text)


def worded(text: str) -> str:
    """Return some text; none is that of a variable that is not set, and names nothing."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """Return a whole number."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a whole number, 0 or more")
    return int(text)


def rank(text: str) -> int | None:
    """Return a rank, or None for the mean of all."""
    if text != "mean" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a rank or 'mean'")
    return None if text == "mean" else int(text)


def runs_in(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the runs of the folders of runs and sweeps, and of the sweeps those that have not begun.

    Raises:
        UserError: No run of a sweep has begun, or it may not be read.
    """
    from galampi.launch.status import has_begun
    from galampi.launch.sweep import run_folders, runs_among

    begun: list[Path] = []
    to_come: list[Path] = []
    for folder in runs_among(folders):
        runs = run_folders(folder)
        there = [run for run in runs if run == folder or has_begun(run)]
        if runs and not there:
            raise UserError(f"{folder}: none of its {len(runs)} runs has begun")
        begun += there
        to_come += [run for run in runs if run not in there]
    if not begun:
        raise UserError(f"{folders[0]}: no run here")
    return begun, to_come
