"""Weights that are no numbers never pass for a success: in training, in files, in what is loaded."""

import math

import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from torch import nn

import pvae
from pvae.data import DataSet
from pvae.pair.soundness import Watch
from pvae.runs.files import _digest
from tests.own_pairs import BatchNormPair

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
DATA = DataSet("reals", X[:8], X[8:], kind="real")


def fit(pair, data=X, **options):
    options = {"epochs": 2, "batch_size": 4, "progress": False, **options}
    return pvae.fit(pair.model, pair.guide, data, **options)


def state(pair):
    return {name: value.clone() for name, value in pair.named_parameters()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class Exploding(torch.optim.SGD):
    """Steps as it should, until at one step it writes a value that is no number."""

    def __init__(self, parameters, at, value=math.nan):
        super().__init__(parameters, lr=0.01)
        self.left, self.value = at, value

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        self.left -= 1
        if not self.left:
            self.param_groups[0]["params"][-1].flatten()[-1] = self.value


# --- The rate


@pytest.mark.parametrize("rate", [math.inf, math.nan])
@pytest.mark.parametrize("step_mode", ["eager", "traced"])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_rate_that_is_no_number_moves_nothing(rate, step_mode, at):
    pair, stopped = BatchNormPair(), BatchNormPair()

    def schedule(optimizer):
        # The scheduler gives its first rate when it is built, and the next after each step.
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: rate if count == at - 1 else 1.0)

    with pytest.raises(FloatingPointError) as caught:
        fit(pair, steps=6, epochs=None, schedule=schedule, step_mode=step_mode)
    assert str(caught.value) == (
        f"step {at}: the optimizer's lr is {rate}; give an lr, and a schedule, that stay finite. "
        f"The weights of step {at - 1} are kept"
    )
    if at > 1:
        fit(stopped, steps=at - 1, epochs=None, step_mode=step_mode)
    assert same(state(pair), state(stopped))


def test_the_last_step_of_a_run_is_looked_at(tmp_path):
    """No loss follows it that could tell."""
    for value in (math.nan, math.inf, -math.inf):
        pair = BatchNormPair()
        with pytest.raises(FloatingPointError) as caught:
            fit(pair, optimizer=lambda p, value=value: Exploding(p, 6, value), out=tmp_path / f"run{value}")
        assert str(caught.value) == (
            "epoch 2, step 6: 'decoder$$$bias' is not finite after the update; try a lower lr or clip_norm=10. "
            "The weights from before are gone: load a saved run, or build the pair anew"
        )
        assert not (tmp_path / f"run{value}" / "checkpoint.safetensors").exists()


def test_a_parameter_that_no_loss_reads_is_looked_at_too():
    pair = BatchNormPair()
    pair.encoder.unused = nn.Parameter(torch.zeros(2))
    pair.encoder.register_parameter("unused", pair.encoder.unused)

    class Stray(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                pair.encoder.unused.fill_(math.inf)

    with pytest.raises(FloatingPointError, match=r"epoch 2, step 6: 'encoder\$\$\$unused' is not finite after"):
        fit(pair, optimizer=lambda parameters: Stray(parameters, lr=0.01))


def test_the_best_weights_so_far_come_back():
    pair, best = BatchNormPair(), BatchNormPair()
    with pytest.raises(FloatingPointError) as caught:
        fit(pair, DATA, optimizer=lambda p: Exploding(p, 4), early_stopping=5, step_mode="eager")
    assert str(caught.value).endswith("clip_norm=10. The weights of epoch 1, the best so far, are kept")
    fit(best, DATA, epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), step_mode="eager")
    assert same(state(pair), state(best))


# --- Optimizers


def stray():
    return [torch.zeros(1, requires_grad=True)]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda _: torch.optim.SGD(stray(), lr=0.1),
        lambda parameters: torch.optim.Adam([p.detach().clone() for p in parameters], lr=0.1),
    ],
    ids=["another tensor", "copies"],
)
def test_an_optimizer_without_any_of_the_parameters_is_refused(optimizer):
    pair = BatchNormPair()
    before = state(pair)
    with pytest.raises(
        ValueError, match=r"\Aoptimizer must hold what is trained, and holds none of these \d+ [^\n]*\Z"
    ):
        fit(pair, optimizer=optimizer)
    assert same(state(pair), before)


def test_an_optimizer_of_some_parameters_trains_these():
    pair = BatchNormPair()
    before = state(pair)
    fit(pair, optimizer=lambda _: torch.optim.Adam(pair.decoder.parameters(), lr=0.1))
    moved = {name for name, value in state(pair).items() if not value.equal(before[name])}
    assert moved == {"decoder.weight", "decoder.bias"}


def test_an_optimizer_of_the_other_half_is_refused_where_the_guide_alone_trains():
    pair = BatchNormPair()
    with pytest.raises(ValueError, match="optimizer must hold what is trained"):
        fit(pair, train="guide", optimizer=lambda _: torch.optim.Adam(pair.decoder.parameters()))


def test_an_optimizer_that_asks_for_the_loss_again_is_refused():
    with pytest.raises(ValueError, match=r"optimizer must step from one gradient, and LBFGS asks for many"):
        fit(BatchNormPair(), optimizer=torch.optim.LBFGS)


# --- Callbacks and validation


def test_a_callback_that_breaks_weights_is_refused():
    pair = BatchNormPair()

    def breaks(record):
        if record["epoch"] == 2:
            nn.init.constant_(pair.decoder.bias, math.nan)

    with pytest.raises(FloatingPointError) as caught:
        fit(pair, epochs=2, callbacks=[breaks])
    assert str(caught.value) == (
        "epoch 2, step 6: 'decoder$$$bias' is not finite after the callbacks or the moving average; look at what they "
        "write. The weights from before are gone: load a saved run, or build the pair anew"
    )


class OnlyTrains(BatchNormPair):
    """A pair whose model has no number for its data in evaluation mode."""

    value = math.nan

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.decoder(z)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False).to_event(1), obs=x)
            if not self.decoder.training and torch.is_grad_enabled() is False and len(x) == 4 and x.equal(X[8:]):
                pyro.factor("broken", torch.full((len(x),), self.value))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_bound_that_is_no_number_is_refused(value):
    pair = OnlyTrains()
    pair.value = value
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError) as caught:
        fit(pair, DATA, step_mode="eager")
    assert str(caught.value).startswith(f"epoch 1: the validation bound is {value}, the training bound -")
    assert str(caught.value).endswith("The weights of epoch 1 are kept")


def test_a_validation_batch_that_fails_is_told_in_one_line():
    with pytest.raises(ValueError, match=r"\Athe pair cannot run on a batch of shape \(4, 3\): [^\n]*invalid values\Z"):
        fit(OnlyTrains(), DATA, step_mode="eager")


# --- What may be infinite


def structural_zero_pair():
    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5, 0.0]), constraint=dist.constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(weights), obs=x)

    return model, None


def test_a_zero_of_a_simplex_stays_and_is_saved(tmp_path):
    x = torch.tensor([0, 1, 1, 1])
    model, _ = structural_zero_pair()
    pvae.fit(model, None, x, steps=200, lr=0.1, out=tmp_path / "run", progress=False)
    found = pvae.fit(model, None, x, steps=1, lr=1e-6, progress=False).parameters["weights"]
    assert found.tolist() == pytest.approx([0.25, 0.75, 0.0], abs=0.01)
    other, _ = structural_zero_pair()
    pvae.load(tmp_path / "run", other)


@pytest.mark.filterwarnings("ignore:bound was not registered")
def test_a_mask_of_minus_infinity_may_stand(tmp_path):
    pair = BatchNormPair()
    pair.encoder.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    pair.encoder.bound = nn.Parameter(torch.tensor([math.inf]), requires_grad=False)
    fit(pair, out=tmp_path / "run")
    other = BatchNormPair()
    other.encoder.register_buffer("mask", torch.zeros(2))
    other.encoder.bound = nn.Parameter(torch.zeros(1), requires_grad=False)
    pvae.load(tmp_path / "run", other.model, other.guide)
    assert other.encoder.mask.tolist() == [0.0, -math.inf]
    assert other.encoder.bound.item() == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_look_tells_large_numbers_from_infinite_ones(dtype):
    linear = nn.Linear(300, 300).to(dtype)
    other = nn.Linear(2, 2).double()

    def model(x):
        pyro.module("linear", linear)
        pyro.module("other", other)

    with pyro.get_param_store().scope():
        watch = Watch(pvae.pair.parameters.find_parameters(model, None, (X,)))
    nn.init.constant_(linear.weight, torch.finfo(dtype).max)
    nn.init.constant_(other.weight, torch.finfo(torch.float64).max)
    watch.require(1, 1, "update")
    for value in (math.nan, math.inf, -math.inf):
        with torch.no_grad():
            linear.weight[299, 299] = value
        with pytest.raises(FloatingPointError, match=r"epoch 1, step 1: 'linear\$\$\$weight' is not finite"):
            watch.require(1, 1, "update")


# --- Files


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf")])
def test_broken_weights_are_not_written(value, word, tmp_path):
    pair = BatchNormPair()
    with torch.no_grad():
        pair.encoder[2].weight[0, 0] = value
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"\Aparameter") as caught:
        pvae.save(tmp_path / "run", pair.model, pair.guide, X)
    assert str(caught.value) == (
        f"parameter 'encoder$$$2.weight' holds {word}; nothing was written; build the pair anew, or load a run that is "
        "sound"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf")])
def test_broken_weights_are_not_loaded(value, word, tmp_path):
    pair = BatchNormPair()
    pvae.save(tmp_path, pair.model, pair.guide, X)
    file = tmp_path / "checkpoint.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["decoder$$$weight"][1, 1] = value
    safetensors.torch.save_file(weights, file, metadata={"sha256": _digest(weights)})
    before = state(pair)
    with pytest.raises(ValueError, match="saved weight") as caught:
        pvae.load(tmp_path, pair.model, pair.guide)
    assert str(caught.value) == (
        f"{file}: saved weight 'decoder$$$weight' holds {word}; the run that wrote it broke: train it anew, or load "
        "another"
    )
    assert same(state(pair), before)
