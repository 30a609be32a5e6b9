"""Numbers that say whether to trust a fit: collapse, inference gaps, calibration, gradients."""

from pvae.diagnostics.dimensions import active_dimensions as active_dimensions
from pvae.diagnostics.gaps import InferenceGap as InferenceGap
from pvae.diagnostics.gaps import inference_gap as inference_gap
from pvae.diagnostics.gradients import GradientVariance as GradientVariance
from pvae.diagnostics.gradients import gradient_variance as gradient_variance
from pvae.diagnostics.khats import KhatMap as KhatMap
from pvae.diagnostics.khats import khat_map as khat_map
from pvae.diagnostics.ranks import Calibration as Calibration
from pvae.diagnostics.ranks import calibration as calibration
from pvae.diagnostics.units import Collapse as Collapse
from pvae.diagnostics.units import collapse as collapse
from pvae.pair.aggregate import log_aggregate_posterior as log_aggregate_posterior
from pvae.pair.aggregate import pairwise_log_guide as pairwise_log_guide
