"""Probabilistic PCA twice: its maximum likelihood in closed form, and the same model learned as a linear VAE.

Probabilistic PCA is the one VAE whose answer is known: the best W spans the leading principal directions, and log
p(x) is a Gaussian's. The same model, trained by the ELBO with an affine mean-field guide, has to arrive there; a
diagonal guide even picks the principal directions themselves out of all rotations of W, which have the same
likelihood. What to see, on scikit-learn's digits, 5 latents, after 20,000 steps of 250 data (109 s): log p(x) of the
training data is -53.600 nats, 0.0006 short of the optimum, and of the test data -54.274 against -54.275 +- 0.59; the
ELBO is within 0.002 of it, the noise scale 0.5052 both times. |cos| with the principal directions is 0.894, 0.893,
0.993, 0.9999 and 0.9999: the first two have variances within 7 % of each other, so that turning their plane gains
next to nothing, and it is the last thing to be learned. The figure shows the gap by step, and the directions as
images.

    python examples/ppca.py [--smoke] [--out ppca.png]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import Exact, MeanField
from pvae.models import LinearGaussian
from pvae.objectives import ELBO

LATENT_DIM = 5


def main(smoke: bool, out: Path) -> None:
    steps = 200 if smoke else 20_000
    data = pvae.data.load("digits")
    unit = data.train.std()  # one number for all pixels, which leaves the directions what they are
    train, test = ((part.flatten(1) / unit).double() for part in (data.train, data.test))
    best = LinearGaussian.maximum_likelihood(train, LATENT_DIM)
    optimum = best.log_prob(train).mean().item()

    torch.manual_seed(0)
    model = LinearGaussian(train.shape[1], LATENT_DIM).double()
    model.loc.data.copy_(train.mean(0))
    guide = MeanField(model, train, encoder=nn.Identity()).double()  # an affine map to loc and scale, and no net
    gaps = []
    result = pvae.fit(
        model,
        guide,
        train,
        objective=ELBO(kl="analytic"),
        steps=steps,
        batch_size=250,
        lr=2e-2,
        schedule="cosine",
        callbacks=[lambda record: gaps.append((record["step"], optimum - model.log_prob(train).mean().item()))],
    )
    order = model.weight.norm(dim=0).argsort(descending=True)
    learned = nn.functional.normalize(model.weight.detach()[:, order], dim=0)
    directions = nn.functional.normalize(best.weight.detach(), dim=0)
    cosines = (directions * learned).sum(0)

    table = Table("model", "log p, train", "log p, test", "+- data", "ELBO, test", "noise scale")
    for name, each, posterior in (("closed form", best, Exact(best)), ("linear VAE", model, guide)):
        bound = pvae.log_marginal(each, posterior, test, ImportanceSampling(1))
        exact = each.log_prob(test)
        numbers = (each.log_prob(train).mean(), exact.mean(), exact.std() / len(exact) ** 0.5, bound.mean)
        table.add_row(name, *(f"{number:.3f}" for number in numbers), f"{each.log_scale.exp():.4f}")
    Console().print(table)
    print(f"short of the optimum by {gaps[-1][1]:.4f} nats after {result.history[-1]['seconds']:.0f} s")
    planes = torch.linalg.svdvals(directions.T @ torch.linalg.qr(learned).Q)
    print("|cos| of the principal directions:", *(f"{cosine:.4f}" for cosine in cosines.abs()))
    print("cos of the angles between the two subspaces:", *(f"{cosine:.6f}" for cosine in planes))

    figure, axes = plt.subplot_mosaic([["gap", *"01234"], ["gap", *"56789"]], figsize=(10, 3.5), layout="constrained")
    figure_rows = torch.cat([directions.T, learned.T * cosines.sign()[:, None]])
    for index, image in enumerate(figure_rows):
        axes[f"{index}"].imshow(image.reshape(data.shape[-2:]), cmap="RdBu")
        axes[f"{index}"].set(xticks=[], yticks=[])
    axes["0"].set_ylabel("closed form")
    axes["5"].set_ylabel("linear VAE")
    axes["gap"].semilogy(*zip(*gaps, strict=True))
    axes["gap"].set(xlabel="training step", ylabel="short of the optimum (nats)")
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("ppca.png"))
    main(**vars(parser.parse_args()))
