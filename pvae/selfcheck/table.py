"""The rows for a person to read, and for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pvae.selfcheck.rows import LIMIT, Row

__all__ = ["show", "summary"]

_WIDTHS = {"quantity": 20, "estimate": 9, "truth": 9, "std err": 7, "error": 6, "verdict": 11}
_WORDS = ("quantity", "verdict")


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The verdict on all rows, the largest error of those held to the limit, and the rows as plain values."""
    held = [abs(row.error) for row in rows if row.verdict in ("ok", "off")]
    return {
        "passed": all(row.passes for row in rows),
        "num_rows": len(rows),
        "num_off": sum(not row.passes for row in rows),
        "limit": LIMIT,
        "largest_error": max(held, default=float("nan")),
        "rows": [asdict(row) for row in rows],
    }


def show(rows: Sequence[Row]) -> None:
    """A table for each truth or pair, 100 columns wide, and a line on all of them."""
    # Imported here: on import rich draws from Python's random generator.
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=max(100, Console().width), highlight=False)
    for name in dict.fromkeys(row.on for row in rows):
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column(escape(name), width=32)
        for heading, width in _WIDTHS.items():
            table.add_column(heading, width=width, justify="left" if heading in _WORDS else "right")
        for row in rows:
            if row.on == name:
                table.add_row(*map(escape, _words(row)), style=None if row.passes else "bold red")
        console.print(table)
        console.print()
    for row in rows:
        if row.note:
            console.print(f"{escape(row.what)} on {escape(row.on)} failed: {escape(row.note)}")
    found = summary(rows)
    console.print(
        f"{found['num_rows']} rows, {found['num_off']} off or failed; the largest error is "
        f"{found['largest_error']:.2f} standard errors, and {LIMIT:g} are allowed"
    )


def _words(row: Row) -> list[str]:
    spread = f"{row.standard_error:.4f}" if row.standard_error >= 1e-3 else f"{row.standard_error:.0e}"
    error = f"{row.error:z.2f}" if abs(row.error) < 100 else f"{row.error:.0e}"
    return [row.what, row.quantity, f"{row.estimate:z.4f}", f"{row.truth:z.4f}", spread, error, row.verdict]
