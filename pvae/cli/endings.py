"""How a command ends: one line for whatever went wrong, and the exit code that a shell expects."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from pvae.cli.showing import complain
from pvae.support.lines import lacks_memory

__all__ = ["Commands"]

_DONE, _OUR_FAULT, _MISTAKE, _INTERRUPTED, _BROKEN_PIPE = 0, 1, 2, 130, 141
_LARGE = "--batch-size, the number of samples, --hidden or --latent-dim"


class Commands(TyperGroup):
    """Commands that say every mistake in one line, where typer would draw a box and Python print a traceback.

    Exit codes: 2 for a user's mistake, 130 for Ctrl-C, 141 for a reader of the output that went away, 1 for a fault of
    pvae's own (or a selfcheck that failed). With PVAE_TRACEBACK set, errors are raised.
    """

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command that `args` name, and exit."""
        words = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):
            # A file's name may hold what the terminal's encoding does not.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            status = self._run(words, prog_name or "pvae")
        except BrokenPipeError:
            status = _BROKEN_PIPE
        _let_go_of_stdout()
        sys.exit(status)

    def _run(self, words: list[str], name: str) -> int:
        as_json = "--json" in words
        try:
            with self.make_context(name, list(words)) as context:
                self.invoke(context)
            if sys.stdout is not None:
                sys.stdout.flush()
        except typer.Exit as done:
            return done.exit_code
        except typer.TyperException as error:
            # Without any argument the help was shown, and there is nothing left to say.
            if message := error.format_message():
                complain(message + _given(error, words), as_json=as_json)
            return error.exit_code
        except KeyboardInterrupt:
            complain("interrupted", as_json=as_json)
            return _INTERRUPTED
        except BrokenPipeError:
            raise
        except Exception as error:
            if os.environ.get("PVAE_TRACEBACK"):
                raise
            message, status = _told(error, words)
            complain(message, as_json=as_json)
            return status
        return _DONE


def _given(error: typer.TyperException, words: list[str]) -> str:
    """What came where an option could not be read, which typer leaves out."""
    names = getattr(getattr(error, "param", None), "opts", ()) if isinstance(error, typer.BadParameter) else ()
    given = ""
    # The last of several is the one that counts.
    for word, after in pairwise([*words, ""]):
        name, is_joined, value = word.partition("=")
        if name in names:
            given = f"; got {value if is_joined else after!r}"
    return given


def _told(error: Exception, words: list[str]) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    reason = str(error) or type(error).__name__
    place = _own_place(error, words)
    if "smaller" not in reason and any(lacks_memory(each) for each in _chain(error)):
        return f"the memory does not suffice; make {_LARGE} smaller", _MISTAKE
    if isinstance(error, OSError) and error.filename is not None:
        reason = f"{error.filename}: {error.strerror or error}; check the path and its rights"
    elif not isinstance(error, (ValueError, FloatingPointError, OSError)):
        reason = f"{type(error).__name__}: {reason}"
        if place is None:
            return (
                f"{reason}; this is a fault of pvae's own: PVAE_TRACEBACK=1 shows where, please report it",
                _OUR_FAULT,
            )
    return (reason if place is None else f"{place}: {reason}"), _MISTAKE


def _own_place(error: Exception, words: list[str]) -> str | None:
    """Where in the user's own code, if anywhere, an error began."""
    files = {file for word in words if (file := _own_file(word)) is not None}
    found = None
    for each in _chain(error):
        for frame, line in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename in files:
                found = f"{Path(frame.f_code.co_filename).name}, line {line}"
    return found


def _own_file(word: str) -> str | None:
    place = word.partition("=")[2] if word.startswith("--") else word
    place = place.rpartition(":")[0]
    if place.endswith(".py"):
        return str(Path(place).resolve())
    return getattr(sys.modules.get(place), "__file__", None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _let_go_of_stdout() -> None:
    """Write what is left; if nobody can take it, keep Python from trying again at its exit, and complaining."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
