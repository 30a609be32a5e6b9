"""The guide of sequences that reads them from the end and infers them from the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pvae.guides.parts.amortized import AmortizedGuide, read, width_given
from pvae.guides.parts.hierarchical import Conditional, Draws
from pvae.guides.parts.placing import in_plates, width
from pvae.pair.sites import LatentSite, as_batch
from pvae.support.arguments import check_min_scale
from pvae.support.glorot import glorot
from pvae.support.refusals import widths

__all__ = ["Recurrent"]


class Recurrent(AmortizedGuide):
    """Gaussian steps, each from the one before and all data to come: q(z | x) = prod_t q(z_t | z_t-1, h_t).

    h_t = GRU(x_t, h_t+1) runs back from the last step. The exact posterior of a state-space model factorises this way:
    z_t depends on the past through z_t-1 alone. One net serves all steps, loc = A z_t-1 + a(z_t-1, h_t) and the scale
    likewise from z_t-1 and h_t. Of a batch (x, observed), x_t counts only where observed_t, and the GRU sees which
    steps those are, so that steps after the last one can learn to follow the model's own transition.

    Args:
        model: any model with one latent site per step, first to last; its sites are read from one run.
        example_batch: x (B, T, ...), or (x, observed) with observed (B, T), read for their shapes.
        hidden: widths of the hidden layers (tanh) of the net of a step; the GRU is as wide as the first.
        encoder: a net from the batch to features of each step, (B, T, F), used instead of the GRU.
        min_scale: floor on each scale.

    Raises: ValueError for discrete sites, a model without one latent site per step, all of one shape, or data of
        another shape than the example.

    Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State Space Models (their DKS).
    """

    name = "recurrent"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200,),
        encoder: Callable[..., Tensor] | None = None,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        hidden = widths("hidden", hidden, usual=(200,))
        batch = as_batch(example_batch)
        self.sites = read(model, example_batch)
        self.num_steps = _steps(self.sites, batch)
        self.min_scale = check_min_scale(min_scale)
        own = width(self.sites[0])
        self.net = Conditional(own, hidden, 2 * own)
        self.linear = glorot(nn.Linear(own, own))
        self.start = nn.Parameter(torch.zeros(own))
        if encoder is None:
            self.encoder: Callable[..., Tensor] = _Backward(batch, self.net.num_features)
            num_features = self.net.num_features
        else:
            self.encoder = encoder
            num_features = width_given("encoder", encoder, batch, ("B", "T"))
        self.head = glorot(nn.Linear(num_features, self.net.num_features))
        if batch[0].is_floating_point():
            self.to(batch[0].dtype)

    def numbers(self, *batch: Tensor) -> Tensor:
        """What the encoder says of each step, (B, T, num_outputs)."""
        numbers: Tensor = self.head(self.encoder(*batch))
        return numbers

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each step, (B, T, num_outputs)."""
        features = numbers.unbind(1)
        draws = Draws()
        before = self.start.expand(1, len(numbers), -1)
        with in_plates(self.sites, len(numbers)) as inside:
            for index, (site, own) in enumerate(zip(self.sites, features, strict=True)):
                loc, raw = self.net(own, [before]).chunk(2, -1)
                of_site = torch.cat([loc + self.linear(before), raw], -1)
                with inside(site):
                    draws.sample(site, of_site if index else of_site[0], self.min_scale)
                before = draws.rows[-1]


class _Backward(nn.Module):
    """Features of each step from it and all that follow: h_t = GRU([x_t, observed_t], h_t+1), (B, T, width)."""

    def __init__(self, batch: Sequence[Tensor], width: int) -> None:
        super().__init__()
        self.shapes = [tuple(part.shape[1:]) for part in batch]
        self.cell = nn.GRUCell(batch[0][0, 0].numel() + len(batch) - 1, width)
        self.end = nn.Parameter(torch.zeros(width))

    def forward(self, *batch: Tensor) -> Tensor:
        """A batch x (B, T, ...), or with observed (B, T)."""
        shapes = [tuple(part.shape[1:]) for part in batch]
        if shapes != self.shapes:
            expected, got = (", ".join(map(str, each)) for each in (self.shapes, shapes))
            raise ValueError(
                f"the guide was built for data of shape {expected}, got {got}; reshape the data, or build it for them"
            )
        x = batch[0].flatten(2) if batch[0].dim() > 2 else batch[0][..., None]
        x = x.to(self.end)
        if len(batch) > 1:
            observed = batch[1].to(x)[..., None]
            x = torch.cat([x * observed, observed], -1)
        h = self.end.expand(len(x), -1)
        features = []
        for step in reversed(x.unbind(1)):
            h = self.cell(step, h)
            features.append(h)
        return torch.stack(features[::-1], 1)


def _steps(sites: Sequence[LatentSite], batch: Sequence[Tensor]) -> int:
    """T, once sites and data agree about it."""
    shapes = {site.event_shape for site in sites}
    steps = batch[0].shape[1] if batch[0].dim() > 1 else 0
    if len(sites) != steps or steps < 2 or len(shapes) != 1 or len(batch) > 2:
        raise ValueError(
            "Recurrent serves sequences (B, T, ...) with one latent site per step, all of one shape, and at most the "
            f"steps' mask (B, T) besides; got {len(sites)} sites for data of shape "
            f"{', '.join(str(tuple(part.shape)) for part in batch)}; use TopDown"
        )
    return steps
