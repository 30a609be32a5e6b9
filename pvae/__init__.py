"""Deep latent-variable models on Pyro: define a pair, train it, swap the guide, estimate log p(x)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvae import data as data
    from pvae import diagnostics as diagnostics
    from pvae import estimators as estimators
    from pvae import guides as guides
    from pvae import models as models
    from pvae import nets as nets
    from pvae import objectives as objectives
    from pvae import selfcheck as selfcheck
    from pvae import training as training
    from pvae import truth as truth
    from pvae.checking import check as check
    from pvae.comparison import Comparison as Comparison
    from pvae.comparison import compare as compare
    from pvae.estimators.log_marginal import LogMarginal as LogMarginal
    from pvae.estimators.log_marginal import log_marginal as log_marginal
    from pvae.generate import encode as encode
    from pvae.generate import reconstruct as reconstruct
    from pvae.generate import sample as sample
    from pvae.imputation import Imputation as Imputation
    from pvae.imputation import impute as impute
    from pvae.runs.files import load as load
    from pvae.runs.files import save as save
    from pvae.training.fit import FitResult as FitResult
    from pvae.training.fit import fit as fit
    from pvae.weights import LogWeights as LogWeights
    from pvae.weights import log_weights as log_weights

__version__ = "0.1.0"

_PACKAGES = (
    "data",
    "diagnostics",
    "estimators",
    "guides",
    "models",
    "nets",
    "objectives",
    "selfcheck",
    "training",
    "truth",
)
_HOMES = {
    "Comparison": "pvae.comparison",
    "FitResult": "pvae.training.fit",
    "Imputation": "pvae.imputation",
    "LogMarginal": "pvae.estimators.log_marginal",
    "LogWeights": "pvae.weights",
    "check": "pvae.checking",
    "compare": "pvae.comparison",
    "encode": "pvae.generate",
    "fit": "pvae.training.fit",
    "impute": "pvae.imputation",
    "load": "pvae.runs.files",
    "log_marginal": "pvae.estimators.log_marginal",
    "log_weights": "pvae.weights",
    "reconstruct": "pvae.generate",
    "sample": "pvae.generate",
    "save": "pvae.runs.files",
}


def __getattr__(name: str) -> Any:
    # Loading torch takes seconds, so a bare `import pvae` (and the command line's --help) does without.
    if name in _PACKAGES:
        return importlib.import_module(f"pvae.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pvae' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES, *_HOMES])
