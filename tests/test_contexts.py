"""Every context of the caller's around every public call: the same numbers as without it, or one line that refuses."""

import dataclasses
import sys
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from inspect import isfunction

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

import pvae
from pvae import diagnostics
from pvae.estimators import AnnealedImportanceSampling, ImportanceSampling
from pvae.objectives import IWAE

X = (torch.rand(12, 5, generator=torch.Generator().manual_seed(0)) < 0.5).float()
SEEN = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)) < 0.7


class Masked(nn.Module):
    """A pair of its own nets over data with gaps, so that every public call can take it."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 5))
        self.encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))

    def model(self, x, seen):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            fn = dist.Bernoulli(logits=self.decoder(z), validate_args=False).mask(seen).to_event(1)
            pyro.sample("x", fn, obs=x)

    def guide(self, x, seen):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x * seen).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def vae():
    torch.manual_seed(0)
    model = pvae.models.VAE((5,), 2, decoder=pvae.nets.MLP(2, (6,), (5,)))
    return model, pvae.guides.MeanField(model, X, hidden=(6,))


def gaps():
    torch.manual_seed(0)
    pair = Masked()
    return pair.model, pair.guide


def trained(pair, **options):
    result = pvae.fit(*pair, X, steps=4, batch_size=6, lr=0.1, progress=False, **options)
    return result.losses, result.parameters, result.history[-1]["train_bound"]


def drawn_weights(pair, _):
    torch.manual_seed(3)
    return pvae.log_weights(*pair, X, 4).values.detach()


def saved(pair, folder):
    pvae.save(folder / "again", *pair, X)
    return safetensors.torch.load_file(folder / "again" / "checkpoint.safetensors")


def loaded(pair, folder):
    pvae.load(folder / "run", *pair)
    return [part.detach() for whole in pair for part in whole.parameters()]


def compared(pair, _):
    a, b = (pvae.log_marginal(*pair, X, ImportanceSampling(20), seed=seed) for seed in (0, 1))
    return pvae.compare(a, b).summary()


def mapped(pair, _):
    result = pvae.log_marginal(*pair, X, ImportanceSampling(200))
    return dataclasses.asdict(diagnostics.khat_map(result))


# What makes a pair, and a call of pvae on it that gives numbers to compare.
CALLS = {
    "fit eagerly": (vae, lambda pair, _: trained(pair, step_mode="eager", clip_norm=1.0)),
    "fit traced": (vae, lambda pair, _: trained(pair, step_mode="traced", kl_schedule=lambda step: 0.3 + 0.1 * step)),
    "fit, averaged": (vae, lambda pair, _: trained(pair, objective=IWAE(3), ema=0.9, schedule="cosine")),
    "log_marginal": (vae, lambda pair, _: dataclasses.asdict(pvae.log_marginal(*pair, X, ImportanceSampling(300)))),
    "log_marginal, annealed": (
        vae,
        lambda pair, _: (
            pvae.log_marginal(*pair, X, AnnealedImportanceSampling(4, num_temperatures=3, num_leapfrog=2)).values
        ),
    ),
    "log_marginal to an error": (
        vae,
        lambda pair, _: pvae.log_marginal(*pair, X, ImportanceSampling(50), target_se=0.1).samples,
    ),
    "log_weights": (vae, drawn_weights),
    "check": (vae, lambda pair, _: [str(finding) for finding in pvae.check(*pair, X)]),
    "sample": (vae, lambda pair, _: pvae.sample(pair[0], 7)),
    "encode": (vae, lambda pair, _: pvae.encode(pair[1], X, num_samples=3)),
    "reconstruct": (vae, lambda pair, _: pvae.reconstruct(*pair, X)),
    "impute": (gaps, lambda pair, _: dataclasses.asdict(pvae.impute(*pair, (X, SEEN), 50, 10))),
    "compare": (vae, compared),
    "save": (vae, saved),
    "load": (vae, loaded),
    "collapse": (vae, lambda pair, _: diagnostics.collapse(*pair, X).summary()),
    "inference_gap": (
        vae,
        lambda pair, _: diagnostics.inference_gap(*pair, X, local_steps=4, num_samples=20).best_bound.values,
    ),
    "calibration": (vae, lambda pair, _: diagnostics.calibration(*pair, X, num_simulations=40).summary()),
    "gradient_variance": (
        vae,
        lambda pair, _: diagnostics.gradient_variance(IWAE(2), *pair, X, num_repeats=40).mean,
    ),
    "khat_map": (vae, mapped),
    "active_dimensions": (vae, lambda pair, _: diagnostics.active_dimensions(pair[1], X)),
}


class Watching(TorchFunctionMode):
    """Sees every function of torch's, and changes none."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Logging(TorchDispatchMode):
    """Sees every operation, and changes none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def switched(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


HONOURED = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "half autocast": lambda: torch.autocast("cpu", torch.float16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients off": lambda: torch.set_grad_enabled(False),
    "default device": lambda: torch.device("cpu"),
    "default dtype": lambda: switched(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "deterministic": lambda: switched(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "function mode": Watching,
    "dispatch mode": Logging,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "saved tensors elsewhere": torch.autograd.graph.save_on_cpu,
    "trace": poutine.trace,
    "block": poutine.block,
    "seed": lambda: poutine.handlers.seed(rng_seed=5),
    "validation off": lambda: pyro.validation_enabled(False),
    "validation on": lambda: pyro.validation_enabled(True),
    "warnings as errors": warnings_as_errors,
    "numpy errors": lambda: np.errstate(all="raise"),
}


def flat(result):
    """All numbers and words of a result, one after the other."""
    if isinstance(result, dict):
        return [item for name in sorted(result) for item in (name, *flat(result[name]))]
    if isinstance(result, (list, tuple)):
        return [item for part in result for item in flat(part)]
    return result.flatten().tolist() if isinstance(result, torch.Tensor) else [result]


def assert_same(found, expected):
    numbers = [[item for item in items if isinstance(item, float)] for items in (found, expected)]
    words = [[item for item in items if not isinstance(item, float)] for items in (found, expected)]
    assert words[0] == words[1]
    np.testing.assert_allclose(*numbers, rtol=1e-5, atol=1e-6)


def outcome(name, folder, around=ExitStack):
    make, call = CALLS[name]
    pair = make()
    with around():
        return flat(call(pair, folder))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What every call gives by itself."""
    folder = tmp_path_factory.mktemp("alone")
    pair = vae()
    trained(pair, step_mode="eager")
    pvae.save(folder / "run", *pair, X)
    return folder, {name: outcome(name, folder) for name in CALLS}


# These go through every context, and every call through those that broke most; the rest of the table is slow.
MAIN = {"fit eagerly", "log_marginal", "log_weights", "sample", "encode"}


def cells(contexts, telling):
    return [
        pytest.param(name, context, marks=() if name in MAIN or context in telling else pytest.mark.slow)
        for name in CALLS
        for context in contexts
    ]


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(
    ("name", "context"), cells(HONOURED, {"autocast", "inference_mode", "no_grad", "default dtype"})
)
def test_a_call_gives_the_same_numbers_in_a_context(name, context, alone):
    if (name, context) == ("check", "anomaly detection"):
        pytest.skip("it cannot be traced there, which check tells")
    folder, expected = alone
    assert_same(outcome(name, folder, HONOURED[context]), expected[name])


def test_every_public_function_is_in_the_table():
    """A new one has to be an entry, and to stand here."""
    public = {name for name in pvae._HOMES if name.islower()}
    # These two take what a run holds, and run inside a store that is already open.
    of_runs = {"log_aggregate_posterior", "pairwise_log_guide"}
    public |= {name for name, value in vars(diagnostics).items() if isfunction(value)} - of_runs
    functions = {name: getattr(pvae, name, None) or getattr(diagnostics, name) for name in public}
    assert {name for name, function in functions.items() if not hasattr(function, "__wrapped__")} == set()
    assert public == {name.partition(",")[0].partition(" ")[0] for name in CALLS}


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_of_log_weights_are_the_callers_choice(around):
    pair = vae()
    with around():
        weights = pvae.log_weights(*pair, X, 4).values
    assert weights.requires_grad == (around is torch.enable_grad)


def test_the_caller_goes_on_in_the_contexts_as_they_were():
    pair = vae()
    handler = poutine.trace()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), handler:
        pvae.log_marginal(*pair, X, ImportanceSampling(5))
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()
        assert torch.is_inference_mode_enabled()
        assert [handler] == _PYRO_STACK
        pyro.sample("mine", dist.Normal(0.0, 1.0))
    assert set(handler.trace.nodes) == {"mine"}


# --- Weights that contexts keep


class Mixed(nn.Module):
    """A net with an autocast of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def pair_of(decoder):
    torch.manual_seed(0)
    model = pvae.models.VAE((5,), 2, decoder=decoder())
    return model, pvae.guides.MeanField(model, X, hidden=(6,))


def mixed():
    return pair_of(lambda: Mixed(pvae.nets.MLP(2, (6,), (5,))))


def doubled():
    return pair_of(lambda: parametrize.register_parametrization(nn.Linear(2, 5), "weight", Doubled()))


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
@pytest.mark.parametrize(
    ("make", "around"),
    [
        (mixed, lambda: torch.autocast("cpu", torch.bfloat16)),
        (mixed, lambda: torch.autocast("cpu", enabled=False)),
        (doubled, parametrize.cached),
    ],
    ids=["autocast", "autocast that is off", "parametrizations"],
)
def test_weights_that_the_context_would_keep_are_trained(make, around, step_mode):
    expected = flat(trained(make(), step_mode=step_mode))
    pair = make()
    with around():
        before = pair[0].decoder(torch.ones(1, 2))
        assert_same(flat(trained(pair, step_mode=step_mode)), expected)
        after = pair[0].decoder(torch.ones(1, 2))
    assert not after.equal(before)
    assert after.equal(pair[0].decoder(torch.ones(1, 2)))


def test_autocast_inside_a_net_works_on():
    """Its bound is that of single precision to the rounding of bfloat16, and no number of a net outside is rounded."""
    rounded = trained(mixed(), step_mode="traced")[0]
    exact = trained(pair_of(lambda: pvae.nets.MLP(2, (6,), (5,))), step_mode="traced")[0]
    assert not rounded.equal(exact)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.02)


# --- What inference mode made


def test_data_of_inference_mode_are_trained_on():
    expected = flat(trained(vae(), step_mode="eager"))
    with torch.inference_mode():
        x = X.clone()
    result = pvae.fit(*vae(), x, steps=4, batch_size=6, lr=0.1, step_mode="eager", progress=False)
    assert_same(flat((result.losses, result.parameters, result.history[-1]["train_bound"])), expected)


def test_a_pair_of_inference_mode_is_evaluated_but_not_trained(tmp_path):
    expected = pvae.log_marginal(*vae(), X, ImportanceSampling(500, chunk_size=20)).values
    pvae.save(tmp_path, *vae(), X)
    with torch.inference_mode():
        pair = vae()
    assert pvae.log_marginal(*pair, X, ImportanceSampling(500, chunk_size=20)).values.equal(expected)
    for call in (lambda: trained(pair), lambda: pvae.load(tmp_path, *pair)):
        with pytest.raises(ValueError, match=r"of the pair was made inside torch.inference_mode, where [^\n]*\Z"):
            call()


# --- Refusals


def _traced(call):
    torch.jit.trace(lambda x: call() and x, X)


def _transformed(transform):
    def around(call):
        transform(lambda x: (call(), x.sum())[1])(X)

    return around


def _switched(get, put, value):
    def around(call):
        with switched(get, put, value):
            call()

    return around


def _within(context):
    def around(call):
        with context():
            call()

    return around


REFUSED = {
    "vmap": (_transformed(torch.func.vmap), "inside a transform of torch.func"),
    "grad": (_transformed(torch.func.grad), "inside a transform of torch.func"),
    "jvp": (_transformed(lambda f: lambda x: torch.func.jvp(f, (x,), (x,))), "inside a transform of torch.func"),
    "fake tensors": (_within(FakeTensorMode), "inside FakeTensorMode"),
    "torch.jit.trace": (_traced, "inside torch.jit.trace"),
    "make_fx": (lambda call: make_fx(lambda x: (call(), x)[1])(X), "inside ProxyTorchDispatchMode"),
    "meta": (
        _switched(torch.get_default_device, torch.set_default_device, torch.device("meta")),
        "under the default device 'meta'",
    ),
    "half": (_switched(torch.get_default_dtype, torch.set_default_dtype, torch.float16), "default dtype torch.float16"),
    "bfloat16": (
        _switched(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
        "default dtype torch.bfloat16",
    ),
    "scale": (_within(lambda: poutine.scale(scale=2.0)), "inside Pyro's handler scale"),
    "mask": (_within(lambda: poutine.mask(mask=False)), "inside Pyro's handler mask"),
    "condition": (_within(lambda: poutine.condition(data={"z": torch.zeros(12, 2)})), "Pyro's handler condition"),
    "do": (_within(lambda: poutine.handlers.do(data={})), "Pyro's handler do"),
    "lift": (_within(lambda: poutine.lift(prior=dist.Normal(0.0, 1.0))), "Pyro's handler lift"),
    "replay": (_within(lambda: poutine.replay(trace=poutine.Trace())), "Pyro's handler replay"),
    "plate": (_within(lambda: pyro.plate("outer", 3)), "Pyro's handler plate"),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize(("name", "context"), cells(REFUSED, {"vmap", "scale"}))
def test_a_call_is_refused_where_it_cannot_be_right(name, context, alone):
    folder, _ = alone
    around, words = REFUSED[context]
    make, call = CALLS[name]
    pair = make()
    with pytest.raises(ValueError, match=r"\Apvae\.\w+ was called (inside|under) [^\n]*\Z") as caught:
        around(lambda: call(pair, folder))
    assert words in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert not _PYRO_STACK


# --- The default device


class Factories(TorchFunctionMode):
    """Notes where pvae makes a tensor without saying on which device, which would follow the caller's default."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _device_constructors() and (kwargs or {}).get("device") is None:
            frame = sys._getframe(1)
            while frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
                frame = frame.f_back
            place = frame.f_globals.get("__name__", "")
            if place.startswith("pvae.") and place != "pvae.pair.entry":
                self.found[f"{place}:{frame.f_lineno}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_pvae_says_on_which_device_its_tensors_are(name, alone):
    folder, _ = alone
    mode = Factories()
    outcome(name, folder, lambda: mode)
    assert not mode.found
