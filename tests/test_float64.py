"""Whole runs in float64, where JAX is told to keep it, against NumPy, differences and themselves cut otherwise."""

import json
import os
import subprocess
import sys
from functools import partial, reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss, r2_score

from jaxdl import dataset, early_stopping, evaluate, fit, fit_seeds, metrics, predict
from jaxdl.data import fit_scaler, standardize
from jaxdl.data.arrays import precision
from jaxdl.distributed import make_mesh, shard_dataset
from jaxdl.ensembles import predict_mean
from jaxdl.losses import (
    absolute_error,
    huber,
    sigmoid_cross_entropy,
    smoothed_cross_entropy,
    softmax_cross_entropy,
    squared_error,
)
from jaxdl.nn import BatchNorm, convnet, crop, cutout, dropout, flip, mlp, residual_net, with_augmentation
from jaxdl.train import make_plan, make_train_state, make_train_step, reduce_on_plateau
from jaxdl.train.nonfinite import in_evaluation
from jaxdl.types import Batch, Dataset, Objective, Variables

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(3, 2, (23, 4))
TARGETS = np.sin(INPUTS[:, :1]) - INPUTS[:, 1:2]
SHARES = RNG.random(23)
IMAGES = RNG.integers(0, 256, (12, 8, 9, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 12)
KEY = jax.random.key(5)
REGRESSION = Objective(squared_error, (metrics.rmse, metrics.mae, metrics.r2()))
CLASSES = Objective(softmax_cross_entropy, (metrics.accuracy,))
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def float64():
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def close(ours, wanted, rtol=1e-12):
    ours = np.asarray(ours)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def test_examples_keep_float64_and_widen_nothing_else():
    rows = dataset(INPUTS, [[0.1], [0.2]] * 11 + [[0.3]], SHARES)
    assert dtypes(rows) == {"float64"} and rows.targets[0, 0] == 0.1
    assert dataset([1e300], [1]).inputs[0] == 1e300
    rows = dataset(INPUTS.astype(np.float32), np.arange(23, dtype=np.int32))
    assert [leaf.dtype for leaf in rows] == [np.float32, np.int32, np.float32]
    assert dtypes(dataset(INPUTS.astype(np.float16), INPUTS.astype(np.float16), np.ones(23, int))) == {"float32"}
    assert precision(jnp.bfloat16, jnp.int64) == np.float32 and precision(jnp.int32, np.float64) == np.float64


def test_standardizing_loses_nothing_of_float64():
    scaling = fit_scaler(INPUTS)
    close(standardize(INPUTS, scaling), (INPUTS - INPUTS.mean(0)) / INPUTS.std(0))


def test_fifty_epochs_of_a_linear_model_are_those_of_numpy():
    run = fit(
        *(mlp((), dtype=jnp.float64), REGRESSION.loss, optax.sgd(0.02), dataset(INPUTS, TARGETS, SHARES)),
        metrics=REGRESSION.metrics,
        variables=Variables({"Dense_0": {"kernel": np.full((4, 1), 0.1), "bias": np.zeros(1)}}, {}),
        epochs=50,
        batch_size=23,
    )
    kernel, bias = np.full((4, 1), 0.1), np.zeros(1)
    losses = []
    for _ in range(50):
        error = INPUTS @ kernel + bias - TARGETS
        losses.append((SHARES * error[:, 0] ** 2).sum() / SHARES.sum())
        slope = 2 * SHARES[:, None] * error / SHARES.sum()
        kernel, bias = kernel - 0.02 * INPUTS.T @ slope, bias - 0.02 * slope.sum(0)
    close(run.final.params["Dense_0"]["kernel"], kernel)
    close(run.final.params["Dense_0"]["bias"], bias)
    # Records are float32.
    np.testing.assert_allclose(run.history["loss"], losses, rtol=1e-7)


def test_fifty_steps_of_a_hidden_layer_and_their_average_are_those_of_numpy():
    model, optimizer = mlp((6,), dtype=jnp.float64), optax.sgd(0.02)
    weights = jax.jit(model.init)(KEY, INPUTS)
    (k, b), (v, c) = ([np.asarray(weights.params[f"Dense_{i}"][name]) for name in ("kernel", "bias")] for i in (0, 1))
    average = [k, b, v, c]
    state = make_train_state(weights, optimizer, KEY, ema=True)
    step = jax.jit(make_train_step(model, REGRESSION.loss, optimizer, metrics=REGRESSION.metrics, ema_decay=0.9))
    for number in range(50):
        chosen = np.arange(number, number + 8) % 23
        # The last two rows are padding.
        shares = SHARES[chosen] * (np.arange(8) < 6)
        batch = Batch(*(jnp.asarray(part) for part in (INPUTS[chosen], TARGETS[chosen], shares, np.arange(8) < 6)))
        state, sums = step(state, batch)
        hidden = np.maximum(INPUTS[chosen] @ k + b, 0)
        error = hidden @ v + c - TARGETS[chosen]
        close(sums.totals["loss"], (shares * error[:, 0] ** 2).sum())
        slope = 2 * shares[:, None] * error / 6
        inner = (slope @ v.T) * (hidden > 0)
        gradients = INPUTS[chosen].T @ inner, inner.sum(0), hidden.T @ slope, slope.sum(0)
        k, b, v, c = (old - 0.02 * gradient for old, gradient in zip((k, b, v, c), gradients, strict=True))
        share = min(0.9, (1 + number) / (10 + number))
        average = [share * old + (1 - share) * new for old, new in zip(average, (k, b, v, c), strict=True)]
    for result, wanted in ((state.variables, (k, b, v, c)), (state.ema, average)):
        for (layer, name), value in zip([(i, n) for i in (0, 1) for n in ("kernel", "bias")], wanted, strict=True):
            close(result.params[f"Dense_{layer}"][name], value)


@pytest.mark.parametrize("of_model", [False, True])
def test_batch_norm_takes_its_moments_in_float64(of_model):
    inputs, mask = 1e6 + INPUTS, np.arange(23) < 20
    known = inputs[mask]
    if of_model:
        model = mlp((3,), input_norm=True, dtype=jnp.float64)
        weights = jax.jit(model.init)(KEY, inputs)
        _, stats = jax.jit(partial(model.apply, train=True))(weights, inputs, key=KEY, mask=mask)
        moments = stats["batch_stats"]["BatchNorm_0"]
    else:
        layer = BatchNorm(dtype=jnp.float64)
        variables = jax.jit(partial(layer.init, train=False))(KEY, inputs)
        run = jax.jit(partial(layer.apply, train=True, mutable=["batch_stats"]))
        outputs, after = run(variables, inputs, mask=mask)
        outputs, moments = np.asarray(outputs), after["batch_stats"]
        # A mean of 1e6 leaves ten digits of what is around it.
        close(outputs[mask], (known - known.mean(0)) / np.sqrt(known.var(0) + 1e-3), rtol=1e-9)
    close(moments["mean"], 0.01 * known.mean(0))
    close(moments["var"], 0.99 + 0.01 * known.var(0))


NETS = {
    "mlp": (lambda dtype: mlp((5,), input_norm=True, dropout=0.3, outputs=3, dtype=dtype), INPUTS[:12]),
    # Of 18 filters on 16, two go another way than the rest.
    "convnet": (lambda dtype: convnet((16, 18), widths=(4,), outputs=3, dropout=0.3, dtype=dtype), IMAGES),
    "residual_net": (lambda dtype: residual_net(4, outputs=3, dtype=dtype), IMAGES),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_weights_and_outputs_have_the_precision_of_the_dtype_and_a_step_keeps_it(net, dtype):
    make, inputs = NETS[net]
    model, optimizer = make(dtype), optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    rows = jax.tree.map(jnp.asarray, dataset(inputs, LABELS))
    weights = jax.eval_shape(model.init, KEY, rows.inputs)
    wanted = {"float64" if dtype == jnp.float64 else "float32"}
    outputs, _ = jax.eval_shape(lambda w, i: model.apply(w, i, train=False), weights, rows.inputs)
    assert dtypes((weights, outputs)) == wanted
    state = jax.eval_shape(lambda w: make_train_state(w, optimizer, KEY, ema=True), weights)
    after, _ = jax.eval_shape(
        make_train_step(model, softmax_cross_entropy, optimizer, metrics=[metrics.accuracy], ema_decay=0.9), state, rows
    )
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state
    )


@pytest.mark.parametrize("net", ["mlp", "convnet"])
def test_gradients_are_those_of_differences(net):
    make, inputs = NETS[net]
    model = make(jnp.float64)
    weights = jax.tree.map(np.asarray, jax.jit(model.init)(KEY, inputs))
    params, rebuild = jax.flatten_util.ravel_pytree(weights.params)
    params = np.asarray(params)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        outputs, _ = model.apply(Variables(rebuild(params), weights.stats), inputs, train=True, key=KEY)
        return softmax_cross_entropy(outputs, jnp.asarray(LABELS)).mean()

    way = np.random.default_rng(1).normal(size=params.shape)
    step = 1e-6 / np.linalg.norm(way)
    (higher, _), (lower, _), (_, slope) = (loss(params + by * way) for by in (step, -step, 0))
    difference = (float(higher) - float(lower)) / (2 * step)
    np.testing.assert_allclose(np.asarray(slope) @ way, difference, rtol=1e-6)


def figures_of(objective, parts):
    """The figures of outputs, targets and weights that come in parts."""
    return metrics.compute(
        reduce(metrics.merge, (metrics.measure(objective.loss, *part, metrics=objective.metrics) for part in parts)),
        objective.metrics,
    )


def test_figures_are_those_of_numpy_whatever_the_batches():
    outputs, targets = RNG.normal(size=(50, 3)), RNG.normal(size=(50, 3))
    shares = RNG.random(50).astype(np.float32)
    error, weights = outputs - targets, shares.astype(np.float64)
    loss = np.where(np.abs(error) < 0.7, error**2 / 2, 0.7 * (np.abs(error) - 0.35)).mean(1) @ weights / weights.sum()
    objective = Objective(huber(0.7), (metrics.rmse, metrics.mae, metrics.r2(0.1)))
    wanted = {
        "loss": loss,
        "rmse": np.sqrt((error**2).mean(1) @ weights / weights.sum()),
        "mae": np.abs(error).mean(1) @ weights / weights.sum(),
        "r2": r2_score(targets, outputs, sample_weight=weights),
    }
    for cuts in ((50,), (7, 31, 50)):
        parts = zip((0, *cuts[:-1]), cuts, strict=True)
        figures = jax.jit(lambda parts: figures_of(objective, parts))(
            [tuple(x[a:b] for x in (outputs, targets, shares)) for a, b in parts]
        )
        assert set(figures) == set(wanted)
        for name, value in wanted.items():
            close(figures[name], value)


def test_figures_of_classes_are_those_of_scikit_learn():
    logits = RNG.normal(size=(40, 3))
    labels = np.argmax(logits + RNG.normal(size=(40, 3)), 1)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    means = jax.jit(
        lambda logits, labels, yes: (
            softmax_cross_entropy(logits, labels).mean(),
            smoothed_cross_entropy(0.2)(logits, labels).mean(),
            sigmoid_cross_entropy(logits[:, :1], yes).mean(),
        )
    )
    yes = (logits[:, :1] + RNG.normal(size=(40, 1)) > 0).astype(np.float64)
    of_softmax, of_smoothed, of_sigmoid = means(logits, labels, yes)
    close(of_softmax, log_loss(labels, np.exp(logs)))
    smoothed = 0.8 * log_loss(labels, np.exp(logs)) - 0.2 * logs.mean()
    close(of_smoothed, smoothed)
    shares = 1 / (1 + np.exp(-logits[:, 0]))
    close(of_sigmoid, log_loss(yes[:, 0], shares))
    objective = Objective(sigmoid_cross_entropy, (metrics.balanced_accuracy,))
    figures = jax.jit(lambda *part: figures_of(objective, [part]))(logits[:, :1], yes, np.ones(40))
    close(figures["balanced_accuracy"], balanced_accuracy_score(yes[:, 0], logits[:, 0] > 0))


def test_dropout_scales_in_float64_and_keeps_what_it_keeps_in_float32():
    drop = jax.jit(lambda inputs: dropout(KEY, inputs, 0.3))
    changed, narrow = (np.asarray(drop(np.ones((30, 7), dtype))) for dtype in (np.float64, np.float32))
    np.testing.assert_array_equal(changed != 0, narrow != 0)
    assert {0.0} < set(changed.ravel().tolist()) == {0.0, 1 / (1 - 0.3)}


@pytest.mark.parametrize("change", [flip, crop(2), cutout(3)])
def test_images_are_changed_as_they_are_without_float64(change):
    with jax.enable_x64(False):
        wanted = np.asarray(jax.jit(change)(KEY, IMAGES))
    np.testing.assert_array_equal(jax.jit(change)(KEY, IMAGES), wanted)


def test_a_plateau_keeps_a_learning_rate_in_float64():
    rule = reduce_on_plateau(factor=0.3, patience=1)
    state, update = jax.jit(rule.init)(jnp.asarray(0.1)), jax.jit(rule.update)
    for epoch in (1, 2):
        state = update(state, jnp.asarray(1.0), epoch)
    assert state.learning_rate.dtype == np.float64 and float(state.learning_rate) == 0.1 * 0.3


def test_a_number_that_float32_cannot_hold_is_finite():
    plan = make_plan(mlp((), dtype=jnp.float64), absolute_error, optax.sgd(1.0))
    weights = Variables({"Dense_0": {"kernel": jnp.full((1, 1), 1e100), "bias": jnp.zeros(1)}}, {})
    batch = Dataset(jnp.array([[1.0], [1e250]]), jnp.zeros((2, 1)), jnp.ones(2))
    assert in_evaluation(plan, weights, batch._replace(inputs=batch.inputs[:1].repeat(2, 0))) is None
    assert in_evaluation(plan, weights, batch).rows == (1,)


def test_predictions_and_figures_do_not_depend_on_the_batches():
    model, rows = mlp((6,), input_norm=True, dtype=jnp.float64), dataset(INPUTS, TARGETS)
    begin = jax.jit(jax.vmap(lambda key: model.init(key, jnp.asarray(INPUTS))))
    many = jax.tree.map(np.asarray, begin(jax.random.split(KEY, 3)))
    weights = jax.tree.map(lambda leaf: leaf[0], many)
    outputs = predict(model, weights, INPUTS, batch_size=5)
    close(outputs, predict(model, weights, INPUTS), rtol=1e-14)
    for size in (5, None):
        figures = evaluate(model, weights, rows, REGRESSION.loss, metrics=REGRESSION.metrics, batch_size=size)
        close(figures["rmse"], np.sqrt(np.mean((np.asarray(outputs) - TARGETS) ** 2)))
    every = np.stack([predict(model, jax.tree.map(lambda leaf, m=m: leaf[m], many), INPUTS) for m in range(3)])
    mean = predict_mean(model, many, INPUTS)
    close(mean.mean, every.mean(0))
    close(mean.std, every.std(0))


RUNS = {
    "mlp": (
        mlp((6,), input_norm=True, dtype=jnp.float64),
        REGRESSION,
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        (INPUTS, TARGETS, SHARES),
        {"plateau": reduce_on_plateau(patience=2, min_delta=0.1), "early_stopping": early_stopping("loss", patience=3)},
        ((0, 1, 2, 3), "vmap"),
    ),
    "convnet": (
        with_augmentation(convnet((4,), outputs=3, dropout=0.2, dtype=jnp.float64), flip),
        CLASSES,
        optax.sgd(optax.cosine_decay_schedule(0.1, 60), momentum=0.9),
        (IMAGES, LABELS),
        {"early_stopping": early_stopping(patience=3)},
        ((0, 1), "map"),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_one_program_trains_and_members_on_several_devices_end_as_single_runs(name, compilations):
    model, objective, optimizer, parts, rules, (seeds, how) = RUNS[name]
    data, options = dataset(*parts), {"epochs": 30, "batch_size": 5, **rules}
    with compilations() as names:
        alone = fit(model, objective.loss, optimizer, data, data, metrics=objective.metrics, seed=0, **options)
    assert names.count("chunk_program") == 1
    assert dtypes(alone.final) == {"float64"} and alone.best_epoch > 1
    alone = [
        alone,
        *(
            fit(model, objective.loss, optimizer, data, data, metrics=objective.metrics, seed=seed, **options)
            for seed in seeds[1:]
        ),
    ]
    assert len({run.best_epoch for run in alone}) > 1
    runs = fit_seeds(
        model, objective.loss, optimizer, data, data, metrics=objective.metrics, seeds=seeds, method=how, **options
    )
    assert len(runs.state.epoch.sharding.device_set) == len(seeds)
    for index, one in enumerate(alone):
        assert runs.best_epochs[index] == one.best_epoch
        assert runs.state.epoch[index] == one.state.epoch and runs.reasons[index] == one.reason
        for ours, wanted in zip(jax.tree.leaves(runs.final), jax.tree.leaves(one.final), strict=True):
            close(ours[index], wanted, rtol=1e-9)


@pytest.mark.parametrize(("name", "devices"), [("mlp", 8), ("convnet", 2)])
def test_a_run_on_a_mesh_ends_as_on_one_device(name, devices):
    model, objective, optimizer, parts, more, _ = RUNS[name]
    data, options = dataset(*parts), {"epochs": 30, "batch_size": 5, **more}
    alone = fit(model, objective.loss, optimizer, data, data, metrics=objective.metrics, **options)
    mesh = make_mesh(jax.devices()[:devices])
    result = fit(
        model, objective.loss, optimizer, shard_dataset(data, mesh), data, metrics=objective.metrics, **options
    )
    assert len(result.state.epoch.sharding.device_set) == devices
    assert (result.reason, result.best_epoch, len(result.history)) == (
        alone.reason,
        alone.best_epoch,
        len(alone.history),
    )
    assert len(alone.history) > 5
    for ours, wanted in zip(jax.tree.leaves(result.final), jax.tree.leaves(alone.final), strict=True):
        close(ours, wanted, rtol=1e-9)


RESUMED = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax
from jaxdl import _tree, dataset, fit, losses, mlp, saving
from jaxdl.types import Objective
inputs = np.random.default_rng(0).normal(3, 2, (40, 5))
rows = dataset(inputs, inputs[:, :1] - inputs[:, 1:2])
run = (mlp((10, 5), input_norm=True, dtype=jnp.float64), losses.squared_error, optax.adam(0.01), rows)
whole = fit(*run, epochs=6, batch_size=8)
folder = Path(sys.argv[1])
with saving.checkpointer(folder, {}, every=0.0, warn=print) as keep:
    part = fit(*run, epochs=3, batch_size=8, callbacks=[keep])
saved = saving.restore_latest(folder, print)
_tree.check_structure(saved.about["kinds"], part.state)
again = fit(*run, epochs=6, batch_size=8, state=_tree.unflatten_named(part.state, saved.arrays))
same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (whole.final, again.final)), strict=True)]
kept = [str(leaf.dtype) for leaf in jax.tree.leaves(again.final)]
print(json.dumps({"same": all(same), "dtypes": sorted(set(kept)), "saved": str(saved.arrays["sums/weight"].dtype)}))
"""


def test_a_run_goes_on_from_a_checkpoint_in_float64(tmp_path):
    # A process of its own: it saves in a thread, and who sets float64 sets it for all of a process.
    done = subprocess.run(
        [sys.executable, "-W", "error:::jaxdl", "-c", RESUMED, str(tmp_path / "progress")],
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"same": True, "dtypes": ["float64"], "saved": "float64"}
