"""The public constructors and functions with a good call each, and values that are wrong nearly everywhere."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import pvae
from pvae import diagnostics, estimators, guides, models, nets, objectives, training, truth
from pvae.guides import MeanField
from pvae.models import VAE, likelihoods, priors, transitions
from pvae.nets import MLP
from pvae.objectives import baselines
from tests.tables import GUIDES, MODELS, OBJECTIVES, binary, fits


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr\nfor you")


class Long:
    def __repr__(self) -> str:
        return "long\n" * 1000


def gives_nothing(*_: Any, **__: Any) -> None:
    pass


def fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("a function\nthat fails " + "and fails " * 100)


POOL: dict[str, Any] = {
    "None": None,
    "True": True,
    "False": False,
    "numpy True": np.True_,
    "minus one": -1,
    "zero": 0,
    "half": 0.5,
    "minus half": -0.5,
    "nan": math.nan,
    "inf": math.inf,
    "minus inf": -math.inf,
    "numpy nan": np.float32("nan"),
    "huge": 10**30,
    "beyond single precision": 1e300,
    "below single precision": 1e-300,
    "beyond floats": 10**400,
    "complex": 1j,
    "empty word": "",
    "word": "nonsense",
    "bytes": b"x",
    "empty tuple": (),
    "words": ["x"],
    "nested": ((1, 2), (3,)),
    "numbers and None": (2, None),
    "zeros": (0, 0),
    "halves": (0.5, 1.5),
    "flags": (True, True),
    "dict": {"x": 1},
    "dict of numbers": {1: 2},
    "set": {3, 4},
    "object": object(),
    "unprintable": Unprintable(),
    "long": Long(),
    "class": nn.Linear,
    "built class": VAE,
    "module": nn.Linear(7, 3),
    "function": gives_nothing,
    "failing function": fails,
    "number tensor": torch.tensor(0.5),
    "whole tensor": torch.tensor(3),
    "tensor": torch.full((2, 3), 0.25),
    "empty tensor": torch.zeros(0, 4),
    "complex tensor": torch.zeros(2, 4, dtype=torch.complex64),
    "array": np.zeros((2, 3)),
    "array of one": np.array(3),
    "array of objects": np.array([None, "x"], dtype=object),
}

# Data come in by another door, which has tests of its own.
DATA = {"*": {"batch", "data", "example_batch", "x", "z", "like"}, "truth": set(), "priors": set()}


class Subject(NamedTuple):
    """A public callable, a good call of it by keyword, and a use of what it gives that shows what was built wrongly."""

    call: Callable[..., Any]
    good: dict[str, Any]
    use: Callable[[Any], Any]

    def parameters(self) -> list[str]:
        """What can be given wrongly."""
        every = inspect.signature(self.call).parameters.values()
        return [each.name for each in every if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]

    def wrongly(self, parameter: str, value: Any) -> Any:
        """Call with one wrong value, and use what comes of it."""
        try:
            return self.use(self.call(**{**self.good, parameter: value}))
        finally:
            for module, state in STATES:
                module.load_state_dict(state)


X = (torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def vae(prior: Any = None, likelihood: Any = None) -> VAE:
    torch.manual_seed(0)
    likelihood = likelihoods.Bernoulli() if likelihood is None else likelihood
    return VAE((4,), 2, prior=prior, likelihood=likelihood, decoder=MLP(2, (5,), likelihood.parameter_shape((4,))))


MODEL = vae()
GUIDE = MeanField(MODEL, X, hidden=(5,))
# Training with another rate may leave any weights.
STATES = [(module, copy.deepcopy(module.state_dict())) for module in (MODEL, GUIDE)]


def weighed(model: Any, guide: Any, batch: Any) -> Any:
    """Draw and weigh, and train for a step."""
    weights = pvae.log_weights(model, guide, batch, 2).values
    if not isinstance(weights, Tensor) or weights.shape[0] != 2:
        raise AssertionError("no log weights")
    return weights


def nothing(value: Any) -> Any:
    return value


def _use_model(name: str) -> Callable[[Any], Any]:
    make_data = (lambda: binary(3, 2)) if name == "StateSpace" else MODELS[name][1]
    kind = "Empty" if name == "NeuralClassifier" else "Bernoulli" if name == "SigmoidBeliefNet" else "MeanField"

    def use(model: Any) -> Any:
        if name == "Generator":
            return pvae.sample(model, 2)
        return weighed(model, GUIDES[kind](model, make_data()), make_data())

    return use


def _use_likelihood(x: Tensor) -> Callable[[Any], Any]:
    def use(likelihood: Any) -> Any:
        shape = tuple(x.shape[1:])
        model = VAE(shape, 2, likelihood=likelihood, decoder=MLP(2, (5,), likelihood.parameter_shape(shape)))
        return weighed(model, None, x)

    return use


def _use_prior(prior: Any) -> Any:
    model = vae(prior=prior)
    guide = MeanField(model, X, hidden=(5,))
    if hasattr(prior, "tie"):
        prior.tie(guide)
    return weighed(model, guide, X)


def _use_estimator(estimator: Any) -> Any:
    return pvae.log_marginal(MODEL, GUIDE, X, estimator)


def _use_optimizer_schedule(schedule: Any) -> Any:
    return [schedule(step) for step in range(3)]


def _subjects() -> dict[str, Subject]:
    shape, size = {"x_shape": (4,), "latent_dim": 2}, {"latent_dim": 2}
    found: dict[str, Subject] = {
        f"models.{name}": Subject(getattr(models, name), good, _use_model(key))
        for name, key, good in (
            ("VAE", "VAE", {"x_shape": (1, 4, 4), "latent_dim": 2}),
            ("ConditionalVAE", "ConditionalVAE", {"x_shape": (1, 4, 4), "latent_dim": 2, "condition_dim": 3}),
            ("Generator", "Generator", shape),
            ("HierarchicalVAE", "HierarchicalVAE", {"x_shape": (1, 4, 4), "latent_dims": (3, 2), "hidden": (6,)}),
            ("LinearGaussian", "LinearGaussian", {"x_dim": 4, "latent_dim": 2}),
            ("MixtureVAE", "MixtureVAE", {"x_shape": (1, 4, 4), "latent_dim": 2, "num_components": 3}),
            ("NeuralClassifier", "NeuralClassifier", {"x_shape": (4,), "num_classes": 3}),
            ("SemiSupervisedVAE", "SemiSupervisedVAE", {"x_shape": (1, 4, 4), "latent_dim": 2, "num_classes": 3}),
            ("SigmoidBeliefNet", "SigmoidBeliefNet", {"x_shape": (1, 4, 4), "layer_dims": (3, 2)}),
            ("StateSpace", "StateSpace", {"x_shape": (3, 2), "latent_dim": 2}),
            ("TwoStageVAE", "TwoStageVAE", {"first": vae(likelihood=_gaussian()), "second": _second()}),
        )
    }
    codes = X.clone()
    for name, good in {
        "ConditionalPrior": {"condition_dim": 3, "latent_dim": 2},
        "ExemplarPrior": {"latent_dim": 2, "exemplars": codes, "subset": 3},
        "FlowPrior": {"latent_dim": 2, "length": 1, "step_hidden": (5,)},
        "Gaussian": size,
        "GaussianMixture": {"latent_dim": 2, "num_components": 3},
        "StandardNormal": size,
        "VampPrior": {"latent_dim": 2, "pseudo_inputs": codes},
    }.items():
        use = _use_conditional_prior if name == "ConditionalPrior" else _use_prior
        found[f"priors.{name}"] = Subject(getattr(priors, name), good, use)
    found["priors.pseudo_inputs_near"] = Subject(priors.pseudo_inputs_near, {"data": codes, "num": 3}, nothing)
    for name, make, good in (
        ("Beta", "VAE, beta", {}),
        ("Categorical", "VAE, categorical", {"num_categories": 3}),
        ("Columns", "VAE, mixed columns", {"columns": ("real", "real", "binary", "count", ("categorical", 3))}),
        ("DiscretizedLogistic", "VAE, discretized logistic", {"num_values": 17}),
        ("DiscretizedLogisticMixture", "VAE, discretized logistic mixture", {"num_components": 2, "num_values": 17}),
        ("Gaussian", "VAE, shared Gaussian", {}),
        ("Multinomial", "VAE, multinomial", {"total_count": 20}),
        ("NegativeBinomial", "VAE, negative binomial", {}),
        ("StudentT", "VAE, Student-t", {}),
        ("ZeroInflatedNegativeBinomial", "VAE, zero-inflated", {}),
    ):
        found[f"likelihoods.{name}"] = Subject(getattr(likelihoods, name), good, _use_likelihood(MODELS[make][1]()))
    found["transitions.Gated"] = Subject(transitions.Gated, {"latent_dim": 2}, lambda gated: gated(torch.zeros(3, 2)))
    found |= {f"guides.{name}": _guide(name) for name in GUIDES}
    for name, good in {
        "MLP": {"in_shape": 4, "hidden": (5,), "out_shape": 3},
        "GatedMLP": {"in_shape": 4, "hidden": (5,), "out_shape": 3},
        "ConvEncoder": {"in_shape": (1, 6, 5), "channels": (2,), "out_shape": 3},
        "ConvDecoder": {"in_features": 2, "channels": (2,), "out_shape": (1, 6, 5)},
    }.items():
        found[f"nets.{name}"] = Subject(getattr(nets, name), good, nothing)
    good = {"net": MLP(2, (), 4), "mean": X.mean(0)}
    found["nets.init_output_bias"] = Subject(nets.init_output_bias, good, nothing)
    found |= _methods() | _objectives() | _estimators() | _diagnostics() | _training() | _functions()
    found |= {f"truth.{make.__name__}": Subject(make, {}, nothing) for make in truth.TRUTHS}
    return found


def _methods() -> dict[str, Subject]:
    """What the objects can be asked."""
    torch.manual_seed(0)
    vamp, batch = priors.VampPrior(2, X), MODELS["MixtureVAE"][1]()
    tied = MeanField(vae(prior=vamp), X, hidden=(5,))
    clusters = models.MixtureVAE((1, 4, 4), 2, 2, decoder=MLP(2, (5,), (1, 4, 4)))
    steps = models.StateSpace((3, 2), 2)
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    pair = {"model": MODEL, "guide": GUIDE, "batch": X}
    return {
        "models.LinearGaussian.maximum_likelihood": Subject(
            models.LinearGaussian.maximum_likelihood, {"x": rows, "latent_dim": 2}, nothing
        ),
        "models.MixtureVAE.start_at": Subject(clusters.start_at, {"z": torch.randn(len(batch), 2)}, nothing),
        "models.StateSpace.forecast": Subject(steps.forecast, {"z": torch.zeros(2), "num_steps": 2}, nothing),
        "objectives.ELBO.bound": Subject(objectives.ELBO().bound, pair, nothing),
        "priors.VampPrior.tie": Subject(vamp.tie, {"guide": tied}, nothing),
    }


def _gaussian() -> Any:
    return likelihoods.Gaussian("shared")


def _second() -> VAE:
    return VAE((2,), 2, likelihood=_gaussian())


def _use_conditional_prior(prior: Any) -> Any:
    model = models.ConditionalVAE((1, 4, 4), 2, 3, prior=prior, decoder=MLP(5, (5,), (1, 4, 4)))
    batch = MODELS["ConditionalVAE"][1]()
    return weighed(model, MeanField(model, batch, hidden=(5,)), batch)


def _guide(name: str) -> Subject:
    key = next(each for each in MODELS if fits(each, name))
    torch.manual_seed(0)
    model, batch = MODELS[key][0](), MODELS[key][1]()
    kind = getattr(guides, name)
    parameters = inspect.signature(kind).parameters
    good: dict[str, Any] = {"model": model}
    good |= {each: batch for each in ("example_batch", "data") if each in parameters}
    small = {"hidden": (5,), "step_hidden": (6,), "context": 3, "length": 2, "num_steps": 1, "num_samples": 2}
    good |= {each: value for each, value in small.items() if each in parameters}
    if name == "Chained":
        good |= {"first": MeanField(model.first, batch), "second": MeanField(model.second, batch[:, :2])}

    def use(guide: Any) -> Any:
        return guide if name in ("Delta", "Implicit") else weighed(model, guide, batch)

    return Subject(kind, good, use)


def _objectives() -> dict[str, Subject]:
    batch = MODELS["VAE, shared Gaussian"][1]()
    torch.manual_seed(0)
    model = vae(likelihood=_gaussian())
    guide = MeanField(model, batch, hidden=(5,))
    needed = {
        "AdversarialAutoencoder": {"model": model, "example_batch": batch, "hidden": (5,)},
        "AdversarialVB": {"model": model, "example_batch": batch, "hidden": (5,)},
        "GenerativeAdversarial": {"example_batch": batch, "hidden": (5,)},
        "BetaTCVAE": {"num_data": 6},
    }

    def use(objective: Any) -> Any:
        bound = objective.bound(model, guide, batch)
        if not bound.isfinite().all():
            raise AssertionError(f"a bound of {bound}")
        return bound

    names = {name.split(",")[0] for name in OBJECTIVES}
    found = {f"objectives.{name}": Subject(getattr(objectives, name), needed.get(name, {}), use) for name in names}
    for name, good in {"RunningMean": {}, "Neural": {"example_batch": batch, "hidden": (5,)}}.items():
        call = getattr(baselines, name)
        found[f"baselines.{name}"] = Subject(
            call, good, lambda baseline: use(objectives.ELBO(2, gradient="score", baseline=baseline))
        )
    return found


def _estimators() -> dict[str, Subject]:
    small = {
        "num_samples": 4,
        "num_temperatures": 2,
        "num_leapfrog": 1,
        "step_size": 0.1,
        "points_per_dim": 30,
        "step_mode": "eager",
    }
    found = {}
    for name in vars(estimators):
        kind = getattr(estimators, name)
        if isinstance(kind, type) and kind.__module__.startswith("pvae."):
            parameters = inspect.signature(kind).parameters
            good = {each: value for each, value in small.items() if each in parameters}
            if name == "GuideMixture":
                good["others"] = [GUIDE]
            found[f"estimators.{name}"] = Subject(kind, good, nothing if name == "Enumeration" else _use_estimator)
    return found | {"estimators.bits_per_dim": Subject(estimators.bits_per_dim, {"nats": -5.0, "num_dims": 4}, nothing)}


def _diagnostics() -> dict[str, Subject]:
    pair = {"model": MODEL, "guide": GUIDE}
    result = pvae.log_marginal(MODEL, GUIDE, X, estimators.ImportanceSampling(20))
    good = {
        "active_dimensions": {"guide": GUIDE, "x": X, "num_samples": 2},
        "calibration": {**pair, "like": X, "num_simulations": 20, "num_samples": 2},
        "collapse": {**pair, "data": X, "num_samples": 2},
        "gradient_variance": {**pair, "objective": objectives.ELBO(), "batch": X[:2], "num_repeats": 20},
        "inference_gap": {
            **pair,
            "data": X[:2],
            "num_samples": 2,
            "local_steps": 1,
            "local_samples": 1,
            "estimator": estimators.ImportanceSampling(2),
        },
        "khat_map": {"result": result},
    }
    found = {f"diagnostics.{name}": Subject(getattr(diagnostics, name), each, nothing) for name, each in good.items()}
    return found | {"pvae.compare": Subject(pvae.compare, {"a": result, "b": result}, nothing)}


def _training() -> dict[str, Subject]:
    return {
        "training.linear_warmup": Subject(training.linear_warmup, {"steps": 3}, _use_optimizer_schedule),
        "training.cyclical": Subject(training.cyclical, {"steps": 3}, _use_optimizer_schedule),
        "training.cosine": Subject(training.cosine, {"total_steps": 3}, nothing),
        "training.Aggressive": Subject(training.Aggressive, {}, nothing),
        "training.Alternating": Subject(training.Alternating, {}, nothing),
        "guides.parts.temperature.anneal": Subject(
            guides.parts.temperature.Temperature(1.0).anneal, {}, lambda cool: cool({"step": 3})
        ),
    }


def _functions() -> dict[str, Subject]:
    pair = {"model": MODEL, "guide": GUIDE}
    few = {"estimator": estimators.ImportanceSampling(3)}
    data = (torch.where(X > 0, X, torch.nan), torch.ones_like(X))
    gappy = models.LinearGaussian(4, 2)
    return {
        "pvae.fit": Subject(
            pvae.fit, {**pair, "data": X, "steps": 1, "step_mode": "eager", "progress": False}, nothing
        ),
        "pvae.log_marginal": Subject(pvae.log_marginal, {**pair, "data": X, **few, "max_samples": 6}, nothing),
        "pvae.log_weights": Subject(pvae.log_weights, {**pair, "batch": X, "num_samples": 2}, nothing),
        "pvae.check": Subject(pvae.check, {**pair, "batch": X}, nothing),
        "pvae.sample": Subject(pvae.sample, {"model": MODEL, "num": 2}, nothing),
        "pvae.encode": Subject(pvae.encode, {"guide": GUIDE, "x": X}, nothing),
        "pvae.reconstruct": Subject(pvae.reconstruct, {**pair, "x": X}, nothing),
        "pvae.impute": Subject(
            pvae.impute,
            {"model": gappy, "guide": guides.Exact(gappy), "data": data, "num_samples": 3, "num_imputations": 2},
            nothing,
        ),
        "pvae.save": Subject(pvae.save, {"path": "run", **pair, "example_batch": X}, nothing),
        "pvae.load": Subject(pvae.load, {"path": "nonsense", **pair}, nothing),
    }


SUBJECTS = _subjects()
