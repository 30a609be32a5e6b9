"""Peak memory of log p(x) as K grows, and as the number of data grows, each in a process of its own.

Digits' net, 64-32-2, 20 images. The base of the ratio is the peak at the smallest size, in which torch's own few
hundred megabytes are; the growth beside it is free of them.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from common import Rows, one, run_alone

_SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import memory
memory.peak({num_data}, {num_samples})
"""


def measure(smoke: bool = False) -> Rows:
    """One row per size."""
    rows: Rows = []
    for what, sizes in (
        ("K", [(20, 100), (20, 200 if smoke else 100_000)]),
        ("N", [(200, 100), (400 if smoke else 20_000, 100)]),
    ):
        peaks = [_peak_of(*size) for size in sizes]
        for (num_data, num_samples), peak in zip(sizes, peaks, strict=True):
            size = num_samples if what == "K" else num_data
            ratios = {"the smallest": peak / peaks[0]}
            growth = (peak - peaks[0]) / 2**20
            row = one(f"peak memory against {what}", f"{what} = {size:,}", peak / 2**20, "MiB", **ratios)
            rows.append({**row, "growth_mib": growth})
    return rows


def peak(num_data: int, num_samples: int) -> None:
    """Run an estimate in this process and print the peak of its memory, bytes."""
    import torch

    import pvae

    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.bernoulli(torch.full((num_data, 1, 8, 8), 0.3))
    model = pvae.models.VAE((1, 8, 8), 2, decoder=pvae.nets.MLP(2, (32,), (1, 8, 8)))
    guide = pvae.guides.MeanField(model, x[:2], hidden=(32,))
    # The same mode at every size: what a compiler takes is not K's doing.
    estimator = pvae.estimators.ImportanceSampling(num_samples, step_mode="traced")
    pvae.log_marginal(model, guide, x, estimator)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    print(int(kibibytes * 1024))


def _peak_of(num_data: int, num_samples: int) -> int:
    folder = __file__.rpartition("/")[0]
    script = _SCRIPT.format(folder=folder, num_data=num_data, num_samples=num_samples)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout)


if __name__ == "__main__":
    run_alone("memory", __doc__, measure)
