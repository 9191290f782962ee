"""The settings users rely on: their names, defaults and ranges."""

from pathlib import Path

from galampi.job import Job, allowed, fields

GOLDEN = Path(__file__).with_name("options.txt")


def test_settings_are_what_they_were() -> None:
    lines = []
    for key, field in fields():
        value: object = Job()
        for part in key.split("."):
            value = getattr(value, part)
        lines.append(f"{key} = {value!r}: {allowed(field)}")
    text = "\n".join(lines) + "\n"
    new = GOLDEN.with_suffix(".new")
    if text != GOLDEN.read_text():
        new.write_text(text)
    assert text == GOLDEN.read_text(), f"the settings have changed; if that is meant: mv {new} {GOLDEN}"
