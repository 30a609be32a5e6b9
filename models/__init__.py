"""Generative models, priors and likelihoods, as Pyro model functions."""

from pvae.models import likelihoods as likelihoods
from pvae.models import priors as priors
from pvae.models import transitions as transitions
from pvae.models.conditional_vae import ConditionalVAE as ConditionalVAE
from pvae.models.generator import Generator as Generator
from pvae.models.hierarchical_vae import HierarchicalVAE as HierarchicalVAE
from pvae.models.linear_gaussian import LinearGaussian as LinearGaussian
from pvae.models.mixture_vae import MixtureVAE as MixtureVAE
from pvae.models.neural_classifier import NeuralClassifier as NeuralClassifier
from pvae.models.semi_supervised_vae import SemiSupervisedVAE as SemiSupervisedVAE
from pvae.models.sigmoid_belief_net import SigmoidBeliefNet as SigmoidBeliefNet
from pvae.models.state_space import StateSpace as StateSpace
from pvae.models.two_stage_vae import TwoStageVAE as TwoStageVAE
from pvae.models.vae import VAE as VAE
