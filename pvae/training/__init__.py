"""Training a pair: `fit`, the step it repeats, schedules, checkpoints."""

from pvae.training.schedules import cosine as cosine
from pvae.training.schedules import cyclical as cyclical
from pvae.training.schedules import linear_warmup as linear_warmup
from pvae.training.turns import Aggressive as Aggressive
from pvae.training.turns import Alternating as Alternating
