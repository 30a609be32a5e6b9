"""The folder that a training run writes to: claimed at the start, filled at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch
from pvae.runs.files import write_run
from pvae.runs.metrics import MetricsWriter
from pvae.support.arguments import path_of

__all__ = ["RunWriter"]


class RunWriter:
    """Writes a new run folder: a line of metrics per epoch, and the weights and the record at the end.

    Without a folder it writes nothing.

    Raises: ValueError for a folder that holds something already.
    """

    def __init__(self, out: str | Path | None) -> None:
        self.folder = None if out is None else path_of("out", out)
        if self.folder is None or not self.folder.exists():
            return
        if not self.folder.is_dir() or any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} exists and is not empty; choose a new folder, nothing was overwritten")

    def of_epochs(self) -> list[MetricsWriter]:
        """The callbacks that write each epoch's record."""
        return [] if self.folder is None else [MetricsWriter(self.folder / "metrics.jsonl")]

    def end(self, parameters: Parameters, batch: Batch, record: Mapping[str, Any]) -> None:
        """Write the weights, and a config that holds the record."""
        if self.folder is not None:
            write_run(self.folder, parameters, batch, None, record)
