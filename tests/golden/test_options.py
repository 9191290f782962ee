"""The settings and options users rely on: their names, defaults and ranges."""

from collections.abc import Iterator
from pathlib import Path

from galampi import cli
from galampi.cli.settings import Parser
from galampi.job import Job, allowed, fields


def unchanged(name: str, lines: list[str]) -> None:
    golden = Path(__file__).with_name(name)
    text = "\n".join(lines) + "\n"
    new = golden.with_suffix(".new")
    if text != golden.read_text():
        new.write_text(text)
    assert text == golden.read_text(), f"if the change is meant: mv {new} {golden}"


def test_settings_are_what_they_were() -> None:
    lines = []
    for key, field in fields():
        value: object = Job()
        for part in key.split("."):
            value = getattr(value, part)
        lines.append(f"{key} = {value!r}: {allowed(field)}")
    unchanged("options.txt", lines)


def options(parser: Parser) -> Iterator[str]:
    """Yield what a command takes, a line each; settings of a job are a matter of their own."""
    for action in parser.actions:
        names = ", ".join(action.option_strings) or action.dest
        if "." in names or action.dest == "help":
            continue
        nargs = "" if action.nargs is None else f" ({action.nargs})"
        choices = "" if action.choices is None else f": one of {', '.join(action.choices)}"
        yield f"{names}{nargs} = {str(action.default)!r}{choices}"


def test_commands_take_what_they_took() -> None:
    settings = {f"--{key}" for key, _ in fields()}
    lines = []
    for name, parser in cli.parsers()[1].items():
        taken = [line for line in options(parser) if line.split(" = ")[0] not in settings]
        lines += [f"{name} {line}" for line in taken]
    unchanged("commands.txt", lines)
