"""Properties that every model has with every guide that fits it."""

import inspect

import pytest
import torch

import pvae
from pvae.objectives import ELBO, IWAE
from pvae.pair.sites import as_batch
from pvae.runs.recipes import exported
from tests.tables import (
    ESTIMATORS,
    GUIDES,
    MODELS,
    NO_DENSITY,
    NOT_AMORTISED,
    NUM_DATA,
    OBJECTIVES,
    OF_STATES,
    SUMS_OUT,
    cast,
    cells,
    encodes_by_draws,
    fits,
    gradient_for,
    refusal,
    rows,
)

FITTING = cells()
# Other likelihoods and priors of one VAE change little in how a pair runs.
WITHOUT_VARIANTS = [
    pytest.param(*cell.values, marks=pytest.mark.slow) if cell.values[0].startswith("VAE, ") else cell
    for cell in FITTING
]


def pair(model_name, guide_name, dtype=torch.float64):
    torch.manual_seed(0)
    make_model, make_data = MODELS[model_name]
    x = cast(make_data(), dtype)
    model = make_model().to(dtype)
    return model, GUIDES[guide_name](model, x).to(dtype), x


def trained_by(make, guide_name):
    """The objective with the gradient that the guide needs, if it takes one."""
    try:
        return make(**gradient_for(guide_name))
    except ValueError:
        pytest.skip("a closed-form KL goes with the pathwise gradient")


@pytest.mark.parametrize(("model_name", "guide_name"), cells(lambda *cell: not fits(*cell)))
def test_incompatible_cells_say_why_and_name_a_guide_that_fits(model_name, guide_name):
    with pytest.raises(ValueError, match=refusal(model_name, guide_name)):
        pair(model_name, guide_name)


@pytest.mark.parametrize(("model_name", "guide_name"), FITTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_k_by_b_finite_and_of_the_data_type(model_name, guide_name, dtype):
    model, guide, x = pair(model_name, guide_name, dtype)
    for num_samples in (3, 1):
        weights = pvae.log_weights(model, guide, x, num_samples)
        assert weights.values.shape == (num_samples, NUM_DATA)
        assert weights.values.dtype == dtype
        assert torch.isfinite(weights.values).all()
        parts = weights.log_likelihood + weights.log_prior - weights.log_guide
        torch.testing.assert_close(parts, weights.values)


@pytest.mark.parametrize(("model_name", "guide_name"), FITTING)
@pytest.mark.parametrize(
    "make",
    [lambda **o: ELBO(2, **o), lambda **o: ELBO(2, kl="analytic", **o), lambda **o: IWAE(3, **o)],
    ids=["elbo", "analytic", "iwae"],
)
def test_every_parameter_has_a_gradient(model_name, guide_name, make):
    model, guide, x = pair(model_name, guide_name)
    objective = trained_by(make, guide_name)
    if model_name in SUMS_OUT and getattr(objective, "kl", None) == "analytic":
        pytest.skip("a closed-form KL is taken site by site")
    (-objective.bound(model, guide, x).mean()).backward()
    for name, parameter in [*model.named_parameters(), *guide.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("model_name", "guide_name"), WITHOUT_VARIANTS)
# tests/test_modes.py has every cell train alike in both.
@pytest.mark.parametrize("step_mode", ["traced", pytest.param("eager", marks=pytest.mark.slow)])
def test_a_short_training_raises_the_bound(model_name, guide_name, step_mode):
    model, guide, x = pair(model_name, guide_name)
    objective = ELBO(8, **gradient_for(guide_name))
    result = pvae.fit(model, guide, x, objective=objective, steps=60, batch_size=NUM_DATA, lr=1e-2, step_mode=step_mode)
    assert result.step_mode == step_mode
    assert result.losses[-10:].mean() < result.losses[:10].mean()


@pytest.mark.parametrize(("model_name", "guide_name"), FITTING)
def test_a_batch_equals_its_data_one_by_one(model_name, guide_name):
    _model, guide, x = pair(model_name, guide_name)
    whole = pvae.encode(guide, x)
    if encodes_by_draws(model_name, guide_name):
        # A datum keeps its place, and so its noise; the others are copies of it.
        copies = (pvae.encode(guide, rows(x, [i] * NUM_DATA)) for i in range(NUM_DATA))
        single = [{name: z[i : i + 1] for name, z in codes.items()} for i, codes in enumerate(copies)]
    else:
        single = [pvae.encode(guide, rows(x, slice(i, i + 1))) for i in range(NUM_DATA)]
    # A site that follows another's draw has the mean that goes with the draw.
    for site in list(whole)[:1]:
        torch.testing.assert_close(whole[site], torch.cat([one[site] for one in single]))


@pytest.mark.parametrize(("model_name", "guide_name"), FITTING)
def test_weights_survive_a_round_trip_to_disk(model_name, guide_name, tmp_path):
    model, guide, x = pair(model_name, guide_name)
    pvae.save(tmp_path, model, guide, x)
    other_model, _, _ = pair(model_name, guide_name)
    with torch.no_grad():
        for parameter in other_model.parameters():
            parameter.add_(1.0)
    other_guide = GUIDES[guide_name](other_model, x).double()
    pvae.load(tmp_path, other_model, other_guide)
    for mine, loaded in ((model, other_model), (guide, other_guide)):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize(("model_name", "guide_name"), WITHOUT_VARIANTS)
def test_log_marginal_of_every_cell(model_name, guide_name):
    model, guide, x = pair(model_name, guide_name)
    if guide_name in NO_DENSITY:
        with pytest.raises(ValueError, match="from a point"):
            pvae.log_marginal(model, guide, x)
        return
    objective = ELBO(2, **gradient_for(guide_name))
    pvae.fit(model, guide, x, objective=objective, steps=200, batch_size=NUM_DATA, lr=1e-2)
    importance = pvae.log_marginal(model, guide, x, pvae.estimators.ImportanceSampling(4000))
    prior = pvae.log_marginal(model, guide, x, pvae.estimators.PriorSampling(40_000), seed=1)
    error = (importance.mc_standard_errors.square() + prior.mc_standard_errors.square()).sqrt()
    trusted = (importance.khat < importance.khat_threshold) & (prior.khat < prior.khat_threshold)
    assert trusted.any()
    assert ((importance.values - prior.values).abs() < 5 * error + 1e-9)[trusted].all()


@pytest.mark.parametrize("name", MODELS)
def test_samples_have_the_shape_of_data(name):
    make_model, make_data = MODELS[name]
    model, x = make_model(), make_data()
    draws, again, others = (pvae.sample(model, 9, like=x, seed=seed) for seed in (0, 0, 1))
    observed = "x" if "x" in draws else "y"
    shape = as_batch(x)["xy".index(observed)].shape
    assert draws[observed].shape == (9, *shape[1:])
    assert torch.equal(draws[observed], again[observed])
    first = next(iter(draws))
    assert not torch.equal(draws[first], others[first])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_gives_a_number_per_datum_on_the_side_it_says(name):
    cell = ("SigmoidBeliefNet", "Bernoulli") if name in OF_STATES else ("LinearGaussian", "FullCovariance")
    model, guide, x = pair(*cell)
    found = pvae.log_marginal(model, guide, x, ESTIMATORS[name](model, x))
    assert found.values.shape == found.mc_standard_errors.shape == found.khat.shape == (NUM_DATA,)
    assert found.values.isfinite().all()
    assert found.bound in ("lower", "upper", "unbiased", "none")
    if found.bound == "lower" and name not in OF_STATES:
        assert found.mean <= model.log_prob(x).mean() + 5 * found.mc_standard_error + 1e-9


def test_the_tables_hold_everything_that_is_exported():
    assert {cls.__name__ for cls in exported("pvae.estimators").values()} == {name.split(",")[0] for name in ESTIMATORS}
    assert {cls.__name__ for cls in exported("pvae.guides").values()} == set(GUIDES)
    assert {cls.__name__ for cls in exported("pvae.models").values()} == {name.split(",")[0] for name in MODELS}
    assert {cls.__name__ for cls in exported("pvae.objectives").values()} == {name.split(",")[0] for name in OBJECTIVES}


AMORTIZED = [cls for name, cls in vars(pvae.guides).items() if inspect.isclass(cls) and name not in NOT_AMORTISED]


@pytest.mark.parametrize("guide", AMORTIZED)
def test_guides_share_names_and_order(guide):
    names = list(inspect.signature(guide).parameters)
    assert names[:4] == ["model", "example_batch", "hidden", "encoder"]
