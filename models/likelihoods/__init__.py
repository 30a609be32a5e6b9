"""Likelihoods p(x | z): modules that turn a decoder's output into the distribution of one datum.

Each says how many numbers per observed value it wants from the decoder (`num_parameters`), and how a
decoder's output is shaped (`parameter_shape`); `forward` takes that output with any leading dims.
"""

from pvae.models.likelihoods.bernoulli import Bernoulli as Bernoulli
from pvae.models.likelihoods.beta import Beta as Beta
from pvae.models.likelihoods.categorical import Categorical as Categorical
from pvae.models.likelihoods.columns import Columns as Columns
from pvae.models.likelihoods.continuous_bernoulli import ContinuousBernoulli as ContinuousBernoulli
from pvae.models.likelihoods.discretized_logistic import DiscretizedLogistic as DiscretizedLogistic
from pvae.models.likelihoods.discretized_logistic_mixture import (
    DiscretizedLogisticMixture as DiscretizedLogisticMixture,
)
from pvae.models.likelihoods.gaussian import Gaussian as Gaussian
from pvae.models.likelihoods.masked import observed_only as observed_only
from pvae.models.likelihoods.multinomial import Multinomial as Multinomial
from pvae.models.likelihoods.negative_binomial import NegativeBinomial as NegativeBinomial
from pvae.models.likelihoods.poisson import Poisson as Poisson
from pvae.models.likelihoods.student_t import StudentT as StudentT
from pvae.models.likelihoods.zero_inflated_negative_binomial import (
    ZeroInflatedNegativeBinomial as ZeroInflatedNegativeBinomial,
)
