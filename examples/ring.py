"""A Gaussian pushed through g(z) = z / 10 + z / |z| is a ring: what a decoder does, and what a guide has to undo.

What to see: the pushed points have their mass near a ring, where no Gaussian could put it, and log p(x) is known, by
a Bessel function in polar coordinates (`pvae.truth.ring`) and by quadrature over z: -1.1901 nats both. Going back is
the hard part: the posterior of one x is a wedge, narrow across and long outwards. After 2,000 steps with the model
left alone, the ELBO of 200 test points is below log p(x) by 1.09 (mean field), 0.89 (full covariance) and 0.15 nats
(spline flow), which is the KL divergence from the posterior; importance sampling with K = 1,000 is still 0.26, 0.14
and 0.014 below, and a median k-hat of 0.84, 0.82 and 0.61 says which to trust. A minute of one core in all. The
figure shows z, x and p(x), and draws of each guide on the posterior of one x.

    python examples/ring.py [--smoke] [--out ring.png]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table

import pvae
from pvae.estimators import ImportanceSampling, Quadrature
from pvae.guides import FullCovariance, MeanField, SplineFlow


def lattice(reach: float, num: int) -> torch.Tensor:
    """Points of a square about the origin, (num^2, 2)."""
    line = torch.linspace(-reach, reach, num, dtype=torch.float64)
    return torch.cartesian_prod(line, line).flip(1)


def log_posterior(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """log p(x, z) of one x (2,) at points z (N, 2), up to a constant."""
    loc = z / 10 + z / z.norm(dim=-1, keepdim=True)
    return -0.5 * z.square().sum(-1) - 0.5 * ((x - loc) / 0.1).square().sum(-1)


def main(smoke: bool, out: Path) -> None:
    steps, num_samples, num_test = (30, 50, 5) if smoke else (2000, 1000, 200)
    model = pvae.truth.ring().model
    draws = pvae.sample(model, 2000, like=torch.ones(1, 2, dtype=torch.float64), seed=1)
    test = pvae.sample(model, num_test, like=torch.ones(1, 2, dtype=torch.float64), seed=2)["x"]
    exact = pvae.truth.ring(test).log_prob
    integrated = pvae.log_marginal(model, None, test, Quadrature()).values
    print(f"log p(x) {exact.mean():.4f} nats, by quadrature over z {integrated.mean():.4f}")

    figure, axes = plt.subplots(2, 3, figsize=(9, 6), layout="constrained")
    colours = torch.atan2(*draws["z"].T)
    axes[0, 0].scatter(*draws["z"].T, s=2, c=colours, cmap="twilight")
    axes[0, 0].set_title("z, Gaussian")
    axes[0, 1].scatter(*draws["x"].T, s=2, c=colours, cmap="twilight")
    axes[0, 1].set_title("x = g(z) + noise")
    grid = lattice(1.8, 120)
    axes[0, 2].imshow(pvae.truth.ring(grid).log_prob.exp().reshape(120, 120), extent=(-1.8, 1.8, -1.8, 1.8))
    axes[0, 2].set_title("p(x), exact")

    shown = test[:1]
    grid = lattice(3.0, 120)
    posterior = log_posterior(shown[0], grid).softmax(0).reshape(120, 120)
    table = Table("guide", "short of log p(x): ELBO", f"K = {num_samples}", "+- draws", "median k-hat", "ESS")
    for axis, family in zip(axes[1], (MeanField, FullCovariance, SplineFlow), strict=True):
        torch.manual_seed(0)
        guide = family(model, draws["x"][:2], hidden=(64, 64))
        pvae.fit(model, guide, draws["x"], steps=steps, schedule="cosine", train="guide")
        one = pvae.log_marginal(model, guide, test.repeat(100, 1), ImportanceSampling(1))
        many = pvae.log_marginal(model, guide, test, ImportanceSampling(num_samples))
        table.add_row(
            family.__name__,
            f"{exact.mean() - one.mean:.3f}",
            f"{exact.mean() - many.mean:.4f}",
            f"{many.mc_standard_error:.4f}",
            f"{many.khat.nanmedian():.2f}",
            f"{many.ess.median():.0f}",
        )
        z = pvae.encode(guide, shown, num_samples=500)["z"][:, 0]
        axis.imshow(posterior, extent=(-3, 3, -3, 3), origin="lower", cmap="Greys")
        axis.scatter(*z.T, s=2, color="C1")
        axis.set(title=f"{family.__name__} on p(z given x)", xlim=(-3, 3), ylim=(-3, 3))
    for axis in axes[0]:
        axis.set_aspect("equal")
    Console().print(table)
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("ring.png"))
    main(**vars(parser.parse_args()))
