"""Every pair trains alike in every step mode, nothing is compiled twice, and log p(x) is the same by any route."""

import importlib
import math
import os

import pytest
import torch
from torch._dynamo.utils import counters

import pvae
from pvae.estimators import ImportanceSampling
from pvae.objectives import ELBO, IWAE, Objective
from pvae.training import linear_warmup
from tests import tables
from tests.tables import GUIDES, MODELS, NO_DENSITY, SUMS_OUT, cells, gradient_for
from tests.test_clean_world import assert_unchanged, world

OBJECTIVES = {
    "ELBO": lambda guide: ELBO(beta=0.0) if guide in NO_DENSITY else ELBO(2, **gradient_for(guide)),
    "analytic ELBO": lambda guide: ELBO(kl="analytic", beta=0.0) if guide in NO_DENSITY else ELBO(kl="analytic"),
    "IWAE": lambda guide: IWAE(3, **gradient_for(guide)),
}
USUAL = [(model, guide) for model in ("LinearGaussian", "VAE") for guide in ("MeanField", "Exact")]


def marks_of(cell, objective):
    """Tracing takes seconds a cell: every model and every guide at every run, not each with each by each objective.

    Nor other likelihoods and priors of one VAE, which change little in how a pair runs.
    """
    is_variant = cell.values[0].startswith("VAE, ") and cell.values[0] != "VAE, convolutional"
    return cell.marks if (objective == "ELBO" and not is_variant) or cell.values in USUAL else pytest.mark.slow


CELLS = [
    pytest.param(*cell.values, objective, marks=marks_of(cell, objective), id=f"{cell.id}-{objective}")
    for cell in cells()
    for objective in OBJECTIVES
    if not (cell.values[1] in NO_DENSITY and objective == "IWAE")
    and not (gradient_for(cell.values[1]) and objective == "analytic ELBO")
    and not (cell.values[0] in SUMS_OUT and objective == "analytic ELBO")
]
FEW = [
    ("LinearGaussian", "Exact", "IWAE"),
    ("VAE", "Delta", "ELBO"),
    ("VAE, convolutional", "MeanField", "analytic ELBO"),
    ("VAE, learned Gaussian", "FullCovariance", "IWAE"),
]
# Each shape of a cell takes a core ten seconds to compile, and inductor keeps what it compiled: at every run one pair
# in one shape, which several tests share.
KINDS = [
    pytest.param("VAE", "MeanField", "IWAE", id="dense", marks=pytest.mark.slow),
    pytest.param("SigmoidBeliefNet", "Bernoulli", "ELBO", id="discrete", marks=pytest.mark.slow),
    pytest.param("StateSpace", "MeanField", "ELBO", id="sequence", marks=pytest.mark.slow),
]

# What a graph holds besides the pair: with these, the VAE and MeanField are compiled once for several tests.
SHARED = {"kl_schedule": linear_warmup(10), "clip_norm": 1.0}


def pair(model_name, guide_name):
    torch.manual_seed(0)
    make_model, make_data = MODELS[model_name]
    model, x = make_model(), make_data()
    return model, GUIDES[guide_name](model, x), x


def losses(model_name, guide_name, objective: Objective, step_mode, device="cpu", batch_size=4):
    model, guide, x = pair(model_name, guide_name)
    result = pvae.fit(
        model,
        guide,
        x,
        objective=objective,
        steps=24,
        batch_size=batch_size,
        step_mode=step_mode,
        device=device,
        seed=2,
        progress=False,
    )
    assert result.step_mode == step_mode
    return result.losses


@pytest.mark.parametrize(("model_name", "guide_name", "objective"), CELLS)
def test_every_pair_trains_alike_eagerly_and_traced(model_name, guide_name, objective):
    eager, traced = (
        losses(model_name, guide_name, OBJECTIVES[objective](guide_name), mode) for mode in ("eager", "traced")
    )
    torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("model_name", "guide_name", "objective"), KINDS)
def test_a_pair_of_each_kind_trains_alike_compiled(model_name, guide_name, objective):
    eager, compiled = (
        losses(model_name, guide_name, OBJECTIVES[objective](guide_name), mode, batch_size=tables.NUM_DATA)
        for mode in ("eager", "compiled")
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("model_name", "guide_name", "objective"), CELLS)
def test_every_pair_trains_alike_compiled(model_name, guide_name, objective):
    eager, compiled = (
        losses(model_name, guide_name, OBJECTIVES[objective](guide_name), mode) for mode in ("eager", "compiled")
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", tables.OBJECTIVES)
def test_every_objective_trains_alike_eagerly_and_traced(name):
    eager, traced = (
        losses("VAE, learned Gaussian", "MeanField", tables.OBJECTIVES[name](), mode) for mode in ("eager", "traced")
    )
    torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", tables.OBJECTIVES)
def test_every_objective_trains_alike_compiled(name):
    eager, compiled = (
        losses("VAE, learned Gaussian", "MeanField", tables.OBJECTIVES[name](), mode) for mode in ("eager", "compiled")
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs of kernels cannot be captured")
@pytest.mark.parametrize(("model_name", "guide_name", "objective"), FEW)
def test_every_pair_trains_alike_captured(model_name, guide_name, objective):
    eager, captured = (
        losses(model_name, guide_name, OBJECTIVES[objective](guide_name), mode, "cuda") for mode in ("eager", "graph")
    )
    torch.testing.assert_close(captured, eager, rtol=1e-4, atol=1e-5)


def compilations():
    return counters["stats"]["unique_graphs"], counters["aot_autograd"]["total"]


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_epoch():
    """KL weight and learning rate change at every step, the last batch is ragged, and the guide takes extra steps."""
    model, guide, x = pair("VAE", "MeanField")
    counts = []
    before = compilations()
    result = pvae.fit(
        model,
        guide,
        x,
        epochs=8,
        batch_size=4,
        step_mode="compiled",
        schedule="cosine",
        ema=0.9,
        inference_steps=3,
        callbacks=[lambda record: counts.append(compilations()) and None],
        progress=False,
        **SHARED,
    )
    assert result.step_mode == "compiled"
    # Two shapes, with and without the model's gradients; the first ragged step of both kinds comes in epoch 3.
    assert counts[-1] == counts[2] == tuple(count + 4 for count in before)


def test_compiling_leaves_nothing_behind(tmp_path):
    importlib.import_module("torch._inductor.compile_fx")
    model, guide, x = pair("VAE", "MeanField")
    estimator = ImportanceSampling(60, chunk_size=20, step_mode="compiled")
    # What a process keeps of its first compilation, an environment variable of torch's own, is no matter here.
    pvae.log_marginal(model, guide, x, estimator)
    before, environment, config = world(), dict(os.environ), torch._inductor.config.get_config_copy()
    options = {"steps": 3, "batch_size": 4, "progress": False, **SHARED}
    compiled = pvae.fit(model, guide, x, step_mode="compiled", out=tmp_path / "run", **options)
    pvae.log_marginal(model, guide, x, estimator)
    assert_unchanged(before)
    eager = pvae.fit(*pair("VAE", "MeanField"), step_mode="eager", **options)
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-5, atol=1e-6)
    assert dict(os.environ) == environment
    assert torch._inductor.config.get_config_copy() == config
    assert all(parameter.grad is None for parameter in [*model.parameters(), *guide.parameters()])


ROUTES = [
    *(
        (model_name, "FullCovariance", chunk_size, 4, "traced")
        for model_name in ("VAE", "VAE, convolutional", "VAE, learned Gaussian")
        for chunk_size in (3, 7, 20, 60)
    ),
    ("VAE", "MeanField", 20, tables.NUM_DATA, "compiled"),
    pytest.param("VAE", "FullCovariance", 7, 4, "compiled", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model_name", "guide_name", "chunk_size", "batch_size", "step_mode"), ROUTES)
def test_log_marginal_is_the_same_by_every_route(model_name, guide_name, chunk_size, batch_size, step_mode):
    model, guide, x = pair(model_name, guide_name)
    eager, found = (
        pvae.log_marginal(
            model, guide, x, ImportanceSampling(60, chunk_size=chunk_size, step_mode=mode), batch_size=batch_size
        )
        for mode in ("eager", step_mode)
    )
    torch.testing.assert_close(found.values, eager.values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.ess, eager.ess, rtol=1e-4, atol=1e-4)


def test_an_unknown_mode_of_the_estimator_is_named():
    with pytest.raises(ValueError, match="unknown step_mode 'compile': did you mean 'compiled'"):
        ImportanceSampling(10, step_mode="compile")


def test_a_million_particles_in_float32_meet_the_closed_form():
    """The proposal is the prior, so that weights differ; the sums are in float64, so that a million of them add up."""
    torch.manual_seed(0)
    model = pvae.models.LinearGaussian(4, 2)
    x = torch.randn(2, 4)
    found = pvae.log_marginal(model, None, x, pvae.estimators.PriorSampling(1_000_000))
    exact = model.double().log_prob(x.double()).detach()
    errors = (found.values - exact).abs() / found.mc_standard_errors
    assert found.mc_standard_errors.max() < 5e-3
    assert (errors < 5).all(), errors


def test_a_million_float32_weights_add_up_like_float64_ones():
    weights = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0)) * 3 - 500
    stream = pvae.estimators.weights.stream.WeightStream(len(weights))
    for chunk in weights.split(977):
        stream.update(chunk)
    exact = weights.double().logsumexp(0) - math.log(len(weights))
    torch.testing.assert_close(stream.estimate().values, exact, rtol=0, atol=1e-9)


def test_chunks_without_any_weight_change_nothing():
    """Rows of zero weights, first, last and in between, for data whose log weights are far below zero."""
    rows = torch.full((4096, 2), -math.inf)
    rows[1024:2048] = -1000.0
    stream = pvae.estimators.weights.stream.WeightStream(4096)
    for chunk in rows.split(1024):
        stream.update(chunk)
    expected = torch.full((2,), -1000.0 + math.log(1 / 4), dtype=torch.float64)
    torch.testing.assert_close(stream.estimate().values, expected, rtol=0, atol=1e-9)
