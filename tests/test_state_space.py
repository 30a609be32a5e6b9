"""The state-space model against the joint Gaussian of its affine case, with sequences of any length and with gaps."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import Recurrent
from pvae.models import LinearGaussian, StateSpace, transitions
from pvae.models.likelihoods import Gaussian
from pvae.nets import MLP

STEPS, WIDTH, LATENT = 4, 3, 2
NOISE, MOVE = 0.6, 0.5  # scales of x_t | z_t and z_t | z_t-1


class Affine(nn.Module):
    """z_t | z_t-1 ~ N(A z_t-1 + b, MOVE^2)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(LATENT, LATENT)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.9, 0.3], [-0.3, 0.8]]))

    def forward(self, z):
        return dist.Normal(self.layer(z), MOVE).to_event(1)


def affine():
    with pvae.pair.contexts.seeded(0):
        emission = MLP(LATENT, (), (WIDTH,))
        nn.init.normal_(emission.layers[-1].bias)
        model = StateSpace((STEPS, WIDTH), LATENT, likelihood=Gaussian(NOISE), transition=Affine(), emission=emission)
    return model.double()


@torch.no_grad()
def of_latents(model):
    """Mean and covariance of (z_1, ..., z_T)."""
    weight, bias = model.transition.layer.weight, model.transition.layer.bias
    means, spread = [torch.zeros(LATENT).double()], torch.zeros(STEPS, LATENT, STEPS, LATENT).double()
    for step in range(STEPS):
        if step:
            means.append(weight @ means[-1] + bias)
        for source in range(step + 1):
            scale = MOVE if source else 1.0
            spread[step, :, source] = scale * torch.matrix_power(weight, step - source)
    spread = spread.reshape(STEPS * LATENT, STEPS * LATENT)
    return torch.cat(means), spread @ spread.T


@torch.no_grad()
def of_data(model):
    """Mean and covariance of (x_1, ..., x_T), and the map from all z to all x."""
    mean, covariance = of_latents(model)
    emission = model.emission.layers[-1]
    down = torch.block_diag(*[emission.weight] * STEPS)
    noise = NOISE**2 * torch.eye(STEPS * WIDTH).double()
    return down @ mean + emission.bias.repeat(STEPS), down @ covariance @ down.T + noise, down


@torch.no_grad()
def log_prob(model, x, observed):
    mean, covariance, _ = of_data(model)
    values = []
    for row, keep in zip(x.flatten(1), observed.repeat_interleave(WIDTH, 1), strict=True):
        part = dist.MultivariateNormal(mean[keep], covariance[keep][:, keep])
        values.append(part.log_prob(row[keep]))
    return torch.stack(values)


@torch.no_grad()
def posteriors(model, x, observed):
    """Mean and precision of (z_1, ..., z_T) given the observed steps, per datum."""
    mean, covariance = of_latents(model)
    mean_of_x, _, down = of_data(model)
    keep = observed.repeat_interleave(WIDTH, 1).to(x) / NOISE**2
    precision = covariance.inverse() + (down.T * keep[:, None]) @ down
    shift = ((x.flatten(1) - mean_of_x) * keep) @ down
    return mean + torch.linalg.solve(precision, shift), precision


class Posterior(nn.Module):
    """The exact posterior, step by step: the rows of the Cholesky factor of its covariance."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, observed):
        loc, precision = posteriors(self.model, x, observed)
        factor = torch.linalg.cholesky(precision.inverse()).unflatten(1, (STEPS, LATENT)).unflatten(3, (STEPS, LATENT))
        loc, noise = loc.unflatten(1, (STEPS, LATENT)), []
        with pyro.plate("data", len(x)):
            for step in range(STEPS):
                before = sum((factor[:, step, :, source] @ noise[source][..., None])[..., 0] for source in range(step))
                tril = factor[:, step, :, step]
                mean = loc[:, step] + before
                z = pyro.sample(f"z{step + 1}", dist.MultivariateNormal(mean, scale_tril=tril))
                noise.append(torch.linalg.solve_triangular(tril, (z - mean)[..., None], upper=False)[..., 0])


LENGTHS = torch.arange(STEPS) < torch.tensor([1, 2, 3, 4, 4, 2])[:, None]
GAPS = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0]]).bool()


def sequences(model, num, seed=0):
    return pvae.sample(model, num, seed=seed)["x"]


@pytest.mark.parametrize("observed", [LENGTHS, GAPS], ids=["lengths", "gaps"])
def test_the_exact_posterior_weighs_every_draw_by_log_p_of_the_observed_steps(observed):
    model = affine()
    x = sequences(model, len(observed))
    exact = log_prob(model, x, observed)
    for num_samples in (1, 3):
        with torch.no_grad():
            weights = pvae.log_weights(model, Posterior(model), (x, observed), num_samples).values
        torch.testing.assert_close(weights, exact.expand(num_samples, -1), rtol=0, atol=1e-9)


def test_without_a_mask_every_step_counts():
    model = affine()
    x = sequences(model, 3)
    latents = {name: z for name, z in pvae.sample(model, 3, seed=1).items() if name != "x"}
    conditioned = poutine.condition(model, latents)
    all_steps = poutine.trace(conditioned).get_trace(x, torch.ones(3, STEPS)).log_prob_sum()
    assert poutine.trace(conditioned).get_trace(x).log_prob_sum() == all_steps


def test_steps_that_are_not_observed_are_not_looked_at():
    model = affine()
    x = sequences(model, len(GAPS))
    other = torch.where(GAPS[..., None], x, torch.tensor(7.0).double())
    guide = Recurrent(model, (x, GAPS), hidden=(5,))
    values = []
    for data in (x, other):
        with pvae.pair.contexts.seeded(1):
            values.append(pvae.log_weights(model, guide, (data, GAPS), 2).values)
    assert torch.equal(*values)


@pytest.mark.slow
def test_a_trained_structured_guide_has_a_smaller_gap_than_any_independent_latents():
    model = affine()
    x = sequences(model, 400)
    observed = LENGTHS[torch.arange(400) % len(LENGTHS)]
    with pvae.pair.contexts.seeded(0):
        guide = Recurrent(model, (x, observed), hidden=(16,))
    options = {"train": "guide", "lr": 2e-2, "schedule": "cosine", "step_mode": "traced"}
    result = pvae.fit(model, guide, (x, observed), steps=300, batch_size=200, seed=1, **options)
    assert result.step_mode == "traced"
    exact = log_prob(model, x, observed)
    with pvae.pair.contexts.seeded(2):
        gap = (exact - pvae.objectives.ELBO(20).bound(model, guide, (x, observed)).detach()).mean()
    # KL of the best independent latents, N(loc, diag(1 / precision_ii)), to the posterior.
    _, precision = posteriors(model, x, observed)
    independent = 0.5 * (precision.diagonal(dim1=1, dim2=2).log().sum(1) - precision.logdet()).mean()
    assert 0 < gap < 0.6 * independent
    part = x[:20], observed[:20]
    answer = pvae.log_marginal(model, guide, part, ImportanceSampling(2000, step_mode="eager"), seed=3)
    assert ((answer.values - exact[:20]).abs() < 5 * answer.mc_standard_errors).all()


def test_a_forecast_has_the_moments_of_the_chain():
    model, num = affine(), 20_000
    with pvae.pair.contexts.seeded(1):
        z = model.forecast(torch.ones(num, LATENT).double(), 2)
    weight, bias = model.transition.layer.weight, model.transition.layer.bias
    first = weight @ torch.ones(LATENT).double() + bias
    covariance = MOVE**2 * (torch.eye(LATENT).double() + weight @ weight.T)
    assert z.shape == (num, 2, LATENT)
    error = (covariance.diag() / num).sqrt()
    assert ((z[:, 0].mean(0) - first).abs() < 5 * error).all()
    assert ((z[:, 1].mean(0) - weight @ first - bias).abs() < 5 * error).all()
    assert ((z[:, 1].T.cov() - covariance).abs() < 5 * covariance.diag().max() * (2 / num) ** 0.5).all()


def test_the_gated_transition_is_affine_where_its_gate_is_shut():
    gated = transitions.Gated(LATENT)
    nn.init.constant_(gated.gate.layers[-1].bias, -50.0)
    z = torch.randn(5, LATENT, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gated(z).mean, z)
    nn.init.constant_(gated.gate.layers[-1].bias, 50.0)
    torch.testing.assert_close(gated(z).mean, gated.proposal(z))


def test_rows_of_real_digits_as_sequences_of_several_lengths():
    digits = pvae.data.load("digits", binarize="threshold")
    x = digits.train[:, 0]
    observed = torch.arange(8) < torch.randint(4, 9, (len(x), 1), generator=torch.Generator().manual_seed(0))
    with pvae.pair.contexts.seeded(0):
        model = StateSpace((8, 8), 4, emission=MLP(4, (32,), (8,)))
        guide = Recurrent(model, (x, observed), hidden=(32,))
    result = pvae.fit(model, guide, (x, observed), steps=25, lr=2e-2, step_mode="eager")
    assert result.losses[-5:].mean() < result.losses[:5].mean() - 5
    draws = pvae.sample(model, 3, like=(x[:2], observed[:2]))
    assert draws["x"].shape == (3, 8, 8)
    assert {name: tuple(z.shape) for name, z in draws.items() if name != "x"} == {f"z{t}": (3, 4) for t in range(1, 9)}


def test_a_guide_takes_features_of_the_users_own():
    model = affine()
    x = sequences(model, 3)
    guide = Recurrent(model, x, hidden=(5,), encoder=nn.Linear(WIDTH, 6).double())
    assert pvae.check(model, guide, x) == []


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"\(T, ...\) of at least 2 steps, got \(1, 8, 8\); put the steps"):
        StateSpace((1, 8, 8), 2)
    model = affine()
    x = sequences(model, 3)
    with pytest.raises(ValueError, match=r"StateSpace expects a batch of shape \(B, 4, 3\), got \(3, 2, 3\)"):
        model(x[:, :2])
    with pytest.raises(ValueError, match=r"observed must say of each step.*\(3, 4\), got \(3, 3\)"):
        model(x, torch.ones(3, 3))
    with pytest.raises(ValueError, match="num_steps must be a whole number of at least 1, got 0"):
        model.forecast(torch.zeros(LATENT).double(), 0)
    with pytest.raises(ValueError, match="floor must be a finite number above 0, got 0"):
        transitions.Gated(2, floor=0)
    flat = LinearGaussian(4, 2)
    with pytest.raises(ValueError, match=r"one latent site per step.*got 1 sites.*use TopDown"):
        Recurrent(flat, torch.zeros(2, 4))
    guide = Recurrent(model, x, hidden=(5,))
    with pytest.raises(ValueError, match="the guide was built for data of shape"):
        guide(x[:, :3])
