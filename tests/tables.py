"""The models and guides of the library by name: a new one is one row here, and every property test covers it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pvae.guides import Delta, Exact, FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian
from pvae.models.likelihoods import Categorical, Gaussian
from pvae.nets import MLP, ConvDecoder

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
    "Delta": lambda model, x: Delta(model, x, hidden=(5,)),
    "Exact": lambda model, x: Exact(model),
    "FullCovariance": lambda model, x: FullCovariance(model, x, hidden=(5,)),
    "MeanField": lambda model, x: MeanField(model, x, hidden=(5,)),
}

NO_DENSITY = {"Delta"}


def fits(model: str, guide: str) -> bool:
    """Whether a guide serves a model; every other cell must be refused."""
    return guide != "Exact" or model == "LinearGaussian"
