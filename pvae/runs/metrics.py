"""One JSON line per epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MetricsWriter", "plain"]


class MetricsWriter:
    """A callback of `fit` that appends each epoch's record to a `.jsonl` file.

    Raises: ValueError if the file exists already, so that no earlier run is lost.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise ValueError(f"{self.path} exists already; choose another folder, or remove that run first")
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a") as file:
            file.write(json.dumps(plain(record)) + "\n")


def plain(value: Any) -> Any:
    """The value with nan and infinities as None, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
