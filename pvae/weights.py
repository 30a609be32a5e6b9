"""The log weights of a pair, per datum: one matrix that every objective and estimator reduces.

For z_k drawn from the guide q(z | x), log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x), in nats,
one row per particle and one column per datum: shape (K, B).
"""

from __future__ import annotations

from torch import Tensor

from pvae.data.supports import SupportWatch, require_scored
from pvae.pair.contexts import in_one_line
from pvae.pair.entry import entry
from pvae.pair.pair import Pair
from pvae.pair.pair_run import LogWeights
from pvae.pair.run import Stochastic
from pvae.pair.sites import as_batch
from pvae.pair.verdicts import known
from pvae.support.arguments import check_pair
from pvae.support.batch import require_finite
from pvae.support.refusals import whole

__all__ = ["LogWeights", "log_weights"]


@entry
def log_weights(
    model: Stochastic, guide: Stochastic | None, batch: Tensor | tuple[Tensor, ...], num_samples: int
) -> LogWeights:
    """Draw `num_samples` particles per datum from the guide and weigh them: log p(x, z) - log q(z | x).

    A `guide` of None proposes from the model's own prior. Gradients flow to the parameters of the pair,
    the draws come from torch's global generator, and nets are in the mode (train or eval) they are in.

    Returns: `LogWeights` with parts of shape (K, B), in nats.
    Raises: ValueError if `num_samples` < 1 or the pair breaks the contract.
    """
    num_samples = whole("num_samples", num_samples, usual=1000)
    check_pair(model, guide)
    arguments = as_batch(batch, finite=False)
    try:
        pair = Pair(model, guide)
        with pair.inside(), in_one_line(arguments):
            if known(model, guide, arguments, num_samples > 1) is None:
                SupportWatch(model, guide, arguments)(arguments)
            run = pair.run(arguments, num_samples)
            require_scored(run, model, guide)
            weights = run.log_weights()
        is_sound = not weights.values.isnan().any()
    except ValueError:
        require_finite(arguments)
        raise
    # Behind a mask a nan in the data does no harm.
    if not is_sound:
        require_finite(arguments)
    return weights
