"""Models given a label, labels given data: against closed forms, the cross-entropy, and data that tell them apart."""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import LowRankMultivariateNormal
from torch.nn.functional import cross_entropy, one_hot
from typer.testing import CliRunner

import pvae
from pvae.cli.main import app
from pvae.data import DataSet
from pvae.data.batches import Batches
from pvae.estimators import ImportanceSampling, PriorSampling, Quadrature
from pvae.guides import Empty, FullCovariance, MeanField
from pvae.models import VAE, ConditionalVAE, NeuralClassifier
from pvae.models.likelihoods import Gaussian
from pvae.models.priors import ConditionalPrior, StandardNormal
from pvae.objectives import ELBO, IWAE, InfoVAE, Renyi, ReweightedWakeSleep
from tests.tables import OBJECTIVES

X_DIM, LATENT_DIM, CONDITION_DIM, SCALE = 5, 2, 3, 0.5


def linear(prior=None, same_scales=False):
    """z ~ N(A c + a, diag(s(c))^2), x ~ N(W z + U c + b, 0.5^2): all of it linear in z."""
    torch.manual_seed(0)
    decoder = nn.Linear(LATENT_DIM + CONDITION_DIM, X_DIM)
    nn.init.normal_(decoder.weight, std=0.7)
    model = ConditionalVAE(
        (X_DIM,), LATENT_DIM, CONDITION_DIM, likelihood=Gaussian(SCALE), decoder=decoder, prior=prior
    )
    if same_scales:
        nn.init.zeros_(model.prior.net.layers[0].weight[LATENT_DIM:])  # the raw scales
    return model.double()


@torch.no_grad()
def exact(model, x, c):
    """log p(x | c) = log N(x; W loc(c) + U c + b, W diag(s(c))^2 W' + 0.5^2 I)."""
    weight, other = model.decoder.weight.split([LATENT_DIM, CONDITION_DIM], 1)
    prior = model.prior(c) if model.prior_is_conditional else model.prior()
    loc = prior.mean.expand(len(c), -1) @ weight.T + c @ other.T + model.decoder.bias
    factor = weight * prior.stddev.expand(len(c), -1)[:, None]
    return LowRankMultivariateNormal(loc, factor, torch.full_like(loc, SCALE**2)).log_prob(x)


class Beside(nn.Module):
    """Features x and c, of which a Gaussian guide of affine heads is the exact posterior of a linear model."""

    def forward(self, x, c):
        return torch.cat([x, c], -1)


def linear_data(model, num, seed):
    """Draws of the model at one-hot and at real conditions."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(num, CONDITION_DIM, generator=generator, dtype=torch.float64)
    c[::2] = one_hot(torch.randint(CONDITION_DIM, (len(c[::2]),), generator=generator), CONDITION_DIM).double()
    x = torch.zeros(num, X_DIM, dtype=torch.float64)
    return pvae.sample(model, num, like=(x, c), seed=seed)["x"], c


@pytest.mark.parametrize("prior", [None, StandardNormal(LATENT_DIM)], ids=["conditional", "standard"])
def test_log_p_given_a_condition_is_the_closed_form(prior):
    model = linear(prior)
    batch = linear_data(model, 30, 1)
    truth = exact(model, *batch)
    whole = pvae.log_marginal(model, None, batch, Quadrature())
    torch.testing.assert_close(whole.values, truth, rtol=0, atol=1e-7)
    for guide, estimator in ((None, PriorSampling(20_000)), (MeanField(model, batch), ImportanceSampling(20_000))):
        found = pvae.log_marginal(model, guide, batch, estimator, seed=2)
        trusted = found.khat < 0.6
        assert trusted.sum() > 10
        error = found.values - truth
        assert (error.abs() < 5 * found.mc_standard_errors)[trusted].all()


def test_a_trained_guide_closes_the_gap_to_log_p_given_the_condition():
    model = linear(same_scales=True)
    batch, fresh = linear_data(model, 500, 1), linear_data(model, 500, 2)
    guide = FullCovariance(model, batch, encoder=Beside()).double()
    result = pvae.fit(model, guide, batch, steps=800, lr=2e-2, schedule="cosine", train="guide", step_mode="traced")
    assert result.step_mode == "traced"
    with torch.no_grad(), pvae.pair.contexts.seeded(3):
        gap = (exact(model, *fresh) - ELBO(100).bound(model, guide, fresh)).mean().item()
    assert -0.005 < gap < 0.02


def test_training_finds_the_conditional_density():
    truth = linear(same_scales=True)
    batch, fresh = linear_data(truth, 4000, 1), linear_data(truth, 2000, 2)
    decoder = nn.Linear(LATENT_DIM + CONDITION_DIM, X_DIM)
    torch.manual_seed(1)
    learnt = ConditionalVAE((X_DIM,), LATENT_DIM, CONDITION_DIM, likelihood=Gaussian(SCALE), decoder=decoder).double()
    guide = FullCovariance(learnt, batch, encoder=Beside()).double()
    untrained = exact(learnt, *fresh)
    pvae.fit(learnt, guide, batch, steps=1500, lr=2e-2, schedule="cosine", step_mode="traced")
    lost = exact(truth, *fresh) - exact(learnt, *fresh)
    assert (exact(truth, *fresh) - untrained).mean() > 1
    # Some forty parameters from 4,000 data cost about 40 / 8,000 nats.
    assert lost.mean() < 0.02 + 5 * lost.std() / 2000**0.5


def test_the_prior_given_a_label_is_a_table_and_a_net_is_taken():
    torch.manual_seed(0)
    prior = ConditionalPrior(CONDITION_DIM, LATENT_DIM)
    given = prior(torch.eye(CONDITION_DIM))
    assert (given.batch_shape, given.event_shape) == ((CONDITION_DIM,), (LATENT_DIM,))
    weight, bias = prior.net.layers[0].weight, prior.net.layers[0].bias
    torch.testing.assert_close(given.mean, (weight.T + bias)[:, :LATENT_DIM])
    with torch.no_grad():
        weight.zero_()
    torch.testing.assert_close(prior(torch.eye(3)).stddev, torch.full((3, 2), 1.001))
    net = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(-1, (2, 2)))
    assert ConditionalPrior(3, 2, net=net)(torch.zeros(7, 5, 3)).batch_shape == (7, 5)


def test_samples_follow_the_conditions_in_turn():
    model = linear()
    c = torch.eye(CONDITION_DIM, dtype=torch.float64)
    draws = pvae.sample(model, 3 * 2000, like=(torch.zeros(3, X_DIM, dtype=torch.float64), c), seed=1)["x"]
    with torch.no_grad():
        weight, other = model.decoder.weight.split([LATENT_DIM, CONDITION_DIM], 1)
        loc = model.prior(c).mean @ weight.T + c @ other.T + model.decoder.bias
    by_class = draws.reshape(2000, 3, X_DIM)
    error = by_class.std(0) / 2000**0.5
    assert ((by_class.mean(0) - loc).abs() < 5 * error).all()


def test_a_batch_it_cannot_take_is_refused_in_one_line():
    model = linear()
    x, c = linear_data(model, 4, 1)
    for batch, words in (
        ((x, c.argmax(-1)), r"conditions of shape \(B, 3\), got \(4,\); give labels one-hot"),
        ((x[:, :4], c), r"of shape \(B, 5\), got \(4, 4\); reshape"),
        (x, "positional argument: 'c'; give a tuple"),
    ):
        with pytest.raises(ValueError, match=words):
            MeanField(model, batch)
    for sizes, words in (((0, 3), "latent_dim must be"), ((2, 0), "condition_dim must be")):
        with pytest.raises(ValueError, match=words):
            ConditionalVAE((X_DIM,), *sizes)
    with pytest.raises(ValueError, match="num_classes must be a whole number of at least 2, got 1"):
        NeuralClassifier((X_DIM,), 1)


def classifier():
    torch.manual_seed(0)
    data = pvae.data.load("digits", binarize="threshold").with_labels()
    model = NeuralClassifier(data.shape, 10)
    return model, Empty(model, data.example()), data


def cross_entropies(model, x, y):
    with torch.no_grad():
        return cross_entropy(model.net(x), y.argmax(-1), reduction="none")


def test_every_bound_of_a_classifier_is_minus_its_cross_entropy():
    model, guide, data = classifier()
    batch = data.example(20)
    truth = -cross_entropies(model, *batch)
    refused = []
    for name, make in OBJECTIVES.items():
        try:
            found = make().bound(model, guide, batch)
        except ValueError as error:
            refused.append((name, str(error)))
        else:
            # Minus an upper bound on log p.
            sign = -1 if name == "CUBO" else 1
            torch.testing.assert_close(sign * found.detach(), truth, msg=name)
    # These are made of latents, of continuous data, or of data as their discriminator knows them.
    games = ["AdversarialAutoencoder", "AdversarialVB", "GenerativeAdversarial"]
    assert sorted(name for name, _ in refused) == sorted([*games, "BetaTCVAE", "FisherAutoencoder", "InfoVAE"])
    with pytest.raises(ValueError, match="no latent site; there are no draws to compare with the prior's, use ELBO"):
        InfoVAE().bound(model, guide, batch)


@pytest.mark.parametrize("objective", [ELBO(), ELBO(3, gradient="stl"), IWAE(3, gradient="dreg"), Renyi(0.5, 3)])
def test_its_gradient_is_that_of_the_cross_entropy(objective):
    model, guide, data = classifier()
    x, y = data.example(20)
    (-objective.bound(model, guide, (x, y)).mean()).backward()
    expected = torch.autograd.grad(cross_entropy(model.net(x), y.argmax(-1)), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("num_samples", [1, 2, 1000])
def test_log_p_of_a_label_is_exact_with_any_number_of_samples(num_samples):
    model, guide, data = classifier()
    found = pvae.log_marginal(model, guide, data, ImportanceSampling(num_samples))
    x, y = data.parts("test")
    torch.testing.assert_close(found.values, -cross_entropies(model, x, y).double(), rtol=1e-5, atol=1e-5)
    if num_samples > 1:
        assert (found.mc_standard_errors == 0).all()
    if num_samples == 1000:
        assert found.fraction_untrusted == 0


def test_the_same_fit_trains_a_classifier():
    model, guide, data = classifier()
    result = pvae.fit(model, guide, data, epochs=15, step_mode="traced")
    assert result.step_mode == "traced"
    x, y = data.parts("test")
    probabilities = model.predict(x)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(x)))
    assert not probabilities.requires_grad
    assert (probabilities.argmax(-1) == y.argmax(-1)).double().mean() > 0.93
    valid = -cross_entropies(model, *data.parts("valid")).mean()
    assert result.history[-1]["valid_bound"] == pytest.approx(valid.item(), abs=1e-5)
    draws = pvae.sample(model, 300 * 20, like=(x, y), seed=1)["y"].reshape(20, 300, 10)
    spread = (probabilities * (1 - probabilities)).sum(0).div(20).sqrt() / 300
    assert ((draws.mean((0, 1)) - probabilities.mean(0)).abs() < 5 * spread).all()


def test_predictions_are_those_of_evaluation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3))
    model = NeuralClassifier((4,), 3, net=net)
    x = torch.randn(5, 4)
    assert torch.equal(model.predict(x), model.predict(x))
    assert net[1].training


def test_an_empty_guide_serves_what_has_nothing_to_draw():
    def fully_summed(x):
        weights = pyro.param("weights", lambda: torch.tensor([0.3, 0.7], dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(4.0 * z, 1.0), obs=x)

    x = torch.randn(7, dtype=torch.float64)
    guide = Empty(fully_summed, x)
    truth = torch.stack([p * torch.exp(dist.Normal(m, 1.0).log_prob(x)) for p, m in ((0.3, 0.0), (0.7, 4.0))]).sum(0)
    torch.testing.assert_close(ELBO().bound(fully_summed, guide, x).detach(), truth.log())
    torch.testing.assert_close(pvae.log_marginal(fully_summed, guide, x, ImportanceSampling(3)).values, truth.log())
    assert pvae.check(fully_summed, guide, x) == []
    with pytest.raises(ValueError, match=r"site 'z' is latent.*use a guide that serves it"):
        Empty(VAE((4,), 2), torch.zeros(3, 4))


def test_what_needs_latents_says_so():
    model, guide, data = classifier()
    batch = data.example(30)
    for call, words in (
        (lambda: pvae.diagnostics.collapse(model, guide, batch), "no latent site; nothing can collapse"),
        (lambda: pvae.diagnostics.calibration(model, guide, batch), "no latent site; there is no posterior"),
        (lambda: pvae.log_marginal(model, guide, batch, Quadrature()), r"no latent site; Imp.*pvae\.guides\.Empty"),
        (lambda: pvae.fit(model, guide, batch, steps=1, train="guide"), "the guide has no parameter"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert pvae.encode(guide, batch) == {}
    before = -cross_entropies(model, *batch).mean()
    losses = pvae.fit(model, guide, batch, steps=20, objective=ReweightedWakeSleep(phase="both")).losses
    assert losses[0] == pytest.approx(-before.item(), abs=1e-5)
    assert losses[-1] < losses[0]


def test_what_stands_beside_the_data_goes_with_them():
    train, labels = torch.rand(10, 4), torch.arange(10) % 3
    data = DataSet(
        "rows", train, train[:4], train[5:], kind="unit", binarize="dynamic",
        labels={"train": labels, "valid": labels[:4], "test": labels[5:]},
    ).with_labels()  # fmt: skip
    source = Batches(data, 4)
    seen = {}
    for _ in range(2):
        for x, c in source.epoch(shuffle=True):
            assert set(x.unique().tolist()) <= {0.0, 1.0}
            assert c.dtype == x.dtype
            for row, label in zip(x, c.argmax(-1), strict=True):
                seen.setdefault(label.item(), []).append(row)
    assert {label: len(rows) for label, rows in seen.items()} == {0: 8, 1: 6, 2: 6}
    assert data.describe()["beside"] == [[3]]
    x, c = data.example(5)
    assert torch.equal(c, one_hot(labels[:5]).float())
    assert x.shape == (5, 4)
    x, c = data.parts("test")
    assert torch.equal(x, train[5:])
    assert torch.equal(c, one_hot(labels[5:], 3).float())


def test_rows_keep_their_own_labels():
    values = torch.arange(20.0)[:, None]
    data = DataSet("rows", values, beside={"train": (2 * values, torch.arange(20))})
    for x, double, index in Batches(data, 3).epoch(shuffle=True):
        assert torch.equal(double, 2 * x)
        assert torch.equal(index, x[:, 0].long())
    (x, double, index), (_, same, _) = data.example(), next(Batches(data, 2).epoch())
    assert torch.equal(double, same)
    assert (len(x), len(index)) == (2, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": {"train": torch.zeros(4, dtype=torch.int64)}}, "has no labels of test: give labels"),
        ({}, "has no labels of train, test"),
        ({"labels": {s: torch.tensor([0, -1, 1, 0]) for s in ("train", "test")}}, "labels must count from 0"),
        ({"beside": {"train": torch.zeros(4)}}, "must be given for train, test, got it for train"),
        ({"beside": {"train": torch.zeros(4), "test": torch.zeros(3)}}, "a row for each of 4 data, got 3"),
        ({"beside": {"train": torch.zeros(4), "test": (torch.zeros(4),) * 2}}, "as many as train, got 2 and 1"),
        ({"beside": {"train": torch.zeros(4), "test": torch.zeros(4, 2)}}, r"must match train's \(\)"),
        ({"beside": {"train": torch.zeros(4), "test": [1, 2, 3, 4]}}, "beside test: data must be a tensor, an array"),
        ({"beside": {s: torch.full((4,), torch.nan) for s in ("train", "test")}}, "must be finite"),
        ({"beside": {"train": (), "test": ()}}, "at least one part"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(change, words):
    with pytest.raises(ValueError, match=words) as refusal:
        DataSet("rows", torch.zeros(4, 2), None, torch.zeros(4, 2), **change).with_labels()
    assert "\n" not in str(refusal.value)


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def printed(*words):
    result = invoke(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


TINY = ["--data", "digits", "--binarize", "dynamic", "--hidden", "20", "--latent-dim", 2, "--step-mode", "traced"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name, trained for a moment."""
    folder = tmp_path_factory.mktemp("runs")
    names = {"a": "conditional_vae", "b": "conditional_vae", "plain": "vae", "classifier": "neural_classifier"}
    found = {}
    for name, model in names.items():
        epochs = 20 if name == "classifier" else 2
        found[name] = printed("train", *TINY, "--model", model, "--epochs", epochs, "--out", folder / name)
    return found


def test_the_command_line_trains_by_labels(runs):
    assert [runs[name]["guide"] for name in ("a", "plain", "classifier")] == ["mean_field", "mean_field", "empty"]
    found = printed("logp", runs["classifier"]["run"], "--samples", 2, "--subset", 100)
    assert found["mc_standard_error"] == 0
    assert -1.5 < found["mean"] < -0.05
    found = printed("logp", runs["a"]["run"], "--samples", 20, "--subset", 30)
    assert found["num_data"] == 30
    assert -60 < found["mean"] < -15


def test_the_command_line_draws_every_label_in_turn(runs):
    files = printed("sample", runs["a"]["run"], "--num", 25)
    # Ten columns of 56 pixels and their frames, and three rows for 25.
    for name, rows in (("samples", 3), ("reconstructions", 6)):
        with Image.open(files[name]) as picture:
            assert picture.size == (10 * 58 + 2, rows * 58 + 2)
    files = printed("sample", runs["classifier"]["run"], "--num", 25)
    predicted = np.load(files["reconstructions"])
    assert predicted.shape == (25, 2, 10)
    np.testing.assert_allclose(predicted.sum(-1), 1.0, rtol=1e-5)
    assert (predicted.argmax(-1)[:, 0] == predicted.argmax(-1)[:, 1]).mean() > 0.5


def test_the_command_line_compares_what_is_given_the_same_labels(runs):
    found = printed("compare", runs["a"]["run"], runs["b"]["run"], "--samples", 20, "--subset", 20)
    assert found["num_data"] == 20
    for other, words in (("plain", "what stands beside them"), ("classifier", "labels given data")):
        result = invoke("compare", runs["a"]["run"], runs[other]["run"], "--samples", 20, "--subset", 20)
        assert result.exit_code == 2
        assert words in result.stderr


def test_a_model_of_labels_asks_for_them(tmp_path):
    file = tmp_path / "rows.npy"
    np.save(file, np.random.RandomState(0).rand(30, 4).round())
    result = invoke("train", "--data", file, "--model", "conditional_vae", "--epochs", 1, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "has no labels of train, valid, test" in result.stderr
