"""Samples per second of log p(x) by importance sampling: K = 5,000 draws per image, Burda's net.

A sample is one draw of z for one image, decoded and weighed. pvae is timed through `log_marginal`, with all it does
besides (checking the pair, tracing and compiling, standard errors, ESS, k-hat); the hand-written rivals do nothing but
the estimate, in chunks of the size that is fastest for them, and what torch.compile takes is left out. pythae's
`get_nll` takes image by image, in batches of 100 draws (its default, and its best). Contestants take turns. pvae
compiles anew at each call, so it is given 1,000 images, a tenth of MNIST's test set; the others, who have nothing to
pay once, do 200, and pythae 4.

The bound is what the matrix products of the decoder alone would take at the GFLOP/s that `torch.mm` reaches at their
largest shape, measured in the same turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import rival_pythae
import torch
from common import BURDA, Net, PlainVAE, Rows, clock, devices, interleaved, one, pair, run_alone, summed_up
from torch import Tensor

import pvae
from pvae.estimators import ImportanceSampling

GPU_IMAGES = 10_000


def measure(smoke: bool = False) -> Rows:
    """One row per contestant."""
    if smoke:
        return _rows(Net((6,), (5, 4), 2), num_data=8, num_samples=50, blocks=2)
    rows = _rows(BURDA, num_data=1000, num_samples=5000, blocks=5)
    return rows if devices() == ["cpu"] else [*rows, *on_gpu()]


def _rows(net: Net, num_data: int, num_samples: int, blocks: int, device: str = "cpu") -> Rows:
    torch.manual_seed(0)
    model, guide = (part.to(device) for part in pair(net))
    plain = PlainVAE(net).to(device)
    plain.start_from(model, guide)
    x = torch.bernoulli(torch.full((num_data, *net.x_shape), 0.2, device=device))
    flat = x.flatten(1)
    torch.compiler.reset()
    compiled = torch.compile(plain.log_weights, fullgraph=True, dynamic=False)

    def seconds(estimate: Callable[[Tensor], object], images: Tensor) -> Callable[[], float]:
        """Seconds per million samples."""

        def turn() -> float:
            started = clock(device)
            estimate(images)
            return (clock(device) - started) / (len(images) * num_samples / 1e6)

        return turn

    def ours(mode: str, images: Tensor) -> Callable[[], float]:
        estimator = ImportanceSampling(num_samples, step_mode=mode)  # type: ignore[arg-type]
        return seconds(lambda images: pvae.log_marginal(model, guide, images, estimator), images)

    # A GPU is through with all before the rest of a call has ended.
    fewer = num_data if device == "cuda" else max(2, num_data // 5)
    contestants = {
        "pvae eager": ours("eager", x[:fewer]),
        "pvae traced": ours("traced", x[:fewer]),
        "pvae compiled": ours("compiled", x),
        "pvae auto": ours("auto", x),
        "by hand": seconds(lambda images: plain.log_marginal(images, num_samples), flat[:fewer]),
        "by hand, torch.compile": seconds(
            lambda images: plain.log_marginal(images, num_samples, log_weights=compiled), flat[:fewer]
        ),
    }
    if device == "cuda":
        contestants["pvae graph"] = ours("graph", x)
    contestants["by hand, torch.compile"]()
    if rival_pythae.is_installed() and device == "cpu":
        other = rival_pythae.model_of(net, plain)

        def get_nll(images: Tensor) -> None:
            with torch.no_grad():
                other.get_nll(images, num_samples, min(100, num_samples))

        contestants["pythae get_nll"] = seconds(get_nll, flat[:4])
    contestants["bound: the products by torch.mm"] = lambda: _bound(net, device)
    case, unit = f"log p(x): {net}, K = {num_samples}", "s per million samples"
    if device == "cuda":
        case += ", GPU"
    rows = summed_up(case, unit, interleaved(contestants, blocks), ("pvae compiled", "by hand"))
    for row in rows:
        row["million_samples_per_second"] = 1 / row["value"]
    return rows


def _bound(net: Net, device: str) -> float:
    """Seconds per million samples of the decoder's products, at the speed of the largest of them."""
    widths = (net.latent_dim, *net.hidden[::-1], net.x_dim)
    flop = 2 * sum(a * b for a, b in itertools.pairwise(widths))
    rows, repeats = 2000 if device == "cpu" else 200_000, 20
    left, right = torch.randn(rows, widths[-2], device=device), torch.randn(widths[-2], widths[-1], device=device)
    torch.mm(left, right)
    started = clock(device)
    for _ in range(repeats):
        torch.mm(left, right)
    speed = 2 * rows * widths[-2] * widths[-1] * repeats / (clock(device) - started)
    return 1e6 * flop / speed


def on_gpu() -> Rows:
    """The rows of a GPU: the time of 10,000 images as a user would meet it, and everybody's samples per second."""
    torch.manual_seed(0)
    model, guide = (each.to("cuda") for each in pair(BURDA))
    x = torch.bernoulli(torch.full((GPU_IMAGES, *BURDA.x_shape), 0.2, device="cuda"))
    started = clock("cuda")
    pvae.log_marginal(model, guide, x, ImportanceSampling(5000), batch_size=100)
    seconds = clock("cuda") - started
    whole = one(f"log p(x): {GPU_IMAGES} images, K = 5000, GPU", "pvae auto", seconds, "s")
    return [whole, *_rows(BURDA, GPU_IMAGES, num_samples=5000, blocks=2, device="cuda")]


if __name__ == "__main__":
    run_alone("log_marginal", __doc__, measure)
