"""What log p(x) is: estimators that share one call, `pvae.log_marginal`."""

from pvae.estimators.importance import ImportanceSampling as ImportanceSampling
from pvae.estimators.importance import PriorSampling as PriorSampling
