"""k-hat and the streamed summary of weights, against ArviZ and against exact tails."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pvae.estimators.psis import khat, khat_threshold, tail_length
from pvae.estimators.stream import WeightStream


def arviz_khat(log_weights):
    """ArviZ's k-hat of one datum's weights: version 0 keeps it in arviz.stats, later ones in arviz_stats."""
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        from arviz.stats import psislw

        return float(np.asarray(psislw(log_weights.copy(), normalize=False)[1]))
    # It takes log-likelihoods, of which leave-one-out weights are the negative.
    return float(np.asarray(array_stats.psislw(-log_weights)[1]))


def normal_weights(scale, num_samples, num_data=1, seed=0):
    """Log weights of proposal N(0, scale^2) for target N(0, 1): their tail shape is 1 - scale^2, for scale < 1."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(num_samples, num_data, generator=generator, dtype=torch.float64)
    return Normal(0.0, 1.0).log_prob(z) - Normal(0.0, scale).log_prob(z)


def streamed(log_weights, chunk):
    stream = WeightStream(len(log_weights))
    for part in log_weights.split(chunk):
        stream.update(part)
    return stream.estimate()


# At these K the tail length needs no rounding, which ArviZ does upwards in version 0 and downwards in version 1.
@pytest.mark.parametrize("num_samples", [100, 2500, 10_000])
@pytest.mark.parametrize("scale", [0.5, 0.9, 1.3])
def test_khat_equals_arviz(scale, num_samples):
    weights = normal_weights(scale, num_samples, num_data=3)
    ours = streamed(weights, 333).khat
    theirs = [arviz_khat(column) for column in weights.T.numpy()]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-8)


@pytest.mark.parametrize("scale", [0.9, 0.7, 0.5])
def test_khat_meets_the_exact_tail_shape(scale):
    estimates = streamed(normal_weights(scale, 100_000, num_data=20), 50_000).khat
    error = estimates.std() / math.sqrt(20)
    # The fit has a small-sample bias of its own, larger for heavier tails.
    assert abs(estimates.mean() - (1 - scale**2)) < 5 * error + 0.05


def test_equal_weights_have_no_tail():
    assert torch.isneginf(streamed(torch.full((500, 3), -80.0), 100).khat).all()


def test_few_draws_give_no_khat():
    assert torch.isnan(streamed(normal_weights(0.9, 20), 20).khat).all()
    assert math.isfinite(streamed(normal_weights(0.9, 26), 26).khat.item())


def test_ties_in_the_tail_do_not_spoil_the_other_columns():
    weights = normal_weights(0.9, 1000, num_data=2)
    alone = streamed(weights, 1000).khat
    tied = torch.cat([weights, torch.zeros(1000, 1, dtype=torch.float64)], 1)
    tied[:3, 2] = torch.tensor([1.0, 2.0, 3.0])
    together = streamed(tied, 1000).khat
    assert torch.equal(together[:2], alone)
    assert together[2] == math.inf


def test_a_zero_weight_is_an_honest_weight():
    weights = normal_weights(0.9, 1000)
    weights[::2] = -math.inf
    estimate = streamed(weights, 100)
    expected = weights.logsumexp(0) - math.log(1000)
    torch.testing.assert_close(estimate.values, expected)


def test_thresholds_are_the_published_ones():
    published = {100: 0.5, 320: 0.6, 1000: 0.67, 2200: 0.7, 10_000: 0.7}
    assert {k: round(khat_threshold(k), 2) for k in published} == published
    assert tail_length(1000) == 95
    assert tail_length(100) == 20


@pytest.mark.parametrize("chunk", [1, 7, 250, 1000])
def test_the_stream_equals_one_shot(chunk):
    weights = normal_weights(0.8, 1000, num_data=4) - 300
    estimate = streamed(weights, chunk)
    scaled = (weights - weights.amax(0)).exp()
    torch.testing.assert_close(estimate.values, weights.logsumexp(0) - math.log(1000))
    torch.testing.assert_close(estimate.ess, scaled.sum(0).square() / scaled.square().sum(0))
    relative = scaled.std(0) / scaled.mean(0) / math.sqrt(1000)
    torch.testing.assert_close(estimate.mc_standard_errors, relative)
    torch.testing.assert_close(estimate.khat, khat(weights.topk(96, dim=0).values))


def test_errors_have_the_size_of_the_scatter():
    runs = [streamed(normal_weights(0.9, 400, seed=seed), 400) for seed in range(300)]
    values = torch.cat([run.values for run in runs])
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(300) + 0.5 * values.var()
    claimed = torch.cat([run.mc_standard_errors for run in runs]).square().mean().sqrt()
    assert claimed == pytest.approx(values.std().item(), rel=0.25)


def test_a_missing_draw_is_noticed():
    stream = WeightStream(10)
    stream.update(torch.zeros(9, 2))
    with pytest.raises(RuntimeError, match="10 draws were announced, 9 came"):
        stream.estimate()
