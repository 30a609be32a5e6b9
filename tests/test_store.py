"""Bare `pyro.param`s: whose they are, where they start, and that only training moves them.

The pair is a mixture of two normals with the labels summed out by hand or by Pyro: log p(x) is known for any locations.
"""

import copy
import functools
import gc

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroModule
from torch import nn

import pvae
from pvae.estimators import ImportanceSampling
from pvae.pair import owners, store
from tests import own_pairs

X = torch.tensor([-3.2, -2.7, -3.1, 2.9, 3.3, 2.8])
START = torch.tensor([-0.5, 0.5])


def log_p(loc, x=X):
    """The mean of log p(x) of the mixture, in closed form."""
    return (
        torch.stack([dist.Normal(each, 1.0).log_prob(x) for each in loc]).logsumexp(0).mean().item()
        - torch.tensor(2.0).log().item()
    )


def mixture(x, scale=1.0):
    loc = pyro.param("loc", START)
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[y], scale), obs=x)


def plain(x):
    loc = pyro.param("loc", START)
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample("x", dist.Normal(loc[y], 1.0), obs=x)


def factory():
    def model(x):
        mixture_of(pyro.param("loc", START), x)

    return model


def mixture_of(loc, x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[y], 1.0), obs=x)


class Written:
    """A callable object, and one with a method that states the parameter."""

    def __call__(self, x):
        self.model(x)

    def model(self, x):
        mixture(x, self.scale) if hasattr(self, "scale") else mixture_of(pyro.param("loc", START), x)


class Module(PyroModule):
    def forward(self, x):
        mixture_of(pyro.param("loc", START), x)


def closing_over(function):
    return lambda x: function(x)


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


OBJECT, MODULE, INNER = Written(), Module(), factory()
WAYS = {
    "config_enumerate": lambda: config_enumerate(plain),
    "partial": lambda: functools.partial(mixture, scale=1.0),
    "lambda of a global": lambda: lambda x: mixture(x, 1.0),
    "lambda of a handler": lambda: lambda x: config_enumerate(plain)(x),
    "closure": lambda: closing_over(mixture),
    "functools.wraps": lambda: decorated(mixture),
    "default": lambda: lambda x, inner=mixture: inner(x),
    "scale": lambda: poutine.scale(mixture, scale=1.0),
    "mask": lambda: poutine.mask(mixture, mask=torch.tensor(True)),
    "condition": lambda: poutine.condition(mixture, data={}),
    "reparam": lambda: poutine.reparam(mixture, config={}),
    "infer_config": lambda: poutine.infer_config(plain, lambda site: {"enumerate": "parallel"}),
    "messenger": lambda: poutine.scale(scale=1.0)(mixture),
    "two handlers": lambda: poutine.scale(poutine.mask(mixture, mask=torch.tensor(True)), scale=1.0),
    "bound method": lambda: OBJECT.model,
    "callable object": lambda: poutine.scale(OBJECT, scale=1.0),
    "method in a lambda": lambda: lambda x: OBJECT.model(x),
    "module": lambda: poutine.scale(MODULE, scale=1.0),
    "module in a lambda": lambda: lambda x: MODULE(x),
    "partial of a closure": lambda: functools.partial(INNER),
    "attribute": lambda: functools.partial(lambda holder, x: holder["model"](x), {"model": INNER}),
    "copy": lambda: copy.deepcopy(mixture),
}


def evaluate(model, x=X):
    return pvae.log_marginal(model, None, x, ImportanceSampling(2)).mean


def train(model, steps=40, **options):
    return pvae.fit(model, None, X, steps=steps, lr=0.2, progress=False, **options)


@pytest.fixture(autouse=True)
def nothing_is_trained():
    for owner in (mixture, plain, OBJECT, MODULE, INNER):
        store._bare_of.pop(id(owner), None)


QUICK = {"config_enumerate", "partial", "lambda of a handler", "two handlers", "bound method", "module in a lambda"}


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way in QUICK else pytest.mark.slow) for way in WAYS])
def test_what_was_trained_is_evaluated_through_another_wrapper(way):
    loc = train(WAYS[way](), step_mode="eager", steps=25).parameters["loc"]
    assert log_p(loc) > log_p(START) + 1
    assert evaluate(WAYS[way]()) == pytest.approx(log_p(loc), abs=1e-5)
    gc.collect()
    assert evaluate(WAYS[way]()) == pytest.approx(log_p(loc), abs=1e-5)
    assert START.equal(torch.tensor([-0.5, 0.5]))
    assert not START.requires_grad


def test_a_pair_is_the_same_bare_and_wrapped():
    loc = train(lambda x: mixture(x)).parameters["loc"]
    for way in ("partial", "closure", "scale", "condition"):
        assert evaluate(WAYS[way]()) == pytest.approx(log_p(loc), abs=1e-5)
    # Training goes on from there, whatever wraps the function.
    more = train(poutine.scale(mixture, scale=1.0))
    assert more.losses[0].item() == pytest.approx(-log_p(loc), abs=1e-5)


def test_pairs_of_one_factory_stay_two():
    first, second = factory(), factory()
    loc = train(first).parameters["loc"]
    assert train(lambda x: second(x), steps=1).losses[0].item() == pytest.approx(-log_p(START), abs=1e-5)
    assert evaluate(lambda x: first(x)) == pytest.approx(log_p(loc), abs=1e-5)


def test_functions_of_one_factory_are_told_apart_by_what_they_close_over():
    def make(shift):
        def model(x):
            mixture_of(pyro.param("loc", START) + shift, x)

        return model

    both = {"first": make(0.0), "second": make(1.0)}
    loc = train(lambda x: both["second"](x)).parameters["loc"]
    assert evaluate(both["second"]) == pytest.approx(log_p(loc + 1), abs=1e-5)
    with pytest.warns(UserWarning, match="parameter 'loc' starts from its initial value"):
        assert evaluate(both["first"]) == pytest.approx(log_p(START), abs=1e-5)


def stated(name):
    return pyro.param(name, START)


def test_a_helper_that_two_models_share_keeps_them_apart():
    def calling(x):
        mixture_of(stated("loc"), x)

    def other(x):
        mixture_of(stated("loc") * 1.0, x)

    def stating(x):
        loc = stated("loc")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.mean(), 1.0), obs=x)

    loc = train(lambda x: calling(x)).parameters["loc"]
    assert evaluate(lambda x: calling(x)) == pytest.approx(log_p(loc), abs=1e-5)
    assert evaluate(other) == pytest.approx(log_p(START), abs=1e-5)
    expected = dist.Normal(START.mean(), 1.0).log_prob(X).mean().item()
    assert evaluate(lambda x: stating(x)) == pytest.approx(expected, abs=1e-5)


def test_model_and_guide_that_share_a_helper_both_own_its_parameters():
    pair = own_pairs.exact()
    pvae.fit(pair.model, pair.guide, pair.batch, steps=30, lr=0.05, progress=False)
    expected = pvae.sample(pair.model, 5, like=pair.batch)["x"]
    assert pvae.sample(lambda x: pair.model(x), 5, like=pair.batch)["x"].equal(expected)
    code = pvae.encode(pair.guide, pair.batch)["z"]
    assert pvae.encode(poutine.scale(pair.guide, scale=2.0), pair.batch)["z"].equal(code)


def test_a_parameter_of_the_models_is_worth_what_the_model_was_trained_to():
    pair = own_pairs.exact()
    other = own_pairs.exact()
    pvae.fit(other.model, other.guide, pair.batch, steps=5, lr=0.05, progress=False)
    noise = pvae.fit(pair.model, pair.guide, pair.batch, steps=30, lr=0.05, progress=False).parameters["noise"]
    result = pvae.fit(pair.model, other.guide, pair.batch, steps=1, lr=1e-9, progress=False)
    assert result.parameters["noise"].item() == pytest.approx(noise.item(), abs=1e-6)


# --- a callback may run another pair, whose parameter has the same name


def during_training(call, model=mixture, steps=20):
    """What a call gives within the last epoch of training, and the training."""
    given = []
    result = train(model, steps=steps, callbacks=[lambda record: given.append(call())])
    return given[-1], result


def test_a_callback_runs_another_pair_with_its_own_parameters():
    result = train(OBJECT)
    inside, outer = during_training(lambda: evaluate(lambda x: OBJECT.model(x)))
    assert inside == pytest.approx(log_p(result.parameters["loc"]), abs=1e-5)
    assert evaluate(mixture) == pytest.approx(log_p(outer.parameters["loc"]), abs=1e-5)
    assert not outer.parameters["loc"].equal(result.parameters["loc"])


def test_a_callback_runs_an_untrained_pair_from_where_it_starts():
    inside, _ = during_training(lambda: evaluate(factory()))
    assert inside == pytest.approx(log_p(START), abs=1e-5)
    pyro.get_param_store()["loc"] = START - 2
    inside, outer = during_training(lambda: evaluate(factory()))
    assert inside == pytest.approx(log_p(START - 2), abs=1e-5)
    assert pyro.get_param_store()["loc"].equal(START - 2)
    assert evaluate(mixture) == pytest.approx(log_p(outer.parameters["loc"]), abs=1e-5)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lambda x: model(x), closing_over])
def test_a_callback_runs_the_pair_that_is_trained_as_it_is(wrap):
    inside, outer = during_training(lambda: evaluate(wrap(mixture)))
    assert inside == pytest.approx(log_p(outer.parameters["loc"]), abs=1e-5)
    # Objects, too.
    inside, outer = during_training(lambda: evaluate(OBJECT.model), poutine.scale(OBJECT, scale=1.0))
    assert inside == pytest.approx(log_p(outer.parameters["loc"]), abs=1e-5)


def test_a_callback_trains_another_pair():
    inner = []
    last, outer = during_training(lambda: inner.append(train(OBJECT, steps=2)) or inner[-1])
    assert inner[0].losses[0].item() == pytest.approx(-log_p(START), abs=1e-5)
    assert inner[1].losses[0].item() == pytest.approx(-log_p(inner[0].parameters["loc"]), abs=1e-5)
    assert evaluate(OBJECT) == pytest.approx(log_p(last.parameters["loc"]), abs=1e-5)
    store._bare_of.pop(id(mixture))
    alone = train(mixture, steps=20)
    assert alone.losses.equal(outer.losses)


def test_a_callback_that_evaluates_a_copy_of_what_was_trained_is_warned():
    trained = factory()
    train(trained)
    with pytest.warns(UserWarning, match="parameter 'loc' starts from its initial value"):
        inside, _ = during_training(lambda: evaluate(factory()), trained)
    assert inside == pytest.approx(log_p(START), abs=1e-5)


# --- what cannot be found has to be said

COPIES = {
    "factory": (factory, factory),
    "deepcopy": (lambda: OBJECT, lambda: copy.deepcopy(OBJECT)),
    "deepcopy of a module": (lambda: MODULE, lambda: copy.deepcopy(MODULE)),
    "object": (Written, Written),
}


@pytest.mark.parametrize("name", COPIES)
def test_an_evaluation_of_what_was_not_trained_says_so(name):
    make, again = COPIES[name]
    result = train(make())
    with pytest.warns(UserWarning, match="starts from its initial value") as caught:
        assert evaluate(again()) == pytest.approx(log_p(START), abs=1e-5)
    assert len(caught) == 1
    assert str(caught[0].message).startswith("parameter 'loc' starts from its initial value: pvae trained it for")
    assert "to_store()" in str(caught[0].message)
    assert caught[0].filename == __file__
    for call in (
        lambda model: pvae.sample(model, 2, like=X),
        lambda model: pvae.log_weights(model, None, X, 2),
        lambda model: pvae.reconstruct(model, None, X),
    ):
        with pytest.warns(UserWarning, match="parameter 'loc' starts"):
            call(again())
    # Training and looks begin where they should, and what the user holds is no accident.
    train(again(), steps=1)
    pvae.check(again(), None, X)
    result.to_store()
    assert evaluate(again()) == pytest.approx(log_p(result.parameters["loc"]), abs=1e-5)


def test_a_loaded_pair_gives_no_warning(tmp_path):
    first, second = factory(), factory()
    loc = train(first, out=tmp_path / "run").parameters["loc"]
    pvae.load(tmp_path / "run", second)
    assert evaluate(second) == pytest.approx(log_p(loc), abs=1e-5)


# --- Pyro's own tools


def test_pyros_objectives_agree_after_to_store():
    pair = own_pairs.exact()
    result = pvae.fit(pair.model, pair.guide, pair.batch, steps=40, lr=0.05, progress=False)
    found = pvae.log_marginal(pair.model, pair.guide, pair.batch, ImportanceSampling(3)).values
    assert not pyro.get_param_store()
    result.to_store()
    assert pyro.param("noise").item() == pytest.approx(result.parameters["noise"].item(), rel=1e-6)
    # The guide is exact, so any draw gives log p(x).
    loss = Trace_ELBO().loss(pair.model, pair.guide, pair.batch)
    assert -loss == pytest.approx(found.sum().item(), rel=1e-5)


def test_predictive_draws_from_the_trained_pair():
    pair = own_pairs.exact()
    result = pvae.fit(pair.model, pair.guide, pair.batch, steps=40, lr=0.05, progress=False)
    result.to_store()
    draws = Predictive(pair.model, guide=pair.guide, num_samples=4000, parallel=True)(pair.batch)["z"]
    means = pvae.encode(pair.guide, pair.batch)["z"]
    # No posterior is wider than the prior, whose scale is 1.
    assert (draws.mean(0) - means).abs().max() < 5 / 4000**0.5


def test_svi_goes_on_and_pvae_sees_it():
    result = train(mixture, steps=5)
    result.to_store()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    assert -elbo.loss(mixture, lambda x: None, X) / len(X) == pytest.approx(log_p(result.parameters["loc"]), abs=1e-5)
    svi = SVI(mixture, lambda x: None, pyro.optim.Adam({"lr": 0.2}), elbo)
    for _ in range(20):
        svi.step(X)
    moved = pyro.param("loc").detach().clone()
    assert (moved - result.parameters["loc"]).abs().min() > 0.5
    assert evaluate(mixture) == pytest.approx(log_p(moved), abs=1e-5)
    # A later fit starts there, and moves nothing of the user's.
    again = train(mixture, steps=5)
    assert again.losses[0].item() == pytest.approx(-log_p(moved), abs=1e-5)
    assert pyro.param("loc").equal(moved)
    assert not again.parameters["loc"].equal(moved)
    assert evaluate(mixture) == pytest.approx(log_p(again.parameters["loc"]), abs=1e-5)


def test_a_parameter_without_initial_value_is_read():
    def guide(x):
        loc = pyro.param("z_loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def model(x):
        loc = pyro.param("z_loc")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)) + loc, 1.0), obs=x)

    result = pvae.fit(model, guide, X + 2, steps=40, lr=0.1, progress=False)
    assert result.parameters["z_loc"] > 0.3
    # The mean of x is that of the trained location, which is stated by the guide alone.
    draws = pvae.sample(lambda x: model(x), 20000, like=X)["x"]
    assert draws.mean().item() == pytest.approx(result.parameters["z_loc"].item(), abs=5 * (2 / 20000) ** 0.5)


def test_a_pair_in_a_large_heap_of_things_is_found_soon():
    heap = {str(number): {"items": list(range(50))} for number in range(5000)}
    lot = [Written() for _ in range(90)]

    def model(x):
        assert heap
        assert lot
        mixture(x)

    assert any(thing is mixture for thing in owners.within([model]))


def test_the_store_of_pyro_is_itself_again():
    before = type(pyro.get_param_store()), set(vars(pyro.get_param_store()))
    train(mixture, steps=2)
    with pytest.raises(ValueError, match="cannot run on a batch"):
        evaluate(mixture, torch.zeros(4, 3, 2))
    assert (type(pyro.get_param_store()), set(vars(pyro.get_param_store()))) == before


def test_data_go_where_a_wrapped_pair_is():
    net = nn.Linear(2, 2, device="meta")

    def model(x):
        return net(x)

    for wrapped in (poutine.scale(model, scale=2.0), functools.partial(model), lambda x: model(x)):
        assert pvae.pair.parameters.device_of_pair(wrapped).type == "meta"
