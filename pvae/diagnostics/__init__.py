"""Numbers that say whether to trust a fit: collapse, inference gaps, calibration, gradients."""

from pvae.diagnostics.active_dimensions import active_dimensions as active_dimensions
from pvae.diagnostics.calibration import Calibration as Calibration
from pvae.diagnostics.calibration import calibration as calibration
from pvae.diagnostics.collapse import Collapse as Collapse
from pvae.diagnostics.collapse import collapse as collapse
from pvae.diagnostics.gradient_variance import GradientVariance as GradientVariance
from pvae.diagnostics.gradient_variance import gradient_variance as gradient_variance
from pvae.diagnostics.inference_gap import InferenceGap as InferenceGap
from pvae.diagnostics.inference_gap import inference_gap as inference_gap
from pvae.diagnostics.khat_map import KhatMap as KhatMap
from pvae.diagnostics.khat_map import khat_map as khat_map
from pvae.pair.aggregate import log_aggregate_posterior as log_aggregate_posterior
from pvae.pair.aggregate import pairwise_log_guide as pairwise_log_guide
