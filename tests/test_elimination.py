"""Discrete sites that are summed out entry by entry and step by step, against closed forms and sums by hand."""

import itertools
import math
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

import pvae
from pvae.estimators import Enumeration, ImportanceSampling
from pvae.guides import MeanField
from pvae.objectives import ELBO, IWAE
from pvae.pair.contexts import seeded
from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.store import private_store

DOUBLE = torch.float64
PARALLEL = {"enumerate": "parallel"}


def draws(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def drawn_of(run):
    """Draws of what a run sums out."""
    with seeded(0):
        return run.draw_summed()


def is_near(shares, exact, num):
    """Whether shares of so many draws are within 5 standard errors; a rare state may come five times."""
    return ((shares - exact).abs() < 5 * (exact * (1 - exact) / num).sqrt() + 5 / num).all()


def run_of(model, guide, batch, num_samples, given=None):
    """A run of the pair, and its layout."""
    with private_store(model, guide), seeded(0):
        layout = read_layout(model, guide, batch, num_samples)
        return run_pair(model, guide, batch, num_samples, layout, given=given)


class Topics(nn.Module):
    """theta ~ Dirichlet(1), for each of `num_words` words t ~ theta and x ~ beta_t; padded words are masked."""

    def __init__(self, num_words=40, dtype=DOUBLE):
        super().__init__()
        self.num_words = num_words
        self.logits = nn.Parameter(draws(8, 30).to(dtype))

    def forward(self, x, observed=None):
        pyro.module("topics", self)
        with pyro.plate("data", len(x), dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(self.logits.new_ones(8)))
            mask = torch.ones_like(x).bool() if observed is None else observed
            with pyro.plate("words", self.num_words, dim=-2), pyro.poutine.mask(mask=mask.T):
                topic = pyro.sample("topic", dist.Categorical(theta), infer=PARALLEL)
                pyro.sample("x", dist.Categorical(logits=self.logits[topic]), obs=x.T)

    def log_likelihood(self, theta, x):
        """log p(x_w | theta), (K, B, words)."""
        return torch.einsum("kbt,tbw->kbw", theta, self.logits.softmax(-1)[:, x]).log()


class TopicGuide(nn.Module):
    """theta ~ Dirichlet(exp(loc)), for every datum alike."""

    def __init__(self, dtype=DOUBLE):
        super().__init__()
        self.loc = nn.Parameter(0.3 * draws(8, seed=3).to(dtype))

    def forward(self, x, observed=None):
        pyro.module("guide", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("theta", dist.Dirichlet(self.loc.exp()))


def words(num_data, num_words=40):
    return torch.randint(30, (num_data, num_words), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (DOUBLE, 1e-12)])
def test_topics_are_the_closed_form(dtype, tolerance):
    model, guide, x = Topics(dtype=dtype), TopicGuide(dtype), words(3)
    run = run_of(model, guide, (x,), 200)
    weights, theta = run.log_weights(), run.latents["theta"]
    exact = model.log_likelihood(theta, x).sum(-1)
    assert ((weights.log_likelihood - exact) / exact).abs().max() < tolerance
    torch.testing.assert_close(weights.log_prior, torch.full_like(weights.log_prior, math.lgamma(8)))
    log_guide = dist.Dirichlet(guide.loc.exp()).log_prob(theta)
    torch.testing.assert_close(weights.log_guide, log_guide, rtol=tolerance, atol=10 * tolerance)


def test_gradients_of_topics_are_those_of_the_closed_form():
    model, guide, x = Topics(), TopicGuide(), words(3)
    run = run_of(model, guide, (x,), 5)
    by_hand = model.log_likelihood(run.latents["theta"], x).sum(-1) + math.lgamma(8)
    by_hand = by_hand - dist.Dirichlet(guide.loc.exp()).log_prob(run.latents["theta"])
    parameters = [*model.parameters(), *guide.parameters()]
    found = torch.autograd.grad(run.log_weights().values.logsumexp(0).sum(), parameters, retain_graph=True)
    for mine, other in zip(found, torch.autograd.grad(by_hand.logsumexp(0).sum(), parameters), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


def test_padded_words_count_for_nothing():
    model, guide, x = Topics(), TopicGuide(), words(3)
    observed = torch.arange(40) < torch.tensor([[40], [17], [1]])
    run = run_of(model, guide, (x, observed), 5)
    exact = (model.log_likelihood(run.latents["theta"], x) * observed).sum(-1)
    torch.testing.assert_close(run.log_weights().log_likelihood, exact, rtol=1e-12, atol=1e-12)


def test_the_elbo_of_topics_is_that_of_trace_enum():
    model, guide, x = Topics(), TopicGuide(), words(3)
    parameters, losses = [*model.parameters(), *guide.parameters()], []
    theirs = TraceEnum_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=2)
    mine = ELBO(7)
    mine.bound(model, guide, x)  # finds out how to run the pair, by draws of its own
    for objective in (mine, theirs):
        with private_store(model, guide), seeded(3):
            losses.append(objective.differentiable_loss(model, guide, x))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
    for mine, other in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_training_on_topics(step_mode):
    model, guide, x = Topics(10), TopicGuide(), words(7, 10)
    result = pvae.fit(model, guide, x, objective=IWAE(3), steps=20, lr=1e-1, batch_size=7, step_mode=step_mode, seed=0)
    assert result.step_mode == step_mode
    assert result.losses[-5:].mean() < result.losses[:5].mean() - 1


def test_log_p_of_topics_by_a_graph_is_that_of_eager_weights():
    model, guide, x = Topics(10), TopicGuide(), words(4, 10)
    found = [
        pvae.log_marginal(model, guide, x, ImportanceSampling(100, step_mode=mode)).values
        for mode in ("eager", "traced")
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)


class Chain(nn.Module):
    """z_t | z_{t-1} a chain of 3 states, x_t | z_t, u ~ N(loc + u, 1), u ~ N(0, 1) drawn by a guide."""

    def __init__(self, num_steps=30, loop=pyro.markov):
        super().__init__()
        self.num_steps, self.loop = num_steps, loop
        self.first, self.transition = nn.Parameter(draws(3)), nn.Parameter(2 * draws(3, 3, seed=1))
        self.loc = nn.Parameter(2 * draws(3, seed=2))

    def forward(self, x):
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
            logits = self.first
            for step in self.loop(range(self.num_steps)):
                z = pyro.sample(f"z_{step}", dist.Categorical(logits=logits), infer=PARALLEL)
                pyro.sample(f"x_{step}", dist.Normal(self.loc[z] + u, 1.0), obs=x[:, step])
                logits = self.transition[z]

    def forward_algorithm(self, u, x):
        """log p(x | u), (K, B)."""
        alpha = self.first.log_softmax(-1)
        for step in range(self.num_steps):
            if step:
                alpha = (alpha[..., :, None] + self.transition.log_softmax(-1)).logsumexp(-2)
            alpha = alpha + dist.Normal(self.loc + u[..., None], 1.0).log_prob(x[:, step, None])
        return alpha.logsumexp(-1)


@pytest.mark.parametrize("loop", [pyro.markov, iter], ids=["markov", "plain"])
@pytest.mark.parametrize("num_samples", [1, 6])
def test_chains_are_the_forward_algorithm(loop, num_samples):
    model, x = Chain(loop=loop), draws(4, 30, seed=5)
    guide = MeanField(model, x, hidden=(5,))
    run = run_of(model, guide, (x,), num_samples)
    found, exact = run.log_weights().log_likelihood, model.forward_algorithm(run.latents["u"], x)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-10)
    mine, other = (torch.autograd.grad(each.sum(), model.parameters(), retain_graph=True) for each in (found, exact))
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)
    log_prior = dist.Normal(0.0, 1.0).log_prob(run.latents["u"])
    torch.testing.assert_close(run.log_weights().log_prior, log_prior, rtol=0, atol=1e-12)


def test_a_chain_takes_milliseconds():
    model, x = Chain(), draws(4, 30, seed=5)
    with torch.no_grad(), private_store(model):
        layout = read_layout(model, None, (x,), 2)
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            run_pair(model, None, (x,), 2, layout).log_weights()
            seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5  # 3^30 joint states would take some years


class Mixed(nn.Module):
    """A cluster and a scale of each datum, a topic of each word given the cluster, a word given all of them."""

    def __init__(self, num_words=3):
        super().__init__()
        self.num_words = num_words
        self.cluster, self.topic, self.loc = (
            nn.Parameter(draws(*shape, seed=seed)) for seed, shape in enumerate([(2,), (2, 3), (2, 3)])
        )

    def forward(self, x, observed):
        pyro.module("mixed", self)
        with pyro.plate("data", len(x), dim=-1):
            cluster = pyro.sample("cluster", dist.Categorical(logits=self.cluster), infer=PARALLEL)
            scale = pyro.sample("scale", dist.LogNormal(cluster.to(x.dtype), 0.5))
            with pyro.plate("words", self.num_words, dim=-2):
                topic = pyro.sample("topic", dist.Categorical(logits=self.topic[cluster]), infer=PARALLEL)
                with pyro.poutine.mask(mask=observed.T):
                    pyro.sample("x", dist.Normal(self.loc[cluster, topic], scale), obs=x.T)

    def by_hand(self, scale, x, observed):
        """log p(x, scale) and log p(scale), (K, B), over the 2 * 3^words joint states."""
        joint, prior = [], []
        for cluster in range(2):
            log_scale = dist.LogNormal(torch.tensor(cluster, dtype=DOUBLE), 0.5).log_prob(scale)
            for topics in itertools.product(range(3), repeat=self.num_words):
                topics = torch.tensor(topics)
                log_prior = self.cluster.log_softmax(-1)[cluster] + log_scale
                log_prior = log_prior + self.topic[cluster].log_softmax(-1)[topics].sum()
                log_word = dist.Normal(self.loc[cluster, topics], scale[..., None]).log_prob(x) * observed
                prior.append(log_prior)
                joint.append(log_prior + log_word.sum(-1))
        return torch.stack(joint).logsumexp(0), torch.stack(prior).logsumexp(0)


class Viewed(Mixed):
    """As `Mixed`, in Python that takes no dim left of a data dim on which all entries stand."""

    def forward(self, x, observed):
        pyro.module("mixed", self)
        with pyro.plate("data", len(x), dim=-1):
            cluster = pyro.sample("cluster", dist.Categorical(logits=self.cluster), infer=PARALLEL).view(len(x))
            scale = pyro.sample("scale", dist.LogNormal(cluster.to(x.dtype), 0.5))
            with pyro.plate("words", self.num_words, dim=-2):
                logits = self.topic[cluster].expand(self.num_words, len(x), 3)
                topic = pyro.sample("topic", dist.Categorical(logits=logits), infer=PARALLEL)
                with pyro.poutine.mask(mask=observed.T):
                    loc = self.loc[cluster, topic.view(self.num_words, len(x))]
                    pyro.sample("x", dist.Normal(loc, scale), obs=x.T)


def scales(x, observed):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("scale", dist.LogNormal(x.mean(-1), 1.0))


@pytest.mark.parametrize(
    ("num_samples", "num_data", "num_words"), [(1, 5, 3), (4, 5, 3), (4, 1, 3), (1, 1, 1), (3, 5, 1)]
)
def test_clusters_of_data_and_topics_of_words_are_the_sum_over_all_states(num_samples, num_data, num_words):
    model, x = Mixed(num_words), draws(num_data, num_words, seed=4)
    observed = torch.arange(num_words) < torch.tensor([[3], [1], [2], [3], [0]])[:num_data]
    run = run_of(model, scales, (x, observed), num_samples)
    weights = run.log_weights()
    joint, prior = model.by_hand(run.latents["scale"], x, observed)
    torch.testing.assert_close(weights.log_prior, prior, rtol=0, atol=1e-11)
    torch.testing.assert_close(weights.log_likelihood + weights.log_prior, joint, rtol=0, atol=1e-11)
    assert run.draw_summed()["topic"].shape == (num_samples, num_data, num_words)


@pytest.mark.parametrize("build", [Mixed, lambda: Viewed(3)], ids=["dims", "copies"])
def test_what_is_summed_is_drawn_from_its_posterior(build):
    model = build()
    x, observed = draws(1, 3, seed=4).expand(20_000, 3), torch.tensor([True, True, False]).expand(20_000, 3)
    scale = torch.tensor(0.8, dtype=DOUBLE).expand(1, len(x))
    drawn = drawn_of(run_of(model, scales, (x, observed), 1, given={"scale": scale}))
    assert drawn["cluster"].shape == (1, len(x))
    assert drawn["topic"].shape == (1, len(x), 3)
    states = [*itertools.product(range(2), range(3), range(3), range(3))]
    log_joint = []
    for cluster, *topics in states:
        log_prob = model.cluster.log_softmax(-1)[cluster] + model.topic[cluster].log_softmax(-1)[topics].sum()
        log_prob = log_prob + dist.LogNormal(torch.tensor(cluster, dtype=DOUBLE), 0.5).log_prob(scale[0, 0])
        word = dist.Normal(model.loc[cluster, topics[:2]], scale[0, 0]).log_prob(x[0, :2])
        log_joint.append(log_prob + word.sum())
    exact = torch.stack(log_joint).softmax(0).detach()
    found = torch.cat([drawn["cluster"][0, :, None], drawn["topic"][0]], -1)
    shares = torch.stack([(found == torch.tensor(state)).all(-1).double().mean() for state in states])
    assert is_near(shares, exact, len(x))


def test_paths_of_a_chain_are_drawn_from_their_posterior():
    model, x = Chain(4), draws(1, 4, seed=5).expand(20_000, 4)
    u = torch.tensor(0.3, dtype=DOUBLE).expand(1, len(x))
    drawn = drawn_of(run_of(model, None, (x,), 1, given={"u": u}))
    found = torch.stack([drawn[f"z_{step}"][0] for step in range(4)], -1)
    paths, log_joint = [*itertools.product(range(3), repeat=4)], []
    for path in paths:
        log_prob = model.first.log_softmax(-1)[path[0]]
        log_prob = log_prob + model.transition.log_softmax(-1)[path[:-1], path[1:]].sum()
        log_joint.append(log_prob + dist.Normal(model.loc[[*path]] + 0.3, 1.0).log_prob(x[0]).sum())
    exact = torch.stack(log_joint).softmax(0).detach()
    shares = torch.stack([(found == torch.tensor(path)).all(-1).double().mean() for path in paths])
    assert is_near(shares, exact, len(x))


KINDS = {
    "Bernoulli": (lambda z: dist.Bernoulli(logits=z), [0.0, 1.0]),
    "Binomial": (lambda z: dist.Binomial(3, logits=z), [0.0, 1.0, 2.0, 3.0]),
    "Categorical": (lambda z: dist.Categorical(logits=torch.stack([z, -z, 0 * z], -1)), [0, 1, 2]),
    "OneHotCategorical": (
        lambda z: dist.OneHotCategorical(logits=torch.stack([z, -z, 0 * z], -1)),
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    ),
    "two bits": (
        lambda z: dist.Bernoulli(logits=torch.stack([z, -2 * z], -1)).to_event(1),
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_site_in_a_plate(kind):
    make, values = KINDS[kind]
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("entries", 20, dim=-2):
                y = pyro.sample("y", make(z), infer=PARALLEL)
                mean = (y * weight[: y.shape[-1]]).sum(-1) if make(z).event_dim else y.to(DOUBLE)
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x.T)

    x = draws(4, 20, seed=6)
    guide = MeanField(model, x, hidden=(5,))
    run = run_of(model, guide, (x,), 3)
    z = run.latents["z"]
    terms = []
    for value in values:
        y = torch.tensor(value, dtype=torch.long if kind == "Categorical" else DOUBLE)
        mean = (y * weight[: y.shape[-1]]).sum(-1) if y.dim() else y.double()
        terms.append(make(z).log_prob(y)[..., None] + dist.Normal(mean, 1.0).log_prob(x))
    exact = torch.stack(terms).logsumexp(0).sum(-1)
    torch.testing.assert_close(run.log_weights().log_likelihood, exact, rtol=1e-12, atol=1e-10)
    assert run.draw_summed()["y"].shape == (3, 4, 20, *torch.tensor(values[0]).shape)


def masked(x):
    """A mask that depends on a state, a distribution with a mask of its own, and a factor."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        on = pyro.sample("on", dist.Bernoulli(logits=z), infer=PARALLEL)
        with pyro.plate("entries", 6, dim=-2), pyro.poutine.mask(mask=on == 1):
            y = pyro.sample("y", dist.Bernoulli(logits=z).mask(x.T > 0), infer=PARALLEL)
            pyro.sample("x", dist.Normal(2 * y + z, 1.0), obs=x.T)
        pyro.factor("factor", 0.3 * on)


def missing_steps(x):
    """A chain that looks two steps back, some of whose steps are masked as a whole."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        before, last = 0.0, 0.0
        for step in pyro.markov(range(6), history=2):
            with pyro.poutine.mask(mask=x[:, step] > 0):
                state = pyro.sample(f"y_{step}", dist.Bernoulli(logits=z + last - before), infer=PARALLEL)
                pyro.sample(f"x_{step}", dist.Normal(2 * state + z, 1.0), obs=x[:, step])
            before, last = last, state


def one_by_one(x):
    """A plate that is a loop."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        for entry in pyro.plate("entries", 6):
            y = pyro.sample(f"y_{entry}", dist.Bernoulli(logits=z), infer=PARALLEL)
            pyro.sample(f"x_{entry}", dist.Normal(2 * y + z, 1.0), obs=x[:, entry])


def around_data(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, 0], 1.0))


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("model", [masked, missing_steps, one_by_one])
def test_masks_and_loops_count_as_in_pyro(model, num_samples):
    x, losses = draws(5, 6), []
    theirs = TraceEnum_ELBO(num_particles=num_samples, vectorize_particles=True, max_plate_nesting=2)
    mine = ELBO(num_samples)
    mine.bound(model, around_data, x)  # finds out how to run the pair, by draws of its own
    for objective in (mine, theirs):
        with private_store(model, around_data), seeded(3):
            losses.append(objective.loss(model, around_data, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_states_of_very_different_sizes_do_not_underflow():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x.new_tensor([0.0, 3000.0])), infer=PARALLEL)
            pyro.sample("x", dist.Normal(y * 100.0, 1.0), obs=x)

    x = torch.zeros(2, dtype=torch.float32)
    found = pvae.log_weights(model, None, x, 1).values[0]
    # log p(x) is that of the first state: e^-3000 against e^-5000.
    torch.testing.assert_close(found, x - 3000.0 - 0.5 * math.log(2 * math.pi))


def test_forty_bits_of_a_plate_are_summed_exactly():
    x = draws(3, 40)

    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("bits", 40, dim=-2):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Normal(2 * y, 1.0), obs=x.T)

    answer = pvae.log_marginal(model, None, x, Enumeration())
    one, two = (dist.Normal(torch.tensor(loc, dtype=DOUBLE), 1.0).log_prob(x) for loc in (0.0, 2.0))
    exact = torch.logaddexp(one + math.log(0.7), two + math.log(0.3)).sum(-1)
    torch.testing.assert_close(answer.values, exact, rtol=1e-12, atol=1e-10)
    assert answer.num_samples == 2**40


def total(x):
    """x depends on the number of heads among the coins of a plate that it lies outside of."""
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("coins", 4, dim=-2):
            coins = pyro.sample("coin", dist.Bernoulli(x.new_tensor(0.3)).expand([4, len(x)]), infer=PARALLEL)
        pyro.sample("x", dist.Normal(coins.sum(-2), 1.0), obs=x)


def neighbours(x):
    """Each entry of x depends on the coins of all entries."""
    with pyro.plate("data", len(x), dim=-1), pyro.plate("coins", 4, dim=-2):
        coins = pyro.sample("coin", dist.Bernoulli(x.new_tensor(0.3)).expand([4, len(x)]), infer=PARALLEL)
        pyro.sample("x", dist.Normal(coins.sum(-2, keepdim=True), 2.0), obs=x.expand(4, len(x)))


@pytest.mark.parametrize(("model", "scale"), [(total, 1.0), (neighbours, 2 / math.sqrt(4))])
def test_entries_that_hang_together_are_summed_over_their_joint_states(model, scale):
    x = draws(5)
    found = pvae.log_weights(model, None, x, 1).values[0]
    terms = []
    for heads in range(5):
        log_prior = dist.Binomial(4, torch.tensor(0.3, dtype=DOUBLE)).log_prob(torch.tensor(heads, dtype=DOUBLE))
        each = dist.Normal(torch.tensor(heads, dtype=DOUBLE), 2.0 if model is neighbours else 1.0).log_prob(x)
        terms.append(log_prior + each * (4 if model is neighbours else 1))
    torch.testing.assert_close(found, torch.stack(terms).logsumexp(0), rtol=0, atol=1e-10)


def crossed(x):
    """A bit of each row and one of each column of a picture; a pixel depends on both."""
    with pyro.plate("data", len(x), dim=-1):
        rows = pyro.plate("rows", 3, dim=-2)
        with rows:
            row = pyro.sample("row", dist.Bernoulli(x.new_tensor(0.3)), infer=PARALLEL)
        with pyro.plate("columns", 2, dim=-3):
            column = pyro.sample("column", dist.Bernoulli(x.new_tensor(0.6)), infer=PARALLEL)
            with rows:
                pyro.sample("x", dist.Normal(row + 2 * column, 1.0), obs=x.permute(1, 2, 0))


def test_crossed_plates_are_summed_over_their_joint_states():
    x = draws(4, 2, 3)
    terms = []
    for bits in itertools.product((0.0, 1.0), repeat=5):
        row, column = torch.tensor(bits[:3], dtype=DOUBLE), torch.tensor(bits[3:], dtype=DOUBLE)
        log_prior = dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE)).log_prob(row).sum()
        log_prior = log_prior + dist.Bernoulli(torch.tensor(0.6, dtype=DOUBLE)).log_prob(column).sum()
        terms.append(log_prior + dist.Normal(row + 2 * column[:, None], 1.0).log_prob(x).sum((-1, -2)))
    found = pvae.log_weights(crossed, None, x, 1).values[0]
    torch.testing.assert_close(found, torch.stack(terms).logsumexp(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_nets_that_take_no_dims_for_states_run_on_copies(num_samples):
    model, x = Viewed(20), draws(5, 20, seed=4)
    observed = torch.arange(20) < torch.tensor([[20], [1], [12], [3], [0]])
    run = run_of(model, scales, (x, observed), num_samples)
    assert not run.layout.vectorizes
    assert run.states.copies == 2 * 3
    like = Mixed(20)
    other = run_of(like, None, (x, observed), num_samples, given=run.latents).log_weights()
    weights = run.log_weights()
    torch.testing.assert_close(weights.log_prior, other.log_prior, rtol=0, atol=1e-11)
    torch.testing.assert_close(weights.log_likelihood, other.log_likelihood, rtol=0, atol=1e-10)
    found = torch.autograd.grad(weights.log_likelihood.sum(), model.parameters())
    for mine, theirs in zip(found, torch.autograd.grad(other.log_likelihood.sum(), like.parameters()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    assert run.draw_summed()["topic"].shape == (num_samples, 5, 20)


def test_many_entries_that_hang_together_are_refused_in_a_line():
    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("bits", 20, dim=-2):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.3)).expand([20, len(x)]), infer=PARALLEL)
            pyro.sample("x", dist.Normal(y.sum(-2, keepdim=True), 1.0), obs=x.T)

    with pytest.raises(ValueError, match=r"'y'.*1.05e.06 joint states.*no other entry") as error:
        pvae.log_weights(model, None, draws(3, 20), 1)
    assert "\n" not in str(error.value)


def test_reconstructions_and_imputations_of_words():
    model, x = Mixed(), draws(4, 3, seed=4)
    observed = torch.tensor([True, True, False]).expand(4, 3)
    assert pvae.reconstruct(model, scales, (x, observed))["x"].shape == (4, 3)
    assert pvae.check(model, scales, (x, observed)) == []
