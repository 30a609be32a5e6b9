"""Masks, scales and factors count as Pyro counts them, at any shape."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

import pvae
from pvae.objectives import ELBO, IWAE

NOISE = 0.7
LENGTHS = torch.tensor([5, 4, 0, 3, 1])
KEEP = torch.arange(5) < LENGTHS[:, None]


def series():
    torch.manual_seed(0)
    return torch.randn(5, 5) * KEEP


# --- masks


def padded(on_model=("z", "x"), on_guide=True):
    """Independent steps z_t, x_t = z_t + noise, of which a mask over (series, steps) leaves out the padding."""

    def mask(keep, on):
        return poutine.mask(mask=keep if on else torch.tensor(True))

    def model(x, keep):
        with pyro.plate("series", len(x), dim=-2), pyro.plate("steps", 5, dim=-1):
            with mask(keep, "z" in on_model):
                z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            with mask(keep, "x" in on_model):
                pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(x, keep):
        with pyro.plate("series", len(x), dim=-2), pyro.plate("steps", 5, dim=-1), mask(keep, on_guide):
            pyro.sample("z", dist.Normal(x / (1 + NOISE**2), 0.6))

    return model, guide


def test_padded_steps_are_no_data():
    # The exact posterior is the guide's mean with another scale, so that the answer has a closed form.
    x, (model, guide) = series(), padded()
    truth = (Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(x) * KEEP).sum(1)
    found = pvae.log_marginal(model, guide, (x, KEEP), pvae.estimators.ImportanceSampling(4000))
    assert ((found.values - truth).abs() < 5 * found.mc_standard_errors + 1e-6).all()
    # A series of no steps is a sure event.
    assert found.values[2] == 0


def test_a_mask_over_one_step_is_none_over_data():
    x, keep = torch.tensor([[0.3], [1.0]]), torch.tensor([[True], [False]])

    def pair(scale):
        def function(x, keep):
            with pyro.plate("series", len(x), dim=-2), pyro.plate("steps", 1, dim=-1), poutine.mask(mask=keep):
                z = pyro.sample("z", dist.Normal(torch.tensor(0.0), scale))
                if scale == 1.0:
                    pyro.sample("x", dist.Normal(z, NOISE), obs=x)

        return function

    values = pvae.log_weights(pair(1.0), pair(2.0), (x, keep), 3).values
    assert values[:, 1].eq(0).all()
    assert values[:, 0].ne(0).all()


@pytest.mark.parametrize("on_model", [("z", "x"), ("z",), ("x",), ()])
@pytest.mark.parametrize("on_guide", [True, False])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_masks_of_some_sites_count_where_they_stand(on_model, on_guide, num_samples):
    x, (model, guide) = series(), padded(on_model, on_guide)
    torch.manual_seed(1)
    parts = pvae.log_weights(model, guide, (x, KEEP), num_samples)
    torch.manual_seed(1)
    z = Normal(x / (1 + NOISE**2), 0.6).expand([num_samples, 5, 5]).sample()

    def total(log_prob, masked):
        return (log_prob * KEEP if masked else log_prob).sum(-1)

    torch.testing.assert_close(parts.log_prior, total(Normal(0.0, 1.0).log_prob(z), "z" in on_model))
    torch.testing.assert_close(parts.log_likelihood, total(Normal(z, NOISE).log_prob(x), "x" in on_model))
    torch.testing.assert_close(parts.log_guide, total(Normal(x / (1 + NOISE**2), 0.6).log_prob(z), on_guide))


def test_a_mask_over_data_is_ignored_where_all_sites_carry_it_and_nowhere_else():
    x = torch.randn(6, 4)
    keep = torch.arange(6) % 2 > 0

    def model(x, keep, of_guide):
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def guide(x, keep, of_guide):
        with pyro.plate("data", len(x)), poutine.mask(mask=of_guide):
            pyro.sample("z", dist.Normal(x, 0.6).to_event(1))

    # The same values in another tensor, and one that keeps more: only the first may be left out of log p(x).
    other = keep | (torch.arange(6) == 0)
    for of_guide, counted in ((keep.clone(), torch.zeros(6, dtype=torch.bool)), (other, other & ~keep)):
        torch.manual_seed(1)
        values = pvae.log_weights(model, guide, (x, keep, of_guide), 2).values
        torch.manual_seed(1)
        z = Normal(x, 0.6).expand([2, 6, 4]).sample()
        log_joint = (Normal(0.0, 1.0).log_prob(z) + Normal(z, NOISE).log_prob(x)).sum(-1)
        log_guide = Normal(x, 0.6).log_prob(z).sum(-1)
        expected = torch.where(counted, -log_guide, log_joint - log_guide)
        torch.testing.assert_close(values, expected)


# --- scales

LOCS, PROBS = torch.tensor([-1.0, 2.0]), torch.tensor([0.3, 0.7])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.3, 0.1])


def mixture(scale):
    """Two components, summed out, every site under one scale."""

    def model(x, weights):
        locs = pyro.param("locs", LOCS)
        with pyro.plate("data", len(x)), poutine.scale(scale=weights if scale is None else scale):
            y = pyro.sample("y", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[y], 1.0), obs=x)

    return model


@pytest.mark.parametrize("scale", [0.1, torch.tensor(0.1), None], ids=["number", "tensor", "per datum"])
def test_a_scale_of_all_sites_stands_outside_of_a_sum_over_states(scale):
    torch.manual_seed(0)
    x = 2 * torch.randn(6)
    truth = MixtureSameFamily(Categorical(PROBS), Normal(LOCS, 1.0)).log_prob(x)
    model = mixture(scale)
    bound = ELBO().bound(model, None, (x, WEIGHTS))
    torch.testing.assert_close(bound, truth * (WEIGHTS if scale is None else 0.1))
    # log p(x) knows no scale at all.
    torch.testing.assert_close(pvae.log_weights(model, None, (x, WEIGHTS), 1).values[0], truth)
    if scale is not None:
        theirs = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x, weights: None, x, WEIGHTS)
        assert -bound.sum().item() == pytest.approx(theirs, rel=1e-5)
    losses = pvae.fit(model, None, (x, WEIGHTS), steps=1, lr=1e-9, batch_size=6, step_mode="traced", progress=False)
    assert losses.losses[0].item() == pytest.approx(-bound.mean().item(), rel=1e-5)


def gaussian(scale, of_prior=1.0):
    def model(x, weights):
        with pyro.plate("data", len(x)), poutine.scale(scale=weights if scale is None else scale):
            with poutine.scale(scale=of_prior):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def guide(x, weights):
        loc = pyro.param("loc", torch.tensor(0.6))
        outer = poutine.scale(scale=weights if scale is None else scale)
        with pyro.plate("data", len(x)), outer, poutine.scale(scale=of_prior):
            pyro.sample("z", dist.Normal(loc * x, 0.6).to_event(1))

    return model, guide


@pytest.mark.parametrize("scale", [0.1, torch.tensor(0.1), None], ids=["number", "tensor", "per datum"])
@pytest.mark.parametrize("make", [ELBO, IWAE])
def test_a_scale_of_all_sites_stands_outside_of_the_mean_over_particles(scale, make):
    torch.manual_seed(0)
    x = torch.randn(6, 2)
    batch, objective = (x, WEIGHTS), make(4)
    bounds = []
    for pair in (gaussian(1.0), gaussian(scale)):
        torch.manual_seed(1)
        bounds.append(objective.bound(*pair, batch))
    torch.testing.assert_close(bounds[1], bounds[0] * (WEIGHTS if scale is None else 0.1))


def test_a_scale_of_some_sites_stands_where_it_is():
    # KL annealing: what is not shared multiplies its own log density, also within the mean over particles.
    x = torch.randn(6, 2)
    for scale in (1.0, torch.tensor(3.0)):
        torch.manual_seed(1)
        bound = IWAE(4).bound(*gaussian(scale, of_prior=torch.tensor(0.2)), (x, WEIGHTS))
        torch.manual_seed(1)
        z = Normal(0.6 * x, 0.6).expand([4, 6, 2]).sample()
        kl = (Normal(0.6 * x, 0.6).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(-1)
        log_weights = scale * (Normal(z, NOISE).log_prob(x).sum(-1) - 0.2 * kl)
        torch.testing.assert_close(bound, log_weights.logsumexp(0) - math.log(4))


def test_a_plain_plate_in_the_guide_beside_a_subsampling_one_in_the_model():
    x = torch.randn(6, 2)

    def model(x):
        with pyro.plate("data", 60, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(0.6 * x, 0.6).to_event(1))

    torch.manual_seed(1)
    found = ELBO().bound(model, guide, x)
    torch.manual_seed(1)
    z = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    log_joint = (Normal(0.0, 1.0).log_prob(z) + Normal(z, NOISE).log_prob(x)).sum(-1)
    torch.testing.assert_close(found, log_joint - Normal(0.6 * x, 0.6).log_prob(z).sum(-1))


# --- factors


def classified(alpha, has_rsample=False):
    torch.manual_seed(0)
    decoder, encoder, classifier = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(2, 3)

    def model(x, y):
        pyro.module("decoder", decoder)
        with pyro.plate("cells", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("encoder", encoder)
        pyro.module("classifier", classifier)
        loc, raw = encoder(x).chunk(2, -1)
        with pyro.plate("cells", len(x)):
            z = pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            if alpha:
                log_prob = dist.Categorical(logits=classifier(z)).log_prob(y)
                pyro.factor("class_loss", -alpha * log_prob, has_rsample=has_rsample)

    return model, guide, (decoder, encoder, classifier)


BATCH = torch.randn(12, 4, generator=torch.Generator().manual_seed(3)), torch.arange(12) % 3


@pytest.mark.parametrize("has_rsample", [False, True])
def test_a_factor_of_the_guide_is_no_part_of_log_p(has_rsample):
    plain, with_factor = classified(0.0)[:2], classified(5.0, has_rsample)[:2]
    weights = []
    for pair in (plain, with_factor):
        torch.manual_seed(1)
        weights.append(pvae.log_weights(*pair, BATCH, 7).values)
    torch.testing.assert_close(*weights)
    assert pvae.check(*with_factor, BATCH) == []


@pytest.mark.parametrize("objective", [ELBO(3), IWAE(3), ELBO(3, gradient="stl"), ELBO(kl="analytic")])
def test_a_factor_of_the_guide_trains_the_pair(objective):
    alpha = 5.0
    plain, with_factor = classified(0.0), classified(alpha)
    torch.manual_seed(1)
    expected = objective.bound(*plain[:2], BATCH)
    torch.manual_seed(1)
    found = objective.bound(*with_factor[:2], BATCH)
    # The loss of the classifier at the same draws, its gradient through them included.
    _, encoder, classifier = plain[2]
    torch.manual_seed(1)
    loc, raw = encoder(BATCH[0]).chunk(2, -1)
    z = Normal(loc, raw.exp()).rsample([objective.num_particles])
    log_prob = Categorical(logits=classifier(z)).log_prob(BATCH[1]).mean(0)
    torch.testing.assert_close(found, expected + alpha * log_prob)
    parameters = [*encoder.parameters(), *classifier.parameters()]
    (expected + alpha * log_prob).sum().backward()
    found.sum().backward()
    for ours, theirs in zip(
        [*with_factor[2][1].parameters(), *with_factor[2][2].parameters()], parameters, strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_factor_is_that_of_pyro_and_the_reported_bound_does_not_hold_it():
    model, guide, _ = classified(5.0, has_rsample=True)
    losses = []
    for objective in (Trace_ELBO(), ELBO()):
        torch.manual_seed(1)
        losses.append(objective.loss(model, guide, *BATCH))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    bounds = [
        pvae.fit(*classified(alpha)[:2], BATCH, steps=1, batch_size=12, step_mode=mode, progress=False).history[-1]
        for alpha in (0.0, 5.0)
        for mode in ("eager", "traced")
    ]
    bounds = [record["train_bound"] for record in bounds]
    assert bounds == pytest.approx([bounds[0]] * 4, rel=1e-5)


# --- a plate within a datum that looks at a part of its entries


def test_a_part_of_the_entries_trains_and_gives_no_log_p():
    torch.manual_seed(0)
    weight, x = 0.1 * torch.randn(200), torch.randn(6, 200)

    def model(x):
        w = pyro.param("w", weight.clone())
        with pyro.plate("cells", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            with pyro.plate("genes", 200, subsample_size=20, dim=-1) as columns:
                pyro.sample("x", dist.Normal(z * w[columns], 1.0), obs=x[:, columns])

    def guide(x):
        with pyro.plate("cells", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x @ weight[:, None] * 0.3, 0.5))

    for call in (
        lambda: pvae.log_marginal(model, guide, x),
        lambda: pvae.log_weights(model, guide, x, 2),
        lambda: pvae.log_weights(model, guide, x, 1),
    ):
        with pytest.raises(ValueError, match=r"site 'x'.*plate 'genes'.*20 of 200"):
            call()
    (finding,) = pvae.check(model, guide, x)
    assert (finding.level, finding.site) == ("warning", "site 'x'")
    losses = []
    for objective in (Trace_ELBO(), ELBO()):
        torch.manual_seed(1)
        losses.append(objective.loss(model, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    pvae.fit(model, guide, x, steps=3, progress=False)


# --- what random programs have found


def test_a_masked_draw_outside_its_support_goes_on_as_it_is():
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=False):
                z = pyro.sample("z", dist.Uniform(torch.tensor(-1.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.tensor(5.0), 0.1))

    x = torch.zeros(3)
    torch.manual_seed(1)
    values = pvae.log_weights(model, guide, x, 2).values
    torch.manual_seed(1)
    z = Normal(5.0, 0.1).sample([2, 3])
    torch.testing.assert_close(values, Normal(z, 1.0).log_prob(x) - Normal(5.0, 0.1).log_prob(z))


def test_an_impossible_draw_beside_a_summed_site_weighs_zero():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.tensor(-1.0), 1.0))
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.tensor(5.0), 0.1))

    assert pvae.log_weights(model, guide, torch.zeros(3), 2).values.eq(-math.inf).all()
