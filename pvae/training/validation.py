"""The validation split of a run: its bound after every epoch, and the weights of the best epoch so far."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from pvae.data.batches import Batches
from pvae.pair.contexts import evaluation, in_one_line, seeded
from pvae.pair.parameters import Parameters
from pvae.training.step import summed_bound

__all__ = ["Validation"]


class Validation:
    """Evaluates the objective on held-out data; with a `patience`, keeps the best weights and says when to stop.

    Args:
        model: the model.
        guide: the guide.
        objective: what is evaluated, with the KL in full.
        parameters: those of the pair and of what trains beside it.
        data: the validation split.
        patience: epochs without a better bound to wait; None never stops, and keeps no weights.

    Attributes: `best_epoch` and `best`, the weights after it; 0 and None without a patience.
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        objective: pyro.infer.ELBO,
        parameters: Parameters,
        data: Batches,
        patience: int | None,
    ) -> None:
        self.model, self.guide, self.objective, self.parameters = model, guide, objective, parameters
        self.data, self.patience = data, patience
        self.best_epoch, self._best_bound = 0, -math.inf
        self.best: dict[str, Tensor] | None = None

    def bound(self, epoch: int, train_bound: float, weights: AbstractContextManager[Any]) -> float:
        """The objective per datum, in nats, inside `weights`: nets in evaluation mode, fixed draws.

        Raises: FloatingPointError for one that is nan or plus infinity.
        """
        total, num_data = 0.0, 0
        self.data.reseed(0)
        with torch.no_grad(), seeded(0, self.parameters.device), evaluation(self.parameters.modules), weights:
            for batch in self.data.epoch():
                with in_one_line(batch):
                    total += summed_bound(self.objective, self.model, self.guide, batch)
                num_data += len(batch[0])
        if not (found := total / num_data) < math.inf:
            raise FloatingPointError(
                f"epoch {epoch}: the validation bound is {found}, the training bound {train_bound:.4g}; look "
                f"at the validation data, and at layers in evaluation mode. The weights of epoch {epoch} are kept"
            )
        return found

    def ends(self, epoch: int, bound: float, weights: AbstractContextManager[Any]) -> bool:
        """Take an epoch's bound in, and say whether it is time to stop; the best `weights` are kept."""
        if self.patience is None:
            return False
        if bound > self._best_bound:
            self._best_bound, self.best_epoch = bound, epoch
            with weights:
                self.best = {name: value.clone() for name, value in self.parameters.state().items()}
        return epoch - self.best_epoch >= self.patience
