"""Numbers from a .csv file: what separates them, and whether a header and an index stand around them."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from pvae.data.headers import fields, header_of
from pvae.data.index_column import without_index
from pvae.data.text import lines_of
from pvae.support.refusals import one_line

__all__ = ["read_csv"]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_COMMA_IN_QUOTES = re.compile(r'"\s*[+-]?\d*,\d+\s*"')


def read_csv(content: bytes, where: str) -> tuple[npt.NDArray[Any], str]:
    """The rows (N, D) of a table of numbers, float64, and a note of what is unusual about it or was left out.

    Commas, semicolons, tabs or spaces separate, whichever the rows hold; lines that begin with # above the rows are
    comments, the last of which may be a header. Errors count rows from 0, below the header, as numpy's do.
    Raises ValueError for an empty file, text or gaps among the numbers, rows of unequal lengths, decimal commas, and
    first rows and columns that can be read in two ways.
    """
    lines = [line for line in lines_of(content, where) if line.strip()]
    num_comments = next((num for num, line in enumerate(lines) if not line.lstrip().startswith("#")), len(lines))
    comments, lines = lines[:num_comments], lines[num_comments:]
    separator = _separator(lines[1:] or lines, where)
    names, lines = header_of(comments, lines, separator, where)
    values, index = without_index(_numbers(lines, separator, where), names, where)
    unusual = "" if separator in (",", None) else f"separated by {_SEPARATORS[separator]}"
    return values, ", ".join(note for note in (unusual, index) if note)


def _separator(rows: list[str], where: str) -> str | None:
    """What stands between numbers; None for spaces."""
    found = [separator for separator in _SEPARATORS if any(separator in row for row in rows)]
    doubtful = next((row for row in rows if len(found) > 1 and "," in found and "," in row), None)
    doubtful = doubtful or next((row for row in rows if '"' in row and _COMMA_IN_QUOTES.search(row)), None)
    if doubtful is not None or len(found) > 1:
        raise ValueError(
            f"{where} has commas within numbers or two separators, as in {one_line(doubtful or rows[0], 40)!r}: a "
            "decimal comma (1,5 for 1.5), thousands (1,500), or two numbers? Save it with decimal points and one "
            "separator"
        )
    if not found and any(len(row.split()) > 1 for row in rows):
        return None
    return found[0] if found else ","


def _numbers(rows: list[str], separator: str | None, where: str) -> npt.NDArray[Any]:
    try:
        if not rows:
            raise ValueError("no rows of numbers")
        widths = [len(fields(row, separator)) if '"' in row else _width(row, separator) for row in rows]
        if odd := [row for row, width in enumerate(widths) if width != widths[0]]:
            raise ValueError(f"{widths[odd[0]]} fields at row {odd[0]} after rows of {widths[0]}")
        return np.loadtxt(rows, delimiter=separator, ndmin=2, comments=None, quotechar='"')
    except ValueError as error:
        problem = one_line(str(error), 100).rstrip(".")
        fix = "save comma-separated numbers, as many in every row, with at most one header row"
        raise ValueError(f"{where} must hold rows of numbers, got {problem}: {fix}") from error


def _width(row: str, separator: str | None) -> int:
    return len(row.split()) if separator is None else row.count(separator) + 1
