"""Pairs whose log p(x) is known exactly: what every estimator and objective is held to."""

from collections.abc import Callable

from pvae.truth.conjugate import beta_bernoulli as beta_bernoulli
from pvae.truth.conjugate import gamma_poisson as gamma_poisson
from pvae.truth.discrete import gaussian_mixture as gaussian_mixture
from pvae.truth.discrete import sigmoid_belief_net as sigmoid_belief_net
from pvae.truth.gaussian import linear_gaussian as linear_gaussian
from pvae.truth.gaussian import scaled_gaussian as scaled_gaussian
from pvae.truth.gaussian import shifted_gaussian as shifted_gaussian
from pvae.truth.ring import ring as ring
from pvae.truth.truth import Truth as Truth

TRUTHS: tuple[Callable[[], Truth], ...] = (
    linear_gaussian,
    beta_bernoulli,
    gamma_poisson,
    gaussian_mixture,
    sigmoid_belief_net,
    ring,
    shifted_gaussian,
    scaled_gaussian,
)


def all_truths() -> list[Truth]:
    """Every truth, built afresh."""
    return [build() for build in TRUTHS]
