"""What training makes large: bounds on log p(x), and some values that are none; each a `pyro.infer.ELBO`."""

from pvae.objectives import baselines as baselines
from pvae.objectives.adversarial.autoencoder import AdversarialAutoencoder as AdversarialAutoencoder
from pvae.objectives.adversarial.generative import GenerativeAdversarial as GenerativeAdversarial
from pvae.objectives.adversarial.variational_bayes import AdversarialVB as AdversarialVB
from pvae.objectives.combinations import CIWAE as CIWAE
from pvae.objectives.combinations import MIWAE as MIWAE
from pvae.objectives.combinations import PIWAE as PIWAE
from pvae.objectives.elbo import ELBO as ELBO
from pvae.objectives.fisher import FisherAutoencoder as FisherAutoencoder
from pvae.objectives.info import InfoVAE as InfoVAE
from pvae.objectives.iwae import IWAE as IWAE
from pvae.objectives.objective import Objective as Objective
from pvae.objectives.renyi import CUBO as CUBO
from pvae.objectives.renyi import Renyi as Renyi
from pvae.objectives.supervised import Supervised as Supervised
from pvae.objectives.total_correlation import BetaTCVAE as BetaTCVAE
from pvae.objectives.wake_sleep import ReweightedWakeSleep as ReweightedWakeSleep
