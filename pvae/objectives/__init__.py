"""What training makes large: bounds on log p(x), each a `pyro.infer.ELBO`."""

from pvae.objectives.elbo import ELBO as ELBO
from pvae.objectives.iwae import IWAE as IWAE
from pvae.objectives.objective import Objective as Objective
