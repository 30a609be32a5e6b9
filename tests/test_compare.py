"""Comparisons: differences known in closed form, intervals that cover, refusals; the example's two closed forms."""

import dataclasses
import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import MultivariateNormal, kl_divergence
from typer.testing import CliRunner

import pvae
from pvae.cli.main import app
from pvae.data.batches import Batches
from pvae.estimators import ImportanceSampling, PriorSampling
from pvae.guides import Exact
from pvae.models import LinearGaussian

ROOT = Path(__file__).parents[1]
TINY = ["--hidden", 16, "--latent-dim", 2, "--batch-size", 500, "--step-mode", "eager", "--lr", 1e-2]


def linear_gaussian(shift):
    """N(shift, W W' + I) over 3 dims, W small enough for proposals from the prior."""
    model = LinearGaussian(3, 2).double()
    weight = [[0.4, 0.1], [-0.2, 0.3], [0.1, -0.4]]
    model.load_state_dict(
        {"weight": torch.tensor(weight), "loc": torch.full((3,), shift), "log_scale": torch.tensor(0.0)}
    )
    return model


def normal(model):
    covariance = model.weight @ model.weight.T + torch.eye(3, dtype=torch.float64)
    return MultivariateNormal(model.loc.detach(), covariance.detach())


A, B = linear_gaussian(0.0), linear_gaussian(0.15)


def data(num):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    return A.loc.detach() + noise @ normal(A).scale_tril.T


def estimate(model, x, estimator=None, seed=0):
    guide = None if isinstance(estimator, PriorSampling) else Exact(model)
    return pvae.log_marginal(model, guide, x, estimator or ImportanceSampling(2), batch_size=10_000, seed=seed)


def part(result, rows):
    names = ("values", "mc_standard_errors", "ess", "khat")
    return dataclasses.replace(result, **{name: getattr(result, name)[rows] for name in names})


# --- The statistics


def test_differences_are_the_closed_form():
    x = data(500)
    found, back = (pvae.compare(estimate(m, x), estimate(n, x, seed=1)) for m, n in ((A, B), (B, A)))
    exact = (A.log_prob(x) - B.log_prob(x)).detach()
    assert torch.allclose(found.values, exact, atol=1e-10, rtol=0)
    assert found.mean == pytest.approx(exact.mean().item(), abs=1e-10)
    assert found.standard_error == pytest.approx(exact.std().item() / math.sqrt(500), rel=1e-8)
    assert found.mc_standard_error < 1e-8
    assert found.share_a_better == (exact > 0).double().mean().item()
    assert (back.mean, back.share_a_better) == pytest.approx((-found.mean, 1 - found.share_a_better))


def test_interval_covers_the_expected_difference_and_the_draws_are_counted_once():
    """E(A - B) under A is KL(A | B); 2,000 repetitions of 100 data each, 8 draws being over half of the variance."""
    num, repetitions = 100, 2000
    x = data(num * repetitions)
    a, b = (estimate(model, x, PriorSampling(8), seed) for seed, model in enumerate((A, B)))
    found = [pvae.compare(part(a, rows), part(b, rows)) for rows in torch.arange(len(x)).split(num)]
    expected = kl_divergence(normal(A), normal(B)).item()
    covered = np.mean([low <= expected <= high for low, high in (one.interval for one in found)])
    assert abs(covered - 0.95) < 5 * math.sqrt(0.95 * 0.05 / repetitions)
    # Errors that count the draws twice, or not at all, give intervals that hold far more, or less, than 95 %.
    off, errors, draws = (
        np.array([getattr(one, name) for one in found]) for name in ("mean", "standard_error", "mc_standard_error")
    )
    off = np.abs(off - expected)
    of_data = (A.log_prob(x) - B.log_prob(x)).detach().reshape(-1, num).std(1).numpy() / math.sqrt(num)
    assert np.mean((draws / errors) ** 2) > 0.5
    assert np.mean(off < 1.96 * np.hypot(errors, draws)) > 0.97
    assert np.mean(off < 1.96 * of_data) < 0.9


def test_monte_carlo_part_is_the_spread_around_the_data_s_own_difference():
    x = data(20_000)
    found = pvae.compare(*(estimate(model, x, PriorSampling(50), seed) for seed, model in enumerate((A, B))))
    off = (found.values - (A.log_prob(x) - B.log_prob(x)).detach()) / found.mc_standard_errors
    error = off.square().std().item() / math.sqrt(len(off))
    assert abs(off.square().mean().item() - 1) < 5 * error + 0.05  # the delta method leaves out terms of order 1/K


def test_bias_of_a_noisy_bound_is_told():
    x = data(20_000)
    found = pvae.compare(estimate(A, x, PriorSampling(20)), estimate(A, x))
    assert found.bias < -0.005
    assert abs(found.mean - found.bias) < 5 * found.mc_standard_error + 0.1 * abs(found.bias)
    assert "the estimators' own bias: draw more samples" in found.verdict


def test_verdicts():
    x = data(2000)
    a, b = estimate(A, x), estimate(B, x)
    found = pvae.compare(a, b)
    low, high = found.interval
    assert 0 < low < high
    assert found.verdict == (
        f"A is better by {found.mean:.4f} +- {found.standard_error:.4f} nats per datum "
        f"(95 % interval {low:.4f} to {high:.4f})"
    )
    assert pvae.compare(b, a).verdict == found.verdict.replace("A is", "B is")
    same = pvae.compare(*(estimate(A, x, PriorSampling(200), seed) for seed in (0, 1)))
    assert same.better is None
    assert same.verdict.startswith("not separable: the 95 % interval of A - B, -0.00")
    assert pvae.compare(a, a).verdict.startswith("not separable")
    assert pvae.compare(part(a, slice(1)), part(b, slice(1))).verdict.startswith("not separable: one datum")


def test_verdict_warns():
    x = data(100)
    a, b = estimate(A, x, PriorSampling(100)), estimate(B, x, PriorSampling(100), 1)
    khat = torch.full((100,), 0.1, dtype=torch.float64)
    heavy = khat.clone().index_fill_(0, torch.tensor([3, 5]), 0.9), khat.clone().index_fill_(0, torch.tensor([5]), 0.9)
    a, b = (dataclasses.replace(result, khat=part) for result, part in zip((a, b), heavy, strict=True))
    found = pvae.compare(a, b)
    assert found.untrusted.nonzero()[:, 0].tolist() == [3, 5]
    assert found.summary()["num_untrusted"] == 2
    assert "; but 2 of 100 data have untrusted weights" in found.verdict
    other = pvae.compare(a, dataclasses.replace(b, bound="none"))
    assert "but A's values are lower bounds and B's no bounds" in other.verdict
    assert "but 10 data are few" in pvae.compare(part(a, slice(10)), part(b, slice(10))).verdict
    few = pvae.compare(estimate(A, x, PriorSampling(5)), estimate(B, x))
    assert "but 100 of 100 data have no k-hat" in few.verdict


DIGITS = {"name": "digits", "kind": "unit", "binarize": "dynamic", "shape": [1, 8, 8], "split": "test"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "mnist"}, "name digits and mnist"),
        ({"split": "valid"}, "split test and valid"),
        ({"binarize": "static"}, "binarize dynamic and static"),
        ({"binarize": None}, "binarize dynamic and none"),
        ({"kind": "binary"}, "kind unit and binary"),
        ({"shape": [1, 8, 9]}, "shape [1, 8, 8] and [1, 8, 9]"),
        ({"simulated": True}, "each was simulated from its own model"),
    ],
)
def test_other_data_are_refused(change, words):
    result = dataclasses.replace(estimate(A, data(10)), data=DIGITS)
    with pytest.raises(ValueError, match="are of different data") as refused:
        pvae.compare(result, dataclasses.replace(result, data={**DIGITS, **change}))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_flat_images_are_the_same_data_and_other_numbers_are_not():
    result = dataclasses.replace(estimate(A, data(10)), data=DIGITS)
    assert pvae.compare(result, dataclasses.replace(result, data={**DIGITS, "shape": [64]})).mean == 0
    with pytest.raises(ValueError, match="different data: 10 and 9 of them"):
        pvae.compare(result, part(result, slice(9)))
    with pytest.raises(ValueError, match=r"b must be what pvae\.log_marginal returned, got"):
        pvae.compare(result, result.mean)


# --- The command


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def printed(*words):
    result = invoke(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def refusal(*words):
    result = invoke("compare", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name, trained for a moment."""
    folder = tmp_path_factory.mktemp("runs")
    grey = ["--model", "linear_gaussian", "--guide", "exact"]
    options = {
        "short": ["--binarize", "dynamic", "--epochs", 1],
        "long": ["--binarize", "dynamic", "--epochs", 20],
        "static": ["--binarize", "static", "--epochs", 1],
        "grey": ["--epochs", 1],
        "linear grey": [*grey, "--epochs", 1],
        "linear": [*grey, "--binarize", "dynamic", "--epochs", 1],
    }
    for name, words in options.items():
        assert invoke("train", *TINY, *words, "--out", folder / name).exit_code == 0
    return {name: folder / name for name in options}


def test_compare_is_what_python_says(runs):
    words = ["--samples", 40, "--seed", 3, "--batch-size", 70]
    found = printed("compare", runs["long"], runs["short"], *words)
    dataset = pvae.data.load("digits", binarize="dynamic")
    source = Batches(dataset, 70, split="test")
    source.reseed(3)
    x = torch.cat([batch[0] for batch in source.epoch()])
    pairs = pvae.load(runs["long"]), pvae.load(runs["short"])
    results = [
        pvae.log_marginal(*pair, x, ImportanceSampling(40), batch_size=70, seed=seed)
        for pair, seed in zip(pairs, (3, 5), strict=True)
    ]
    expected = pvae.compare(*results)
    for key, value in expected.summary().items():
        assert key == "data" or found[key] == (pytest.approx(value, abs=1e-9) if key != "verdict" else value), key
    assert found["mean_difference"] == pytest.approx(found["mean_a"] - found["mean_b"], abs=1e-9)
    assert (found["better"], found["num_data"], found["data"]) == ("A", 300, "digits test, binarize dynamic")
    assert found["verdict"].startswith("A is better by")
    # The observed data and A's draws are those of `logp`, B's data too (else its 300 data would be others).
    assert found["mean_a"] == pytest.approx(printed("logp", runs["long"], *words)["mean"], abs=1e-9)


def test_a_run_is_not_separable_from_itself(runs, tmp_path):
    # The better guide of the two: the Monte-Carlo error of weights with a bad k-hat is too small itself.
    copy = shutil.copytree(runs["long"], tmp_path / "copy")
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    found = printed("compare", runs["long"], copy, "--samples", 200)
    assert found["better"] is None
    assert found["verdict"].startswith("not separable")
    # On the same binary data nothing differs but the draws: all of the error is Monte-Carlo.
    assert found["standard_error"] == pytest.approx(found["mc_standard_error"], rel=0.3)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_compare_prints_a_table(runs):
    result = invoke("compare", runs["long"], runs["short"], "--samples", 10, "--subset", 40)
    assert result.exit_code == 0, result.output
    assert all(word in result.stdout for word in ("mean_difference", "verdict", "better by", "binarize dynamic"))


def test_flat_and_image_models_compare_on_grey_data(runs):
    found = printed("compare", runs["linear grey"], runs["grey"], "--samples", 20, "--subset", 50)
    assert (found["num_data"], found["data"]) == (50, "digits test, binarize none")


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ("short", "static", "A and B are of different data: kind unit and binary"),
        ("short", "grey", "A and B are of different data: binarize dynamic and none"),
        ("linear", "short", "log p(x) of A is the log of a density, of B that of a probability"),
    ],
)
def test_runs_that_do_not_compare_are_refused_before_any_estimate(a, b, words, runs, monkeypatch):
    def estimated(*args, **kwargs):
        raise AssertionError("estimated")

    monkeypatch.setattr(pvae, "log_marginal", estimated)
    assert words in refusal(runs[a], runs[b])


def test_an_estimator_on_simulated_data_is_refused(runs):
    words = ["--estimator", "bidirectional_monte_carlo", "--samples", 2]
    assert "each was simulated from its own model" in refusal(runs["short"], runs["long"], *words)


def test_files_of_one_name_must_hold_the_same_data(tmp_path):
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).numpy()
    for name, values in {"a": rows, "b": rows + 1, "c": rows}.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "rows.npy", values)
        words = ["--data", tmp_path / name / "rows.npy", "--epochs", 1, "--out", tmp_path / name / "run"]
        assert invoke("train", *TINY, *words).exit_code == 0
    a, b, c = (tmp_path / name / "run" for name in "abc")
    assert "A and B both name their data rows.npy, but the test data behind the names differ" in refusal(a, b)
    assert printed("compare", a, c, "--samples", 20)["num_data"] == 4


def test_own_code_is_named_for_either_run(runs, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "import torch, pvae\n"
        "from pvae.pair.contexts import seeded\n"
        "with seeded(0):\n"
        "    model = pvae.models.VAE((1, 8, 8), 2)\n"
        "    guide = pvae.guides.MeanField(model, torch.zeros(2, 1, 8, 8), hidden=(8,))\n"
    )
    names = ["--model", f"{own}:model", "--guide", f"{own}:guide"]
    words = ["--binarize", "dynamic", "--epochs", 1, "--out", tmp_path / "run"]
    assert invoke("train", *TINY, *names, *words).exit_code == 0
    assert f"name it again with --model-b {own}:model" in refusal(runs["short"], tmp_path / "run")
    again = ["--model-b", f"{own}:model", "--guide-b", f"{own}:guide"]
    found = printed("compare", runs["short"], tmp_path / "run", *again, "--samples", 5, "--subset", 30)
    assert (
        found["mean_b"]
        == printed(
            "compare",
            tmp_path / "run",
            tmp_path / "run",
            *again,
            *["--model-a", f"{own}:model", "--guide-a", f"{own}:guide", "--samples", 5, "--subset", 30],
        )["mean_b"]
    )
    assert "is vae, not x:y; leave --model-a out" in refusal(runs["short"], runs["short"], "--model-a", "x:y")


# --- examples/gradient_variance.py


@pytest.mark.parametrize("phi", [-1.5, 0.0, 0.7, 2.0, 3.0])
def test_closed_form_variances_of_the_example(phi):
    spec = importlib.util.spec_from_file_location("gradient_variance", ROOT / "examples" / "gradient_variance.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def moment(draw, power):
        def weighted(e):
            return (draw(phi, e) - 2 * phi * (power - 1)) ** power * math.exp(-(e**2) / 2) / math.sqrt(2 * math.pi)

        return quad(weighted, -15, 15, epsabs=1e-10, limit=200)[0]

    for draw, variance in example.ESTIMATORS.values():
        assert moment(draw, 1) == pytest.approx(2 * phi, abs=1e-8)
        assert moment(draw, 2) == pytest.approx(variance(phi), rel=1e-8)
    # The best constant baseline is Cov(x^2 e, e) / Var(e) = E x^2 e^2, whose weights beyond 15 are below 1e-48.
    weighted = quad(lambda e: (phi + e) ** 2 * e**2 * math.exp(-(e**2) / 2) / math.sqrt(2 * math.pi), -15, 15)[0]
    assert weighted == pytest.approx(phi**2 + 3, rel=1e-8)
