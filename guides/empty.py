"""The guide of a model with nothing to infer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pvae.pair.sites import find_latent_sites

__all__ = ["Empty"]


class Empty(nn.Module):
    """No latents at all: the guide of a fully observed model, or of one whose latents are all summed out.

    Every log weight is log p(x) itself, so that the ELBO is the log likelihood and any K gives the same number.

    Args:
        model: a model without latent sites, or with all of them annotated by infer={"enumerate": "parallel"}.
        example_batch: a batch (B, ...), or a tuple of them, to run the model with.

    Raises: ValueError for a model with latent sites left to draw.
    """

    def __init__(self, model: Callable[..., object], example_batch: Tensor | tuple[Tensor, ...]) -> None:
        super().__init__()
        if sites := find_latent_sites(model, example_batch):
            raise ValueError(
                f"site '{sites[0].name}' is latent and an empty guide draws nothing; use a guide that serves it, such "
                "as MeanField"
            )

    def forward(self, *batch: Tensor) -> None:
        """Nothing to sample."""
