"""Amortized guides that read a model and build themselves."""

from pvae.guides.bernoulli import Bernoulli as Bernoulli
from pvae.guides.delta import Delta as Delta
from pvae.guides.exact import Exact as Exact
from pvae.guides.full_covariance import FullCovariance as FullCovariance
from pvae.guides.mean_field import MeanField as MeanField
