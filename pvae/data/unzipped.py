"""Packed files, opened no further than honest data could go."""

import gzip
import zlib
from typing import BinaryIO

__all__ = ["most_bytes", "unzipped"]

# Tables of counts, mostly zeros, shrink to a fiftieth; what shrinks to less than this is made to fill a memory.
_FREE, _FOLD = 2**30, 200


def most_bytes(packed: int) -> int:
    """How many bytes a packed file of that many may open to."""
    return max(_FREE, _FOLD * packed)


def unzipped(file: BinaryIO, size: int, where: str) -> bytes:
    """What a .gz file of `size` bytes holds.

    Raises ValueError for a damaged file, and for one that opens to more than `most_bytes`.
    """
    most = most_bytes(size)
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            content = stream.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{where} must hold a whole .gz file, got a damaged file ({' '.join(str(error).split())}): get it again"
        ) from error
    if len(content) > most:
        raise ValueError(
            f"{where} has {size:,} bytes and opens to more than {most:,}: unpack it yourself, if that is what it holds"
        )
    return content
