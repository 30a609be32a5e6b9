"""Numbers from a .csv file, below a header row if there is one."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_csv"]


def read_csv(path: Path) -> npt.NDArray[Any]:
    """The rows (N, D) of a comma-separated file of numbers, float64.

    A first row with any field that is neither empty nor a number is a header.
    Its errors count rows from 0, below the header, as numpy's do.
    Raises ValueError for an empty file, for text or gaps among the numbers, and for rows of unequal lengths.
    """
    fix = "save comma-separated numbers, as many in every row, with at most one header row"
    try:
        # utf-8-sig: a byte-order mark would make the first number look like a header's text.
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if lines and any(_is_text(field) for field in lines[0].split(",")):
            del lines[0]
        if not lines:
            raise ValueError("no rows of numbers")
        widths = [line.count(",") + 1 for line in lines]
        if odd := [row for row, width in enumerate(widths) if width != widths[0]]:
            raise ValueError(f"{widths[odd[0]]} fields at row {odd[0]} after rows of {widths[0]}")
        return np.loadtxt(lines, delimiter=",", ndmin=2, comments=None, quotechar='"')
    except ValueError as error:
        problem = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} must hold rows of numbers, got {problem}: {fix}") from error


def _is_text(field: str) -> bool:
    # A gap is no header's text: dropping a first row with a missing value would lose it in silence.
    field = field.strip().strip('"').strip()
    try:
        float(field or "0")
    except ValueError:
        return True
    return False
