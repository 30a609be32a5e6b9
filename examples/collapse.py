"""Posterior collapse, and five ways to train against it.

The decoder is autoregressive, p(x_i | x_<i, z): it can do much of the work without z, and early on, while the guide is
still poor, that is the easy way out. Each row trains the same model from the same start, for as many steps. What to
see:

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
from pvae.nets import MLP, init_output_bias
from pvae.objectives import ELBO
from pvae.training import Aggressive, linear_warmup

LATENT_DIM = 16


class Autoregressive(nn.Module):
    """p(x | z) = prod_i Bernoulli(x_i; logits_i(z) + sum_j<i W_ij x_j), pixels in reading order."""

    def __init__(self, mean: Tensor, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = MLP(LATENT_DIM, (200,), mean.numel())
        init_output_bias(self.decoder, mean)
        self.weight = nn.Parameter(torch.zeros(mean.numel(), mean.numel()))

    def forward(self, x: Tensor) -> None:
        """The Pyro model of a batch x (B, ...)."""
        pyro.module("autoregressive", self)
        pixels = x.flatten(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            logits = self.decoder(z) + pixels @ self.weight.tril(-1).T
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)


def main(smoke: bool, data_root: Path | None, out: Path) -> None:
    if data_root is None:
        data = pvae.data.load("digits", binarize="static")
    else:
        data = pvae.data.load("binarized_mnist", root=data_root)
    epochs = 2 if smoke else 100
    warmup = linear_warmup(epochs * -(-len(data.train) // 100) // 2)
    mean = data.train.float().mean(0)
    remedies: dict[str, dict[str, Any]] = {
        "plain": {},
        "KL warm-up": {"kl_schedule": warmup},
        "free bits": {"objective": ELBO(free_bits=4.0)},
        "aggressive": {"inference_steps": Aggressive()},
        "VampPrior": {},
        "VampPrior, warm-up": {"kl_schedule": warmup},
    }

    table = Table("training", "ELBO (nats)", "KL", "I(x; z)", "active units", "seconds")
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, options in remedies.items():
        torch.manual_seed(0)
        is_vamp = name.startswith("VampPrior")
        prior = VampPrior(LATENT_DIM, pseudo_inputs_near(data.train, 100)) if is_vamp else StandardNormal(LATENT_DIM)
        model = Autoregressive(mean, prior)
        guide = MeanField(model, data.train[:2])
        if is_vamp:
            model.prior.tie(guide)
        result = pvae.fit(model, guide, data, epochs=epochs, **options)
        bound = -ELBO(16).loss(model, guide, data.test) / len(data.test)
        units = pvae.diagnostics.collapse(model, guide, data)
        table.add_row(
            name,
            f"{bound:.2f}",
            f"{units.total_kl:.2f}",
            f"{units.mutual_information:.2f}",
            f"{units.num_active} of {LATENT_DIM}",
            f"{result.history[-1]['seconds']:.0f}",
        )
        axes.plot([record["valid_bound"] for record in result.history], label=name)
    axes.set(xlabel="epoch", ylabel="validation bound (nats)")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)
    Console().print(table)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--data-root", type=Path, help="folder of binarised MNIST; without it, scikit-learn's digits")
    parser.add_argument("--out", type=Path, default=Path("collapse.png"))
    main(**vars(parser.parse_args()))
