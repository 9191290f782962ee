"""How text from files, numbers and spans of time are shown."""


def shown(text: object) -> str:
    """Return text on one line in which nothing acts on a terminal: what is not printable is written as an escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(text)
    )


def number(value: float, form: str) -> str:
    """Format a number; NaN, which is not known, is a dash."""
    return "-" if value != value else format(value, form)


def span(seconds: float) -> str:
    """Write a span of time as 42 s, 3:05 or 26:03:05."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
