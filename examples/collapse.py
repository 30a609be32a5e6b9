"""Posterior collapse, and ways to train against it.

The decoder is autoregressive, p(x_i | x_<i, z), and learns fast: it does without z while the guide is still poor. All
rows train one model from one start, for as many steps. What to see, after 60 epochs of digits: plain training ends with
a KL of 0.05 nats and no active unit; KL warm-up with 2.4 and 15 of 16, 4 free bits with 4.2 and 14, at a price in the
bound, -24.0 and -23.7 nats against -23.0. A VampPrior alone collapses (-23.0), warmed up its KL is 4.2 (-24.3).
Aggressive steps end early, as I(x; z) does not rise, and change nothing (KL 0.05, -23.1).

    python examples/collapse.py [--data-root FOLDER_OF_BINARIZED_MNIST] [--smoke] [--out collapse.png]
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pvae
from pvae.guides import MeanField
from pvae.models.priors import StandardNormal, VampPrior, pseudo_inputs_near
from pvae.objectives import ELBO
from pvae.training import Aggressive, linear_warmup

LATENT_DIM, HIDDEN = 16, 200


class Autoregressive(nn.Module):
    """p(x | z) = prod_i Bernoulli(x_i; logits_i(x_<i, z)), one hidden layer, masked (Germain et al. 2015, MADE)."""

    def __init__(self, num_pixels: int, prior: nn.Module) -> None:
        super().__init__()
        self.prior, self.of_latents = prior, nn.Linear(LATENT_DIM, HIDDEN)
        self.of_pixels, self.logits = nn.Linear(num_pixels, HIDDEN), nn.Linear(HIDDEN, num_pixels)
        pixel, last_seen = torch.arange(num_pixels), torch.arange(HIDDEN) % (num_pixels - 1)
        self.register_buffer("sees", pixel <= last_seen[:, None])
        self.register_buffer("tells", pixel[:, None] > last_seen)

    def forward(self, x: Tensor) -> None:
        """The Pyro model of a batch x (B, ...)."""
        pyro.module("autoregressive", self)
        pixels = x.flatten(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            before = nn.functional.linear(pixels, self.of_pixels.weight * self.sees, self.of_pixels.bias)
            hidden = torch.tanh(before + self.of_latents(z))
            logits = nn.functional.linear(hidden, self.logits.weight * self.tells, self.logits.bias)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)


def main(smoke: bool, data_root: Path | None, out: Path) -> None:
    choice: Any = {"name": "binarized_mnist"} if data_root else {"name": "digits", "binarize": "dynamic"}
    data = pvae.data.load(root=data_root, **choice)
    epochs = 1 if smoke else 60
    warmup = linear_warmup(epochs * -(-len(data.train) // 100) // 2)
    remedies: dict[str, dict[str, Any]] = {
        "plain": {},
        "KL warm-up": {"kl_schedule": warmup},
        "free bits": {"objective": ELBO(free_bits=4.0)},
        "aggressive": {"inference_steps": Aggressive()},
        "VampPrior": {},
        "VampPrior, warm-up": {"kl_schedule": warmup},
    }
    test, start = data.observe(data.test, torch.Generator().manual_seed(0)), pseudo_inputs_near(data.train, 50)
    table = Table("training", "ELBO (nats)", "KL", "I(x; z)", "active units")
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, options in remedies.items():
        torch.manual_seed(0)
        prior = VampPrior(LATENT_DIM, start) if "Vamp" in name else StandardNormal(LATENT_DIM)
        model = Autoregressive(data.train[0].numel(), prior)
        guide = MeanField(model, data.train[:2])
        if isinstance(prior, VampPrior):
            prior.tie(guide)
        result = pvae.fit(model, guide, data, epochs=epochs, lr=1e-2, **options)
        units, bound = pvae.diagnostics.collapse(model, guide, test), -ELBO(16).loss(model, guide, test) / len(test)
        numbers = (bound, units.total_kl, units.mutual_information)
        table.add_row(name, *(f"{each:.2f}" for each in numbers), f"{units.num_active} of {LATENT_DIM}")
        axes.plot([record["valid_bound"] for record in result.history], label=name)
    axes.set(xlabel="epoch", ylabel="validation bound (nats)")
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=150)
    Console().print(table)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--data-root", type=Path, help="folder of binarised MNIST; without it, scikit-learn's digits")
    parser.add_argument("--out", type=Path, default=Path("collapse.png"))
    main(**vars(parser.parse_args()))
