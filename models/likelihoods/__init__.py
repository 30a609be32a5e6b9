"""Likelihoods p(x | z): modules that turn a decoder's output into the distribution of one datum.

Each says how many numbers per observed value it wants from the decoder (`num_parameters`), and how a
decoder's output is shaped (`parameter_shape`); `forward` takes that output with any leading dims.
"""

from pvae.models.likelihoods.bernoulli import Bernoulli as Bernoulli
from pvae.models.likelihoods.categorical import Categorical as Categorical
from pvae.models.likelihoods.gaussian import Gaussian as Gaussian
