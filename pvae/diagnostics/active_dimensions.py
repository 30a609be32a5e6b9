"""How many latent dimensions a fit needs: those whose posterior is far narrower than the prior."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pvae.generate import encode
from pvae.pair.entry import entry
from pvae.support.refusals import number, whole

__all__ = ["active_dimensions"]


@entry
def active_dimensions(
    guide: Any, x: Tensor | tuple[Tensor, ...], *, threshold: float = 0.5, num_samples: int = 10, seed: int = 0
) -> dict[str, Tensor]:
    """Which dimensions of each site carry the data: E_x Var_q(z_u | x) < threshold.

    For latents of prior variance 1. Where a learned scale of the likelihood goes to 0, the posterior variance of as
    many dimensions as the data manifold has goes to 0, too, while that of the others stays 1; in between there is
    little, so the threshold hardly matters. `collapse` counts by the variance of the means,
    Var_x(E_q[z_u | x]); the two add up to 1 where q(z) is the prior, and differ while a scale is still on its way down.

    Args:
        guide: a trained guide.
        x: data (N, ...), of which a few hundred are enough.
        threshold: the variance below which a dimension is active.
        num_samples: draws per datum, of which the variance is taken.
        seed: of the draws.

    Returns: site name -> (dims,) of bool.
    Raises: ValueError for fewer than 2 draws, or a threshold outside (0, 1).

    Dai and Wipf (2019), Diagnosing and Enhancing VAE Models.
    """
    whole("num_samples", num_samples, 2, usual=10)
    # 1 is the variance of the prior.
    number("threshold", threshold, above=0, below=1, usual=0.5)
    draws = encode(guide, x, num_samples=num_samples, seed=seed)
    return {name: z.flatten(2).var(0).mean(0) < threshold for name, z in draws.items()}
