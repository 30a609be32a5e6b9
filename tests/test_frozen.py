"""Parameters with `requires_grad` False: no call changes the flag, none trains them, and a run on disk holds them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pvae
from pvae.estimators import ImportanceSampling
from pvae.objectives import IWAE
from pvae.pair.parameters import find_parameters
from pvae.pair.store import private_store

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


class Module(PyroModule):
    """A `PyroModule` with a net, a constrained parameter, a plain one, and a plain net inside."""

    def __init__(self):
        super().__init__("own")
        self.net = PyroModule[nn.Linear](2, 4)
        self.plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.noise = PyroParam(torch.tensor(0.8), constraint=dist.constraints.positive)
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.net(z) + self.shift + self.plain(torch.ones(4))
            pyro.sample("x", dist.Normal(loc, self.noise).to_event(1), obs=x)


class Registered(nn.Module):
    """A plain module that registers its nets by `pyro.module`."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


class WithPrior(PyroModule):
    """A prior by `PyroSample` with parameters of its own, one of them frozen below."""

    def __init__(self):
        super().__init__("prior")
        self.loc = nn.Parameter(torch.zeros(2))
        self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)
        self.z = PyroSample(lambda self: dist.Normal(self.loc, self.scale).to_event(1))
        self.net = PyroModule[nn.Linear](2, 4)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.net(self.z), 1.0).to_event(1), obs=x)


# A model, and the names of what is frozen in it.
MODELS = {
    "net of a PyroModule": (Module, ("net",)),
    "PyroParam": (Module, ("noise_unconstrained",)),
    "parameter": (Module, ("shift",)),
    "net in a PyroModule": (Module, ("plain",)),
    "part of a net": (Module, ("plain.0.weight", "net.bias")),
    "all but one": (Module, ("net", "plain", "noise_unconstrained")),
    "registered": (Registered, ("net",)),
    "partly registered": (Registered, ("net.0", "net.2.weight")),
    "prior": (WithPrior, ("scale_unconstrained",)),
}


def make(name, seed=0):
    torch.manual_seed(seed)
    kind, frozen = MODELS[name]
    model = kind()
    guide = pvae.guides.MeanField(model, X, hidden=(4,))
    model.eval()  # in training mode `pyro.module` warns of what it does not register
    for key, leaf in model.named_parameters():
        if key.startswith(frozen):
            leaf.requires_grad_(False)
    return model, guide


def state(*modules):
    """Flags, gradients and values of all parameters."""
    leaves = [leaf for module in modules for leaf in module.parameters()]
    return [(id(leaf), leaf.requires_grad, leaf.grad, leaf.detach().clone()) for leaf in leaves]


def assert_same(before, after, trained=False):
    for (old, was, gradient, value), (new, now, kept, found) in zip(before, after, strict=True):
        assert (new, now) == (old, was)
        assert gradient is kept
        assert torch.equal(value, found) or (trained and was)


@pytest.mark.parametrize("name", MODELS)
def test_looks_and_evaluations_change_nothing(name, tmp_path):
    model, guide = make(name)
    trained = next(leaf for leaf in [*guide.parameters()] if leaf.requires_grad)
    trained.grad = torch.ones_like(trained)
    before = state(model, guide)
    calls = (
        lambda: pvae.check(model, guide, X),
        lambda: pvae.guides.MeanField(model, X, hidden=(4,)),
        lambda: pvae.log_marginal(model, guide, X, ImportanceSampling(3)),
        lambda: pvae.log_weights(model, guide, X, 2),
        lambda: pvae.sample(model, 2, like=X),
        lambda: pvae.reconstruct(model, guide, X),
        lambda: pvae.encode(guide, X),
        lambda: pvae.save(tmp_path / "run", model, guide, X),
        lambda: pvae.load(tmp_path / "run", model, guide),
        lambda: pvae.diagnostics.gradient_variance(IWAE(2), model, guide, X[:4], num_repeats=20),
    )
    for call in calls:
        call()
        assert_same(before, state(model, guide))
        assert not pyro.get_param_store()
    for module in model.modules():
        if isinstance(module, PyroModule):
            assert module._pyro_context.active == 0
            assert not module._pyro_context.cache


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
@pytest.mark.parametrize("name", MODELS)
def test_training_leaves_frozen_parameters_and_moves_the_others(name, step_mode):
    model, guide = make(name)
    before = state(model, guide)
    pvae.fit(model, guide, X, steps=4, lr=0.1, step_mode=step_mode, progress=False)
    after = state(model, guide)
    assert_same(before, after, trained=True)
    moved = [not old[3].equal(new[3]) for old, new in zip(before, after, strict=True) if old[1]]
    assert all(moved)


@pytest.mark.parametrize("options", [{"objective": Trace_ELBO()}, {"objective": TraceGraph_ELBO()}, {"ema": 0.9}])
@pytest.mark.parametrize("train", ["both", "guide"])
@pytest.mark.parametrize("name", ["net of a PyroModule", "PyroParam", "partly registered"])
def test_pyros_objectives_and_a_guide_alone(name, train, options):
    model, guide = make(name)
    before = state(model, guide)
    pvae.fit(model, guide, X, steps=3, lr=0.1, train=train, progress=False, **options)
    assert_same(before, state(model, guide), trained=True)
    if train == "guide":
        assert_same(before[: len(list(model.parameters()))], state(model))


def test_turns_leave_frozen_parameters():
    model, guide = make("net of a PyroModule")
    guide.eval().requires_grad_(False)
    guide.encoder.head.requires_grad_(True)
    before = state(model, guide)
    pvae.fit(model, guide, X, steps=6, lr=0.1, inference_steps=2, progress=False)
    after = state(model, guide)
    assert_same(before, after, trained=True)
    assert sum(not old[3].equal(new[3]) for old, new in zip(before, after, strict=True)) == sum(
        leaf[1] for leaf in before
    )


@pytest.mark.parametrize("name", MODELS)
def test_frozen_parameters_are_saved_and_loaded_under_their_usual_names(name, tmp_path):
    model, guide = make(name)
    pvae.save(tmp_path / "frozen", model, guide, X)
    for module in (model, guide):
        module.requires_grad_(True)
    pvae.save(tmp_path / "free", model, guide, X)
    weights = [(tmp_path / run / "checkpoint.safetensors").read_bytes() for run in ("frozen", "free")]
    assert weights[0] == weights[1]
    again = make(name, seed=1)
    pvae.load(tmp_path / "frozen", *again)
    for old, new in zip((model, guide), again, strict=True):
        assert all(value.equal(new.state_dict()[key]) for key, value in old.state_dict().items())
    assert [leaf[1] for leaf in state(*again)] == [leaf[1] for leaf in state(*make(name))]


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_what_a_callback_freezes_stays_from_then_on(step_mode):
    model, guide = make("parameter")
    held = []

    def freeze(record):
        if record["epoch"] == 2:
            model.net.requires_grad_(False)
            held.extend([model.net.weight.detach().clone(), model.plain[0].weight.detach().clone()])

    start = model.net.weight.detach().clone()
    pvae.fit(model, guide, X, epochs=4, lr=0.1, step_mode=step_mode, callbacks=[freeze], progress=False)
    assert not start.equal(held[0])
    assert model.net.weight.equal(held[0])
    assert not model.plain[0].weight.equal(held[1])


def test_a_net_that_nothing_registers_is_saved_once_it_is_frozen(tmp_path):
    def pair(seed):
        torch.manual_seed(seed)
        net, encoder = nn.Linear(2, 4).requires_grad_(False), nn.Linear(4, 2)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

        return net, model, guide

    net, model, guide = pair(0)
    before = net.weight.clone()
    pvae.fit(model, guide, X, steps=3, lr=0.1, out=tmp_path / "run", progress=False)
    assert net.weight.equal(before)
    other, model, guide = pair(1)
    pvae.load(tmp_path / "run", model, guide)
    assert other.weight.equal(before)
    assert not other.weight.requires_grad


def test_all_frozen_is_refused():
    model, guide = make("registered")
    for module in (model, guide):
        module.eval().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameters to train and 8 frozen ones; call requires_grad_"):
        pvae.fit(model, guide, X, steps=1, progress=False)


def test_hidden_statements_unfreeze_nothing():
    model, guide = make("net of a PyroModule")
    before = state(model)

    def blocked(x):
        with poutine.block(hide_types=["param"]):
            model(x)

    pvae.log_marginal(blocked, guide, X, ImportanceSampling(2))
    assert_same(before, state(model))


def test_autoguides_of_pyro_leave_a_frozen_model():
    class Linear(PyroModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4)[:2])

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.weight, 1.0).to_event(1), obs=x)

    model = Linear().requires_grad_(False)
    guide = AutoNormal(model)
    pvae.fit(model, guide, X, steps=3, lr=0.1, batch_size=20, progress=False)
    assert model.weight.equal(torch.eye(4)[:2])
    assert not model.weight.requires_grad


def test_constants_and_non_contiguous_parameters():
    start, turned = torch.zeros(4), nn.Parameter(torch.zeros(4, 2).t())
    assert not turned.is_contiguous()

    def model(x):
        loc = pyro.param("loc", start)
        weight = pyro.param("weight", turned)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z @ weight, 1.0).to_event(1), obs=x)

    guide = pvae.guides.MeanField(model, X, hidden=(4,))
    result = pvae.fit(model, guide, X + 1, steps=30, lr=0.1, progress=False)
    assert result.parameters["loc"].min() > 0.2
    assert start.equal(torch.zeros(4))
    assert not start.requires_grad
    # What a module would hold is trained where it is.
    assert result.parameters["weight"].equal(turned)
    assert turned.detach().abs().max() > 0


def test_frozen_parameters_are_no_leaves():
    model, guide = make("partly registered")
    with private_store(model, guide):
        found = find_parameters(model, guide, (X,))
    assert found.frozen.keys() == {"net$$$0.weight", "net$$$0.bias", "net$$$2.weight"}
    assert "net$$$2.bias" in found.leaves
    assert all(leaf.requires_grad for leaf in found.leaves.values())
