"""Priors p(z): modules whose forward gives the distribution of one latent vector."""

from pvae.models.priors.standard_normal import StandardNormal as StandardNormal
