"""Options of the command line, from words and numbers to what the library takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

import pvae
from pvae.support.refusals import shown, whole
from pvae.training.turns import Aggressive, Alternating, Turns

__all__ = ["device_of", "run_folder", "turns_of", "warmup_of", "widths_of"]


def widths_of(words: str) -> tuple[int, ...]:
    """Widths of hidden layers from "200,200".

    Raises: ValueError unless they are whole numbers of at least 1, separated by commas.
    """
    parts = [part.strip() for part in words.split(",")]
    if not all(part.isdecimal() and len(part) < 16 and int(part) > 0 for part in parts):
        raise ValueError(f"hidden must be widths such as 200,200, got {shown(words)}")
    return tuple(int(part) for part in parts)


def warmup_of(steps: int) -> Callable[[int], float] | None:
    """The KL's weight over the steps; None for 0 of them.

    Raises: ValueError for fewer.
    """
    return pvae.training.linear_warmup(steps) if whole("kl_warmup", steps, 0, usual=1000) else None


def turns_of(words: str) -> int | Turns:
    """How guide and model take turns: a number, "alternating" or "aggressive"."""
    named = {"aggressive": Aggressive, "alternating": Alternating}
    if words in named:
        return named[words]()
    if not words.isdecimal() or len(words) > 15:
        raise ValueError(f"inference_steps must be a whole number, alternating or aggressive, got {shown(words)}")
    return int(words)


def device_of(name: str | None) -> str:
    """The device that was named, else a GPU if there is one."""
    if name is not None:
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def run_folder(out: Path | None, data: str, model: str, guide: str) -> Path:
    """Where a run is written: `out`, or the first of runs/DATA-MODEL-GUIDE, -2 and so on that does not exist.

    Raises: ValueError for a folder that cannot be written to.
    """
    if out is not None:
        if out.is_dir() and not os.access(out, os.W_OK):
            raise ValueError(f"{out} cannot be written to; choose another folder")
        return out
    name = f"{Path(data).stem}-{_word(model)}-{_word(guide)}"
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _word(name: str) -> str:
    return name.rsplit(":", 1)[-1].replace(".", "_")
