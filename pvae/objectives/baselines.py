"""Baselines of score-function gradients: what a draw's signal is compared with, so that its noise falls.

A baseline that does not depend on the draw itself changes no expectation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pvae.nets import MLP
from pvae.objectives.means import Advantages
from pvae.pair.contexts import running
from pvae.pair.outputs import require_shape
from pvae.pair.sites import Batch, as_batch
from pvae.support.refusals import built, flag, number, widths

__all__ = ["Baseline", "LeaveOneOut", "Neural", "RunningMean"]


class Baseline(nn.Module, ABC):
    """From the signals of the draws to their advantages."""

    needs_others = False

    @abstractmethod
    def forward(self, signals: Tensor, others: Callable[[], Tensor], batch: Batch) -> Advantages:
        """The advantages of signals (K, B); `others` gives what the other draws predict of each signal, (K, B)."""


class LeaveOneOut(Baseline):
    """The other draws of the same datum: each signal minus itself with its log weight replaced by their mean.

    Under the ELBO that is the leave-one-out mean of Kool, van Hoof and Welling (2019), Buy 4 REINFORCE Samples, Get a
    Baseline for Free!; under IWAE it is VIMCO, by Mnih and Rezende (2016), Variational Inference for Monte Carlo
    Objectives. It needs at least 2 particles.
    """

    needs_others = True

    def forward(self, signals: Tensor, others: Callable[[], Tensor], batch: Batch) -> Advantages:
        """Signals minus what the others predict."""
        return Advantages(signals - others(), 1.0, 0.0)


class RunningMean(Baseline):
    """One number for all data: the exponential moving average of the signals seen before.

    Raises: ValueError unless 0 <= decay < 1.
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = number("decay", decay, least=0, below=1, usual=0.99)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, signals: Tensor, others: Callable[[], Tensor], batch: Batch) -> Advantages:
        """Signals minus their moving average up to now."""
        # Divided by the weight of what it has seen, so that the average is right from the second step on.
        centred = signals - (self.mean / self.weight.clamp(min=1e-12)).to(signals)
        self.mean.mul_(self.decay).add_((1 - self.decay) * signals.mean())
        self.weight.mul_(self.decay).add_(1 - self.decay)
        return Advantages(centred, 1.0, 0.0)


class Neural(Baseline):
    """A net of the data, trained beside the pair on the squared error, b(x) ~= E[signal | x], over a moving average.

    With `normalize` the gradient is divided by the running standard deviation of what is left, where that is above 1.

    Args:
        example_batch: a batch, read for its shapes.
        hidden: widths of the net's hidden layers (tanh).
        net: from the batch to (B, 1), to use instead.
        decay: of the moving averages.
        normalize: whether to divide by the running standard deviation.

    Raises: ValueError unless 0 <= decay < 1.

    Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks.
    """

    variance: Tensor

    def __init__(
        self,
        example_batch: Tensor | Batch,
        *,
        hidden: tuple[int, ...] = (100,),
        net: Callable[..., Tensor] | None = None,
        decay: float = 0.99,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.centre = RunningMean(decay)
        batch, hidden = as_batch(example_batch), widths("hidden", hidden, usual=(100,))
        if net is None:
            self.net: Callable[..., Tensor] = MLP(sum(part[0].numel() for part in batch), hidden, 1)
        else:
            self.net = built("net", net, usual="pvae.nets.MLP(in_shape, (100,), 1)")
        self.default, self.normalize, self.decay = net is None, flag("normalize", normalize), self.centre.decay
        self.register_buffer("variance", torch.ones(()))

    def forward(self, signals: Tensor, others: Callable[[], Tensor], batch: Batch) -> Advantages:
        """Signals minus average and net, and the squared error of the net."""
        error = self.centre(signals, others, batch).values - self._predict(batch).to(signals)
        scale: Tensor | float = 1.0
        if self.normalize:
            scale = 1 / self.variance.sqrt().clamp(min=1).to(signals)
            self.variance.mul_(self.decay).add_((1 - self.decay) * error.detach().square().mean())
        return Advantages(error.detach(), scale, error.square().mean(0))

    def _predict(self, batch: Batch) -> Tensor:
        """b(x), (B,)."""
        if self.default:
            weight = next(self.net.parameters())  # type: ignore[attr-defined]
            batch = (torch.cat([part.reshape(len(part), -1).to(weight) for part in batch], -1),)
        with running("net", batch):
            found = self.net(*batch)
        return require_shape("net", found, (len(batch[0]), 1)).squeeze(-1)
