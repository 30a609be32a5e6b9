"""The column that counts the rows of a table, which is no feature of theirs."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["without_index"]

_NAMES = {"id", "idx", "index", "level_0", "no", "nr", "num", "number", "row", "row_id", "rowid", "rownames", "#"}


def without_index(values: npt.NDArray[Any], names: list[str] | None, where: str) -> tuple[npt.NDArray[Any], str]:
    """The columns of `values` (N, D) without an index, and a note of it.

    A first column that counts the rows from 0 or 1 is left out if its name is empty or "Unnamed: 0", as pandas and R
    write it. Any other name than those of an index makes it data.
    Raises ValueError for a column without a name that does not count the rows, and for one that counts them under an
    index's name ("id") or without a header: both could be an index or data.
    """
    num_rows, num_columns = values.shape
    if num_columns < 2 or num_rows < 3:
        return values, ""
    first = values[:, 0]
    start = next((start for start in (0, 1) if (first == np.arange(start, start + num_rows)).all()), None)
    name = None if names is None else names[0].strip()
    is_nameless = name is not None and re.fullmatch(r"(Unnamed: ?\d+)?", name) is not None
    if is_nameless and start is not None:
        return values[:, 1:], "without its index column"
    if is_nameless:
        raise ValueError(
            f"{where} has a first column without a name, which does not count the rows: an index, as pandas and R "
            "write it, or data? Delete the column, or give it a name"
        )
    if start is not None and (name is None or name.lower() in _NAMES):
        named = "" if name is None else f" named {name!r}"
        raise ValueError(
            f"{where} has a first column{named} that counts the rows from {start}: an index, or data? Delete the "
            "column, or name it in a header row for what it is, such as time"
        )
    return values, ""
