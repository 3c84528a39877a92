"""Losses that call the model: the bits of plain losses, and closed forms of what only they can express."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal

from jaxdl import (
    InputError,
    Model,
    Variables,
    dataset,
    distributed,
    evaluate,
    evaluate_members,
    fit,
    fit_seeds,
    from_linen,
    losses,
    make_eval_step,
    make_train_step,
    metrics,
    mlp,
)
from jaxdl.data import DataSource, take
from jaxdl.train import make_train_state

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(53, 3)).astype(np.float32)
Y = (X @ [[1.0], [2.0], [-1.0]] + 0.1).astype(np.float32)
WEIGHT = RANDOM.integers(0, 3, 53).astype(np.float32)
MODEL, SGD = mlp((4,), input_norm=True, dropout=0.3), optax.sgd(0.05)


def squared(variables, batch, key, train):
    outputs, stats = MODEL.apply(variables, batch.inputs, train=train, key=key, mask=batch.mask)
    return losses.squared_error(outputs, batch.targets), outputs, stats


SQUARED = losses.model_loss(squared)
RUN = {"epochs": 2, "batch_size": 16, "metrics": [metrics.rmse]}


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("weights", [None, WEIGHT], ids=["ones", "weights"])
def test_a_model_loss_of_a_plain_loss_has_its_bits(weights):
    rows = dataset(X, Y, weights)
    plain, result = (fit(MODEL, loss, SGD, rows, rows, **RUN) for loss in (losses.squared_error, SQUARED))
    assert result.records == plain.records
    same((result.final, result.best), (plain.final, plain.best))
    values, other = (
        evaluate(MODEL, plain.best, rows, loss, metrics=[metrics.mae], batch_size=7)
        for loss in (losses.squared_error, SQUARED)
    )
    assert values == other


def test_many_runs_streams_and_devices_take_a_model_loss():
    rows = dataset(X, Y)
    options = {"seeds": (0, 1), "epochs": 2, "batch_size": 16}
    plain, result = (fit_seeds(MODEL, loss, SGD, rows, **options) for loss in (losses.squared_error, SQUARED))
    same(result.best, plain.best)
    same(*(evaluate_members(MODEL, plain.best, rows, loss) for loss in (losses.squared_error, SQUARED)))
    memory = fit(MODEL, SQUARED, SGD, rows, **RUN)
    source = DataSource(53, lambda numbers: take(rows, numbers))
    assert fit(MODEL, SQUARED, SGD, source, **RUN).records == memory.records
    value = evaluate(MODEL, memory.best, source, SQUARED)["loss"]
    assert float(value) == pytest.approx(float(evaluate(MODEL, memory.best, rows, SQUARED)["loss"]), rel=1e-6)
    sharded = distributed.shard_dataset(rows, distributed.make_mesh())
    result = fit(MODEL, SQUARED, SGD, sharded, epochs=2, batch_size=16)
    alone = fit(MODEL, losses.squared_error, SGD, sharded, epochs=2, batch_size=16)
    assert result.records == alone.records


def test_steps_by_hand_take_a_model_loss():
    rows = dataset(X, Y, WEIGHT)
    variables = MODEL.init(jax.random.key(0), X)
    state = make_train_state(variables, SGD, jax.random.key(1))
    results = [
        jax.jit(make_train_step(MODEL, loss, SGD, metrics=[metrics.rmse]))(state, rows)
        for loss in (losses.squared_error, SQUARED)
    ]
    same(results[0][1], results[1][1])
    same(results[0][0].variables, results[1][0].variables)
    same(*(make_eval_step(MODEL, loss)(variables, rows) for loss in (losses.squared_error, SQUARED)))


def test_equal_model_losses_share_a_program(compilations):
    rows = dataset(X, Y)
    fit(MODEL, losses.model_loss(squared), SGD, rows, epochs=1)
    with compilations() as names:
        fit(MODEL, losses.model_loss(squared), SGD, rows, epochs=1)
    assert names == []
    assert losses.model_loss(squared) == SQUARED and hash(SQUARED) == hash(losses.model_loss(squared))


# Data of one hidden number: x = w z + b + noise, so that x is normal and the best loss is known.
W, B, NOISE = np.array([1.5, -0.5]), np.array([0.3, 1.0]), 0.5
HIDDEN = RANDOM.normal(size=(512, 1))
DATA = (HIDDEN * W + B + NOISE * RANDOM.normal(size=(512, 2))).astype(np.float32)


def init_vae(key, inputs):
    one, two = jax.random.split(key)
    return Variables(
        {
            "encoder": 0.1 * jax.random.normal(one, (2,)),
            "shift": jnp.zeros(()),
            "log_scale": jnp.zeros(()),
            "decoder": 0.1 * jax.random.normal(two, (2,)),
            "bias": jnp.zeros(2),
        },
        {},
    )


def log_normal(x, mean, scale):
    return -0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def negative_elbo(variables, batch, key, train):
    """The single-sample bound, log q(z) - log p(x, z), for which a hidden z is drawn."""
    p = variables.params
    mean, scale = batch.inputs @ p["encoder"] + p["shift"], jnp.exp(p["log_scale"])
    z = mean + scale * jax.random.normal(key, mean.shape)
    decoded = z[:, None] * p["decoder"][None, :] + p["bias"][None, :]
    likelihood = log_normal(batch.inputs, decoded, jnp.float32(NOISE)).sum(1)
    return log_normal(z, mean, scale) - likelihood - log_normal(z, 0.0, jnp.float32(1.0)), decoded


VAE = Model(init_vae, lambda variables, inputs, **_: (inputs, {}))
ELBO = losses.model_loss(negative_elbo)
NLL = -multivariate_normal(B, np.outer(W, W) + NOISE**2 * np.eye(2)).logpdf(DATA).mean()


def test_the_bound_of_the_exact_posterior_is_the_likelihood_whatever_is_drawn():
    # log q(z | x) - log p(x, z) = -log p(x) for each z where q is the posterior, here a known normal distribution.
    precision = W @ W / NOISE**2 + 1
    params = {
        "encoder": W / NOISE**2 / precision,
        "shift": -(W @ B) / NOISE**2 / precision,
        "log_scale": -0.5 * np.log(precision),
        "decoder": W,
        "bias": B,
    }
    variables = Variables(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params), {})
    for size in (None, 100):
        value = evaluate(VAE, variables, dataset(DATA), ELBO, batch_size=size)["loss"]
        assert float(value) == pytest.approx(NLL, rel=1e-4)


def test_a_vae_trains_without_targets_to_the_likelihood_of_its_data():
    run = fit(VAE, ELBO, optax.adam(0.02), dataset(DATA), dataset(DATA), epochs=60, batch_size=64)
    first, last = (run.records[index]["val_loss"] for index in (0, -1))
    assert first > NLL + 0.3 and last == pytest.approx(NLL, abs=0.03)
    decoder = np.asarray(run.final.params["decoder"])
    np.testing.assert_allclose(decoder * np.sign(decoder[0]), W, atol=0.15)


def contrastive(variables, batch, key, train):
    """The second view of an example distinguishes it from the others of its batch: -log softmax of the similarities."""
    one, two = (batch.inputs[name] @ variables.params["w"] for name in ("one", "two"))
    logits = jnp.where(batch.mask[None, :], one @ two.T, -jnp.inf)
    return -jnp.diag(jax.nn.log_softmax(logits)), ()


CONTRASTIVE = losses.model_loss(contrastive)
PROJECTION = Model(
    lambda key, inputs: Variables({"w": 0.1 * jax.random.normal(key, (3, 2))}, {}),
    lambda variables, inputs, **_: (inputs["one"] @ variables.params["w"], {}),
)
VIEWS = dataset({"one": X[:13], "two": X[:13] + 0.1 * RANDOM.normal(size=(13, 3))})


def test_a_contrastive_loss_compares_the_examples_of_a_batch_without_its_padding():
    w = RANDOM.normal(size=(3, 2)).astype(np.float32)
    expected = []
    for rows in (slice(0, 8), slice(8, 13)):
        logits = (np.float64(VIEWS.inputs["one"][rows]) @ w) @ (np.float64(VIEWS.inputs["two"][rows]) @ w).T
        expected += (np.log(np.exp(logits).sum(1)) - np.diag(logits)).tolist()
    value = evaluate(PROJECTION, Variables({"w": jnp.asarray(w)}, {}), VIEWS, CONTRASTIVE, batch_size=8)["loss"]
    assert float(value) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_contrastive_loss_trains():
    run = fit(PROJECTION, CONTRASTIVE, optax.adam(0.1), VIEWS, epochs=60, batch_size=8)
    losses_of_run = [record["loss"] for record in run.records]
    assert losses_of_run[0] > 1.5 and losses_of_run[-1] < 1


class Curve(nn.Module):
    @nn.compact
    def __call__(self, times):
        return nn.Dense(1)(nn.tanh(nn.Dense(16)(times)))


CURVE = from_linen(Curve())


def residual(variables, batch, key, train):
    """The residual of u' = -u with u(0) = 1, of a network of the time."""

    def u(times):
        return CURVE.apply(variables, times, train=train)[0]

    values, slopes = jax.jvp(u, (batch.inputs,), (jnp.ones_like(batch.inputs),))
    return ((slopes + values)[:, 0] ** 2 + (u(jnp.zeros((1, 1)))[0] - 1) ** 2), values


def test_a_physics_informed_loss_solves_its_equation():
    times = np.linspace(0, 2, 64)[:, None].astype(np.float32)
    run = fit(CURVE, losses.model_loss(residual), optax.adam(0.02), dataset(times), epochs=300, batch_size=64)
    outputs = CURVE.apply(run.best, times, train=False)[0]
    np.testing.assert_allclose(outputs, np.exp(-times), atol=0.02)


class Sown(nn.Module):
    """A network that returns its activity beside its outputs."""

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.Dense(4)(inputs)
        return {"outputs": nn.Dense(1)(hidden), "activity": (hidden**2).mean(1)}


SOWN = from_linen(Sown())


def penalized(variables, batch, key, train):
    outputs, _ = SOWN.apply(variables, batch.inputs, train=train)
    return losses.squared_error(outputs["outputs"], batch.targets) + 0.1 * outputs["activity"], outputs["outputs"]


def test_an_auxiliary_loss_adds_to_each_example_and_metrics_see_the_outputs():
    variables, rows = SOWN.init(jax.random.key(0), X), dataset(X, Y)
    values = evaluate(SOWN, variables, rows, losses.model_loss(penalized), metrics=[metrics.rmse])
    outputs, _ = SOWN.apply(variables, X, train=False)
    squares, activity = np.mean((np.asarray(outputs["outputs"]) - Y) ** 2), np.asarray(outputs["activity"]).mean()
    assert float(values["rmse"]) == pytest.approx(np.sqrt(squares), rel=1e-5)
    assert float(values["loss"]) == pytest.approx(squares + 0.1 * activity, rel=1e-5)


def of_result(result):
    return losses.model_loss(lambda variables, batch, key, train: result(squared(variables, batch, key, train)))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda parts: parts[0], r"must return \(values, outputs\) or .*, got an array of shape \(16,\)"),
        (lambda parts: (*parts, 1), "got a tuple of 4"),
        (lambda parts: (parts[0].mean(), parts[1]), r"got float32 of shape \(\).*Leave out the mean over the examples"),
        (
            lambda parts: (parts[0][:, None], parts[1]),
            r"each of the 16 examples of a batch, got float32 of shape \(16, 1\)",
        ),
        (lambda parts: (parts[0] > 0, parts[1]), r"got bool of shape \(16,\)"),
        (lambda parts: (parts[0], parts[1], {}), "must return stats like those of the variables"),
        (lambda parts: (parts[0], parts[1][:3]), 'metric "rmse"|same shape'),
    ],
    ids=["values", "four", "mean", "column", "bool", "stats", "outputs"],
)
def test_what_is_no_result_of_a_model_loss_is_refused(result, words):
    with pytest.raises(InputError, match=words):
        fit(MODEL, of_result(result), SGD, dataset(X, Y), epochs=1, batch_size=16, metrics=[metrics.rmse])


def test_a_dataset_without_targets_needs_a_loss_that_takes_none():
    rows = dataset(X)
    variables = MODEL.init(jax.random.key(0), X)
    with pytest.raises(InputError, match=r"train has no targets for a loss \(outputs, targets\). Use dataset"):
        fit(MODEL, losses.squared_error, SGD, rows)
    with pytest.raises(InputError, match="train has no targets for metrics"):
        fit(VAE, ELBO, SGD, rows, metrics=[metrics.rmse])
    with pytest.raises(InputError, match="validation has no targets"):
        fit(MODEL, losses.squared_error, SGD, dataset(X, Y), rows)
    with pytest.raises(InputError, match="dataset has no targets"):
        evaluate(MODEL, variables, rows, losses.squared_error)
    with pytest.raises(InputError, match=r"one array of targets, got targets None"):
        evaluate(MODEL, variables, DataSource(53, lambda numbers: take(rows, numbers)), losses.squared_error)


def test_functions_of_other_arguments_are_refused():
    with pytest.raises(
        InputError, match=r"which takes \(variables, batch, key, train\).*use losses.model_loss\(squared\)"
    ):
        fit(MODEL, squared, SGD, dataset(X, Y))
    with pytest.raises(InputError, match="must get a function"):
        fit(MODEL, losses.model_loss(losses.squared_error), SGD, dataset(X, Y))
    with pytest.raises(InputError, match="model_loss needs a function"):
        losses.model_loss(SQUARED)


def test_the_origin_of_a_nan_in_a_model_loss_is_reported():
    def root(variables, batch, key, train):
        outputs, stats = MODEL.apply(variables, batch.inputs, train=train, key=key, mask=batch.mask)
        return jnp.sqrt(batch.targets[:, 0]) + 0 * outputs[:, 0], outputs, stats

    targets = np.abs(Y)
    targets[9] = -1
    with pytest.warns(RuntimeWarning, match=r"nan in an operation \(sqrt\), first for training row 9"):
        fit(MODEL, losses.model_loss(root), SGD, dataset(X, targets), epochs=1)
