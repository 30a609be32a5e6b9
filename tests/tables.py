"""The models and guides of the library by name: a new one is one row here, and every property test covers it."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pvae import estimators
from pvae.guides import (
    IAF,
    Auxiliary,
    Bernoulli,
    BottomUp,
    Categorical,
    Chained,
    CouplingFlow,
    Delta,
    Empty,
    Exact,
    FullCovariance,
    Implicit,
    Ladder,
    Local,
    LowRank,
    MeanField,
    Mixed,
    Mixture,
    PlanarFlow,
    Recurrent,
    RelaxedBernoulli,
    RelaxedCategorical,
    SemiAmortized,
    SemiSupervised,
    SplineFlow,
    TopDown,
)
from pvae.models import (
    VAE,
    ConditionalVAE,
    Generator,
    HierarchicalVAE,
    LinearGaussian,
    MixtureVAE,
    NeuralClassifier,
    SemiSupervisedVAE,
    SigmoidBeliefNet,
    StateSpace,
    TwoStageVAE,
    likelihoods,
)
from pvae.models.likelihoods import Gaussian
from pvae.models.priors import FlowPrior, GaussianMixture, VampPrior, pseudo_inputs_near
from pvae.nets import MLP, ConvDecoder
from pvae.objectives import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    AdversarialAutoencoder,
    AdversarialVB,
    BetaTCVAE,
    FisherAutoencoder,
    GenerativeAdversarial,
    InfoVAE,
    Objective,
    Renyi,
    ReweightedWakeSleep,
    Supervised,
)
from pvae.objectives.baselines import LeaveOneOut, RunningMean

NUM_DATA = 6

Data = Tensor | tuple[Tensor, ...]


def binary(*shape: int) -> Tensor:
    return torch.rand(NUM_DATA, *shape, generator=torch.Generator().manual_seed(0)).round()


def real(*shape: int) -> Tensor:
    return torch.randn(NUM_DATA, *shape, generator=torch.Generator().manual_seed(0))


def categories(*shape: int) -> Tensor:
    return torch.randint(3, (NUM_DATA, *shape), generator=torch.Generator().manual_seed(0))


def counts(*shape: int) -> Tensor:
    return torch.rand(NUM_DATA, *shape, generator=torch.Generator().manual_seed(0)).mul(6).floor()


def grid(num_values: int, *shape: int) -> Tensor:
    values = torch.rand(NUM_DATA, *shape, generator=torch.Generator().manual_seed(0))
    return (values * num_values).floor() / (num_values - 1)


def mixed_columns() -> Tensor:
    kinds = [real(2), binary(1), counts(1), categories(1).float()]
    return torch.cat(kinds, -1)


def one_hots() -> Tensor:
    return torch.nn.functional.one_hot(categories(), 3).float()


def cast(batch: Data, dtype: torch.dtype) -> Data:
    """The batch with its floats in that dtype."""
    if isinstance(batch, tuple):
        return tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)
    return batch.to(dtype) if batch.is_floating_point() else batch


def rows(batch: Data, index: Any) -> Data:
    """Some data of the batch."""
    return tuple(part[index] for part in batch) if isinstance(batch, tuple) else batch[index]


def vae(shape: tuple[int, ...], likelihood: nn.Module | None = None, prior: nn.Module | None = None) -> VAE:
    likelihood = likelihood or VAE(shape, 2).likelihood
    return VAE(shape, 2, likelihood=likelihood, prior=prior, decoder=MLP(2, (5,), likelihood.parameter_shape(shape)))


def tying(make: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """Build a guide, and tie the prior of a model that wants it to."""

    def build(model: Any, x: Tensor) -> Any:
        guide = make(model, x)
        if hasattr(getattr(model, "prior", None), "tie"):
            model.prior.tie(guide)
        return guide

    return build


def stage_guides(model: Any, x: Tensor) -> tuple[Any, ...]:
    if not isinstance(model, TwoStageVAE):
        return (None, None)
    return tuple(MeanField(stage, x[:, : stage.x_shape[0]], hidden=(5,)) for stage in (model.first, model.second))


class OneHotPrior(nn.Module):
    """p(z) over one-hot vectors of 3 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.5, 0.0, -0.5]))

    def forward(self) -> dist.TorchDistribution:
        return dist.OneHotCategorical(logits=self.logits)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Data]]] = {
    "LinearGaussian": (lambda: LinearGaussian(4, 2), lambda: real(4)),
    "HierarchicalVAE": (lambda: HierarchicalVAE((1, 4, 4), (3, 2), hidden=(6,)), lambda: binary(1, 4, 4)),
    "HierarchicalVAE, skip": (
        lambda: HierarchicalVAE((1, 4, 4), (3, 2), hidden=(6,), skip=True),
        lambda: binary(1, 4, 4),
    ),
    "ConditionalVAE": (
        lambda: ConditionalVAE((1, 4, 4), 2, 3, decoder=MLP(5, (5,), (1, 4, 4))),
        lambda: (binary(1, 4, 4), one_hots()),
    ),
    "Generator": (lambda: Generator((4,), 2, decoder=MLP(2, (5,), (4,))), lambda: real(4)),
    "NeuralClassifier": (
        lambda: NeuralClassifier((4,), 3, net=MLP(4, (5,), 3)),
        lambda: (real(4), one_hots()),
    ),
    "MixtureVAE": (
        lambda: MixtureVAE((1, 4, 4), 2, 3, decoder=MLP(2, (5,), (1, 4, 4))),
        lambda: binary(1, 4, 4),
    ),
    "SemiSupervisedVAE": (
        lambda: SemiSupervisedVAE((1, 4, 4), 2, 3, decoder=MLP(5, (5,), (1, 4, 4))),
        lambda: binary(1, 4, 4),
    ),
    "SigmoidBeliefNet": (lambda: SigmoidBeliefNet((1, 4, 4), (3, 2)), lambda: binary(1, 4, 4)),
    "StateSpace": (
        lambda: StateSpace((3, 2), 2, likelihood=Gaussian(0.5), emission=MLP(2, (5,), (2,))),
        lambda: real(3, 2),
    ),
    "TwoStageVAE": (
        lambda: TwoStageVAE(vae((4,), Gaussian("shared")), vae((2,), Gaussian("shared"))),
        lambda: real(4),
    ),
    "VAE": (lambda: vae((1, 4, 4)), lambda: binary(1, 4, 4)),
    "VAE, convolutional": (
        lambda: VAE((1, 6, 5), 2, decoder=ConvDecoder(2, (4, 3), (1, 6, 5))),
        lambda: binary(1, 6, 5),
    ),
    "VAE, fixed Gaussian": (lambda: vae((4,), Gaussian(0.5)), lambda: real(4)),
    "VAE, shared Gaussian": (lambda: vae((4,), Gaussian("shared")), lambda: real(4)),
    "VAE, learned Gaussian": (lambda: vae((4,), Gaussian("learned")), lambda: real(4)),
    "VAE, categorical": (lambda: vae((4,), likelihoods.Categorical(3)), lambda: categories(4)),
    "VAE, continuous Bernoulli": (lambda: vae((4,), likelihoods.ContinuousBernoulli()), lambda: grid(17, 4)),
    "VAE, beta": (lambda: vae((4,), likelihoods.Beta("learned")), lambda: real(4).sigmoid()),
    "VAE, Student-t": (lambda: vae((4,), likelihoods.StudentT()), lambda: real(4)),
    "VAE, discretized logistic": (lambda: vae((4,), likelihoods.DiscretizedLogistic(17)), lambda: grid(17, 4)),
    "VAE, discretized logistic mixture": (
        lambda: vae((4,), likelihoods.DiscretizedLogisticMixture(2, 17)),
        lambda: grid(17, 4),
    ),
    "VAE, Poisson": (lambda: vae((4,), likelihoods.Poisson()), lambda: counts(4)),
    "VAE, negative binomial": (lambda: vae((4,), likelihoods.NegativeBinomial("learned")), lambda: counts(4)),
    "VAE, zero-inflated": (
        lambda: vae((4,), likelihoods.ZeroInflatedNegativeBinomial(x_shape=(4,))),
        lambda: counts(4),
    ),
    "VAE, multinomial": (lambda: vae((4,), likelihoods.Multinomial(20)), lambda: counts(4)),
    "VAE, mixed columns": (
        lambda: vae((5,), likelihoods.Columns(("real", "real", "binary", "count", ("categorical", 3)))),
        mixed_columns,
    ),
    "VAE, mixture prior": (lambda: vae((1, 4, 4), prior=GaussianMixture(2, 3)), lambda: binary(1, 4, 4)),
    "VAE, flow prior": (lambda: vae((1, 4, 4), prior=FlowPrior(2, 2, (6,))), lambda: binary(1, 4, 4)),
    "VAE, VampPrior": (
        lambda: vae((1, 4, 4), prior=VampPrior(2, pseudo_inputs_near(binary(1, 4, 4), 4))),
        lambda: binary(1, 4, 4),
    ),
    "VAE, one-hot prior": (
        lambda: VAE((1, 4, 4), 3, prior=OneHotPrior(), decoder=MLP(3, (5,), (1, 4, 4))),
        lambda: binary(1, 4, 4),
    ),
}

GUIDES: dict[str, Callable[[Any, Data], Any]] = {
    "Auxiliary": lambda model, x: Auxiliary(model, x, hidden=(5,), auxiliary_dim=2),
    "Bernoulli": lambda model, x: Bernoulli(model, x, hidden=(5,)),
    "BottomUp": lambda model, x: BottomUp(model, x, hidden=(5,)),
    "Categorical": lambda model, x: Categorical(model, x, hidden=(5,)),
    "Chained": lambda model, x: Chained(model, *stage_guides(model, x)),
    "CouplingFlow": lambda model, x: CouplingFlow(model, x, hidden=(5,), length=2, step_hidden=(6,), context=3),
    "Delta": lambda model, x: Delta(model, x, hidden=(5,)),
    "Empty": lambda model, x: Empty(model, x),
    "Exact": lambda model, x: Exact(model),
    "FullCovariance": lambda model, x: FullCovariance(model, x, hidden=(5,)),
    "IAF": lambda model, x: IAF(model, x, hidden=(5,), step_hidden=(6,), context=3),
    "Implicit": lambda model, x: Implicit(model, x, hidden=(5,), noise_dim=3, context=4),
    "Ladder": lambda model, x: Ladder(model, x, hidden=(5,)),
    "Local": lambda model, x: Local(model, x),
    "LowRank": lambda model, x: LowRank(model, x, hidden=(5,)),
    "MeanField": lambda model, x: MeanField(model, x, hidden=(5,)),
    "Mixed": lambda model, x: Mixed(model, x, hidden=(5,)),
    "Mixture": lambda model, x: Mixture(model, x, hidden=(5,), num_components=3),
    "PlanarFlow": lambda model, x: PlanarFlow(model, x, hidden=(5,), length=3),
    "Recurrent": lambda model, x: Recurrent(model, x, hidden=(5,)),
    "RelaxedBernoulli": lambda model, x: RelaxedBernoulli(model, x, hidden=(5,)),
    "RelaxedCategorical": lambda model, x: RelaxedCategorical(model, x, hidden=(5,)),
    "SemiAmortized": lambda model, x: SemiAmortized(model, x, hidden=(5,), num_steps=2, num_samples=2),
    "SemiSupervised": lambda model, x: SemiSupervised(model, x, hidden=(5,)),
    "SplineFlow": lambda model, x: SplineFlow(model, x, hidden=(5,), step_hidden=(6,), context=3),
    "TopDown": lambda model, x: TopDown(model, x, hidden=(5,)),
}
GUIDES = {name: tying(make) for name, make in GUIDES.items()}

NO_DENSITY = {"Delta"}

# Drawn from, never scored: no cell of the matrix, but tests/test_adversarial.py.
IMPLICIT = {"Generator", "Implicit"}

# `pvae.encode` gives draws of these.
NO_MEAN = {"CouplingFlow", "IAF", "PlanarFlow", "SplineFlow"}

# With no encoder of the user's choice.
NOT_AMORTISED = {"Chained", "Empty", "Exact", "Local"}

# What gives no density of any z for any datum, of which a VampPrior could be made.
WITHOUT_A_POSTERIOR = {"Auxiliary", "Delta", "Local", "PlanarFlow", "SemiAmortized"}

SEVERAL_SITES = {"HierarchicalVAE", "StateSpace", "TwoStageVAE"}

# They draw all sites of a model at once, so that with several sites no site has a mean.
JOINT = {"FullCovariance", "LowRank", "Mixture", "SemiAmortized"}

# What trains a guide whose draws have no pathwise gradient.
BY_SCORE = {"Bernoulli", "Categorical"}

# What serves discrete models alone.
DISCRETE = BY_SCORE | {"RelaxedBernoulli", "RelaxedCategorical"}


def game(make: Callable[[Any, Tensor], Objective]) -> Objective:
    """An objective with a discriminator for the learned Gaussian's shapes, which starts the same at each call."""
    torch.manual_seed(0)
    make_model, make_data = MODELS["VAE, learned Gaussian"]
    return make(make_model(), make_data())


# Every objective, with few particles; each trains a continuous model.
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "AdversarialAutoencoder": lambda: game(lambda model, x: AdversarialAutoencoder(model, x, hidden=(5,))),
    "AdversarialVB": lambda: game(lambda model, x: AdversarialVB(model, x, hidden=(5,))),
    "BetaTCVAE": lambda: BetaTCVAE(num_data=NUM_DATA),
    "CIWAE": lambda: CIWAE(0.5, 3),
    "CUBO": lambda: CUBO(3),
    "ELBO": lambda: ELBO(2),
    "ELBO, analytic": lambda: ELBO(kl="analytic"),
    "ELBO, free bits": lambda: ELBO(free_bits=0.1),
    "ELBO, stl": lambda: ELBO(2, gradient="stl"),
    "ELBO, score": lambda: ELBO(3, gradient="score", baseline=LeaveOneOut()),
    "FisherAutoencoder": FisherAutoencoder,
    "GenerativeAdversarial": lambda: game(lambda model, x: GenerativeAdversarial(x, hidden=(5,))),
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
    "Supervised": lambda: Supervised(ELBO(2)),
}


# Every estimator, with few particles; each serves a model of continuous latents but those in `OF_STATES`.
ESTIMATORS: dict[str, Callable[[Any, Any], Any]] = {
    "ImportanceSampling": lambda model, x: estimators.ImportanceSampling(60, chunk_size=20),
    "ImportanceSampling, smoothed": lambda model, x: estimators.ImportanceSampling(60, smooth=True, step_mode="eager"),
    "PriorSampling": lambda model, x: estimators.PriorSampling(60),
    "DefensiveMixture": lambda model, x: estimators.DefensiveMixture(60),
    "GuideMixture": lambda model, x: estimators.GuideMixture([MeanField(model, x)], 60),
    "Jackknife": lambda model, x: estimators.Jackknife(60, order=2),
    "AnnealedImportanceSampling": lambda model, x: estimators.AnnealedImportanceSampling(4, num_temperatures=6),
    "BidirectionalMonteCarlo": lambda model, x: estimators.BidirectionalMonteCarlo(4, num_temperatures=6),
    "ParzenWindow": lambda model, x: estimators.ParzenWindow(40),
    "Quadrature": lambda model, x: estimators.Quadrature(40),
    "Enumeration": lambda model, x: estimators.Enumeration(),
}

OF_STATES = {"Enumeration"}


# What sums sites out, so that no KL is taken site by site.
SUMS_OUT = {"MixtureVAE", "SemiSupervisedVAE"}


def gradient_for(guide: str) -> dict[str, Any]:
    """Options of an objective with several particles that train a guide."""
    if guide in ("Mixed", "SemiSupervised"):
        return {"gradient": "mixed", "baseline": LeaveOneOut()}
    return {"gradient": "score", "baseline": LeaveOneOut()} if guide in BY_SCORE else {}


def refusal(model: str, guide: str) -> str | None:
    """Why a guide does not serve a model, as a pattern of its one line; None where it does."""
    if guide == "Exact":
        name = model.split(",")[0]
        return None if name == "LinearGaussian" else f"LinearGaussian.*got {name}; use"
    if guide == "Ladder" and model in ("VAE, mixture prior", "VAE, flow prior", "VAE, VampPrior"):
        return "Ladder multiplies Gaussians.*use TopDown"
    if guide in WITHOUT_A_POSTERIOR and model == "VAE, VampPrior":
        return f"VampPrior needs a guide with one latent site.*got {guide}.*use MeanField"
    if guide == "Chained":
        return None if model == "TwoStageVAE" else f"TwoStageVAE, got {model.split(',')[0]}; use TopDown"
    if guide == "SemiSupervised":
        name = model.split(",")[0]
        return None if name == "SemiSupervisedVAE" else f"SemiSupervisedVAE, got {name}; use MeanField"
    if model == "NeuralClassifier":
        return None if guide == "Empty" else r"no latent site.*use pvae\.guides\.Empty"
    bits, one_hot = model == "SigmoidBeliefNet", model == "VAE, one-hot prior"
    if guide == "Empty":
        return r"site '\w+' is latent.*use a guide"
    if guide in DISCRETE:
        kind = {"Bernoulli": "binary", "Categorical": "categorical"}.get(guide.removeprefix("Relaxed"))
        if bits if kind == "binary" else one_hot:
            return None
        kind = "one-hot" if guide == "RelaxedCategorical" else kind
        other = "use Bernoulli" if bits else "use Categorical" if one_hot else "use MeanField"
        return rf"site '\w+' is not {kind}.*{other}"
    if guide == "Recurrent" and not (bits or one_hot):
        return None if model == "StateSpace" else "one latent site per step.*use TopDown"
    if guide == "Mixed" or not (bits or one_hot):
        return None
    return f"site '{'h2' if bits else 'z'}' is discrete.*use pvae.guides.Bernoulli"


def encodes_by_draws(model: str, guide: str) -> bool:
    """Whether `pvae.encode` gives draws."""
    return guide in NO_MEAN or (guide in JOINT and model.split(",")[0] in SEVERAL_SITES)


def fits(model: str, guide: str) -> bool:
    """Whether a guide serves a model; every other cell must be refused."""
    return refusal(model, guide) is None


# Every model with this guide, and every guide with the first model that it serves, are tested at each run; the other
# cells are slow tests.
EVERYDAY = "MeanField"

# The VAE with another likelihood, of which guides see nothing: one of them will do.
OTHER_LIKELIHOODS = {
    "VAE, continuous Bernoulli",
    "VAE, beta",
    "VAE, Student-t",
    "VAE, discretized logistic",
    "VAE, discretized logistic mixture",
    "VAE, Poisson",
    "VAE, negative binomial",
    "VAE, zero-inflated",
    "VAE, multinomial",
    "VAE, mixed columns",
}


def cells(named: Callable[[str, str], bool] = fits) -> list[Any]:
    """The cells (model, guide) of the matrix for which `named` holds, as parameters of a test."""
    found, seen = [], set()
    for guide in GUIDES:
        for model in MODELS:
            is_shown = model not in OTHER_LIKELIHOODS or guide == "MeanField"
            if is_shown and not {model, guide} & IMPLICIT and named(model, guide):
                marks = () if guide == EVERYDAY or guide not in seen else pytest.mark.slow
                seen.add(guide)
                found.append(pytest.param(model, guide, marks=marks, id=f"{model}-{guide}"))
    return found
