"""k-hat and the streamed summary of weights, against ArviZ and against exact tails."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pvae.estimators.weights.psis import khat, khat_threshold, smooth, tail_length
from pvae.estimators.weights.stream import WeightStream


def arviz_psis(log_weights):
    """ArviZ's smoothed log weights of one datum, whether they sum to 1, and its k-hat.

    Version 0 keeps them in arviz.stats, later ones in arviz_stats.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        from arviz.stats import psislw

        smoothed, shape = psislw(log_weights.copy(), normalize=False)
        return torch.as_tensor(smoothed), False, float(np.asarray(shape))
    # It takes log-likelihoods, of which leave-one-out weights are the negative, and always normalises.
    smoothed, shape = array_stats.psislw(-log_weights)
    return torch.as_tensor(smoothed), True, float(np.asarray(shape))


def normal_weights(scale, num_samples, num_data=1, seed=0):
    """Log weights of proposal N(0, scale^2) for target N(0, 1): their tail shape is 1 - scale^2, for scale < 1."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(num_samples, num_data, generator=generator, dtype=torch.float64)
    return Normal(0.0, 1.0).log_prob(z) - Normal(0.0, scale).log_prob(z)


def streamed(log_weights, chunk, **options):
    stream = WeightStream(len(log_weights), **options)
    for part in log_weights.split(chunk):
        stream.update(part)
    return stream.estimate()


# At these K the tail length needs no rounding, which ArviZ does upwards in version 0 and downwards in version 1.
@pytest.mark.parametrize("num_samples", [100, 2500, 10_000])
@pytest.mark.parametrize("scale", [0.5, 0.9, 1.3])
def test_khat_equals_arviz(scale, num_samples):
    weights = normal_weights(scale, num_samples, num_data=3)
    ours = streamed(weights, 333).khat
    theirs = [arviz_psis(column)[2] for column in weights.T.numpy()]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-8)


@pytest.mark.parametrize("num_samples", [100, 2500, 10_000])
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.9, 1.3])
def test_smoothed_weights_equal_arviz(scale, num_samples):
    weights = normal_weights(scale, num_samples, num_data=3) - 80
    ours, shapes = smooth(weights)
    for column, smoothed, shape in zip(weights.T.numpy(), ours.T, shapes, strict=True):
        theirs, is_normalised, their_shape = arviz_psis(column)
        smoothed = smoothed - smoothed.logsumexp(0) if is_normalised else smoothed
        torch.testing.assert_close(smoothed, theirs, rtol=0, atol=1e-8)
        assert shape.item() == pytest.approx(their_shape, abs=1e-8)


def test_smoothing_changes_the_tail_alone_and_never_exceeds_the_largest_weight():
    weights = normal_weights(0.5, 1000, num_data=5)
    smoothed, _ = smooth(weights)
    in_order = smoothed.gather(0, weights.argsort(0))
    assert torch.equal(in_order[:-95], weights.sort(0).values[:-95])
    # The largest few may stay at the largest raw weight.
    assert ((in_order[-95:] != weights.sort(0).values[-95:]).sum(0) >= 90).all()
    assert (in_order.diff(dim=0) >= 0).all()
    assert (smoothed.amax(0) <= weights.amax(0)).all()


def test_what_has_no_tail_is_left_as_it_is():
    for weights in (torch.full((500, 3), -80.0), normal_weights(0.5, 20, num_data=3)):
        smoothed, shape = smooth(weights)
        assert torch.equal(smoothed, weights.double())
        assert not shape.isfinite().any()


@pytest.mark.parametrize("chunk", [1, 7, 250, 5000])
@pytest.mark.parametrize("scale", [0.3, 0.6, 1.3])
def test_a_smoothed_stream_equals_one_shot(chunk, scale):
    weights = normal_weights(scale, 5000, num_data=4)[: 1000 if chunk == 1 else 5000] - 300
    estimate = streamed(weights, chunk, smooth=True)
    smoothed, shape = smooth(weights)
    scaled = (smoothed - smoothed.amax(0)).exp()
    torch.testing.assert_close(estimate.values, smoothed.logsumexp(0) - math.log(len(weights)), rtol=0, atol=1e-10)
    torch.testing.assert_close(estimate.ess, scaled.sum(0).square() / scaled.square().sum(0), rtol=1e-10, atol=0)
    relative = scaled.std(0) / scaled.mean(0) / math.sqrt(len(weights))
    torch.testing.assert_close(estimate.mc_standard_errors, relative, rtol=1e-8, atol=0)
    assert torch.equal(estimate.khat, shape)


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
