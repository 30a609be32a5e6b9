"""The header of a table: a first row of names, which is no datum; and first rows that could be either."""

import csv
import re
from itertools import pairwise

from pvae.support.refusals import one_line

__all__ = ["fields", "header_of"]

_MISSING = {"", "na", "n/a", "n.a.", "<na>", "#n/a", "nan", "null", "none", "missing", "-", "--", ".", "?"}


def header_of(
    comments: list[str], lines: list[str], separator: str | None, where: str
) -> tuple[list[str] | None, list[str]]:
    """The names of the columns, None where there are none, and the lines below them.

    A first row with a word that is neither a number nor a sign of a missing value is a header, and so is the last
    comment above if it has as many fields as the rows, and a row of an empty field before 0, 1, 2, ..., as pandas
    writes above an index.
    Raises ValueError for a header that names fewer or more columns than there are, and for a first row of numbers that
    looks like names: 0, 1, 2, ... or 1, 2, 3, ..., any evenly spaced whole numbers, or numbers in quotes above others
    without; and for words beside numbers with a decimal point.
    """
    if not lines:
        return None, []
    first = fields(lines[0], separator)
    below = fields(lines[1], separator) if len(lines) > 1 else first
    words = [field for field in first if _is_word(field)]
    if words and any(re.fullmatch(r"[+-]?\d*", field) is None for field in first if field not in words):
        raise _either(lines[0], where)
    if words:
        if len(first) != len(below):
            raise ValueError(
                f"{where} must have a name for each of {len(below)} columns, got a first line of {len(first)}: either "
                "row names stand first, as R writes them, or the line is a title; name every column, or delete that "
                "line and the row names"
            )
        return first, lines[1:]
    if len(first) > 1 and not first[0] and first[1:] == [str(place) for place in range(len(first) - 1)]:
        return first, lines[1:]
    above = fields(comments[-1].lstrip().lstrip("#"), separator) if comments else []
    if len(above) == len(first):
        return above, lines
    only_quoted = '"' in lines[0] and len(lines) > 1 and not any('"' in line for line in lines[1:])
    if only_quoted or _looks_like_names(first, below):
        raise _either(lines[0], where)
    return None, lines


def _either(line: str, where: str) -> ValueError:
    return ValueError(
        f"{where} begins with the row {one_line(line, 40)}: names of columns, or a datum? Delete it if it is names, or "
        "put a header row of words above it if it is a datum"
    )


def fields(line: str, separator: str | None) -> list[str]:
    """The fields of a line, without quotes and the spaces around them."""
    if separator is None:
        return [field.strip('"') for field in line.split()]
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    except csv.Error:  # one field of more than 131,072 letters
        return line.split(separator)


def _is_word(field: str) -> bool:
    # A gap is no header's word: dropping a first row with a missing value would lose it in silence.
    if field.lower() in _MISSING:
        return False
    try:
        float(field)
    except ValueError:
        return True
    return False


def _looks_like_names(first: list[str], below: list[str]) -> bool:
    numbers = [int(field) for field in first if re.fullmatch(r"[+-]?\d{1,15}", field)]
    if len(numbers) < len(first) or len(numbers) < 2 or len(first) != len(below):
        return False
    if numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        return True
    # Such as years and wavelengths; three numbers one after the other are rare among data, four evenly spaced, too.
    steps = {after - before for before, after in pairwise(numbers)}
    is_spaced = len(steps) == 1 and steps != {0} and len(numbers) >= (3 if steps == {1} else 4)
    return is_spaced and not _is_spaced_by(below, steps)


def _is_spaced_by(row: list[str], steps: set[int]) -> bool:
    try:
        numbers = [float(field) for field in row]
    except ValueError:
        return False
    return {after - before for before, after in pairwise(numbers)} == steps
