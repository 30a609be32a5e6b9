"""Generative models, priors and likelihoods, as Pyro model functions."""

from pvae.models import likelihoods as likelihoods
from pvae.models import priors as priors
from pvae.models.linear_gaussian import LinearGaussian as LinearGaussian
from pvae.models.sigmoid_belief_net import SigmoidBeliefNet as SigmoidBeliefNet
from pvae.models.vae import VAE as VAE
