"""Whose turn it is: which of guide and model a training step moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pvae.support.refusals import flag, whole

__all__ = ["Aggressive", "Alternating", "Turn", "Turns", "turns_for"]

Turn = Literal["both", "guide", "model"]


class Turns:
    """Both together, always. Others say whose turn it is from the losses and the mutual information they are told."""

    # Whether `note` must be told each loss at once, which makes a GPU wait for it; if not, it may get nan.
    needs_losses = False
    # Whether `end_epoch` measures the mutual information, for which the guide has to draw, and to have a density.
    measures_information = False

    def turn(self) -> Turn:
        """Whose turn the next step is."""
        return "both"

    def note(self, loss: float) -> None:
        """Take the loss of the step that was just made."""

    def end_epoch(self, mutual_information: Callable[[], float]) -> None:
        """Take stock; `mutual_information` measures I(x; z) of the guide, in nats."""


class Alternating(Turns):
    """The guide for some steps, then the model (or both) for some, over and over.

    Args:
        guide: steps of the guide alone.
        then: steps after them.
        joint: whether those move both, or the model alone.

    Raises: ValueError for fewer than 0 steps of the guide, or 1 step after them.
    """

    def __init__(self, guide: int = 1, then: int = 1, *, joint: bool = False) -> None:
        self.guide = whole("guide", guide, 0, usual=1)
        self.period, self.count = self.guide + whole("then", then, usual=1), 0
        self.after: Turn = "both" if flag("joint", joint) else "model"

    def turn(self) -> Turn:
        """Whose turn the next step is."""
        return "guide" if self.count % self.period < self.guide else self.after

    def note(self, loss: float) -> None:
        """Count the step."""
        self.count += 1


class Aggressive(Turns):
    """The guide until it gains nothing more, then one step of the model, as long as I(x; z) rises; then both together.

    Early in training the guide lags behind the true posterior, and the model learns to do without its latents; this
    lets the guide catch up. The guide's turn ends when the mean loss of `window` steps is no better than that of the
    `window` before, or after `most` steps. At the end of each epoch the mutual information is measured; the first
    epoch in which it has not risen ends the phase for good.

    Args:
        most: steps of the guide per step of the model, at most.
        window: steps that are compared with as many before.

    Raises: ValueError unless 1 <= window <= most.

    He, Spokoyny, Neubig and Berg-Kirkpatrick (2019), Lagging Inference Networks and Posterior Collapse in Variational
    Autoencoders.
    """

    needs_losses = True
    measures_information = True

    def __init__(self, most: int = 100, *, window: int = 10) -> None:
        self.most, self.window = whole("most", most, usual=100), whole("window", window, usual=10)
        if window > most:
            raise ValueError(f"window must be no larger than most, got {window} and {most}; try 10 and 100")
        self.is_over = False
        self._best_information = -math.inf
        self._losses: list[float] = []
        self._guide_is_done = False

    def turn(self) -> Turn:
        """Whose turn the next step is."""
        if self.is_over:
            return "both"
        return "model" if self._guide_is_done else "guide"

    def note(self, loss: float) -> None:
        """Decide whether the guide has had enough."""
        if self.turn() != "guide":
            self._losses, self._guide_is_done = [], False
            return
        self._losses.append(loss)
        count, window = len(self._losses), self.window
        if count >= 2 * window and count % window == 0:
            self._guide_is_done = sum(self._losses[-window:]) >= sum(self._losses[-2 * window : -window])
        self._guide_is_done |= count >= self.most

    def end_epoch(self, mutual_information: Callable[[], float]) -> None:
        """End the phase once I(x; z) has stopped rising."""
        if self.is_over:
            return
        information = mutual_information()
        self.is_over = information <= self._best_information
        self._best_information = max(information, self._best_information)


def turns_for(inference_steps: int | Turns) -> Turns:
    """The turns that `pvae.fit` was asked for: with a whole number n, the guide alone on all but every n-th step.

    Raises: ValueError for a number below 1.
    """
    if isinstance(inference_steps, Turns):
        return inference_steps
    steps = whole("inference_steps", inference_steps, usual="2, or pvae.training.Alternating() or Aggressive()")
    return Alternating(steps - 1, joint=True) if steps > 1 else Turns()
