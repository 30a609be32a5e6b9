"""Burda's VAE on MNIST, trained and evaluated with pvae and by hand: seconds, and nats.

The net is Burda, Grosse and Salakhutdinov's (2016) with one stochastic layer: 784-200-200-50, tanh, and the decoder
mirrored, from Glorot's initial weights, the output biases at the data mean. MNIST's 60,000 training images are
binarised afresh at every step; Adam, learning rate 1e-3 that falls to 0 along half a cosine, batches of 100. This is a
short run (Burda's has 3,280 epochs and ends near 86.8 nats).

- pvae: `VAE` + `MeanField`, `fit(schedule="cosine")`, `log_marginal`, all else at its defaults.
- hand-written: the same in plain eager torch, as fast as it is written by hand: no handlers, no distributions, no
  check for nan, fused Adam, no `.item()` but one per epoch. It starts from the same weights.

How the clock runs. The two trainings advance by turns, one epoch each, in one process: `fit` calls back at the end of
every epoch, and the callback runs an epoch of the hand-written loop. So a busy neighbour, a warm processor or a slow
hour hits both alike, and neither run is cut short or split into calls. Either has its own random generator and its
own data, so both runs are what they would be alone. Each is charged everything between its turns' ends: pvae's first
turn starts before `fit`, so checking and tracing the pair are on its bill. "train ratio" is pvae's total over the
other's; "epoch ratio" is the median over epochs of the ratio within a turn, which one-off costs and hiccups do not
move.

Both nets are evaluated on the same binarised images, the first 1,000 of the test set, by importance sampling with
1,000 draws; by turns, three times; the seconds are medians. The hand-written estimate runs in chunks of the size that
is fastest for it, under `no_grad`, and keeps nothing but the estimate (pvae also reports its error, ESS and k-hat).
"+-" is the standard error over images; it says nothing of other training seeds, which one run cannot show.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from common import (
    BURDA,
    Net,
    PlainVAE,
    Rows,
    add_data_root,
    arguments,
    clock,
    fused_adam,
    interleaved,
    pair,
    paired_ratio,
    show,
    shuffled,
    write_json,
)
from torch import Tensor

import pvae
from pvae.data import DataSet
from pvae.nets import init_output_bias

COLUMNS = ("contestant", "train s", "train ratio", "s/epoch", "epoch ratio", "NLL, nats", "eval s", "eval ratio")
LR = 1e-3
MOST_NATS, MOST_RATIO = 98.0, 1.25


def measure(
    data_root: Path | None, epochs: int = 20, smoke: bool = False, device: str = "cpu"
) -> tuple[Rows, dict[str, Any]]:
    """One row per contestant, and what else there is to say about the run.

    Raises: ValueError without MNIST, unless it is a smoke test, which makes do with scikit-learn's digits.
    """
    data, images = _data(data_root, smoke)
    net = Net(data.shape, (8, 8), 2) if smoke else BURDA
    num_samples, batch_size = (20, 50) if smoke else (1000, 100)

    torch.manual_seed(0)
    model, guide = pair(net)
    init_output_bias(model.decoder, data.train.mean(0))
    model, guide, images = model.to(device), guide.to(device), images.to(device)
    plain = PlainVAE(net).to(device)
    plain.start_from(model, guide)
    ours, theirs = _train(model, guide, plain, data, epochs, batch_size)

    values: dict[str, Tensor] = {}

    def evaluate_ours() -> float:
        started = clock(device)
        estimator = pvae.estimators.ImportanceSampling(num_samples)
        values["pvae"] = pvae.log_marginal(model, guide, images, estimator).values
        return clock(device) - started

    def evaluate_theirs() -> float:
        started = clock(device)
        generator = torch.Generator(device).manual_seed(0)
        values["hand-written"] = plain.log_marginal(images.flatten(1), num_samples, generator).double().cpu()
        return clock(device) - started

    seconds = interleaved({"pvae": evaluate_ours, "hand-written": evaluate_theirs}, blocks=3)
    rows: Rows = []
    for contestant, turns in (("pvae", ours), ("hand-written", theirs)):
        rows.append(
            {
                "contestant": contestant,
                "train_seconds": sum(turns),
                "train_ratio": sum(turns) / sum(theirs),
                "epoch_seconds": statistics.median(turns),
                "epoch_ratio": paired_ratio(turns, theirs),
                "nll": -values[contestant].mean().item(),
                "nll_standard_error": _standard_error(values[contestant]),
                "eval_seconds": statistics.median(seconds[contestant]),
                "eval_ratio": paired_ratio(seconds[contestant], seconds["hand-written"]),
            }
        )
    difference = values["hand-written"] - values["pvae"]
    about = {
        "data": {**data.describe(), "num_test_images": len(images)},
        "epochs": epochs,
        "batch_size": batch_size,
        "num_samples": num_samples,
        "nll_difference": difference.mean().item(),
        "nll_difference_standard_error": _standard_error(difference),
        "smoke": smoke,
    }
    return rows, about


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text, under `COLUMNS`."""
    return (
        row["contestant"],
        f"{row['train_seconds']:.1f}",
        f"{row['train_ratio']:.2f}x",
        f"{row['epoch_seconds']:.3f}",
        f"{row['epoch_ratio']:.2f}x",
        f"{row['nll']:.2f} +- {row['nll_standard_error']:.2f}",
        f"{row['eval_seconds']:.2f}",
        f"{row['eval_ratio']:.2f}x",
    )


def notes(rows: Rows, about: dict[str, Any]) -> list[str]:
    """What belongs under the table."""
    lines = [
        f"NLL of pvae minus hand-written, same images: {about['nll_difference']:.2f} "
        f"+- {about['nll_difference_standard_error']:.2f}"
    ]
    if not about["smoke"] and about["epochs"] == 20:
        nats, ratio = rows[0]["nll"], rows[0]["train_ratio"]
        met = "met" if nats <= MOST_NATS and ratio <= MOST_RATIO else "MISSED"
        lines.append(f"target, NLL <= {MOST_NATS:g} nats in <= {MOST_RATIO:g}x the hand-written time: {met}")
    return lines


def title(about: dict[str, Any]) -> str:
    """What the table is of."""
    data = about["data"]
    return (
        f"{data['name']}, {about['epochs']} epochs, NLL of {data['num_test_images']} test images "
        f"from {about['num_samples']} draws"
    )


def _train(
    model: Any, guide: Any, plain: PlainVAE, data: DataSet, epochs: int, batch_size: int
) -> tuple[list[float], list[float]]:
    """Train both, one epoch each by turns; the seconds of each one's turns."""
    device = next(plain.parameters()).device.type
    loop = _HandWritten(plain, data.train.flatten(1).to(device), epochs, batch_size)
    ours: list[float] = []
    theirs: list[float] = []
    started = clock(device)

    def turn(record: dict[str, Any]) -> None:
        nonlocal started
        handed_over = clock(device)
        ours.append(handed_over - started)
        loop.epoch()
        started = clock(device)
        theirs.append(started - handed_over)

    pvae.fit(
        model,
        guide,
        data,
        epochs=epochs,
        batch_size=batch_size,
        lr=LR,
        schedule="cosine",
        callbacks=[turn],
        progress=False,
    )
    # What fit does after its last epoch is its own, too.
    ours[-1] += clock(device) - started
    return ours, theirs


class _HandWritten:
    """The hand-written training loop over intensities (N, x_dim) in [0, 1]."""

    def __init__(self, plain: PlainVAE, intensities: Tensor, epochs: int, batch_size: int) -> None:
        self.plain, self.intensities, self.batch_size = plain, intensities, batch_size
        self.steps = epochs * math.ceil(len(intensities) / batch_size)
        self.step = 0
        self.optimizer = fused_adam([*plain.parameters()], LR)
        self.generator = torch.Generator(intensities.device).manual_seed(0)

    def epoch(self) -> float:
        """Train for one epoch; the mean loss per datum."""
        group = self.optimizer.param_groups[0]
        total = self.intensities.new_zeros(())
        for batch in shuffled(self.intensities, self.batch_size, self.generator):
            # Setting the rate by hand costs less than a scheduler object.
            group["lr"] = LR / 2 * (1 + math.cos(math.pi * self.step / self.steps))
            # As fit does: four times as fast as torch.bernoulli.
            x = (torch.rand(batch.shape, generator=self.generator, device=batch.device) < batch).to(batch.dtype)
            self.optimizer.zero_grad()
            loss = self.plain.loss(x, self.generator)
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(x)
            self.step += 1
        return total.item() / len(self.intensities)


def _data(root: Path | None, smoke: bool) -> tuple[DataSet, Tensor]:
    """The training data, grey and drawn binary by whoever trains, and the test images, binary once for all."""
    if root is not None:
        loaded = pvae.data.load("mnist", root, binarize="dynamic")
    elif smoke:
        loaded = pvae.data.load("digits", binarize="dynamic")
    else:
        raise ValueError("MNIST is needed: give --data-root FOLDER (or PVAE_DATA_ROOT) that holds MNIST/raw")
    splits = loaded.splits
    # All 60,000 images, as Burda does. Without a validation split fit does not validate, nor does the other loop.
    train = torch.cat([splits["train"], splits["valid"]])
    train, test = (train[:200], splits["test"][:40]) if smoke else (train, splits["test"][:1000])
    data = DataSet(loaded.name, train, kind="unit", binarize="dynamic")
    return data, torch.bernoulli(test, generator=torch.Generator().manual_seed(0))


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))


def main() -> None:
    parser = arguments(__doc__)
    add_data_root(parser)
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training data (20)")
    options = parser.parse_args()
    try:
        rows, about = measure(options.data_root, options.epochs, options.smoke)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    show(title(about), COLUMNS, [cells(row) for row in rows], notes(rows, about))
    write_json(options.json, "mnist_burda", rows, **about)


if __name__ == "__main__":
    main()
