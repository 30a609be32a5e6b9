"""A pair is trained and evaluated as its author wrote it: functions, methods, PyroModules; plates, scales and masks."""

import dataclasses
import gc
import math

import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import Bernoulli, Normal
from torch.nn import functional

import pvae
from pvae.estimators import ImportanceSampling, PriorSampling
from pvae.objectives import ELBO, IWAE
from pvae.pair import parameters as params
from pvae.pair import store
from pvae.pair.look import read_layout
from pvae.pair.parameters import device_of_pair
from pvae.pair.sites import as_batch
from pvae.pair.store import private_store
from tests import own_pairs
from tests.own_pairs import OBSERVED, PAIRS, TOTAL, Pair, pictures

# Their nets or their data have no room for a particle dim.
COPIED = {"convolutional", "conditional"}


def log_marginal(pair, num_samples=100, **options):
    return pvae.log_marginal(pair.model, pair.guide, pair.batch, ImportanceSampling(num_samples), **options)


def weights(pair, num_samples, seed=0):
    """Log weights with draws that the test can repeat: the look at the pair before spends no random numbers."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return pvae.log_weights(pair.model, pair.guide, pair.batch, num_samples)


def layout(pair, num_samples=5):
    with private_store(pair.model, pair.guide):
        return read_layout(pair.model, pair.guide, as_batch(pair.batch), num_samples)


def fit(pair, **options):
    return pvae.fit(pair.model, pair.guide, pair.batch, batch_size=4, lr=1e-2, progress=False, **options)


def log_normal(value, loc, scale):
    return Normal(loc, scale).log_prob(value).sum(-1)


def assert_same_mean(a, b):
    """The means of two independent estimates agree to 5 standard errors."""
    assert abs(a.mean - b.mean) < 5 * math.hypot(a.mc_standard_error, b.mc_standard_error)


# --- every pair


@pytest.mark.parametrize("name", PAIRS)
def test_pair_trains_the_same_eagerly_and_traced(name):
    eager, traced = PAIRS[name](), PAIRS[name]()
    before = log_marginal(traced)
    first = fit(eager, steps=6, step_mode="eager")
    result = fit(traced, steps=90, step_mode="traced")
    # A pair that had fallen back would be compared with itself.
    assert (first.step_mode, result.step_mode) == ("eager", "traced")
    torch.testing.assert_close(result.losses[:6], first.losses, rtol=1e-5, atol=0)
    after = log_marginal(traced)
    assert after.mean - before.mean > 5 * math.hypot(before.mc_standard_error, after.mc_standard_error)


@pytest.mark.parametrize("name", PAIRS)
def test_pair_gives_weights_draws_and_codes(name):
    pair = PAIRS[name]()
    for num_samples in (1, 5):
        parts = weights(pair, num_samples)
        assert parts.values.shape == (num_samples, 12)
        assert parts.values.isfinite().all()
    assert layout(pair).vectorizes == (name not in COPIED)
    drawn = pvae.sample(pair.model, 7, like=pair.batch)
    shown = pvae.reconstruct(pair.model, pair.guide, pair.batch)
    codes = pvae.encode(pair.guide, pair.batch)
    several = pvae.encode(pair.guide, pair.batch, num_samples=3)
    assert drawn.keys() == shown.keys() | codes.keys()
    assert codes.keys() == several.keys()
    for site in codes:
        assert several[site].shape == (3, *codes[site].shape)
    for site, value in (shown | codes).items():
        assert (12, *drawn[site].shape[1:]) == value.shape
        assert len(drawn[site]) == 7


@pytest.mark.parametrize("name", PAIRS)
def test_one_datum_is_a_batch(name):
    pair = PAIRS[name]()
    one = pair._replace(batch=tuple(part[:1] for part in as_batch(pair.batch)))
    alone, among = log_marginal(one, 400, seed=1), log_marginal(pair, 400)
    error = math.hypot(alone.mc_standard_errors[0], among.mc_standard_errors[0])
    assert abs(alone.values[0] - among.values[0]) < 5 * error + 1e-4


# --- log weights by hand


def test_weights_of_closures_by_hand_with_what_was_trained(tmp_path):
    pair = own_pairs.closures()
    fit(pair, steps=30)
    assert len(pyro.get_param_store()) == 0
    pvae.save(tmp_path, pair.model, pair.guide, pair.batch)
    saved = safetensors.torch.load_file(tmp_path / "checkpoint.safetensors")
    prior_scale = saved["prior_scale"].exp()
    temperature = 0.01 + 1.99 * saved["temperature"].sigmoid()
    # Training has moved both by far more than the tolerance of the comparisons below.
    assert (prior_scale - 1).abs().max() > 1e-3
    assert abs(temperature - 0.5) > 1e-3

    found = weights(pair, 5)
    torch.manual_seed(0)
    x = pair.batch
    with torch.no_grad():
        loc, raw = pair.guide.encoder(x).chunk(2, -1)
        posterior = Normal(loc, temperature * raw.exp()).expand([5, 12, 3])
        z = posterior.sample()
        torch.testing.assert_close(found.log_guide, posterior.log_prob(z).sum(-1))
        torch.testing.assert_close(found.log_prior, log_normal(z, torch.zeros(3), prior_scale))
        likelihood = Bernoulli(logits=pair.model.decoder(z)).log_prob(x).sum(-1)
        torch.testing.assert_close(found.log_likelihood, likelihood)
    torch.testing.assert_close(found.values, found.log_likelihood + found.log_prior - found.log_guide)

    values = log_marginal(pair, 1000)
    by_hand = weights(pair, 1000, seed=9).values.logsumexp(0) - math.log(1000)
    error = math.sqrt(2) * values.mc_standard_error
    assert abs(values.mean - by_hand.mean()) < 5 * error


def test_weights_of_two_layers_by_hand():
    pair = own_pairs.hierarchical()
    ladder = pair.model.__self__
    found = weights(pair, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        loc, raw = ladder.encoder1(pair.batch).chunk(2, -1)
        q1 = Normal(loc, raw.exp()).expand([4, 12, 3])
        z1 = q1.sample()
        q2 = Normal(*(part if i == 0 else part.exp() for i, part in enumerate(ladder.encoder2(z1).chunk(2, -1))))
        z2 = q2.sample()
        prior = log_normal(z2, torch.zeros(2), torch.ones(2)) + log_normal(z1, ladder.prior1(z2), torch.tensor(0.5))
        likelihood = Bernoulli(logits=ladder.decoder(z1)).log_prob(pair.batch).sum(-1)
        guide = q1.log_prob(z1).sum(-1) + q2.log_prob(z2).sum(-1)
    torch.testing.assert_close(found.values, likelihood + prior - guide)


def test_weights_of_a_plate_inside_the_data_plate_by_hand():
    pair = own_pairs.nested_plate()
    readings, x = pair.model.__self__, pair.batch
    found = weights(pair, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        loc, raw = readings.encode_z(x).chunk(2, -1)
        qz = Normal(loc, raw.exp()).expand([4, 12, 2])
        z = qz.sample()
        loc, raw = readings.encode_u(x[..., None]).unbind(-1)
        qu = Normal(loc, raw.exp()).expand([4, 12, 5])
        u = qu.sample()
        prior = log_normal(z, torch.zeros(2), torch.ones(2)) + log_normal(u, torch.tensor(0.0), torch.tensor(0.5))
        likelihood = log_normal(x, readings.loc(z) + u, torch.tensor(1.0))
        guide = qz.log_prob(z).sum(-1) + qu.log_prob(u).sum(-1)
    torch.testing.assert_close(found.values, likelihood + prior - guide)


def test_weights_of_copied_batches_by_hand():
    pair = own_pairs.conditional()
    nets, (x, c) = pair.model.__self__, pair.batch
    found = weights(pair, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        x, c = x.repeat(4, 1), c.repeat(4, 1)
        loc, raw = nets.encoder(torch.cat([x, c], -1)).chunk(2, -1)
        z = Normal(loc, raw.exp()).sample()
        likelihood = Bernoulli(logits=nets.decoder(torch.cat([z, c], -1))).log_prob(x).sum(-1)
        values = likelihood + log_normal(z, torch.zeros(2), torch.ones(2)) - log_normal(z, loc, raw.exp())
    torch.testing.assert_close(found.values, values.reshape(4, 12))


def test_weights_of_missing_pixels_by_hand():
    for pair in (own_pairs.masked_pixels(), own_pairs.masked_pixel_plate()):
        found, x = weights(pair, 4), pair.batch
        nets = own_pairs.Nets()
        torch.manual_seed(0)
        with torch.no_grad():
            loc, raw = nets.encoder(x).chunk(2, -1)
            z = Normal(loc, raw.exp()).expand([4, 12, 2]).sample()
            pixels = Bernoulli(logits=nets.decoder(z)).log_prob(x)
        torch.testing.assert_close(found.log_likelihood, pixels[..., OBSERVED].sum(-1))


def test_draws_codes_and_reconstructions_are_what_the_nets_say():
    pair = own_pairs.tutorial()
    vae = pair.model.__self__
    with torch.no_grad():
        drawn = pvae.sample(pair.model, 5, like=pair.batch, mean=True)
        torch.testing.assert_close(drawn["obs"], vae.decoder(drawn["latent"]))
        torch.testing.assert_close(pvae.encode(pair.guide, pair.batch)["latent"], vae.encoder(pair.batch)[0])
        # One particle is one draw of the guide, so the code that was decoded can be drawn again.
        code = pvae.encode(pair.guide, pair.batch, num_samples=1, seed=3)["latent"][0]
        shown = pvae.reconstruct(pair.model, pair.guide, pair.batch, seed=3)["obs"]
        torch.testing.assert_close(shown, vae.decoder(code))


# --- plates, scales and masks


@pytest.mark.parametrize("name", ["other_plate", "annealed", "masked_data"])
def test_scales_and_data_masks_do_not_reach_log_p(name):
    expected, found = log_marginal(own_pairs.plain()), log_marginal(PAIRS[name]())
    torch.testing.assert_close(found.values, expected.values, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.ess, expected.ess, rtol=1e-6, atol=0)


def test_the_scale_of_a_subsampling_plate_does_not_reach_log_p():
    # The plate draws indices, as Pyro has it, so the particles are others than those of the plain pair.
    expected, found = log_marginal(own_pairs.plain()), log_marginal(PAIRS["subsampling"]())
    error = (expected.mc_standard_errors.square() + found.mc_standard_errors.square()).sqrt()
    assert ((found.values - expected.values).abs() < 5 * error).all()
    assert (5 * error < (TOTAL / 12 - 1) * expected.values.abs() / 5).all()


@pytest.mark.parametrize("wrap", [{"total": 120}, {"factor": 0.1}, {"kept": torch.arange(12) > 3}])
def test_no_wrapping_changes_an_exact_answer(wrap):
    # Each weight of the exact guide is log p(x), so here the draws of the plate make no difference.
    expected, found = log_marginal(own_pairs.exact(), 10), log_marginal(own_pairs.exact(**wrap), 10)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.ess, torch.full((12,), 10.0).double(), rtol=1e-6, atol=0)


def test_scales_and_masks_do_reach_training():
    plain = own_pairs.plain()
    parts = weights(plain, 1)
    kl = parts.log_guide - parts.log_prior
    expected = {
        "annealed": -(parts.log_likelihood - 0.1 * kl).sum(),
        "masked_data": -parts.values[:, torch.arange(12) % 3 > 0].sum(),
    }
    for name, loss in expected.items():
        pair = PAIRS[name]()
        torch.manual_seed(0)
        assert ELBO().loss(pair.model, pair.guide, pair.batch) == pytest.approx(loss.item(), rel=1e-5)


def test_subsampling_plate_scales_the_loss():
    plain, subsampling = own_pairs.exact(), own_pairs.exact(total=120)
    for objective in (ELBO(), IWAE(3)):
        expected = objective.loss(plain.model, plain.guide, plain.batch)
        found = objective.loss(subsampling.model, subsampling.guide, subsampling.batch)
        assert found == pytest.approx(10 * expected, rel=1e-5)


def test_subsampling_plate_takes_more_copies_than_it_has_data():
    # 5 copies of 12 data are more than the 36 that the plate stands for, and 3 copies are as many.
    for num_samples in (3, 5):
        losses = []
        for pair in (own_pairs.plain(strict=True), own_pairs.subsampling(strict=True)):
            assert not layout(pair).vectorizes
            torch.manual_seed(0)
            losses.append(IWAE(num_samples).loss(pair.model, pair.guide, pair.batch))
        assert losses[1] == pytest.approx(TOTAL / 12 * losses[0], rel=1e-5)
    found = log_marginal(own_pairs.subsampling(strict=True), batch_size=5)
    expected = log_marginal(own_pairs.plain(strict=True), batch_size=5)
    # The copies get no index draws, so the particles are the same.
    torch.testing.assert_close(found.values, expected.values, rtol=1e-6, atol=0)


# --- particles


def test_particles_equal_copies_of_the_batch():
    wide, long = own_pairs.plain(), own_pairs.plain(strict=True)
    assert layout(wide).vectorizes
    assert not layout(long).vectorizes
    assert_same_mean(log_marginal(wide, 1000, seed=1), log_marginal(long, 1000, seed=2))


def norm_of_batch_width():
    """BatchNorm1d takes (K, B, C) for B channels, without a word if B happens to be C."""
    decoder = nn.Sequential(nn.Linear(2, 12), nn.BatchNorm1d(12), nn.Linear(12, own_pairs.WIDTH))
    plain = own_pairs.plain()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", own_pairs.PRIOR)
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    return Pair(model, plain.guide, plain.batch)


def guide_that_reads_the_wrong_dim():
    """The mean over features by position is a mean over data once particles come first."""
    weight = nn.Parameter(torch.ones(3))

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((z1 * weight).sum(-1, keepdim=True) + z2, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(z1.mean(1, keepdim=True), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(12, 1))


@pytest.mark.parametrize("build", [norm_of_batch_width, guide_that_reads_the_wrong_dim])
def test_nets_that_would_misread_particles_get_copies(build):
    torch.manual_seed(0)
    assert not layout(build()).vectorizes


def test_pair_over_exactly_its_data_takes_particles():
    """One parameter per datum: there is no other batch to try the pair with."""
    x = torch.tensor([[-1.0], [0.5], [2.0]])

    def model(x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: x / 2)
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(loc, math.sqrt(0.5)).to_event(1))

    pair = Pair(model, guide, x)
    assert layout(pair).vectorizes
    # The guide is the exact posterior, so each weight is log N(x; 0, 2).
    exact = log_normal(x, torch.zeros(1), torch.tensor(math.sqrt(2))).expand(5, 3)
    torch.testing.assert_close(weights(pair, 5).values, exact)


# --- batches


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_batches_change_no_exact_answer(batch_size):
    pair = own_pairs.exact()
    x = pair.batch
    scale = (torch.linspace(0.5, 1.5, 4) ** 2 + 1).sqrt()
    exact = log_normal(x, torch.zeros(4), scale).double()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for rows in (torch.arange(12), order):
        found = log_marginal(pair._replace(batch=x[rows]), 10, batch_size=batch_size)
        torch.testing.assert_close(found.values, exact[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "convolutional", "conditional"])
def test_batches_move_estimates_within_their_error(name):
    pair = PAIRS[name]()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = pair._replace(batch=tuple(part[order] for part in as_batch(pair.batch)))
    whole, parts = log_marginal(pair, 500, seed=1), log_marginal(shuffled, 500, seed=2, batch_size=5)
    error = (whole.mc_standard_errors[order].square() + parts.mc_standard_errors.square()).sqrt()
    assert ((whole.values[order] - parts.values).abs() < 5 * error).all()


# --- guides and parameters


def test_swapping_the_guide_is_one_word():
    model, _, batch = own_pairs.closures()
    torch.manual_seed(0)
    # The model stays as it is, so its prior, which is close here to each posterior, tells log p(x) as well.
    truth = pvae.log_marginal(model, None, batch, PriorSampling(20_000), seed=1)
    for word in ("MeanField", "FullCovariance"):
        guide = getattr(pvae.guides, word)(model, batch, hidden=(16,))
        assert pvae.check(model, guide, batch) == []
        pair = Pair(model, guide, batch)
        # More inference steps than steps: the guide alone is trained.
        fit(pair, steps=400, inference_steps=1000)
        found = log_marginal(pair, 2000)
        assert found.ess.min() > 20
        assert_same_mean(found, truth)


def closed_form(x):
    """log p(x) of the pair `exact` at the values that Pyro's store holds."""
    weight, loc, noise = (pyro.param(name).detach() for name in ("weight", "loc", "noise"))
    return log_normal(x, loc, (weight**2 + noise**2).sqrt()).double()


def test_what_pyro_trained_is_what_is_evaluated():
    pair = own_pairs.exact()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(20):
        svi.step(pair.batch)
    store = pyro.get_param_store()
    before = {name: (value, value.detach().clone()) for name, value in store.get_state()["params"].items()}
    assert (pyro.param("noise") - 1).abs() > 0.1
    for _ in range(2):
        torch.testing.assert_close(log_marginal(pair).values, closed_form(pair.batch), rtol=1e-5, atol=1e-5)
    after = store.get_state()["params"]
    assert after.keys() == before.keys()
    for name, (held, value) in before.items():
        assert after[name] is held
        assert held.equal(value)
        assert held.grad is None or held.grad.eq(0).all()


def test_training_starts_at_pyros_values_and_is_remembered():
    pair = own_pairs.exact()
    pyro.get_param_store().setdefault("noise", torch.tensor(2.0), dist.constraints.positive)
    pyro.param("weight", torch.full((4,), 0.7))
    pyro.param("loc", torch.full((4,), 0.1))
    result = pvae.fit(pair.model, pair.guide, pair.batch, steps=30, batch_size=12, lr=0.05, progress=False)
    # With the exact guide the first loss is minus the mean log p(x), whatever was drawn.
    assert result.losses[0].item() == pytest.approx(-closed_form(pair.batch).mean().item(), rel=1e-5)
    remembered = log_marginal(pair)
    assert remembered.mean > closed_form(pair.batch).mean() + 0.1
    # The user's values are as they were, and clearing them takes nothing from what was trained.
    assert pyro.param("noise").item() == pytest.approx(2.0)
    pyro.clear_param_store()
    assert log_marginal(pair).values.equal(remembered.values)
    with pytest.warns(UserWarning, match="starts from its initial value: pvae trained it for another"):
        assert not log_marginal(own_pairs.exact()).values.equal(remembered.values)


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"slots": True}])
def test_equal_objects_are_two_pairs(options):
    @dataclasses.dataclass(**options)
    class Written:
        width: int = 1

        def model(self, x):
            loc = pyro.param("loc", torch.zeros(self.width))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(self.width), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=x)

        def guide(self, x):
            loc = pyro.param("loc", torch.zeros(self.width))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((x - loc) / 2, math.sqrt(0.5)).to_event(1))

    first, second = Written(), Written()
    assert first == second
    x = torch.full((4, 1), 3.0)
    pvae.fit(first.model, first.guide, x, steps=100, lr=0.1, progress=False)
    trained = pvae.log_marginal(first.model, first.guide, x, ImportanceSampling(5)).mean
    with pytest.warns(UserWarning, match="parameter 'loc' starts from its initial value: pvae trained it for another"):
        fresh = pvae.log_marginal(second.model, second.guide, x, ImportanceSampling(5)).mean
    # The guide is exact: log N(3; loc, 2) with loc at the data, and where it starts.
    assert trained == pytest.approx(Normal(3.0, math.sqrt(2)).log_prob(torch.tensor(3.0)).item(), abs=1e-3)
    assert fresh == pytest.approx(Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(3.0)).item(), abs=1e-5)


def test_what_was_trained_goes_with_its_pair():
    pair = own_pairs.exact()
    gc.collect()
    held = len(store._bare_of)
    fit(pair, steps=1)
    assert len(store._bare_of) == held + 2
    del pair
    gc.collect()
    assert len(store._bare_of) == held


class Dropping(nn.Module):
    """Methods as model and guide, so that only the methods see the module's own training flag."""

    def __init__(self):
        super().__init__()
        self.nets = own_pairs.Nets()

    def model(self, x):
        pyro.module("nets", self.nets)
        with pyro.plate("data", len(x)):
            z = functional.dropout(pyro.sample("z", own_pairs.PRIOR), 0.5, self.training)
            pyro.sample("x", self.nets.likelihood(z), obs=x)

    def guide(self, x):
        pyro.module("nets", self.nets)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.nets.posterior(x))


def test_methods_are_evaluated_in_evaluation_mode():
    vae = Dropping()
    pair = Pair(vae.model, vae.guide, pictures(12))
    found = log_marginal(pair)
    assert vae.training
    vae.eval()
    assert log_marginal(pair).values.equal(found.values)
    assert log_marginal(own_pairs.plain()).values.equal(found.values)


def test_buffers_stay_those_of_their_modules_on_another_device():
    # Moving replaces a buffer by another tensor; the old one would be saved, and restored, in its place.
    norm = nn.BatchNorm1d(2, affine=False)
    found = params.Parameters({}, dict(norm.named_buffers()), (nn.Sequential(norm), norm))
    found.to("meta")
    assert found.device.type == "meta"
    assert found.buffers.keys() == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(buffer is norm.get_buffer(name) for name, buffer in found.buffers.items())


def test_data_go_where_the_pair_is():
    nets = nn.Linear(2, 2, device="meta")

    class Holder:
        def __init__(self):
            self.nets = nets

        def method(self, x):
            return self.nets(x)

    def closure(x):
        return nets(x), later(x)

    def bare(x):
        return pyro.param("place", torch.ones(1, device="meta"))

    with private_store(bare, keep=True):
        bare(None)
    for function in (nets, Holder().method, closure, bare):
        assert device_of_pair(function).type == "meta"
    # A name that is not bound yet when pvae looks is no reason to fail.
    later = nets.forward
    assert device_of_pair(lambda x: x).type == "cpu"
