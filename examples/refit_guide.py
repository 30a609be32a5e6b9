"""A better proposal for a model that stays as it is: the guide is trained once more, alone.

A VAE is trained with the mean-field guide. A copy of the guide then goes on against the frozen model, by the weighted
bound with its doubly reparameterised gradient, and the two are used as one mixture, too. What to see, on MNIST after 20
epochs and 10 of refitting: the bound of 50 samples rises from -98.14 to -97.55, the median k-hat falls from 1.02 to
0.93. The model is one and the same: a better proposal only comes nearer to its log p(x), with lighter tails (there is
still a long way to go). The figure compares the k-hat of every test datum.

    python examples/refit_guide.py [--data-root FOLDER_OF_MNIST] [--smoke] [--out refit_guide.png]
"""

import argparse
import copy
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table

import pvae
from pvae.estimators import GuideMixture, ImportanceSampling
from pvae.guides import MeanField
from pvae.models import VAE
from pvae.nets import init_output_bias
from pvae.objectives import IWAE


def main(smoke: bool, data_root: Path | None, out: Path) -> None:
    epochs, num_samples, num_test = (1, 60, 20) if smoke else (20, 1000, 1000)
    data = pvae.data.load("digits" if data_root is None else "mnist", root=data_root, binarize="dynamic")
    torch.manual_seed(0)
    model = VAE(data.shape, latent_dim=20)
    init_output_bias(model.decoder, data.train.mean(0))
    first = MeanField(model, data.train[:2])
    pvae.fit(model, first, data, epochs=epochs, schedule="cosine")
    better = copy.deepcopy(first)
    objective = IWAE(20, gradient="dreg")
    pvae.fit(model, better, data, objective=objective, epochs=epochs // 2 or 1, schedule="cosine", train="guide")

    test = data.observe(data.test[:num_test], torch.Generator().manual_seed(0))
    rows = {
        "trained with the model": (first, ImportanceSampling(num_samples)),
        "refitted to the frozen model": (better, ImportanceSampling(num_samples)),
        "both as a mixture": (first, GuideMixture([better], num_samples)),
    }
    table = Table("proposal", "IWAE-50 bound", f"log p, K = {num_samples}", "+- draws", "median k-hat", "untrusted")
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, (guide, estimator) in rows.items():
        few = GuideMixture([better], 50) if isinstance(estimator, GuideMixture) else ImportanceSampling(50)
        bound = pvae.log_marginal(model, guide, test, few)
        answer = pvae.log_marginal(model, guide, test, estimator, progress=True)
        numbers = (bound.mean, answer.mean, answer.mc_standard_error, answer.khat.nanmedian().item())
        table.add_row(name, *(f"{number:.3f}" for number in numbers), f"{answer.fraction_untrusted:.0%}")
        axes.hist(answer.khat.clamp(-1, 2), bins=40, range=(-1, 2), histtype="step", label=name)
    axes.axvline(answer.khat_threshold, linestyle="--", color="grey", label="threshold")
    axes.set(xlabel="k-hat of a test datum", ylabel="data")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
    Console().print(table)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--data-root", type=Path, help="folder of MNIST; without it, scikit-learn's digits")
    parser.add_argument("--out", type=Path, default=Path("refit_guide.png"))
    main(**vars(parser.parse_args()))
