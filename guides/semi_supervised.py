"""The guide of data that are labelled in part: a classifier, and codes given the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import InferDict
from torch import BoolTensor, Tensor, nn
from torch.distributions import constraints

from pvae.guides.parts.amortized import Encoder, read
from pvae.guides.parts.hierarchical import Conditional
from pvae.guides.parts.laws import Sampler, categories, gaussian
from pvae.guides.parts.placing import in_plates
from pvae.models.semi_supervised_vae import SemiSupervisedVAE
from pvae.nets import class_numbers, one_hot
from pvae.pair.contexts import evaluation
from pvae.pair.outputs import require_shape
from pvae.pair.sites import LatentSite, as_batch
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import built, shown, widths

__all__ = ["SemiSupervised"]


class SemiSupervised(nn.Module):
    """A classifier, and Gaussians given the class: q(y | x) q(z | x, y), with the label for y where there is one.

    Where there is none, `ELBO` sums over all classes, each weighed by q(y | x); estimators and other objectives draw y
    (train these with `gradient="mixed"`). Data with labels teach the classifier nothing by themselves:
    `pvae.objectives.Supervised` adds weight * log q(y | x).

    Args:
        model: a `SemiSupervisedVAE`.
        example_batch: images (B, ...), or images and labels, read for their shapes.
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
            raise ValueError(f"classes are known for SemiSupervisedVAE, got {shown(model)}; use MeanField")
        hidden, min_scale = widths("hidden", hidden), check_min_scale(min_scale)
        x = as_batch(example_batch)[0]
        sites, self.num_classes = read(model, x), model.num_classes
        support = constraints.integer_interval(0, self.num_classes - 1)
        self.label = categories(LatentSite("y_unobserved", torch.Size(), support, (), sites[0].data_plate))
        self.laws = tuple(gaussian(site, min_scale) for site in sites)
        self.conditional = Conditional(self.num_classes, hidden, sum(law.num_outputs for law in self.laws))
        self.encoder = Encoder(x, self.conditional.num_features, hidden, encoder)
        self.conditional.to(self.encoder.head.weight.dtype)
        if classifier is not None:
            built("classifier", classifier, usual="pvae.nets.MLP(in_shape, (200,), num_classes)")
        self.classifier = Encoder(x, self.num_classes, hidden, None) if classifier is None else classifier

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sample the missing labels and every continuous site, for each datum of x (B, ...) with labels y."""
        pyro.module("semi_supervised", self)
        y = class_numbers(y, x)
        sample = Sampler()
        with in_plates([law.site for law in self.laws], len(x)) as inside:
            missing = cast(BoolTensor, y < 0)
            with poutine.mask(mask=missing), poutine.infer_config(config_fn=_summed):
                guessed = sample(self.label, self._logits(x))
            given = torch.where(y[:, None] >= 0, one_hot(y, self.num_classes).to(guessed), guessed)
            numbers = self.conditional(self.encoder(x), [given])
            for law, part in zip(self.laws, numbers.split([law.num_outputs for law in self.laws], -1), strict=True):
                with inside(law.site):
                    sample(law, part)

    def classify(self, x: Tensor) -> Tensor:
        """q(y | x) of data x (B, ...), (B, num_classes)."""
        with torch.no_grad(), evaluation(self.modules()):
            return self._logits(x).softmax(-1)

    def _logits(self, x: Tensor) -> Tensor:
        return require_shape("classifier", self.classifier(x), (len(x), self.num_classes))


def _summed(_: Any) -> InferDict:
    return {"enumerate": "parallel"}
