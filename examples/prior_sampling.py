"""Why one does not estimate log p(x) by draws from the prior, and how the estimate itself says so.

Averaging p(x given z) over draws of the prior is unbiased for p(x), but a draw helps only if it falls where the
posterior is, and that share shrinks exponentially with the latent dims. The left panel is probabilistic PCA of
scikit-learn's digits, whose log p(x) is known: the error is exact. The right one is a VAE (2 epochs on MNIST), held
against the guide's largest K. What to see, for 100 test data and K = 1,000: in 2 dims the prior is 0.006 nats too low
for pPCA, in 5, 10 and 20 dims 0.65, 11.5 and 62; for the VAE 6, 23 and 29 from 5 dims on. Draws of the guide are 0.14
too low at most. No truth is needed to see it: from 5 dims on the median k-hat of the prior is 5 to 22 and its
effective sample size 1 or 2. Two minutes of one core.

    python examples/prior_sampling.py [--data-root FOLDER_OF_MNIST] [--smoke] [--out prior_sampling.png]
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
from pvae.estimators import ImportanceSampling, PriorSampling
from pvae.guides import FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian
from pvae.nets import init_output_bias


def main(smoke: bool, data_root: Path | None, out: Path) -> None:
    dims, counts = ((2, 10), (10, 100)) if smoke else ((2, 5, 10, 20), (10, 100, 1000))
    num_test, steps, epochs = (20, 50, 1) if smoke else (100, 1000, 2)
    data = pvae.data.load("digits" if data_root is None else "mnist", root=data_root, binarize="dynamic")
    grey = pvae.data.load("digits")
    pixels, held_out = ((part.flatten(1) / grey.train.std()).double() for part in (grey.train, grey.test))
    binary = data.observe(data.test[:num_test], torch.Generator().manual_seed(0))

    table = Table("model", "dims", "proposal", *(f"K = {count}" for count in counts), "median k-hat", "median ESS")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
    for colour, latent_dim in enumerate(dims):
        torch.manual_seed(0)
        linear = LinearGaussian.maximum_likelihood(pixels, latent_dim)
        of_linear = FullCovariance(linear, pixels[:2])
        pvae.fit(linear, of_linear, pixels, steps=steps, train="guide", schedule="cosine")
        vae = VAE(data.shape, latent_dim=latent_dim)
        init_output_bias(vae.decoder, data.train.mean(0))
        of_vae = MeanField(vae, data.train[:2])
        pvae.fit(vae, of_vae, data, epochs=epochs, schedule="cosine")
        cases = {"pPCA": (linear, of_linear, held_out[:num_test]), "VAE": (vae, of_vae, binary)}
        for axis, (name, (model, guide, x)) in zip(axes, cases.items(), strict=True):
            truth = linear.log_prob(x).mean().item() if name == "pPCA" else 0.0
            if name == "VAE":
                truth = pvae.log_marginal(model, guide, x, ImportanceSampling(counts[-1]), seed=1).mean
            for estimator, marker in ((PriorSampling, "o--"), (ImportanceSampling, "o-")):
                answers = [pvae.log_marginal(model, guide, x, estimator(count)) for count in counts]
                errors = [answer.mean - truth for answer in answers]
                last = answers[-1]
                proposal = "prior" if estimator is PriorSampling else "guide"
                numbers = (*(f"{error:.3f}" for error in errors), f"{last.khat.nanmedian():.2f}")
                table.add_row(name, f"{latent_dim}", proposal, *numbers, f"{last.ess.median():.0f}")
                label = f"{latent_dim} dims, {proposal}"
                axis.loglog(counts, [max(-error, 1e-3) for error in errors], marker, color=f"C{colour}", label=label)
            print(f"{name}, {latent_dim} dims: log p(x) {truth:.2f} nats", flush=True)
    Console().print(table)
    axes[0].set(title="pPCA of digits, log p(x) known", xlabel="K", ylabel="nats too low")
    axes[1].set(title="VAE, against the guide's largest K", xlabel="K")
    axes[1].legend(frameon=False, fontsize="x-small", ncols=2)
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--data-root", type=Path, help="folder of MNIST; without it, scikit-learn's digits")
    parser.add_argument("--out", type=Path, default=Path("prior_sampling.png"))
    main(**vars(parser.parse_args()))
