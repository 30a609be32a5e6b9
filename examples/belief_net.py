"""A model with binary latents: three layers of 200 units, trained by score functions with two baselines.

A Bernoulli draw has no pathwise gradient. Both runs ascend the same importance-weighted bound with K = 5 from the same
start, with the score function; they differ in what a draw's signal is compared with: a net of the data (NVIL) or the
other draws of the same datum (VIMCO). What to see: both bounds rise, and the leave-one-out baseline, which needs no
training, is far ahead: after 20,000 steps of 24 data (under ten epochs) on the static binarised MNIST, log p(x) of the
test data is -107.5 with it and -114.4 with the net (five-sample bounds -115.9 and -125.3), a minute each on one core.
Much longer runs end, as published, at -92.8 and -93.7. The figure shows the validation bound.

    python examples/belief_net.py --data-root FOLDER_OF_MNIST [--smoke] [--out belief_net.png]
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

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import Bernoulli
from pvae.models import SigmoidBeliefNet
from pvae.nets import init_output_bias
from pvae.objectives import IWAE
from pvae.objectives.baselines import LeaveOneOut, Neural


class Centred(nn.Module):
    """Pixels less their mean over the data, flat: what the guide's first affine layer sees."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, H W)."""
        return (x - self.mean).flatten(1)


def main(smoke: bool, data_root: Path | None, out: Path) -> None:
    if data_root is None:
        data = pvae.data.load("digits", binarize="static")
    else:
        data = pvae.data.load("binarized_mnist", root=data_root)
    steps, units, num_samples = (60, 20, 50) if smoke else (20_000, 200, 1000)
    mean = data.train.float().mean(0)
    table = Table("baseline", "K = 5 bound (nats)", f"log p(x), K = {num_samples}", "+- data", "seconds")
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, baseline in (("neural (NVIL)", Neural(data.train[:2])), ("leave one out (VIMCO)", LeaveOneOut())):
        torch.manual_seed(0)
        model = SigmoidBeliefNet(data.shape, (units,) * 3)
        init_output_bias(model.layers[0], mean)
        guide = Bernoulli(model, data.train[:2], encoder=Centred(mean))
        objective = IWAE(5, gradient="score", baseline=baseline)
        result = pvae.fit(model, guide, data, objective=objective, steps=steps, batch_size=24, lr=1e-3)
        few, many = (
            pvae.log_marginal(model, guide, data, ImportanceSampling(count), progress=True)
            for count in (5, num_samples)
        )
        seconds = result.history[-1]["seconds"]
        numbers = (f"{few.mean:.2f}", f"{many.mean:.2f}", f"{many.standard_error:.2f}", f"{seconds:.0f}")
        table.add_row(name, *numbers)
        axes.plot([r["step"] for r in result.history], [r["valid_bound"] for r in result.history], label=name)
    Console().print(table)
    axes.set(xlabel="training step", ylabel="five-sample bound on validation data (nats)")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument(
        "--data-root", type=Path, help="folder of the binarised MNIST; without it, scikit-learn's digits"
    )
    parser.add_argument("--out", type=Path, default=Path("belief_net.png"))
    main(**vars(parser.parse_args()))
