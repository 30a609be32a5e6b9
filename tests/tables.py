"""The models and guides of the library by name: a new one is one row here, and every property test covers it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pvae.guides import Bernoulli, Delta, Exact, FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian, SigmoidBeliefNet
from pvae.models.likelihoods import Categorical, Gaussian
from pvae.nets import MLP, ConvDecoder
from pvae.objectives import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    BetaTCVAE,
    FisherAutoencoder,
    InfoVAE,
    Objective,
    Renyi,
    ReweightedWakeSleep,
)
from pvae.objectives.baselines import LeaveOneOut, RunningMean

NUM_DATA = 6


def binary(*shape: int) -> Tensor:
    return torch.rand(NUM_DATA, *shape, generator=torch.Generator().manual_seed(0)).round()


def real(*shape: int) -> Tensor:
    return torch.randn(NUM_DATA, *shape, generator=torch.Generator().manual_seed(0))


def categories(*shape: int) -> Tensor:
    return torch.randint(3, (NUM_DATA, *shape), generator=torch.Generator().manual_seed(0))


def vae(shape: tuple[int, ...], likelihood: nn.Module | None = None) -> VAE:
    likelihood = likelihood or VAE(shape, 2).likelihood
    return VAE(shape, 2, likelihood=likelihood, decoder=MLP(2, (5,), likelihood.parameter_shape(shape)))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]] = {
    "LinearGaussian": (lambda: LinearGaussian(4, 2), lambda: real(4)),
    "SigmoidBeliefNet": (lambda: SigmoidBeliefNet((1, 4, 4), (3, 2)), lambda: binary(1, 4, 4)),
    "VAE": (lambda: vae((1, 4, 4)), lambda: binary(1, 4, 4)),
    "VAE, convolutional": (
        lambda: VAE((1, 6, 5), 2, decoder=ConvDecoder(2, (4, 3), (1, 6, 5))),
        lambda: binary(1, 6, 5),
    ),
    "VAE, fixed Gaussian": (lambda: vae((4,), Gaussian(0.5)), lambda: real(4)),
    "VAE, shared Gaussian": (lambda: vae((4,), Gaussian("shared")), lambda: real(4)),
    "VAE, learned Gaussian": (lambda: vae((4,), Gaussian("learned")), lambda: real(4)),
    "VAE, categorical": (lambda: vae((4,), Categorical(3)), lambda: categories(4)),
}

GUIDES: dict[str, Callable[[Any, Tensor], Any]] = {
    "Bernoulli": lambda model, x: Bernoulli(model, x, hidden=(5,)),
    "Delta": lambda model, x: Delta(model, x, hidden=(5,)),
    "Exact": lambda model, x: Exact(model),
    "FullCovariance": lambda model, x: FullCovariance(model, x, hidden=(5,)),
    "MeanField": lambda model, x: MeanField(model, x, hidden=(5,)),
}

NO_DENSITY = {"Delta"}

# What trains a guide whose draws have no pathwise gradient.
BY_SCORE = {"Bernoulli"}

# Every objective, with few particles; each trains a continuous model.
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "BetaTCVAE": lambda: BetaTCVAE(num_data=NUM_DATA),
    "CIWAE": lambda: CIWAE(0.5, 3),
    "CUBO": lambda: CUBO(3),
    "ELBO": lambda: ELBO(2),
    "ELBO, analytic": lambda: ELBO(kl="analytic"),
    "ELBO, free bits": lambda: ELBO(free_bits=0.1),
    "ELBO, stl": lambda: ELBO(2, gradient="stl"),
    "ELBO, score": lambda: ELBO(3, gradient="score", baseline=LeaveOneOut()),
    "FisherAutoencoder": FisherAutoencoder,
    "IWAE": lambda: IWAE(3),
    "IWAE, dreg": lambda: IWAE(3, gradient="dreg"),
    "IWAE, running mean": lambda: IWAE(3, gradient="score", baseline=RunningMean()),
    "IWAE, mixed": lambda: IWAE(3, gradient="mixed"),
    "InfoVAE": InfoVAE,
    "MIWAE": lambda: MIWAE(2, 3),
    "PIWAE": lambda: PIWAE(2, 3),
    "Renyi": lambda: Renyi(0.5, 3),
    "Renyi, max": lambda: Renyi(-math.inf, 3),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(3, phase="both"),
}


def gradient_for(guide: str) -> dict[str, Any]:
    """Options of an objective with several particles that train a guide."""
    return {"gradient": "score", "baseline": LeaveOneOut()} if guide in BY_SCORE else {}


def refusal(model: str, guide: str) -> str | None:
    """Why a guide does not serve a model, as a pattern of its one line; None where it does."""
    if guide == "Exact":
        name = model.split(",")[0]
        return None if name == "LinearGaussian" else f"LinearGaussian.*got {name}; use"
    if guide == "Bernoulli":
        return None if model == "SigmoidBeliefNet" else "site 'z' is not binary.*use MeanField"
    return "site 'h2' is discrete.*use pvae.guides.Bernoulli" if model == "SigmoidBeliefNet" else None


def fits(model: str, guide: str) -> bool:
    """Whether a guide serves a model; every other cell must be refused."""
    return refusal(model, guide) is None
