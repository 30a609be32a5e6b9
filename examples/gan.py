"""Samples without a likelihood: a GAN and an adversarial autoencoder (AAE) beside a VAE, on grey images.

All train by the same `pvae.fit`. A GAN's log p(x) is undefined, not merely unknown: its draws lie on a surface of
volume 0. The Parzen window gives it a number, of its draws blurred. The squared maximum mean discrepancy (MMD), 0 in
expectation for test data themselves, compares draws directly. On digits, after 500 epochs, 300 test data:

                log p(x), K = 200    Parzen, h = 0.2    1000 MMD^2 to test data
    training                             22.6           -0.4 +- 1.4
    GAN         undefined                 9.7            9.1 +- 2.4
    VAE          33.8                    18.4            3.1 +- 2.2     means, without noise, 4.0 +- 2.2
    AAE         -91.8                    14.4           -2.3 +- 1.7     means, without noise, -2.0 +- 1.7

Both log p(x) are lower bounds, of weights with a median k-hat of 2.5 and 1.5: not to be trusted. With divergence 100
instead of the default 10 the AAE's numbers are -58.7, -17.3 and 81.9. The figure shows what the samples look like.

    python examples/gan.py [--data-root FOLDER_OF_MNIST] [--smoke] [--out gan.png]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn
from torchvision.utils import make_grid

import pvae
from pvae.estimators import ImportanceSampling, ParzenWindow
from pvae.guides import MeanField
from pvae.models import VAE, Generator
from pvae.models.likelihoods import Gaussian
from pvae.nets import MLP
from pvae.objectives import ELBO, AdversarialAutoencoder, GenerativeAdversarial
from pvae.objectives.info import squared_mmd

LATENT_DIM, HIDDEN, BLOCKS = 16, (256, 256), 10


def discrepancy(samples: Tensor, test: Tensor) -> str:
    """Squared MMD of as many samples and test data, with its standard error over blocks of both."""
    samples, test = samples.flatten(1).double(), test.flatten(1).double()
    square = 2 * test.var(0).sum()
    pairs = zip(samples.chunk(BLOCKS), test.chunk(BLOCKS), strict=True)
    values = torch.stack([squared_mmd(mine, theirs, lambda d: (-d / (2 * square)).exp()) for mine, theirs in pairs])
    return f"{1000 * values.mean():.2f} +- {1000 * values.std() / BLOCKS**0.5:.2f}"


def main(smoke: bool, data_root: Path | None, out: Path) -> None:
    data = pvae.data.load("mnist" if data_root else "digits", root=data_root)
    epochs, num_test, draws, num_samples = (50, 1000, 10_000, 200) if data_root else (500, 300, 10_000, 200)
    if smoke:
        epochs, num_test, draws, num_samples = 1, 50, 100, 50
    test, shape, parzen = data.test[:num_test], data.shape, ParzenWindow(draws, bandwidth=0.2)
    table = Table("model", f"log p(x), K = {num_samples}", f"Parzen, {draws} draws, h = 0.2", "1000 MMD^2 to test")
    kernels = KernelDensity(bandwidth=0.2).fit(data.train[:draws].flatten(1))
    window = kernels.score_samples(test.flatten(1)).mean()
    table.add_row("training images", "", f"{window:.1f}", discrepancy(data.train[:num_test], test))
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    for axis, label in zip(axes, ("GAN", "VAE", "AAE"), strict=True):
        torch.manual_seed(0)
        decoder = nn.Sequential(MLP(LATENT_DIM, HIDDEN, shape, nn.ELU), nn.Sigmoid())
        if label == "GAN":
            model, guide = Generator(shape, LATENT_DIM, decoder=decoder), None
            objective = GenerativeAdversarial(data.train[:2], hidden=HIDDEN)
        else:
            model = VAE(shape, LATENT_DIM, likelihood=Gaussian("shared"), decoder=decoder)
            guide = MeanField(model, data.train[:2], hidden=HIDDEN)
            objective = ELBO() if label == "VAE" else AdversarialAutoencoder(model, data.train[:2])
        settings = {"lr": 2e-4, "betas": (0.5, 0.999)} if label == "GAN" else {"lr": 1e-3}
        optimizer = lambda leaves, settings=settings: torch.optim.Adam(leaves, **settings, fused=True)  # noqa: E731
        pvae.fit(model, guide, data, objective=objective, epochs=epochs, optimizer=optimizer)
        answer = "undefined"
        if guide is not None:
            found = pvae.log_marginal(model, guide, test, ImportanceSampling(num_samples))
            answer = f"{found.mean:.1f} (k-hat {found.khat.nanmedian():.2f})"
        window = pvae.log_marginal(model, None, test, parzen).mean
        drawn, means = (pvae.sample(model, num_test, seed=1, mean=mean)["x"] for mean in (False, True))
        table.add_row(label, answer, f"{window:.1f}", discrepancy(drawn, test))
        if guide is not None:
            table.add_row(f"{label}, means", "", "", discrepancy(means, test))
        axis.imshow(make_grid(means[:64], pad_value=0.5).clamp(0, 1).permute(1, 2, 0))
        axis.set(title=label, xticks=[], yticks=[])
    figure.savefig(out, dpi=150)
    Console().print(table)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--data-root", type=Path, help="folder of MNIST; without it, scikit-learn's digits")
    parser.add_argument("--out", type=Path, default=Path("gan.png"))
    main(**vars(parser.parse_args()))
