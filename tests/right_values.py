"""Which values of the pool are right for a parameter, with the reason; and which public names take none of them."""

from typing import NamedTuple

from pvae import nets
from pvae.objectives import baselines


class Row(NamedTuple):
    """Values of the pool that are right for some parameters, and why."""

    of: tuple[str, ...]
    parameters: tuple[str, ...]
    labels: tuple[str, ...]
    reason: str


def row(of: str, parameters: str, labels: str, reason: str) -> Row:
    return Row(tuple(of.split()), tuple(parameters.split()), tuple(labels.split(", ")), reason)


_PARTS = "likelihood prior decoder emission transition encoder classifier discriminator baseline"
_TRIED = "step_size bandwidth chunk_size reference groups local_guide device optimizer kl_schedule clip_norm ema"
_FLAGS = "True, False, numpy True"
_POSITIVE = "half, huge"
_AT_LEAST_0 = "zero, half, huge, below single precision"
_REAL = "minus one, minus half, zero, half, huge, below single precision"
LEGITIMATE = [
    row("*", _PARTS, "None", "left out: the default takes its place"),
    row("models.* priors.* baselines.*", "net nets", "None", "left out: the default takes its place"),
    row("*", _TRIED + " early_stopping out target_se site recipe record bounds", "None", "left out: it is not used"),
    row("objectives.Supervised pvae.fit pvae.check", "objective", "None", "left out: ELBO()"),
    row("diagnostics.inference_gap pvae.log_marginal", "estimator", "None", "left out: ImportanceSampling()"),
    row("objectives.InfoVAE", "scale", "None", "left out: it is read off the prior"),
    row("pvae.encode", "num_samples", "None", "left out: the mean"),
    row("pvae.fit", "schedule", "None", "left out: a constant rate"),
    row("objectives.ELBO.bound", "guide", "None", "the model's own prior proposes"),
    row("objectives.ELBO.bound", "kl_weight", f"{_AT_LEAST_0}, number tensor, whole tensor", "a weight"),
    row("pvae.fit", "epochs", "None", "`steps` says how long"),
    row("priors.pseudo_inputs_near", "data", "tensor", "two data of three values"),
    row("truth.*", "x", "None", "left out: the data of the truth"),
    row(
        "pvae.[fcrs]* pvae.log_* pvae.impute diagnostics.*_variance diagnostics.*_gap",
        "guide",
        "None",
        "the model's own prior proposes",
    ),
    row("*", "skip sees_data learn_weights differentiable normalize smooth joint progress", _FLAGS, "a flag"),
    row("pvae.sample pvae.reconstruct", "mean", _FLAGS, "a flag"),
    row("*", "seed", "minus one, zero", "torch takes any whole number of 64 bits"),
    row("*", "min_scale", "zero, half, below single precision", "a floor of 0 leaves softplus alone"),
    row("*", "floor dispersion inverse_dispersion df min_df temperature", _POSITIVE, "a positive number"),
    row("likelihoods.*", "scale", _POSITIVE, "a positive number"),
    row("*.scaled_gaussian", "scale", _POSITIVE, "a positive number"),
    row("guides.SplineFlow", "bound", _POSITIVE, "a positive number"),
    row("objectives.AdversarialAutoencoder", "divergence", _POSITIVE, "a positive number"),
    row("estimators.*", "step_size bandwidth", _POSITIVE, "a positive number"),
    row("guides.*", "lr least", _POSITIVE, "a positive number"),
    row("pvae.fit", "lr clip_norm", _POSITIVE, "a positive number; Adam's steps are finite at any rate"),
    row("pvae.log_marginal", "target_se", _POSITIVE, "a positive number of nats"),
    row("diagnostics.inference_gap", "lr", _POSITIVE, "a positive number"),
    row("*", "mutual_information total_correlation dimension_wise weight", _AT_LEAST_0, "a weight"),
    row("objectives.ELBO", "beta free_bits", _AT_LEAST_0, "a weight, or nats"),
    row("objectives.InfoVAE", "divergence", _AT_LEAST_0, "a weight, at least 1 - information"),
    row("objectives.InfoVAE", "information", "minus one, minus half, zero, half, below single precision", "at most 1"),
    row("objectives.InfoVAE", "scale", "half", "a positive number"),
    row("objectives.CIWAE", "beta", "zero, half, below single precision", "a share"),
    row("objectives.CUBO", "order", "huge", "a number of at least 1"),
    row("objectives.Renyi", "alpha", f"{_REAL}, inf, minus inf", "any number, infinite ones included"),
    row("guides.IAF", "gate_bias", _REAL, "any number"),
    row("truth.shifted_gaussian", "shift", _REAL, "any number"),
    row("*.anneal", "rate", _AT_LEAST_0, "a rate"),
    row("diagnostics.collapse", "threshold", _AT_LEAST_0, "a variance"),
    row("diagnostics.active_dimensions", "threshold", "half", "between 0 and 1"),
    row("baselines.*", "decay", "zero, half, below single precision", "at least 0 and below 1"),
    row("pvae.fit", "ema", "half", "between 0 and 1"),
    row("pvae.impute", "level", "half", "between 0 and 1"),
    row("estimators.DefensiveMixture", "guide_share", "half", "between 0 and 1"),
    row("training.linear_warmup", "start", "zero, half, below single precision", "from 0 to 1"),
    row("training.cyclical", "rise", "half", "above 0, and at most 1"),
    row("guides.*Flow guides.IAF", "length", "zero", "without steps it is MeanField"),
    row("guides.SemiAmortized", "num_steps", "zero", "without steps it is the family"),
    row("training.Alternating", "guide", "zero", "no steps of the guide alone"),
    row("likelihoods.*", "x_shape", "empty tuple", "one number for all of a datum"),
    row("nets.* transitions.* models.* guides.Recurrent baselines.*", "hidden", "empty tuple", "an affine map"),
    row("objectives.*", "hidden", "empty tuple", "an affine map"),
    row("guides.*Flow guides.IAF priors.*", "step_hidden", "empty tuple", "an affine map"),
    row("nets.ConvEncoder", "channels", "empty tuple", "an affine map"),
    row("priors.*", "bounds", "halves", "a least and a larger number"),
    row("pvae.fit", "callbacks", "empty tuple", "no callback"),
    row("pvae.check", "model guide", "module, function, failing function", "what is wrong with it is what is asked"),
    row(
        "pvae.encode diagnostics.active_dimensions",
        "guide",
        "function",
        "a guide of nothing, as Empty is, has no codes",
    ),
    row("pvae.save", "model guide", "function", "a function without parameters has none to write"),
    row("pvae.save", "recipe record", "dict, dict of numbers", "a mapping"),
    row("pvae.save pvae.load", "path", "word", "a name of a folder"),
    row("pvae.fit", "out", "word", "a name of a folder"),
    row(
        "estimators.bits_per_dim",
        "nats",
        "minus one, minus half, zero, half, below single precision, beyond single precision, nan, inf, minus inf, "
        "numpy nan, number tensor, whole tensor, tensor, empty tensor, array, array of one",
        "what log p(x) came to, finite or not",
    ),
]

# Public packages; where names are imported from elsewhere, too, those of their own.
PACKAGES: dict[str, list[str]] = {
    "pvae.models": [],
    "pvae.models.priors": [],
    "pvae.models.likelihoods": [],
    "pvae.models.transitions": [],
    "pvae.guides": [],
    "pvae.objectives": [],
    "pvae.objectives.baselines": baselines.__all__,
    "pvae.estimators": [],
    "pvae.diagnostics": [],
    "pvae.training": [],
    "pvae.truth": [],
    "pvae.nets": nets.__all__,
}

LEFT_OUT = {
    "likelihoods.Bernoulli": "takes nothing",
    "likelihoods.ContinuousBernoulli": "takes nothing",
    "likelihoods.Poisson": "takes nothing",
    "likelihoods.observed_only": "takes data and what the likelihood gave",
    "objectives.Objective": "abstract",
    "baselines.Baseline": "abstract",
    "baselines.LeaveOneOut": "takes nothing",
    "diagnostics.Calibration": "a result",
    "diagnostics.Collapse": "a result",
    "diagnostics.GradientVariance": "a result",
    "diagnostics.InferenceGap": "a result",
    "diagnostics.KhatMap": "a result",
    "diagnostics.log_aggregate_posterior": "takes data and draws",
    "diagnostics.pairwise_log_guide": "takes data and draws",
    "nets.class_numbers": "takes data",
    "nets.one_hot": "takes data",
    "truth.Truth": "a result",
    "truth.all_truths": "takes nothing",
}
