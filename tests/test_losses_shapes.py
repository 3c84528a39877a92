"""Losses and metrics that are no values of single examples are refused before the first step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import dataset, evaluate, fit, fit_seeds, losses, mlp
from jaxdl.data import DataSource
from jaxdl.errors import InputError
from jaxdl.metrics import mean
from jaxdl.types import Metric, Objective

X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
ROWS, FLAT = dataset(X, X[:, :1]), dataset(X, X[:, 0])
MODEL = mlp(())


@functools.cache
def network():
    return MODEL.init(jax.random.key(0), X)


def squares(outputs, targets):
    return (outputs - targets) ** 2


ALREADY_A_MEAN = "It is already a mean or a sum over the examples"
LOSSES = {
    "a mean": (lambda o, y: jnp.mean(squares(o, y)), ROWS, ALREADY_A_MEAN),
    "a sum": (lambda o, y: jnp.sum(squares(o, y)), ROWS, ALREADY_A_MEAN),
    "(B, 1)": (squares, ROWS, r"got \(examples, 1\)\. Take the mean over the other axes"),
    "(1,)": (lambda o, y: jnp.mean(squares(o, y), keepdims=True)[0], ROWS, r"got \(1,\)"),
    "(B, B)": (squares, FLAT, r"got \(examples, examples\)"),
    "(B,) of (B, B)": (lambda o, y: squares(o, y).mean(1), FLAT, r"outputs \(examples, 1\) and targets \(examples,\)"),
    "a pair": (lambda o, y: (squares(o, y)[:, 0], squares(o, y)[:, 0]), ROWS, "one value for each example"),
}


@pytest.mark.parametrize(("loss", "rows", "words"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("call", ["fit", "fit_seeds", "evaluate", "source"])
def test_a_loss_that_is_no_value_of_each_example_is_refused(call, loss, rows, words):
    calls = {
        "fit": lambda: fit(MODEL, loss, optax.sgd(0.1), rows, epochs=1, batch_size=8),
        "fit_seeds": lambda: fit_seeds(MODEL, loss, optax.sgd(0.1), rows, seeds=(0, 1), epochs=1, batch_size=8),
        "evaluate": lambda: evaluate(MODEL, network(), rows, loss),
        "source": lambda: evaluate(
            MODEL, network(), DataSource(16, lambda n: jax.tree.map(lambda leaf: leaf[n], rows)), loss
        ),
    }
    with jax.numpy_rank_promotion("allow"), pytest.raises(InputError, match=words):
        calls[call]()


METRICS = {
    "(B, 1)": (mean("m", squares), ROWS, 'metric "m" must give one number'),
    "a mean": (mean("m", lambda o, y: jnp.mean(o - y)), ROWS, ALREADY_A_MEAN),
    "(B,) of (B, B)": (mean("m", lambda o, y: jnp.abs(o - y).mean(-1)), FLAT, 'metric "m" combines every output'),
    "no number": (Metric("m", squares, lambda total, weight: {"a": total}), ROWS, 'metric "m" must give one number'),
}


@pytest.mark.parametrize(("metric", "rows", "words"), METRICS.values(), ids=METRICS)
def test_a_metric_that_is_no_number_of_a_data_set_is_refused(metric, rows, words):
    own = Objective(lambda o, y: losses.squared_error(o, y.reshape(o.shape)), (metric,))
    for call in (
        lambda: fit(MODEL, own.loss, optax.sgd(0.1), rows, metrics=own.metrics, epochs=1, batch_size=8),
        lambda: evaluate(MODEL, network(), rows, own.loss, metrics=own.metrics),
    ):
        with jax.numpy_rank_promotion("allow"), pytest.raises(InputError, match=words):
            call()


def test_an_axis_of_classes_is_not_taken_for_the_examples():
    # 16 examples of 16 outputs: a mean over the wrong axis has the shape of the right one.
    rows, model = dataset(X, np.tile(X[:, :1], 16)), mlp((), outputs=16)
    with pytest.raises(InputError, match=r"got \(16,\)"):
        evaluate(model, model.init(jax.random.key(0), X), rows, lambda o, y: squares(o, y).mean(0))
    right = evaluate(model, model.init(jax.random.key(0), X), rows, lambda o, y: squares(o, y).mean(1))
    assert np.isfinite(right["loss"])


def test_a_loss_may_compare_all_examples_of_a_batch():
    # As contrastive losses do: of (B, D) outputs, and targets that are not used.
    def contrastive(outputs, targets):
        return optax.losses.softmax_cross_entropy_with_integer_labels(outputs @ outputs.T, jnp.arange(len(outputs)))

    model = mlp((), outputs=4)
    run = fit(model, contrastive, optax.sgd(0.01), dataset(X, X[:, :1]), epochs=1, batch_size=8)
    assert np.isfinite(run.records[0]["loss"])


def test_a_loss_of_one_batch_size_alone_still_trains():
    def loss(outputs, targets):
        return (squares(outputs, targets).reshape(8, 1)).mean(1)

    assert fit(MODEL, loss, optax.sgd(0.1), ROWS, epochs=1, batch_size=8).reason == "epochs"
