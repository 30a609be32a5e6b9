"""Every public parameter, given wrong values by the thousand: one line that says what is wrong, or a reason why not."""

import importlib
import math
from fnmatch import fnmatch

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import Exact, MeanField
from pvae.models import VAE, LinearGaussian, StateSpace
from pvae.models.likelihoods import Categorical, Gaussian, observed_only
from pvae.nets import MLP
from tests.right_values import LEFT_OUT, LEGITIMATE, PACKAGES
from tests.wrong_calls import DATA, GUIDE, MODEL, POOL, STATES, SUBJECTS, X

ONE_LINE = 300


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("subject") == "pvae.load":
        pvae.save("nonsense", MODEL, GUIDE, X)


def legitimate(subject: str, parameter: str) -> set[str]:
    """The values of the pool that the table of reasons lets pass."""
    rows = (row for row in LEGITIMATE if parameter in row.parameters and any(fnmatch(subject, each) for each in row.of))
    return {label for row in rows for label in row.labels}


def swept(subject: str) -> list[str]:
    """Its parameters but for those that take data."""
    return [each for each in SUBJECTS[subject].parameters() if each not in DATA.get(subject.split(".")[0], DATA["*"])]


# What these compute for a good call takes seconds in all.
LONG = {"diagnostics.inference_gap", "diagnostics.gradient_variance"}


@pytest.mark.parametrize(
    "subject", [pytest.param(each, marks=pytest.mark.slow if each in LONG else ()) for each in sorted(SUBJECTS)]
)
def test_a_wrong_value_is_refused_in_one_line_and_the_good_call_is_not(subject):
    SUBJECTS[subject].use(SUBJECTS[subject].call(**SUBJECTS[subject].good))
    for parameter in swept(subject):
        passed = set()
        for label, value in POOL.items():
            try:
                SUBJECTS[subject].wrongly(parameter, value)
            except (ValueError, FloatingPointError) as error:
                message = str(error)
                assert "\n" not in message, (parameter, label, message)
                assert len(message) <= ONE_LINE, (parameter, label, message)
                assert "tensor([" not in message, (parameter, label, message)
                assert "; " in message or ": " in message, (parameter, label, message)
            else:
                passed.add(label)
        assert passed == legitimate(subject, parameter), parameter


def test_the_sweep_holds_thousands_of_wrong_calls():
    refused = [
        (subject, parameter, label)
        for subject in SUBJECTS
        for parameter in swept(subject)
        for label in POOL.keys() - legitimate(subject, parameter)
    ]
    assert len(refused) >= 15_000
    assert len({(subject, parameter) for subject, parameter, _ in refused}) >= 400


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_swept(package):
    module = importlib.import_module(package)
    short = package.rsplit(".", 1)[-1]
    for name in PACKAGES[package] or [each for each in vars(module) if not each.startswith("_")]:
        value = getattr(module, name)
        if callable(value) and getattr(value, "__module__", "").startswith("pvae."):
            assert (f"{short}.{name}" in SUBJECTS) != (f"{short}.{name}" in LEFT_OUT), name


def fit(**options):
    return pvae.fit(MODEL, GUIDE, X, **{"steps": 5, "progress": False, "step_mode": "eager", **options})


@pytest.fixture
def pair_put_back():
    yield
    for module, state in STATES:
        module.load_state_dict(state)


WEIGHTS = {
    "negative": (-0.5, "got -0.5"),
    "nan": (math.nan, "got nan"),
    "infinite": (math.inf, "got inf"),
    "tensor": (torch.tensor(0.5), r"got tensor\(0\.5000\)"),
    "word": ("0.5", "got '0.5'"),
    "nothing": (None, "got None"),
    "flag": (True, "got True"),
}


@pytest.mark.parametrize(("weight", "step_mode"), [*((each, "eager") for each in WEIGHTS), ("negative", "traced")])
def test_a_wrong_kl_weight_is_refused_at_its_step(weight, step_mode, pair_put_back):
    value, got = WEIGHTS[weight]
    message = rf"the KL weight that kl_schedule gives for step 3 must be a finite number of at least 0, {got}; try"
    with pytest.raises(ValueError, match=message):
        fit(kl_schedule=lambda step: value if step == 3 else 1.0, step_mode=step_mode)


FUNCTIONS = {
    "kl_schedule fails": (
        {"kl_schedule": lambda step: 1 / step},
        r"\Akl_schedule fails at step 0: .*division by zero\Z",
    ),
    "kl_schedule takes nothing": ({"kl_schedule": lambda: 1.0}, r"kl_schedule fails at step 0: .*positional argument"),
    "optimizer gives nothing": ({"optimizer": lambda leaves: None}, "optimizer must make a torch optimizer.*got None"),
    "optimizer fails": (
        {"optimizer": nn.Linear},
        "optimizer or schedule fails when it is called: .*positional argument",
    ),
    "schedule gives nothing": ({"schedule": lambda optimizer: None}, "schedule must make a torch scheduler, got None"),
    "schedule fails": (
        {"schedule": lambda: None},
        "optimizer or schedule fails when it is called: .*positional argument",
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_what_a_function_of_the_users_gives_is_looked_at(case, pair_put_back):
    options, message = FUNCTIONS[case]
    with pytest.raises(ValueError, match=message) as caught:
        fit(**options)
    assert "\n" not in str(caught.value)


HALF = torch.tensor([[1.0, 0.5, 0.0, 1.0]]).expand(6, 4)
LINEAR = LinearGaussian(4, 2)
MASKED = {
    "missing": lambda observed: pvae.data.missing(X, observed),
    "impute": lambda observed: pvae.impute(LINEAR, Exact(LINEAR), (X, observed), 3, 2),
    "log_prob": lambda observed: LINEAR.log_prob(X, observed),
    "posterior": lambda observed: LINEAR.posterior(X, observed),
    "observed_only": lambda observed: observed_only(dist.Normal(torch.zeros(6, 4), 1.0).to_event(1), X, observed),
    "a sequence": lambda observed: StateSpace((4, 1), 2)(X[..., None], observed),
}


@pytest.mark.parametrize("taker", MASKED)
def test_a_mask_says_yes_or_no(taker):
    with pytest.raises(
        ValueError, match=r"\Aobserved must hold True and False, or 1 and 0, got other values in a tensor"
    ):
        MASKED[taker](HALF)
    for observed in (HALF.round(), HALF.round().long(), HALF.round().bool()):
        MASKED[taker](observed)


def test_a_mask_of_floats_says_what_one_of_bools_says():
    assert LINEAR.log_prob(X, HALF.round()).equal(LINEAR.log_prob(X, HALF.round().bool()))


LATER = {
    "VAE": lambda: (VAE((4,), 2, likelihood=Gaussian(1.0)), X, torch.ones_like(X)),
    "VAE of categories": lambda: (VAE((4,), 2, likelihood=Categorical(3)), X.abs().long() % 3, torch.ones_like(X)),
    "StateSpace": lambda: (StateSpace((4, 1), 2), X.unsqueeze(-1), torch.ones_like(X)),
}


@pytest.mark.parametrize("name", LATER)
def test_a_mask_that_turns_into_shares_later_is_no_density(name):
    model, x, observed = LATER[name]()
    observed[5] = 0.5
    guide = MeanField(model, (x[:2], observed[:2]), hidden=(5,))
    with pytest.raises(ValueError, match="observed must hold True and False"):
        pvae.fit(model, guide, (x, observed), epochs=4, batch_size=1, step_mode="traced", progress=False)
    with pytest.raises(ValueError, match="observed must hold True and False"):
        pvae.log_marginal(model, guide, (x, observed), ImportanceSampling(20, step_mode="traced"), batch_size=1)


def test_numbers_that_mean_the_same_are_taken():
    model = VAE([np.int64(4)], np.int32(2), decoder=MLP(np.int64(2), [np.int16(5)], (4,)))
    guide = MeanField(model, X, hidden=np.array([5]), min_scale=np.float32(1e-4))
    assert pvae.log_weights(model, guide, X, np.int64(3)).values.shape == (3, 6)
    result = pvae.log_marginal(
        model, guide, X, ImportanceSampling(np.int64(5)), batch_size=np.int64(4), seed=np.int64(1)
    )
    again = pvae.log_marginal(model, guide, X, ImportanceSampling(5), batch_size=4, seed=1)
    assert result.values.equal(again.values)
