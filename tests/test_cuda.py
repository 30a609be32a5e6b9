"""On a GPU every pair, objective and question gives the CPU's numbers, and every step mode trains alike."""

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pvae
from pvae.data import DataSet
from pvae.estimators import (
    AnnealedImportanceSampling,
    DefensiveMixture,
    Enumeration,
    ImportanceSampling,
    Jackknife,
    PriorSampling,
    Quadrature,
)
from pvae.graphs import replay
from pvae.graphs.capture import Captured
from pvae.objectives import ELBO, IWAE
from pvae.objectives.baselines import Neural
from pvae.pair.contexts import seeded
from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.store import private_store
from pvae.training import linear_warmup
from tests import tables
from tests.tables import GUIDES, MODELS, NO_DENSITY, cast, cells, gradient_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# What the first two draw besides the latents comes from the device's own generator; the last has no inverse.
NOT_AT_GIVEN_DRAWS = NO_DENSITY | {"Auxiliary", "SemiAmortized", "PlanarFlow"}

# The check of a Cholesky factorisation waits for the GPU; some versions of torch leave it out of a trace.
THAT_MAY_WAIT = {"Exact", "LowRank"}


@pytest.fixture(autouse=True)
def tracing_that_always_pays(monkeypatch):
    """So few steps would not pay for their traces, and "auto" would leave them eager."""
    monkeypatch.setattr(replay, "_GAIN_OF_TRACE", 1e9)


def pair(model_name, guide_name, dtype=torch.float32):
    torch.manual_seed(0)
    make_model, make_data = MODELS[model_name]
    model, x = make_model(), make_data()
    guide = GUIDES[guide_name](model, x)
    return model.to(dtype), guide.to(dtype), cast(x, dtype)


def moved(batch, device):
    return tuple(part.to(device) for part in batch) if isinstance(batch, tuple) else batch.to(device)


def weights_and_gradients(model, guide, x, draws=None):
    batch = x if isinstance(x, tuple) else (x,)
    with private_store(model, guide), seeded(0, batch[0].device):
        layout = read_layout(model, guide, batch, 3)
        run = run_pair(model, guide, batch, 3, layout, given=draws)
        values = run.log_weights().values
    leaves = [*dict.fromkeys(p for part in (model, guide) for p in part.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(values.mean(), leaves, allow_unused=True, materialize_grads=True)
    return values.detach(), gradients, {name: value.detach() for name, value in run.latents.items()}


@pytest.mark.parametrize(
    ("model_name", "guide_name"), cells(lambda m, g: tables.fits(m, g) and g not in NOT_AT_GIVEN_DRAWS)
)
def test_log_weights_and_gradients_at_given_draws(model_name, guide_name):
    model, guide, x = pair(model_name, guide_name, torch.float64)
    *_, draws = weights_and_gradients(model, guide, x)
    expected, slopes, _ = weights_and_gradients(model, guide, x, draws)
    found, others, _ = weights_and_gradients(
        model.cuda(), guide.cuda(), moved(x, "cuda"), {name: value.cuda() for name, value in draws.items()}
    )
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(others, slopes, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-7, atol=1e-8)


def losses(model, guide, x, mode, objective, **options):
    result = pvae.fit(
        model,
        guide,
        x,
        objective=objective,
        batch_size=4,
        step_mode=mode,
        device="cuda",
        seed=2,
        progress=False,
        **{"steps": 8, **options},
    )
    return result.losses, result.step_mode


def assert_all_modes_alike(make, modes=("traced", "auto"), ends=("graph",), **options):
    """`make` builds a pair, its data and an objective anew."""
    model, guide, x, objective = make()
    expected, _ = losses(model, guide, x, "eager", objective, **options)
    for mode in modes:
        model, guide, x, objective = make()
        found, ran = losses(model, guide, x, mode, objective, **options)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert ran in (ends if mode == "auto" else ("traced",))


@pytest.mark.parametrize(("model_name", "guide_name"), cells())
def test_every_pair_trains_alike_in_every_mode(model_name, guide_name):
    def make():
        gradient = gradient_for(guide_name)
        objective = ELBO(beta=0.0) if guide_name in NO_DENSITY else ELBO(2, **gradient)
        return *pair(model_name, guide_name), objective

    assert_all_modes_alike(make, ends=("graph", "traced") if guide_name in THAT_MAY_WAIT else ("graph",))


@pytest.mark.parametrize("name", tables.OBJECTIVES)
def test_every_objective_trains_alike_in_every_mode(name):
    assert_all_modes_alike(lambda: (*pair("VAE, learned Gaussian", "MeanField"), tables.OBJECTIVES[name]()))


OPTIONS = {
    "schedules": {"kl_schedule": linear_warmup(5), "schedule": "cosine", "clip_norm": 1.0, "ema": 0.9},
    "turns": {"inference_steps": 3, "steps": 24},
    "guide": {"train": "guide"},
    "own optimizer": {"optimizer": lambda leaves: torch.optim.SGD(leaves, lr=1e-2, momentum=0.9)},
    "plain Adam": {"optimizer": lambda leaves: torch.optim.Adam(leaves, lr=1e-2)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_alike_in_every_mode(name):
    assert_all_modes_alike(lambda: (*pair("VAE", "MeanField"), IWAE(3)), **OPTIONS[name])


def test_data_that_stream_train_alike_in_every_mode():
    """Pinned memory is filled by a thread of its own, which may call CUDA while a graph is captured."""

    def make():
        model, guide, x = pair("VAE", "MeanField")
        return model, guide, DataLoader(TensorDataset(x), batch_size=2, pin_memory=True), ELBO()

    assert_all_modes_alike(make)


def test_a_data_set_is_validated_and_stopped_alike_in_every_mode():
    def make():
        model, guide, _ = pair("VAE", "MeanField")
        grey = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        data = DataSet("grey", train=grey[:12], valid=grey[12:], kind="unit", binarize="dynamic")
        return model, guide, data, ELBO()

    assert_all_modes_alike(make, steps=None, epochs=6, early_stopping=2)


@pytest.mark.parametrize("mode", ["eager", "traced", "auto"])
def test_the_first_step_that_is_not_finite_is_named(mode):
    found = {}
    for device in ("cpu", "cuda"):
        model, guide, x = pair("VAE, learned Gaussian", "MeanField")
        with pytest.raises(FloatingPointError, match=r"step \d+: loss") as caught:
            pvae.fit(model, guide, x * 1e18, steps=300, lr=1e3, step_mode=mode, device=device, progress=False)
        found[device] = str(caught.value).split(";")[0].split(":")[0]
        assert all(bool(p.isfinite().all()) for part in (model, guide) for p in part.parameters())
    assert found["cuda"] == found["cpu"]


ESTIMATORS = {
    "importance": ImportanceSampling,
    "prior": PriorSampling,
    "defensive": DefensiveMixture,
    "jackknife": Jackknife,
    "annealed": lambda num, **options: AnnealedImportanceSampling(num, num_temperatures=5, num_leapfrog=2, **options),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_log_marginal_is_the_same_by_every_route(name):
    model, guide, x = pair("VAE", "FullCovariance", torch.float64)
    found = {
        mode: pvae.log_marginal(
            model, guide, x, ESTIMATORS[name](60, chunk_size=20, step_mode=mode), batch_size=4, device="cuda"
        )
        for mode in ("eager", "traced", "auto", "graph")
    }
    for mode in ("traced", "auto", "graph"):
        torch.testing.assert_close(found[mode].values, found["eager"].values, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[mode].ess, found["eager"].ess, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("estimator", "model_name", "guide_name"),
    [(Quadrature(), "VAE", "MeanField"), (Enumeration(), "VAE, one-hot prior", "Categorical")],
    ids=["quadrature", "enumeration"],
)
def test_what_draws_nothing_gives_the_numbers_of_the_cpu(estimator, model_name, guide_name):
    model, guide, x = pair(model_name, guide_name, torch.float64)
    expected = pvae.log_marginal(model, guide, x, estimator).values
    found = pvae.log_marginal(model, guide, x, estimator, device="cuda").values
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


class Unstill(nn.Module):
    """A model that cannot be captured: it takes a number to the CPU and back at every run."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.ones(2))

    def forward(self, x):
        pyro.module("unstill", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.loc.cpu().exp().to(x.device)
            pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=x)


def test_a_pair_that_cannot_be_captured_trains_alike_and_leaves_the_random_state_usable(caplog):
    def make():
        torch.manual_seed(0)
        model = Unstill()
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        return model, pvae.guides.MeanField(model, x, hidden=(4,)), x

    assert_all_modes_alike(lambda: (*make(), ELBO()), ends=("traced",))
    assert "training steps run traced: some operation waits for the GPU" in caplog.text
    assert torch.randn(3, device="cuda").isfinite().all()
    # The next pair is captured as ever.
    assert_all_modes_alike(lambda: (*pair("VAE", "MeanField"), ELBO()))


def test_a_capture_that_fails_leaves_the_random_state_usable(monkeypatch):
    """Where the search for what waits misses something, the capture itself fails."""
    monkeypatch.setattr("pvae.graphs.capture._refusing_to_wait", nullcontext)

    def waits(x):
        noise = torch.randn_like(x)
        return [noise * noise.sum().item()]

    drawn = Captured(lambda x: [x + torch.randn_like(x)], [], [torch.zeros(3, device="cuda")])
    with pytest.raises(RuntimeError):
        Captured(waits, [], [torch.zeros(3, device="cuda")])
    torch.cuda.manual_seed(1)
    expected = torch.randn(3, device="cuda")
    torch.cuda.manual_seed(1)
    assert drawn(torch.zeros(3, device="cuda"))[0].equal(expected)
    assert_all_modes_alike(lambda: (*pair("VAE", "MeanField"), ELBO()))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_pair_trains_on_the_second_gpu_as_on_the_first():
    def trained(device):
        result = pvae.fit(*pair("VAE", "MeanField"), steps=8, batch_size=4, device=device, seed=2, progress=False)
        assert result.step_mode == "graph"
        return result.losses

    torch.testing.assert_close(trained("cuda:1"), trained("cuda:0"), rtol=1e-4, atol=1e-5)


def answers(model, guide, x, device):
    """What one asks of a pair, as tensors or numbers; those that hang on draws come as None."""
    torch.manual_seed(0)
    model, guide, x = model.to(device), guide.to(device), x.to(device)
    hole = x.clone()
    hole[:, 0, 0, :2] = math.nan
    holes = pvae.data.missing(hole)
    filling = GUIDES["MeanField"](model, holes).to(x)
    diagnostics = pvae.diagnostics
    pvae.check(model, guide, x)
    asked = {
        "sample": pvae.sample(model, 5)["x"],
        "reconstruct": pvae.reconstruct(model, guide, x)["x"],
        "draws": pvae.encode(guide, x, num_samples=2)["z"],
        "impute": pvae.impute(model, filling, holes, 50, 3).draws,
        "active": diagnostics.active_dimensions(guide, x)["z"],
        "collapse": diagnostics.collapse(model, guide, x).mutual_information,
        "gap": diagnostics.inference_gap(model, guide, x, local_steps=5, num_samples=50).log_p.values,
        "calibration": diagnostics.calibration(model, guide, x, num_simulations=20, num_samples=9).p_values["z"],
        "aggregate": diagnostics.log_aggregate_posterior(guide, pvae.encode(guide, x), [(x,)]),
    }
    objective = IWAE(3, gradient="score", baseline=Neural(x.cpu(), hidden=(4,)))
    diagnostics.gradient_variance(objective, model, guide, x, num_repeats=20)
    assert all(bool(torch.as_tensor(value).isfinite().all()) for value in asked.values())
    return {"encode": pvae.encode(guide, x)["z"], "aggregate": asked["aggregate"]}


def test_every_question_has_an_answer_and_changes_no_random_state():
    expected = answers(*pair("VAE", "MeanField", torch.float64), "cpu")
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    found = answers(*pair("VAE", "MeanField", torch.float64), "cuda")
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-9, atol=1e-9)
    torch.cuda.manual_seed(3)
    assert torch.cuda.get_rng_state().equal(before)


def test_training_and_estimating_leave_the_random_state_of_the_gpu():
    model, guide, x = pair("VAE", "MeanField")
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    pvae.fit(model, guide, x, steps=5, device="cuda", progress=False)
    pvae.log_marginal(model, guide, x, ImportanceSampling(20), device="cuda")
    assert torch.cuda.get_rng_state().equal(before)
    assert torch.is_autocast_enabled("cuda") is False


def test_the_same_seed_gives_the_same_losses_on_the_gpu():
    found = [losses(*pair("VAE", "MeanField"), "auto", ELBO())[0] for _ in range(2)]
    assert found[0].equal(found[1])


def test_tensors_that_a_model_makes_elsewhere_are_named_with_the_fix():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            pyro.module("elsewhere", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z + self.loc * torch.ones(2), 1.0).to_event(1), obs=x)

    x = torch.randn(6, 2)
    model = Elsewhere()
    guide = pvae.guides.MeanField(model, x, hidden=(4,))
    match = r"\Athe .*on a batch of shape \(6, 2\): Expected all tensors to be on the same device.*x\.new_zeros"
    with pytest.raises(ValueError, match=match) as caught:
        pvae.fit(model.cuda(), guide.cuda(), x, steps=2, progress=False)
    assert "\n" not in str(caught.value)
