"""The guide with free numbers for every datum: what its family can do at best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pvae.guides.mean_field import MeanField
from pvae.guides.parts.amortized import AmortizedGuide, as_amortized
from pvae.pair.contexts import called_modules, running
from pvae.pair.sites import Batch, as_batch
from pvae.support.arguments import MODEL
from pvae.support.refusals import built, function

__all__ = ["Local"]


class Local(AmortizedGuide):
    """Any family without amortisation: q(z_n) of datum n has numbers of its own, in a table of one row per datum.

    Trained with the model frozen it reaches the best bound of its family, L[q*]: what an amortised guide of the family
    lacks to that is the amortisation gap, and what that lacks to log p(x) the approximation gap. The table starts at
    what the family's encoder gives; all else in the family's guide is shared by all data.

    It serves the data it was built for, in batches of any size and order, and finds the row of a datum by a hash of its
    values; equal data share a row. Data that change, by augmentation or a binarisation at every step, it cannot serve.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        data: all N data (N, ...), or a tuple of them.
        family: from the model and the data to an amortized guide: a class of `pvae.guides`, or a function that builds
            one with options, or that returns a trained one to start from, whose parts are copied.

    Raises: ValueError for a family that gives no such guide, a site that the family does not serve, or a datum
    that is none of the N.

    Cremer, Li and Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.
    """

    name = "local"

    def __init__(
        self,
        model: Callable[..., object],
        data: Tensor | tuple[Tensor, ...],
        *,
        family: Callable[..., Any] = MeanField,
    ) -> None:
        super().__init__()
        batch = as_batch(data)
        function("family", family, usual="pvae.guides.MeanField")
        built("model", model, usual=MODEL)
        with running("family", batch):
            guide = family(model, data)
        guide = as_amortized(guide)
        with torch.no_grad(), called_modules():
            numbers = guide.numbers(*batch)
        if numbers.dim() != 2 or len(numbers) != len(batch[0]):
            raise ValueError(
                f"{type(guide).__name__} must give numbers ({len(batch[0])}, n), got {tuple(numbers.shape)}; use a "
                "family such as MeanField"
            )
        self.guide = guide.without_encoder()
        self.table = _Table(batch, numbers)

    def numbers(self, *batch: Tensor) -> Tensor:
        """The row of each datum, (B, n)."""
        numbers: Tensor = self.table(*batch)
        return numbers

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, n)."""
        self.guide.draw(numbers)


class _Table(nn.Module):
    """Free numbers of N data in an encoder's place."""

    factors: Tensor
    hashes: Tensor
    order: Tensor

    def __init__(self, data: Batch, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = nn.Parameter(numbers.clone())
        width = sum(part[0].numel() for part in data)
        generator = torch.Generator().manual_seed(0)
        factors = 2 * torch.randint(-(2**62), 2**62, (width,), generator=generator) + 1
        self.register_buffer("factors", factors.to(numbers.device))
        hashes, order = self._hash(data).sort()
        self.register_buffer("hashes", hashes)
        self.register_buffer("order", order)

    def forward(self, *batch: Tensor) -> Tensor:
        """The numbers of each datum, (B, n)."""
        hashes = self._hash(batch)
        places = torch.searchsorted(self.hashes, hashes).clamp(max=len(self.hashes) - 1)
        # Data of zeros are a look at shapes, as when weights are loaded.
        is_known = (self.hashes[places] == hashes) | (hashes == 0)
        # A graph cannot raise, so there a stranger's numbers are not finite, which stops training, too.
        if get_proxy_mode() is None and not is_known.all():
            raise ValueError(
                f"this guide has numbers for the {len(self.hashes)} data it was built for, and {(~is_known).sum()} of "
                f"the batch of {len(hashes)} are others; give those data unchanged, or use the amortised family"
            )
        return torch.where(is_known[:, None], self.numbers[self.order[places]], torch.nan)

    def _hash(self, batch: Batch) -> Tensor:
        """One whole number for each datum, from the bits of its values, exact in any order of adding."""
        # A sum with 0 has one sign of 0 only.
        values = torch.cat([part.reshape(len(part), -1).double() + 0.0 for part in batch], -1)
        bits = values.view(torch.int64)
        # Short numbers have their bits at the top, where a factor would push them out.
        return ((bits ^ (bits >> 52) ^ (bits >> 26)) * self.factors).sum(-1)
