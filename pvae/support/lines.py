"""Errors on one line; without torch, so that the command line can refuse a mistyped word at once."""

__all__ = ["MOST_LETTERS", "lacks_memory", "one_line"]

MOST_LETTERS = 300
_NO_MEMORY = ("can't allocate memory", "not enough memory", "calculation overflowed", "multiplication overflow")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, on any device."""
    # By its name, because torch need not be loaded yet.
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))


def one_line(text: str, most: int = MOST_LETTERS) -> str:
    """The text on one line, cut to so many letters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 4].rstrip() + " ..."
