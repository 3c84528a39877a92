"""The exported program: its numbers are those of `predict`, its preprocessing that of `standardise`."""

import re

import jax
import jax.export
import numpy as np
import pytest
from scipy.special import expit, softmax

from jaxdl.data import Scaling, fit_scaling, standardise
from jaxdl.errors import InputError
from jaxdl.nn import augmented, convnet, flip, flip_averaged, mlp, residual_net
from jaxdl.saving.export import inference
from jaxdl.train.evaluate import predict
from jaxdl.types import Model, Weights

DRAWS = np.random.default_rng(0)
ROWS = DRAWS.normal(0, 1, (33, 11)).astype(np.float32)
IMAGES = DRAWS.integers(0, 256, (33, 16, 16, 3), np.uint8)
MODELS = {
    "mlp": (mlp((20, 5), input_norm=True), ROWS, "none"),
    "yes or no": (mlp((20,)), ROWS, "sigmoid"),
    "convnet": (convnet((18, 50), widths=(9,), outputs=4, dropout=0.3, pool=True), IMAGES, "softmax"),
    "residual": (flip_averaged(augmented(residual_net(4, outputs=4), flip)), IMAGES, "softmax"),
}
LINKS = {"none": lambda outputs: outputs, "sigmoid": expit, "softmax": lambda outputs: softmax(outputs, -1)}


def trained(model, inputs):
    """Weights that no initialiser gives: BatchNorm's moments too are far from 0 and 1."""
    weights = jax.jit(model.init)(jax.random.key(0), inputs[:1])
    leaves, structure = jax.tree.flatten(weights)
    moved = [leaf + np.abs(DRAWS.normal(0, 0.2, leaf.shape)).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.parametrize("name", MODELS)
def test_predictions_of_any_number_of_rows_are_those_of_predict(name):
    model, inputs, link = MODELS[name]
    weights = trained(model, inputs)
    program = jax.export.deserialize(bytearray(inference(model, weights, inputs, link=link).serialize()))
    for count in (1, 7, 33):
        wanted = LINKS[link](np.asarray(predict(model, weights, inputs[:count]), np.float64))
        np.testing.assert_allclose(program.call(inputs[:count]), wanted, rtol=1e-6, atol=1e-6)


def filters_in(text):
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    return {int(re.search(r"-> tensor<[\dx?]*x(\d+)xf32>", line)[1]) for line in lines}


def test_a_program_is_for_all_three_platforms_with_the_convolution_of_each(monkeypatch):
    model = convnet((50, 50))
    weights = trained(model, IMAGES)
    program = inference(model, weights, IMAGES)
    assert program.platforms == ("cpu", "cuda", "tpu") and program.nr_devices == 1
    # On a CPU the convolution of three channels is a matrix product, as are two of the 50 filters of the other, which
    # fill no vector; elsewhere nothing is split.
    for platform, expected in (("cpu", {48}), ("cuda", {50}), ("tpu", {50})):
        monkeypatch.setattr("jaxdl.saving.export.PLATFORMS", (platform,))
        assert filters_in(inference(model, weights, IMAGES).mlir_module()) == expected
    # The program of all holds both, of which one is chosen where it runs.
    text = program.mlir_module()
    assert filters_in(text) == {48, 50} and "stablehlo.case" in text and "_platform_index" in text
    compiled = jax.jit(program.call).lower(IMAGES).compile().as_text()
    assert "conditional" not in compiled


def test_a_scaling_is_taken_off_as_standardise_does_where_means_are_large_and_spreads_small():
    table = DRAWS.normal([1013.25, 0.3, -4000.0, 1e-5], [8.0, 1e-3, 0.5, 1e-6], (200, 4)).astype(np.float32)
    scaling = fit_scaling(table[:100])
    nothing = Model(lambda key, inputs: Weights({}, {}), lambda weights, inputs, **_: (inputs, {}))
    found = inference(nothing, Weights({}, {}), table, scaling=scaling).call(table)
    np.testing.assert_allclose(found, standardise(table, scaling), rtol=1e-6, atol=1e-6)
    # Which float32 alone does not do.
    naive = (table - scaling.mean.astype(np.float32)) / scaling.spread.astype(np.float32)
    assert np.abs(naive - standardise(table, scaling)).max() > 1e-5


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_outputs_are_numbers_a_row_whatever_the_model_gives(shape):
    model = Model(
        lambda key, inputs: Weights({}, {}),
        lambda weights, x, **_: (x[:, 0].reshape(-1, *[1] * len(shape)) * np.ones((1, *shape), np.float32), {}),
    )
    assert inference(model, Weights({}, {}), ROWS).call(ROWS).shape == (33, int(np.prod(shape)))


def test_another_link_or_the_scaling_of_other_columns_is_refused():
    model = mlp(())
    weights = trained(model, ROWS)
    with pytest.raises(InputError, match="link must be one of none, sigmoid, softmax, got 'logit'"):
        inference(model, weights, ROWS, link="logit")
    with pytest.raises(InputError, match=r"a mean and a spread for each column of \(33, 11\)"):
        inference(model, weights, ROWS, scaling=Scaling(np.zeros(3), np.ones(3)))
