"""No log weight is trusted that does not agree with Pyro, with single data and with single particles."""

import math
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

import pvae
from pvae.estimators import ImportanceSampling
from pvae.objectives import ELBO, IWAE
from pvae.pair import look as layouts
from pvae.pair import verdicts
from pvae.pair.store import private_store


def linear(decode, encode=None, num=12):
    """A pair over x (B, 4) and z (B, 2) around functions of the author's."""
    torch.manual_seed(0)
    decoder, encoder = nn.Linear(2, 4), nn.Linear(4, 2)
    encode = encode or (lambda net, x: net(x))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(decoder, z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(encoder, x), 0.7).to_event(1))

    weight = decoder.weight.detach()
    truth = MultivariateNormal(decoder.bias.detach(), weight @ weight.T + torch.eye(4))
    return model, guide, torch.randn(num, 4), truth


# --- data that are not independent


def test_data_that_meet_in_the_bounds_of_a_support_alone_are_refused():
    """Within its bounds a uniform density is the same wherever these lie, and so it tells nothing of them."""

    def model(x, mixes=1.0):
        with pyro.plate("data", len(x)):
            low = mixes * x.mean(0, keepdim=True).expand(x.shape) - 50.0
            z = pyro.sample("z", dist.Uniform(low, low + 100.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(x - 1, x + 1).to_event(1))

    x = torch.randn(7, 4)
    with pytest.raises(ValueError, match=r"site 'z' in the model: a datum has the support bound 1 .* not independent"):
        pvae.log_weights(model, guide, x, 3)
    weights = pvae.log_weights(partial(model, mixes=0.0), guide, x, 3)
    torch.testing.assert_close(weights.log_prior - weights.log_guide, torch.full((3, 7), -4 * math.log(50.0)))


MIXERS = {
    "the model centres a layer over its batch": (lambda net, z: net(z - z.mean(-2, keepdim=True)), None),
    "the guide centres a layer over its batch": (lambda net, z: net(z), lambda net, x: net(x - x.mean(0))),
    "data by their position": (lambda net, z: net(z) + torch.arange(z.shape[-2])[:, None], None),
}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("num_samples", [1, 5])
def test_data_that_depend_on_each_other_are_refused(name, num_samples):
    model, guide, x, _ = linear(*MIXERS[name])
    site, function = ("'z'", "guide") if "guide" in name else ("'x'", "model")
    with pytest.raises(ValueError, match=rf"site {site} in the {function}.*not independent"):
        pvae.log_weights(model, guide, x, num_samples)
    with pytest.raises(ValueError, match="not independent"):
        pvae.log_marginal(model, guide, x, ImportanceSampling(num_samples))
    with pytest.raises(ValueError, match="not independent"):
        pvae.fit(model, guide, x, steps=1, progress=False)
    (finding,) = pvae.check(model, guide, x)
    assert finding.level == "error"


def test_data_that_depend_on_each_other_in_a_pair_over_exactly_its_data():
    x = torch.randn(5, 1)

    def pair(mixes):
        def model(x):
            locs = pyro.param("locs", torch.zeros(5, 1))
            with pyro.plate("data", 5):
                z = pyro.sample("z", dist.Normal(locs, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x - mixes * x.mean())

        def guide(x):
            with pyro.plate("data", 5):
                pyro.sample("z", dist.Normal(0.5 * x, 0.7).to_event(1))

        return model, guide

    assert pvae.check(*pair(0.0), x) == []
    with pytest.raises(ValueError, match=r"site 'x' in the model.*where the datum before it is another"):
        pvae.log_weights(*pair(1.0), x, 3)


# --- particles


def strict(net, z):
    if z.dim() != 2:
        raise ValueError("one batch dim only")
    return net(z)


def test_nets_of_one_batch_dim_and_a_plate_by_index():
    model, guide, x, truth = linear(strict, num=40)
    decoder, encoder = nn.Linear(2, 4), nn.Linear(4, 2)

    def indexed_model(x, index):
        with pyro.plate("data", 40, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(strict(decoder, z), 1.0).to_event(1), obs=x)

    def indexed_guide(x, index):
        with pyro.plate("data", 40, subsample=index) as rows:
            # What the plate gives is the index of the data, copies and all.
            assert torch.equal(rows, index)
            pyro.sample("z", dist.Normal(encoder(x), 0.7).to_event(1))

    weight = decoder.weight.detach()
    expected = MultivariateNormal(decoder.bias.detach(), weight @ weight.T + torch.eye(4)).log_prob(x)
    data = x, torch.arange(40).flip(0)
    found = pvae.log_marginal(indexed_model, indexed_guide, data, ImportanceSampling(2000), batch_size=16)
    assert ((found.values - expected).abs() < 5 * found.mc_standard_errors).all()
    plain = pvae.log_marginal(model, guide, x, ImportanceSampling(2000), batch_size=16)
    assert ((plain.values - truth.log_prob(x)).abs() < 5 * plain.mc_standard_errors).all()


def test_a_pair_that_runs_with_one_particle_only_is_estimated_one_by_one_and_refused_elsewhere():
    x = torch.randn(5, 1)

    def model(x):
        locs = pyro.param("locs", torch.arange(5.0)[:, None])
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            if z.shape != (5, 1):
                raise ValueError("no particles")
            pyro.sample("x", dist.Normal(z + locs, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal((x - torch.arange(5.0)[:, None]) / 2, 0.8).to_event(1))

    truth = Normal(torch.arange(5.0), 2**0.5).log_prob(x[:, 0])
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(500))
    assert ((found.values - truth).abs() < 5 * found.mc_standard_errors).all()
    with pytest.raises(ValueError, match="one particle at a time only"):
        IWAE(5).bound(model, guide, x)
    (finding,) = pvae.check(model, guide, x)
    assert finding.level == "note"
    ELBO().bound(model, guide, x)


def test_a_net_that_mixes_particles_gets_copies():
    # The mean over dim 0 is one over features of a bare vector, and one over particles of a wide run.
    model, guide, x, _ = linear(lambda net, z: net(z) + 0 * z.sum() if z.dim() == 2 else net(z - z.mean(0)))
    with private_store(model, guide):
        assert not layouts.read_layout(model, guide, (x,), 7).vectorizes


# --- the plate over the data


def sensors_and_data():
    def model(x):
        with pyro.plate("sensors", 5, dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x.T)

    def guide(x):
        with pyro.plate("sensors", 5, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.8 * x.T, 0.5))

    return model, guide


@pytest.mark.parametrize("num", [1, 2, 4, 5, 6, 7])
def test_a_plate_of_the_same_size_is_not_taken_for_that_over_the_data(num):
    model, guide = sensors_and_data()
    torch.manual_seed(0)
    x = torch.randn(num, 5) * torch.linspace(0.5, 3, num)[:, None]
    truth = Normal(0.0, 1.25**0.5).log_prob(x).sum(1)
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(4000))
    assert ((found.values - truth).abs() < 5 * found.mc_standard_errors).all()
    assert pvae.check(model, guide, x) == []
    built_in = pvae.guides.MeanField(model, x)
    assert pvae.log_weights(model, built_in, x, 3).values.shape == (3, num)


def test_two_data_are_told_from_two_entries_where_a_plate_has_no_more_data():
    def model(x):
        with pyro.plate("entries", 2, dim=-2), pyro.plate("data", 2, subsample_size=len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("entries", 2, dim=-2), pyro.plate("data", 2, subsample_size=len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.T / 2, 0.5**0.5))

    x = torch.randn(2, 2, dtype=torch.float64)
    truth = Normal(0.0, 2**0.5).log_prob(x).sum(1)
    torch.testing.assert_close(pvae.log_weights(model, guide, x, 3).values, truth.expand(3, 2))


def test_public_arrays_have_the_data_first():
    model, guide = sensors_and_data()
    x = torch.randn(7, 5)
    drawn = pvae.sample(model, 7, like=x)
    assert drawn["x"].shape == drawn["z"].shape == (7, 5)
    assert pvae.sample(model, 7, like=x, mean=True)["x"].shape == (7, 5)
    torch.testing.assert_close(pvae.encode(guide, x)["z"], 0.8 * x)
    assert pvae.encode(guide, x, num_samples=3)["z"].shape == (3, 7, 5)
    code = pvae.encode(guide, x, num_samples=1, seed=3)["z"][0]
    torch.testing.assert_close(pvae.reconstruct(model, guide, x, seed=3)["x"], code)


def test_guide_and_model_with_their_data_at_other_dims_are_refused():
    model, _ = sensors_and_data()

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("sensors", 5, dim=-1):
            pyro.sample("z", dist.Normal(0.8 * x, 0.5))

    with pytest.raises(ValueError, match="Shape mismatch inside plate") as failure:
        pvae.log_weights(model, guide, torch.randn(6, 5), 2)
    assert "Trace Shapes" not in str(failure.value)
    # Here every shape fits, and nothing but the dims tells.
    with pytest.raises(ValueError, match="give both the same dim"):
        pvae.log_weights(model, guide, torch.randn(5, 5), 2)


# --- what was seen once


def test_a_pair_is_looked_at_once_and_again_when_it_reads_something_else():
    class Runs:
        count = 0

    runs, settings = Runs(), SimpleNamespace(noise=1.0)
    decoder = nn.Linear(2, 4)

    def model(x):
        runs.count += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), settings.noise).to_event(1), obs=x)

    counts = []
    for noise in (1.0, 1.0, 2.0):
        settings.noise = noise
        runs.count = 0
        pvae.log_weights(model, None, torch.randn(9, 4), 3)
        counts.append(runs.count)
    assert counts[1] == 1
    assert counts[2] == counts[0] > 10


def test_nothing_is_kept_of_a_pair_that_is_gone():
    before = len(verdicts._verdicts)
    model = pvae.models.LinearGaussian(4, 2)
    pvae.log_weights(model, None, torch.randn(3, 4), 2)
    assert len(verdicts._verdicts) == before + 1
    del model
    assert len(verdicts._verdicts) == before


def test_a_flow_without_an_inverse_is_held_to_its_own_data_too():
    x = torch.randn(12, 4)

    class Mixing(nn.Module):
        def __init__(self, mixes):
            super().__init__()
            self.net, self.mixes = nn.Linear(4, 6), mixes

        def forward(self, x):
            return self.net(x - self.mixes * x.mean(0))

    model = pvae.models.LinearGaussian(4, 2)
    for mixes in (0.0, 1.0):
        torch.manual_seed(0)
        guide = pvae.guides.PlanarFlow(model, x, length=2, encoder=Mixing(mixes))
        if mixes:
            with pytest.raises(ValueError, match=r"site 'z' in the guide.*not independent"):
                pvae.log_weights(model, guide, x, 3)
        else:
            pvae.log_weights(model, guide, x, 3)
