"""What the command line prints: tables for a person, or one JSON object."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pvae.support.lines import MOST_LETTERS, one_line

__all__ = ["complain", "data_words", "say", "show"]


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the one place that says how a command ends."""
        raise BrokenPipeError


def complain(message: str, *, as_json: bool) -> None:
    """A mistake on one line: on standard error, or as a JSON object on standard output."""
    # Pyro adds a table of the shapes of all sites, torch the values of a tensor.
    message = re.split(r"Trace Shapes:|,? (?:but found invalid values: )?tensor\(", message)[0]
    if as_json:
        print(json.dumps({"error": _cut(message, MOST_LETTERS)}))
    else:
        print("error: " + _cut(message, MOST_LETTERS - len("error: ")), file=sys.stderr)


def _cut(message: str, most: int) -> str:
    """The message on one line of so many letters, with the advice that it ends in, if that is short."""
    found, _, advice = (one_line(part, len(message)) for part in message.rpartition(";"))
    if len(message) <= most or not found or len(advice) > most // 2:
        return one_line(message, most)
    return f"{one_line(found, most - 2 - len(advice))}; {advice}"


def say(line: str) -> None:
    """One line for a person, at once."""
    print(one_line(line), flush=True)


def show(title: str, rows: dict[str, Any], *, as_json: bool = False) -> None:
    """Names and values as a table, or as one JSON object."""
    if as_json:
        from pvae.runs.metrics import plain

        print(json.dumps(plain(rows)))
        return
    # Text, because rich reads words in brackets, which a user's names may have, as markup.
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        words = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(Text(name.replace("_nats", " (nats)")), Text(words))
    _Console().print(table)


def data_words(record: dict[str, Any]) -> str:
    """The data of a result: their name, the split, the binarisation."""
    split = f" {record['split']}" if "split" in record else ""
    return f"{record['name']}{split}, binarize {record['binarize'] or 'none'}"
