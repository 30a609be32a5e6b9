"""Transitions p(z_t | z_t-1): modules whose call gives the distribution of a step's latents from those before."""

from pvae.models.transitions.gated import Gated as Gated
