"""The guide of data that are labelled in part: a classifier, and codes given the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pvae.contexts import evaluation
from pvae.guides.amortized import Encoder, read
from pvae.guides.hierarchical import Conditional, Draws
from pvae.guides.placing import in_plates, width
from pvae.models.semi_supervised_vae import SemiSupervisedVAE
from pvae.nets import one_hot
from pvae.sites import as_batch

__all__ = ["SemiSupervised"]


class SemiSupervised(nn.Module):
    """A classifier, and Gaussians given the class: q(y | x) q(z | x, y), with the label for y where there is one.

    Where there is none, `ELBO` sums over all classes, each weighed by q(y | x); estimators and other objectives draw y
    (train these with `gradient="mixed"`). Data with labels teach the classifier nothing by themselves:
    `pvae.objectives.Supervised` adds weight * log q(y | x).

    Args:
        model: a `SemiSupervisedVAE`.
        example_batch: images (B, ...), or images and labels (B,), read for their shapes.
        hidden: widths of the hidden layers (tanh) of the classifier, of the encoder, and of the net given the class.
        encoder: a net from x to features (B, F), used instead of the default encoder.
        classifier: a net from x to logits (B, num_classes), used instead of the default.
        min_scale: floor on each scale.

    Raises: ValueError for another model, or data of another shape than the example.

    Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised Learning with Deep Generative Models (M2).
    """

    def __init__(
        self,
        model: SemiSupervisedVAE,
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        classifier: Callable[..., Tensor] | None = None,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        if not isinstance(model, SemiSupervisedVAE):
            raise ValueError(f"classes are known for SemiSupervisedVAE, got {type(model).__name__}; use MeanField")
        x = as_batch(example_batch)[0]
        self.sites, self.num_classes, self.min_scale = read(model, x), model.num_classes, min_scale
        self.conditional = Conditional(self.num_classes, hidden, 2 * sum(map(width, self.sites)))
        self.encoder = Encoder(x, self.conditional.num_features, hidden, encoder)
        self.conditional.to(self.encoder.head.weight.dtype)
        self.classifier = Encoder(x, self.num_classes, hidden, None) if classifier is None else classifier

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sample the missing labels and every continuous site, for each datum of x (B, ...) and labels y (B,)."""
        pyro.module("semi_supervised", self)
        y = x.new_full((len(x),), -1, dtype=torch.int64) if y is None else y
        classes, draws = dist.Categorical(logits=self.classifier(x)), Draws()
        with in_plates(self.sites, len(x)) as inside:
            with poutine.mask(mask=y < 0):
                guessed = pyro.sample("y_unobserved", classes, infer={"enumerate": "parallel"})
            features = self.encoder(x)
            given = one_hot(torch.where(y >= 0, y, guessed), self.num_classes).to(features)
            numbers = self.conditional(features, [given])
            parts = numbers.split([2 * width(site) for site in self.sites], -1)
            for site, part in zip(self.sites, parts, strict=True):
                with inside(site):
                    draws.sample(site, part, self.min_scale)

    def classify(self, x: Tensor) -> Tensor:
        """q(y | x) of data x (B, ...), (B, num_classes)."""
        with torch.no_grad(), evaluation(self.modules()):
            return self.classifier(x).softmax(-1)
