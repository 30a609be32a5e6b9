"""The .amat text format: one datum a line, 0s and 1s with single spaces between them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pvae.data.unzipped import unzipped

__all__ = ["read_amat"]


def read_amat(path: Path, num: int, width: int) -> Tensor:
    """The values (num, width), float32, of an .amat file, plain or .gz.

    Raises ValueError, naming the file and how many lines it has, unless they are `num` of `width` 0s and 1s.
    """
    text = _bytes(path)
    if not text.endswith(b"\n"):
        text += b"\n"
    # Every line of a good file has one length, so a reshape does what parsing 55 million tokens would.
    length = text.index(b"\n") + 1
    if len(text) != num * length or length < 2 * width:
        raise _wrong(path, text, num, width)
    block = np.frombuffer(text, dtype=np.uint8).reshape(num, length)
    digits, between = block[:, : 2 * width : 2] - ord("0"), block[:, 1 : 2 * width - 1 : 2]
    # What lies past the last digit is the line's end, perhaps after a space or a carriage return.
    end = block[:, 2 * width - 1 :]
    ends = (end[:, -1:] == ord("\n")).all() and np.isin(end[:, :-1], (ord(" "), ord("\r"))).all()
    if digits.max() > 1 or (between != ord(" ")).any() or not ends:
        raise _wrong(path, text, num, width)
    return torch.from_numpy(digits).to(torch.float32)


def _bytes(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    with path.open("rb") as file:
        return unzipped(file, path.stat().st_size, str(path))


def _wrong(path: Path, text: bytes, num: int, width: int) -> ValueError:
    lines = text.splitlines()
    expected = f"{path} must hold {num} lines of {width} 0s and 1s"
    for number, line in enumerate(lines, start=1):
        values = line.split()
        if len(values) != width or not set(values) <= {b"0", b"1"}:
            what = f"{len(values)} values" if len(values) != width else "other values"
            return ValueError(f"{expected}, got {len(lines)} lines, line {number} with {what}: get the file again")
    return ValueError(f"{expected}, single spaces between, got {len(lines)} lines: get the file again")
