"""The fixed vocabulary: names and order of the public signatures."""

import inspect

import pytest

import pvae
from pvae.runs.recipes import exported

SIGNATURES = {
    pvae.fit: "model guide data * objective epochs steps batch_size lr optimizer schedule kl_schedule clip_norm ema "
    "early_stopping inference_steps train step_mode device seed out callbacks progress",
    pvae.log_marginal: "model guide data estimator * batch_size target_se max_samples device seed progress",
    pvae.log_weights: "model guide batch num_samples",
    pvae.check: "model guide batch objective",
    pvae.compare: "a b",
    pvae.sample: "model num * like mean seed",
    pvae.reconstruct: "model guide x * mean seed",
    pvae.encode: "guide x * num_samples seed",
    pvae.impute: "model guide data num_samples num_imputations * level site batch_size device seed progress",
    pvae.save: "path model guide example_batch * recipe record",
    pvae.load: "path model guide * device",
    pvae.data.load: "name root binarize download kind",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_signatures(function):
    parameters = inspect.signature(function).parameters.values()
    words, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            words.append("*")
            keyword_only = True
        words.append(parameter.name)
    assert " ".join(words) == SIGNATURES[function]


def test_every_public_name_is_there_and_documented():
    for function in SIGNATURES:
        assert inspect.getdoc(function)
    assert {"data", "estimators", "guides", "models", "nets", "objectives", "training"} <= set(dir(pvae))
    with pytest.raises(AttributeError, match="no attribute 'trainer'"):
        _ = pvae.trainer


@pytest.mark.parametrize("package", ["pvae.models", "pvae.guides", "pvae.objectives", "pvae.estimators"])
def test_no_synonyms_for_fixed_words(package):
    refused = {"n_samples", "n_latent", "z_dim", "num_particles", "recon_loss", "kld", "sigma", "mu"}
    for cls in exported(package).values():
        assert not refused & set(inspect.signature(cls).parameters), cls
        assert inspect.getdoc(cls), cls


def test_every_public_parameter_is_annotated():
    for function in SIGNATURES:
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.annotation is not parameter.empty, (function.__name__, parameter.name)
