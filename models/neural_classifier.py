"""A classifier: the fully observed model of a label given data."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.models.checks import check_part, check_shape, part_or
from pvae.nets import MLP
from pvae.pair.contexts import evaluation
from pvae.support.refusals import whole, widths

__all__ = ["NeuralClassifier"]


class NeuralClassifier(nn.Module):
    """A label given data, p(y | x) = Categorical(y | softmax(net(x))), with nothing latent.

    A batch is (x, y), y being one-hot labels (`DataSet.with_labels` gives them). Its guide is `pvae.guides.Empty`, with
    which every bound and every estimate is log p(y | x) itself, minus the cross-entropy: `pvae.fit` is maximum
    likelihood.

    Args:
        x_shape: shape of one datum, such as (1, 28, 28).
        num_classes: C.
        net: from (..., *x_shape) to the logits (..., C); by default an MLP with two hidden layers of 200 units.

    Sites: "y" (num_classes,), in the plate "data".

    Raises: ValueError for fewer than 2 classes, or a batch that does not have the shapes (B, *x_shape) and (B, C).

    Bishop (2006), Pattern Recognition and Machine Learning, section 5.2.
    """

    takes_labels = True

    def __init__(self, x_shape: Sequence[int], num_classes: int, *, net: nn.Module | None = None) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.num_classes = whole("num_classes", num_classes, 2, usual=10)
        self.net = part_or("net", net, lambda: MLP(self.x_shape, (200, 200), self.num_classes), usual="pvae.nets.MLP")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Run the model on data x (B, *x_shape) and one-hot labels y (B, C); returns the observed y."""
        fix = "give labels one-hot, as DataSet.with_labels does"
        check_part(self, "labels", y, (self.num_classes,), fix)
        pyro.module("neural_classifier", self)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.OneHotCategorical(logits=self._logits(x)), obs=y)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Class probabilities p(y | x), (B, C), for x (B, *x_shape), the net in evaluation mode."""
        with evaluation(self.modules()):
            return self._logits(x).softmax(-1)

    def _logits(self, x: Tensor) -> Tensor:
        check_shape(self, x)
        return self.net(x)
