"""Amortized guides that read a model and build themselves."""

from pvae.guides.auxiliary import Auxiliary as Auxiliary
from pvae.guides.bernoulli import Bernoulli as Bernoulli
from pvae.guides.bottom_up import BottomUp as BottomUp
from pvae.guides.categorical import Categorical as Categorical
from pvae.guides.chained import Chained as Chained
from pvae.guides.coupling_flow import CouplingFlow as CouplingFlow
from pvae.guides.delta import Delta as Delta
from pvae.guides.empty import Empty as Empty
from pvae.guides.exact import Exact as Exact
from pvae.guides.full_covariance import FullCovariance as FullCovariance
from pvae.guides.iaf import IAF as IAF
from pvae.guides.implicit import Implicit as Implicit
from pvae.guides.ladder import Ladder as Ladder
from pvae.guides.local import Local as Local
from pvae.guides.low_rank import LowRank as LowRank
from pvae.guides.mean_field import MeanField as MeanField
from pvae.guides.mixed import Mixed as Mixed
from pvae.guides.mixture import Mixture as Mixture
from pvae.guides.planar_flow import PlanarFlow as PlanarFlow
from pvae.guides.recurrent import Recurrent as Recurrent
from pvae.guides.relaxed import RelaxedBernoulli as RelaxedBernoulli
from pvae.guides.relaxed import RelaxedCategorical as RelaxedCategorical
from pvae.guides.semi_amortized import SemiAmortized as SemiAmortized
from pvae.guides.semi_supervised import SemiSupervised as SemiSupervised
from pvae.guides.spline_flow import SplineFlow as SplineFlow
from pvae.guides.top_down import TopDown as TopDown
