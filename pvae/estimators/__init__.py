"""What log p(x) is: estimators that share one call, `pvae.log_marginal`."""

from pvae.estimators.annealed import AnnealedImportanceSampling as AnnealedImportanceSampling
from pvae.estimators.bidirectional import BidirectionalMonteCarlo as BidirectionalMonteCarlo
from pvae.estimators.bits import bits_per_dim as bits_per_dim
from pvae.estimators.defensive import DefensiveMixture as DefensiveMixture
from pvae.estimators.enumeration import Enumeration as Enumeration
from pvae.estimators.guide_mixture import GuideMixture as GuideMixture
from pvae.estimators.importance import ImportanceSampling as ImportanceSampling
from pvae.estimators.importance import PriorSampling as PriorSampling
from pvae.estimators.jackknife import Jackknife as Jackknife
from pvae.estimators.parzen import ParzenWindow as ParzenWindow
from pvae.estimators.quadrature import Quadrature as Quadrature
