"""Seconds until a fresh process has done what one waits for: the command's help, the import, a first short training."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import Rows, one, run_alone

_TASKS = {
    "pvae --help": ["-c", "from pvae.cli.main import app; app()", "--help"],
    "import pvae": ["-c", "import pvae"],
    "import pvae, pvae.fit": ["-c", "import pvae; pvae.fit"],
    "import torch, pyro": ["-c", "import torch, pyro"],
    "100 steps on digits": [
        "-c",
        "import pvae; x = (pvae.data.load('digits').train > 0.5).float(); model = pvae.models.VAE((1, 8, 8), 2);"
        "pvae.fit(model, pvae.guides.MeanField(model, x[:2]), x, steps=100, batch_size=64, progress=False)",
    ],
}


def measure(smoke: bool = False) -> Rows:
    """One row per task: the median of repeats by turns."""
    repeats = 1 if smoke else 5
    times: dict[str, list[float]] = {name: [] for name in _TASKS}
    for _ in range(repeats):
        for name, arguments in _TASKS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    return [one("start-up", name, statistics.median(values), "s") for name, values in times.items()]


if __name__ == "__main__":
    run_alone("startup", __doc__, measure)
