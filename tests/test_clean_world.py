"""Nothing that belongs to the whole process is changed by importing pvae, by calling it, or by an error inside it."""

import importlib
import logging
import random
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn
from torch.utils.data import DataLoader

import pvae
from pvae.data import DataSet
from pvae.estimators import ImportanceSampling
from pvae.objectives import IWAE
from tests import own_pairs
from tests.own_pairs import PAIRS

# Torch loads these for the first optimizer of a process; sympy, which they load, adds a warning filter of its own.
importlib.import_module("torch._dynamo")

HOOKS = [name for name in vars(nn.modules.module) if name.startswith("_global") and name.endswith("hooks")]


def loggers():
    # The handler of torch.__trace takes itself away when torch first has something to say to it.
    names = logging.Logger.manager.loggerDict.keys() - {"torch.__trace"}
    known = (logging.getLogger(name) for name in names)
    return {
        logger.name: (logger.level, list(logger.handlers), logger.propagate, logger.disabled)
        for logger in (logging.root, *known)
        if logger.handlers or logger.level or logger.disabled
    }


def world():
    """All that a call could leave behind in the process, as values to compare."""
    store = pyro.get_param_store()
    return {
        "parameters": {name: (id(leaf), leaf.tolist()) for name, leaf in store._params.items()},
        "constraints": dict(store._constraints),
        "names": {id(leaf): name for leaf, name in store._param_to_name.items()},
        "handlers": list(_PYRO_STACK),
        "settings": pyro.settings.get(),
        "validation": torch.distributions.Distribution._validate_args,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch draws": torch.get_rng_state().tolist(),
        "numpy draws": str(np.random.get_state()),
        "python draws": random.getstate(),
        "loggers": loggers(),
        "warnings": list(warnings.filters),
        "hooks": {name: len(getattr(nn.modules.module, name)) for name in HOOKS},
        "excepthook": sys.excepthook,
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "streams": (sys.stdout, sys.stderr),
    }


def assert_unchanged(before):
    after = world()
    assert [part for part in before if before[part] != after[part]] == []


def flags(pair):
    return [module.training for module in pair.model.__self__.modules()]


def fill_the_store():
    """What a user's earlier work left: one parameter of another pair, and two that have this pair's own names."""
    pyro.param("loc", torch.full((4,), 0.3))
    pyro.param("noise", torch.tensor(1.7), constraint=dist.constraints.positive)
    pyro.param("elsewhere", torch.ones(2))
    pyro.module("vae", own_pairs.ConvVAE())


def test_the_list_of_hooks_is_not_empty():
    assert {"_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_hooks"} <= set(HOOKS)


@pytest.mark.parametrize("filled", [False, True], ids=["empty store", "filled store"])
@pytest.mark.parametrize("name", ["convolutional", "exact", "closures", "pyro_modules", "subsampling"])
def test_calls_leave_the_world_as_it_was(name, filled, tmp_path):
    if filled:
        fill_the_store()
    pair = PAIRS[name]()
    estimator = ImportanceSampling(6, chunk_size=4)
    x = pair.batch

    def fit(**options):
        pvae.fit(pair.model, pair.guide, x, steps=3, batch_size=5, progress=False, **options)

    calls = {
        "check": lambda: pvae.check(pair.model, pair.guide, x),
        "fit": lambda: fit(out=tmp_path / "fit", ema=0.9, clip_norm=1.0, schedule="cosine"),
        "fit eagerly": lambda: fit(step_mode="eager", objective=IWAE(3)),
        "log_marginal": lambda: pvae.log_marginal(pair.model, pair.guide, x, estimator, progress=True),
        "sample": lambda: pvae.sample(pair.model, 3, like=x),
        "reconstruct": lambda: pvae.reconstruct(pair.model, pair.guide, x),
        "encode": lambda: pvae.encode(pair.guide, x, num_samples=2),
        "save": lambda: pvae.save(tmp_path / "save", pair.model, pair.guide, x),
        "load": lambda: pvae.load(tmp_path / "save", pair.model, pair.guide),
        "guides": lambda: pvae.guides.MeanField(pair.model, x, hidden=(4,)),
    }
    for what, call in calls.items():
        # Weights of a new guide are drawn from torch's generator, as for every torch module.
        state = torch.get_rng_state()
        before = world()
        call()
        if what == "guides":
            torch.set_rng_state(state)
        assert_unchanged(before)


def test_log_weights_spend_only_the_draws_of_the_guide():
    pair = own_pairs.plain()
    before = world()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pvae.log_weights(pair.model, pair.guide, pair.batch, 5)
        spent = torch.get_rng_state()
        torch.manual_seed(0)
        torch.randn(5, 12, 2)
        assert spent.equal(torch.get_rng_state())
    assert_unchanged(before)


def test_training_flags_are_kept():
    pair = own_pairs.convolutional()
    vae = pair.model.__self__
    vae.decoder.eval()
    before = flags(pair)
    assert len(set(before)) == 2
    pvae.fit(pair.model, pair.guide, pair.batch, steps=2, progress=False)
    pvae.log_marginal(pair.model, pair.guide, pair.batch, ImportanceSampling(5))
    pvae.log_weights(pair.model, pair.guide, pair.batch, 2)
    pvae.encode(pair.guide, pair.batch)
    pvae.check(pair.model, pair.guide, pair.batch)
    assert flags(pair) == before


def test_a_look_changes_no_buffer():
    pair = own_pairs.convolutional()
    vae = pair.model.__self__
    before = {name: buffer.clone() for name, buffer in vae.named_buffers()}
    assert len(before) == 6
    pvae.check(pair.model, pair.guide, pair.batch)
    pvae.log_marginal(pair.model, pair.guide, pair.batch, ImportanceSampling(5))
    pvae.sample(pair.model, 3, like=pair.batch)
    pvae.reconstruct(pair.model, pair.guide, pair.batch)
    pvae.encode(pair.guide, pair.batch)
    assert all(buffer.equal(before[name]) for name, buffer in vae.named_buffers())


def test_data_loaders_and_data_sets_spend_no_global_draws():
    pair = own_pairs.plain()
    grey = torch.rand(12, own_pairs.WIDTH, generator=torch.Generator().manual_seed(0))
    dataset = DataSet("grey", grey, grey, grey, kind="unit", binarize="dynamic")
    for data in (DataLoader(pair.batch, batch_size=5, shuffle=True), dataset):
        before = world()
        pvae.fit(pair.model, pair.guide, data, epochs=1, progress=False)
        pvae.log_marginal(pair.model, pair.guide, data, ImportanceSampling(5))
        assert_unchanged(before)


class Breaking:
    """A pair that raises in the model after some calls, with handlers and plates open."""

    def __init__(self, calls, error):
        self.pair, self.calls, self.error = own_pairs.plain(), calls, error

    def model(self, x):
        self.calls -= 1
        with pyro.plate("outer", len(x)):
            if self.calls < 0:
                raise self.error
        self.pair.model(x)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), KeyboardInterrupt()])
@pytest.mark.parametrize("step_mode", ["eager", "auto"])
def test_errors_leave_the_world_as_it_was(error, step_mode):
    fill_the_store()
    whole = Breaking(10**6, error)
    pvae.fit(whole.model, whole.pair.guide, whole.pair.batch, steps=4, step_mode=step_mode, progress=False)
    failed_at = set()
    # The first calls fail in the looks before training, the later ones in a step or in tracing.
    for calls in range(10**6 - whole.calls):
        breaking = Breaking(calls, error)
        before = world()
        try:
            pvae.fit(
                breaking.model, breaking.pair.guide, breaking.pair.batch, steps=4, step_mode=step_mode, progress=False
            )
        except (type(error), ValueError) as raised:
            failed_at.add(ValueError if isinstance(raised, ValueError) else type(raised))
        assert_unchanged(before)
    assert failed_at == {ValueError if isinstance(error, Exception) else type(error)}


def test_an_infinite_loss_leaves_the_world_as_it_was():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), scale).to_event(1))
            pyro.sample("x", dist.Normal(z * 1e30, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("z_loc", torch.zeros(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    before = world()
    with pytest.raises(FloatingPointError, match="step 1: loss inf"):
        pvae.fit(model, guide, torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), steps=3, progress=False)
    assert_unchanged(before)


def run(script):
    """What a script prints in a fresh interpreter; `world()` is at hand."""
    prelude = f"import sys\nsys.path[:0] = {sys.path!r}\nfrom tests.test_clean_world import world, pyro, torch\n"
    result = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_importing_every_module_leaves_the_world_as_it_was():
    # This file imports pvae itself, so the modules are dropped and imported again, after other settings. The command
    # line is left out: it is a process of its own, and rich draws from Python's generator when it is imported.
    printed = run(
        """
        import importlib, os, pkgutil
        for name in [name for name in sys.modules if name.partition(".")[0] == "pvae"]:
            del sys.modules[name]
        torch.set_default_dtype(torch.float64)
        pyro.enable_validation(False)
        pyro.param("mine", torch.ones(2))
        before, environ = world(), dict(os.environ)
        import pvae
        modules = [module.name for module in pkgutil.walk_packages(pvae.__path__, "pvae.")]
        shell = ("pvae.__main__", "pvae.cli.main", "pvae.cli.commands", "pvae.cli.endings", "pvae.cli.showing")
        modules = [name for name in modules if name not in shell]
        for name in modules:
            importlib.import_module(name)
        after = world()
        print(len(modules) > 30, [part for part in before if before[part] != after[part]], environ == dict(os.environ))
        """
    )
    assert printed == "True [] True\n"


def test_bare_import_loads_no_torch():
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; import pvae; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "False\n"
