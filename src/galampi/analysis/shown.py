"""Text from files, made safe to show."""


def shown(text: object) -> str:
    """Return text on one line in which nothing acts on a terminal: what is not printable is written as an escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(text)
    )
