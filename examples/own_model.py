"""A model of one's own, no VAE, with guides that build themselves: digits as overlapping parts.

A pixel of scikit-learn's digits is a count, the black dots among 16: `Binomial(16)` is its distribution, no Gaussian.
The class below says how dots come about: each active part may blacken a dot, whatever the others do. Activities are
positive and live in a plate of their own within that of the data. What to see: three guides read that off the model
and build themselves, and the one that knows what is positive (gamma) is best: after 200 epochs of 1,297 digits (a
minute of one core for all) the ELBO on 300 test digits is -171.2 nats with it, -173.1 with Gaussians carried to the
positive numbers, -192.5 with a full covariance, and log p(x) with K = 1,000 -165.5, -166.2 and -184.5: lower bounds
and no more, says the median k-hat (1.07, 1.32, 1.30). The figure shows the parts, digits beside what parts make of
them, and draws.

    python examples/own_model.py [--smoke] [--out own_model.png]
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.utils import make_grid

import pvae
from pvae.data import DataSet
from pvae.estimators import ImportanceSampling
from pvae.guides import FullCovariance, MeanField


class Parts(nn.Module):
    """Noisy-or: a dot stays white with probability exp(-sum_t activity_t part_t), activity_t ~ Gamma(a_t, 1).

    Sites: "activity", in the plate "parts" within "data", and "x" (64,), the black dots of 16 in each block.
    """

    def __init__(self, num_parts: int = 12) -> None:
        super().__init__()
        self.x_shape = (64,)
        self.log_shape = nn.Parameter(torch.zeros(num_parts))
        self.log_parts = nn.Parameter(torch.randn(num_parts, 64) - 2)

    def forward(self, x: Tensor) -> None:
        """The Pyro model of a batch x (B, 64)."""
        pyro.module("parts", self)
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("parts", len(self.log_shape), dim=-1):
                activity = pyro.sample("activity", dist.Gamma(self.log_shape.exp(), 1.0))
            ink = activity @ self.log_parts.exp()
            logits = ink.clamp(1e-4, 30.0).expm1().log()
            pyro.sample("x", dist.Binomial(16, logits=logits[..., None, :]).to_event(1), obs=x[:, None])


def main(smoke: bool, out: Path) -> None:
    epochs, num_samples = (1, 50) if smoke else (200, 1000)
    digits = pvae.data.load("digits")
    counts = DataSet("digits", *(16 * part.flatten(1) for part in digits.splits.values()), kind="counts")
    print("findings of pvae.check:", pvae.check(Parts(), MeanField(Parts(), counts.train[:2]), counts.train[:8]))
    gamma = partial(MeanField, family="gamma")
    guides = {"MeanField": MeanField, "FullCovariance": FullCovariance, "MeanField, gamma": gamma}
    table = Table("guide", "ELBO", f"log p, K = {num_samples}", "+- data", "median k-hat", "untrusted", "seconds")
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.5), layout="constrained")
    for name, build in guides.items():
        torch.manual_seed(0)
        model = Parts()
        guide = build(model, counts.train[:2])
        result = pvae.fit(model, guide, counts, epochs=epochs, lr=3e-3, schedule="cosine", clip_norm=100.0)
        bound = pvae.log_marginal(model, guide, counts, ImportanceSampling(1))
        answer = pvae.log_marginal(model, guide, counts, ImportanceSampling(num_samples))
        numbers = (bound.mean, answer.mean, answer.standard_error, answer.khat.nanmedian())
        seconds = f"{result.history[-1]['seconds']:.0f}"
        table.add_row(name, *(f"{number:.2f}" for number in numbers), f"{answer.fraction_untrusted:.0%}", seconds)
    Console().print(table)

    parts = 1 - (-model.log_parts.detach().exp()).exp()
    rebuilt = pvae.reconstruct(model, guide, counts.test[:12])["x"].reshape(-1, 64) / 16
    pairs = torch.stack([counts.test[:12] / 16, rebuilt], 1).flatten(0, 1)
    drawn = pvae.sample(model, 24, mean=True)["x"].reshape(-1, 64) / 16
    titles = ("the parts", "digits and what the parts make of them", "draws from the model")
    for axis, title, images in zip(axes, titles, (parts, pairs, drawn), strict=True):
        axis.imshow(make_grid(images.reshape(-1, 1, 8, 8), nrow=4, padding=1, pad_value=0.5)[0], cmap="Greys")
        axis.set_title(title, fontsize="small")
        axis.axis("off")
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("own_model.png"))
    main(**vars(parser.parse_args()))
