"""Text on one line; without torch, so that the command line can refuse a mistyped word at once."""

__all__ = ["MOST_LETTERS", "one_line"]

MOST_LETTERS = 300


def one_line(text: str, most: int = MOST_LETTERS) -> str:
    """The text on one line, cut to so many letters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 4].rstrip() + " ..."
