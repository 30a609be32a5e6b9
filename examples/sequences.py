"""Digits as sequences of their rows, some cut short: a state-space model against rows that know nothing of each other.

Both models have the same emission, the same guide and the same budget; in one, p(z_t | z_t-1) is learned, in the other
it is the prior. A third of the digits break off after 4 to 7 rows, of which the density takes no notice. What to see:
what a row tells about the next, in nats per row, and digits completed from their upper half: the guide infers the
latents of the rows it sees, and the model goes on from there.

As measured on digits (seed 0, 60 epochs, K = 1000, 300 test digits): -3.195 nats per row with the learned transition,
-3.467 without; per digit -22.56 +- 0.33 and -24.47 +- 0.36; untrusted 4% and 0%. Three minutes on one core.

    python examples/sequences.py [--data-root FOLDER_OF_MNIST] [--smoke] [--out sequences.png]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import DataLoader

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import Recurrent
from pvae.models import StateSpace
from pvae.models.priors import StandardNormal
from pvae.models.transitions import Gated
from pvae.pair.contexts import seeded


class Forgetful(nn.Module):
    """p(z_t | z_t-1) = N(0, I): every step on its own."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.prior = StandardNormal(latent_dim)

    def forward(self, z: Tensor) -> Distribution:
        """Whatever z is."""
        return self.prior().expand(z.shape[:-1])


def cut_short(num: int, steps: int, seed: int) -> Tensor:
    """Which steps are observed, (num, steps): a third of the sequences end after half of theirs or more."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(steps // 2, steps, (num, 1), generator=draw)
    whole = torch.rand(num, 1, generator=draw) > 1 / 3
    return whole | (torch.arange(steps) < lengths)


def main(smoke: bool, data_root: Path | None, out: Path) -> None:
    epochs, num_samples, num_test = (1, 50, 10) if smoke else (60, 1000, 300)
    data = pvae.data.load("digits" if data_root is None else "mnist", root=data_root, binarize="dynamic")
    steps, latent_dim, step_mode = data.shape[1], 8, "eager" if smoke else "traced"

    def batch_of(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, observed = map(torch.stack, zip(*pairs, strict=True))
        return data.observe(x), observed

    rows = data.train[: 200 if smoke else None, 0]
    pairs = list(zip(rows, cut_short(len(rows), steps, 0), strict=True))
    test = data.observe(data.test[:num_test, 0], torch.Generator().manual_seed(0))
    observed = cut_short(len(test), steps, 1)
    table = Table("transition", "log p(x), nats per datum", "+- data", "nats per row", "untrusted")
    figure, axes = plt.subplots(2, 1, figsize=(8, 5), layout="constrained")
    for axis, transition in zip(axes, (Gated(latent_dim), Forgetful(latent_dim)), strict=True):
        torch.manual_seed(0)
        model = StateSpace((steps, data.shape[2]), latent_dim, transition=transition)
        guide = Recurrent(model, (test[:2], observed[:2]), hidden=(100,))
        loader = DataLoader(pairs, batch_size=100, shuffle=True, collate_fn=batch_of)
        pvae.fit(model, guide, loader, epochs=epochs, lr=2e-3, schedule="cosine", clip_norm=10.0, step_mode=step_mode)
        answer = pvae.log_marginal(model, guide, (test, observed), ImportanceSampling(num_samples, step_mode=step_mode))
        name, per_row = type(transition).__name__, f"{answer.values.sum() / observed.sum():.3f}"
        numbers = (f"{answer.mean:.2f}", f"{answer.standard_error:.2f}", per_row, f"{answer.fraction_untrusted:.0%}")
        table.add_row(name, *numbers)
        half, x = steps // 2, test[:10]
        z = pvae.encode(guide, (x, (torch.arange(steps) < half).expand(10, -1)), num_samples=4)[f"z{half}"]
        with torch.no_grad(), seeded(0):
            rest = model.given(model.forecast(z, steps - half)).mean
        completed = torch.cat([x[:, :half].expand(4, -1, -1, -1), rest], 2)
        axis.imshow(torch.cat([x[None], completed]).permute(0, 2, 1, 3).flatten(0, 1).flatten(1), cmap="gray_r")
        axis.set(title=f"{name}: digits, then 4 completions of their upper halves", xticks=[], yticks=[])
    figure.savefig(out, dpi=150)
    Console().print(table)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--data-root", type=Path, help="folder of MNIST; without it, scikit-learn's digits")
    parser.add_argument("--out", type=Path, default=Path("sequences.png"))
    main(**vars(parser.parse_args()))
