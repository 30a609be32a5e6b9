"""Priors p(z): modules whose forward gives the distribution of one latent vector."""

from pvae.models.priors.conditional import ConditionalPrior as ConditionalPrior
from pvae.models.priors.exemplar_prior import ExemplarPrior as ExemplarPrior
from pvae.models.priors.flow_prior import FlowPrior as FlowPrior
from pvae.models.priors.gaussian import Gaussian as Gaussian
from pvae.models.priors.gaussian_mixture import GaussianMixture as GaussianMixture
from pvae.models.priors.standard_normal import StandardNormal as StandardNormal
from pvae.models.priors.vamp_prior import VampPrior as VampPrior
from pvae.models.priors.vamp_prior import pseudo_inputs_near as pseudo_inputs_near
