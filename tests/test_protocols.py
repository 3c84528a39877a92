"""The contracts of models, losses, metrics, rules and callbacks, for each one that is public.

The public ones are found by what they return. One that has no case here fails the test of its kind.
"""

import copy
import functools
import inspect
import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

import jaxdl.nn
import jaxdl.train
from jaxdl import Metric, Model, Variables, callbacks, dataset, fit, losses, metrics
from jaxdl._checks import check_objective
from jaxdl.metrics import compute, measure, merge
from jaxdl.train import early_stopping, make_plan, reduce_on_plateau, start
from jaxdl.types import Objective, Rule

RANDOM = np.random.default_rng(0)
KEY = jax.random.key(0)


def public(module):
    """Return the public names of a package or a module, without those that it imports for itself."""
    names = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    if hasattr(module, "__path__"):
        return {name: value for name, value in names.items() if not inspect.ismodule(value)}
    return {name: value for name, value in names.items() if getattr(value, "__module__", None) == module.__name__}


def returning(module, *annotations):
    """Return the public functions of a module whose annotated result is one of these."""
    functions = {name: value for name, value in public(module).items() if inspect.isfunction(value)}
    return {name for name, value in functions.items() if inspect.signature(value).return_annotation in annotations}


def same_bits(one, other):
    """Check that two trees hold the same arrays: structure, dtypes and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        left, right = (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            for leaf in (left, right)
        )
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def close(one, other):
    """Check that two trees hold the same numbers up to rounding."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5), one, other)


def kinds(tree):
    """Return the structure, the shapes and the dtypes of a tree."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def is_finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


# Models


class LinenNet(nn.Module):
    """A Linen module with parameters, statistics and randomness, which follow the training mode."""

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.relu(nn.BatchNorm(use_fast_variance=False)(nn.Dense(6)(inputs)))
        return nn.Dense(2)(nn.Dropout(0.5)(hidden))


class NnxNet(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(6, use_fast_variance=False, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(inputs)))))


class EquinoxNet(eqx.Module):
    """The same in Equinox."""

    layers: eqx.nn.Sequential

    def __init__(self, key):
        keys = jax.random.split(key)
        first, last = eqx.nn.Linear(3, 6, use_bias=False, key=keys[0]), eqx.nn.Linear(6, 2, key=keys[1])
        norm = eqx.nn.BatchNorm(6, axis_name="batch", mode="batch")
        self.layers = eqx.nn.Sequential([first, norm, eqx.nn.Lambda(jax.nn.relu), eqx.nn.Dropout(0.5), last])

    def __call__(self, x, state, *, key=None):
        return self.layers(x, state, key=key)


def haiku_net(inputs, is_training):
    """Compute the same in Haiku."""
    hidden = jax.nn.relu(hk.BatchNorm(True, True, 0.99)(hk.Linear(6)(inputs), is_training))
    return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.5, hidden) if is_training else hidden)


def keras_net():
    """Return the same in Keras."""
    # Imported here, where its backend is set: see conftest.py.
    import keras

    layers = [keras.layers.Dense(6), keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Dropout(0.5)]
    return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(2)])


TABLE = RANDOM.normal(2, 3, (6, 3)).astype(np.float32)
IMAGES = RANDOM.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def small_convnet():
    return jaxdl.nn.convnet((2,), widths=(3,), outputs=2, pool=True, dropout=0.3)


MODELS = {
    "mlp": (lambda: jaxdl.nn.mlp((5,), outputs=2, input_norm=True, dropout=0.3), TABLE),
    "convnet": (small_convnet, IMAGES),
    "residual_net": (lambda: jaxdl.nn.residual_net(1, outputs=2), IMAGES),
    "from_linen": (lambda: jaxdl.nn.from_linen(LinenNet()), TABLE),
    "from_nnx": (lambda: jaxdl.nn.from_nnx(lambda rngs: NnxNet(rngs)), TABLE),
    "from_equinox": (lambda: jaxdl.nn.from_equinox(lambda key: EquinoxNet(key)), TABLE),
    "from_haiku": (lambda: jaxdl.nn.from_haiku(hk.transform_with_state(haiku_net)), TABLE),
    "from_keras": (lambda: jaxdl.nn.from_keras(keras_net(), reinitialize=True), TABLE),
    "with_augmentation": (lambda: jaxdl.nn.with_augmentation(small_convnet(), jaxdl.nn.flip, jaxdl.nn.crop(1)), IMAGES),
    "with_flip_averaging": (lambda: jaxdl.nn.with_flip_averaging(small_convnet()), IMAGES),
    "build_model": (lambda: jaxdl.nn.build_model(jaxdl.nn.ModelSpec("mlp", {"widths": [4], "outputs": 2})), TABLE),
}


class ModelCase(NamedTuple):
    model: Model
    inputs: np.ndarray
    variables: Variables
    train: Callable[..., Any]  # compiled: (weights, inputs, key, mask)
    evaluate: Callable[..., Any]  # compiled: (weights, inputs, key=, mask=)


@functools.cache
def model_case(name):
    make, inputs = MODELS[name]
    model = make()
    weights = jax.jit(model.init)(KEY, inputs)
    # Other moments than the initial ones, 0 and 1.
    moments = jax.tree.map(lambda leaf: leaf * 1.5 + 0.1 if leaf.dtype == jnp.float32 else leaf, weights.stats)
    weights = weights._replace(stats=moments)

    def train(weights, inputs, key, mask):
        return model.apply(weights, inputs, train=True, key=key, mask=mask)

    return ModelCase(model, inputs, weights, jax.jit(train), jax.jit(functools.partial(model.apply, train=False)))


@pytest.fixture(params=MODELS)
def case(request):
    return model_case(request.param)


def all_rows(inputs):
    return np.ones(len(inputs), bool)


def test_every_public_model_has_a_case():
    assert set(MODELS) == returning(jaxdl.nn, "Model")


def test_init_gives_weights_that_the_key_alone_decides(case):
    weights = jax.jit(case.model.init)(KEY, case.inputs)
    assert isinstance(weights, Variables) and jax.tree.leaves(weights.params) and is_finite(weights)
    same_bits(jax.jit(case.model.init)(KEY, case.inputs), weights)
    other = jax.jit(case.model.init)(jax.random.key(1), case.inputs)
    assert kinds(other) == kinds(weights)
    pairs = zip(jax.tree.leaves(weights.params), jax.tree.leaves(other.params), strict=True)
    assert any((one != two).any() for one, two in pairs)
    # The inputs give shapes: another number of rows changes nothing.
    assert kinds(jax.eval_shape(case.model.init, KEY, case.inputs[:1])) == kinds(weights)


def test_a_model_gives_an_output_for_each_row_and_stats_of_the_same_kinds(case):
    outputs, stats = case.train(case.variables, case.inputs, KEY, all_rows(case.inputs))
    assert outputs.shape == (len(case.inputs), 2) and is_finite(outputs)
    assert kinds(stats) == kinds(case.variables.stats) and is_finite(stats)
    same_bits(case.train(case.variables, case.inputs, KEY, all_rows(case.inputs))[0], outputs)


def test_evaluation_needs_no_key_and_leaves_the_stats(case):
    outputs, stats = case.evaluate(case.variables, case.inputs)
    assert outputs.shape == (len(case.inputs), 2) and is_finite(outputs)
    same_bits(stats, case.variables.stats)
    keyed, stats = case.evaluate(case.variables, case.inputs, key=jax.random.key(7), mask=np.zeros(len(outputs), bool))
    close(keyed, outputs)
    same_bits(stats, case.variables.stats)


def test_a_batch_of_1_is_a_batch(case):
    outputs, _ = case.evaluate(case.variables, case.inputs)
    alone, _ = case.evaluate(case.variables, case.inputs[:1])
    close(alone, outputs[:1])
    trained, stats = case.train(case.variables, case.inputs[:1], KEY, all_rows(case.inputs[:1]))
    assert trained.shape == (1, 2) and is_finite(trained)
    assert kinds(stats) == kinds(case.variables.stats) and is_finite(stats)


def test_rows_that_the_mask_leaves_out_change_no_stats_and_no_other_row(case):
    padded = np.concatenate([case.inputs, case.inputs[::-1]])
    mask = np.arange(len(padded)) < len(case.inputs)
    _, stats = case.train(case.variables, padded, KEY, mask)
    close(stats, case.train(case.variables, case.inputs, KEY, all_rows(case.inputs))[1])
    outputs, _ = case.evaluate(case.variables, padded)
    close(outputs[mask], case.evaluate(case.variables, case.inputs)[0])


def test_models_of_many_keys_are_those_of_each(case):
    keys = jax.random.split(KEY, 2)

    def first_step(key):
        weights = case.model.init(key, case.inputs)
        return weights, case.model.apply(
            weights, case.inputs, train=True, key=key, mask=jnp.ones(len(case.inputs), bool)
        )

    together = jax.jit(jax.vmap(first_step))(keys)
    alone = [jax.jit(first_step)(key) for key in keys]
    close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


def test_gradients_are_finite_and_of_the_kinds_of_the_parameters(case):
    def loss(params):
        weights = case.variables._replace(params=params)
        return jnp.mean(case.train(weights, case.inputs, KEY, all_rows(case.inputs))[0] ** 2)

    gradients = jax.jit(jax.grad(loss))(case.variables.params)
    assert kinds(gradients) == kinds(case.variables.params) and is_finite(gradients)
    assert any(leaf.any() for leaf in jax.tree.leaves(gradients))


# Losses and metrics

ROWS = 12
SCORES = RANDOM.normal(size=(ROWS, 3)).astype(np.float32)
KINDS = {
    "numbers": (SCORES, RANDOM.normal(size=(ROWS, 3)).astype(np.float32)),
    "labels": (SCORES, (np.arange(ROWS) % 3).astype(np.int32)),
    "answers": (SCORES, (RANDOM.random((ROWS, 3)) < 0.5).astype(np.float32)),
}


def of_part(function):
    """Return a function of arrays from one of outputs and targets with a part."""
    return lambda outputs, targets: function({"part": outputs}, {"part": targets})


LOSSES = {
    "squared_error": ("numbers", losses.squared_error),
    "absolute_error": ("numbers", losses.absolute_error),
    "huber": ("numbers", losses.huber(0.5)),
    "softmax_cross_entropy": ("labels", losses.softmax_cross_entropy),
    "smoothed_cross_entropy": ("labels", losses.smoothed_cross_entropy(0.1)),
    "sigmoid_cross_entropy": ("answers", losses.sigmoid_cross_entropy),
    "masked": ("labels", losses.masked(losses.softmax_cross_entropy, ignore_label=-1)),
    "weighted_sum": ("numbers", of_part(losses.weighted_sum({"part": losses.huber()}, {"part": 0.5}))),
}
METRICS = {
    "mean": ("numbers", metrics.mean("mean", losses.huber(), mode="min")),
    "rmse": ("numbers", metrics.rmse),
    "mae": ("numbers", metrics.mae),
    "r2": ("numbers", metrics.r2()),
    "top_k": ("labels", metrics.top_k(2)),
    "accuracy": ("labels", metrics.accuracy),
    "binary_accuracy": ("answers", metrics.binary_accuracy),
    "balanced_accuracy": ("answers", metrics.balanced_accuracy),
    "precision": ("answers", metrics.precision()),
    "recall": ("labels", metrics.recall("macro")),
    "f1": ("labels", metrics.f1("weighted")),
    "roc_auc": ("answers", metrics.roc_auc()),
    "average_precision": ("labels", metrics.average_precision("macro")),
    "of_output": (
        "numbers",
        metrics.of_output("part", metrics.mae)._replace(
            per_example=of_part(metrics.of_output("part", metrics.mae).per_example)
        ),
    ),
}
LOSS_OF = {"numbers": losses.squared_error, "labels": losses.softmax_cross_entropy}
LOSS_OF["answers"] = losses.sigmoid_cross_entropy


@functools.cache
def measuring(objective):
    return jax.jit(functools.partial(measure, objective.loss, metrics=objective.metrics))


def values_of(objective, *parts):
    """Return the metrics of several (outputs, targets, weights)."""
    return compute(functools.reduce(merge, (measuring(objective)(*part) for part in parts)), objective.metrics)


def counted(outputs, targets):
    return outputs, targets, np.ones(len(outputs), np.float32)


def check_padding(objective, outputs, targets):
    """Check that rows of weight 0 change nothing, whatever they hold."""
    fill = np.full((5, *outputs.shape[1:]), np.nan, np.float32)
    rows = np.concatenate([outputs, fill]), np.concatenate([targets, np.full_like(targets[:5], 7)])
    weights = np.r_[np.ones(len(outputs), np.float32), np.zeros(5, np.float32)]
    padded = values_of(objective, (*rows, weights))
    close(padded, values_of(objective, counted(outputs, targets)))


def has_parameters(function, *names):
    return inspect.isfunction(function) and tuple(inspect.signature(function).parameters) == names


def test_every_public_loss_has_a_case():
    plain = {name for name, value in public(losses).items() if has_parameters(value, "outputs", "targets")}
    assert set(LOSSES) == plain | returning(losses, "Loss")


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_gives_a_finite_value_for_each_row_by_itself(name):
    kind, loss = LOSSES[name]
    outputs, targets = KINDS[kind]
    values = jax.jit(loss)(outputs, targets)
    assert values.shape == (ROWS,) and values.dtype == np.float32 and is_finite(values)
    order = RANDOM.permutation(ROWS)
    close(jax.jit(loss)(outputs[order], targets[order]), values[order])
    close(jax.jit(loss)(outputs[:1], targets[:1]), values[:1])
    close(loss(jnp.asarray(outputs), jnp.asarray(targets)), values)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_loss_is_finite_and_of_its_own_row_alone(name):
    kind, loss = LOSSES[name]
    outputs, targets = KINDS[kind]
    gradient = jax.jit(jax.grad(lambda outputs: loss(outputs, targets)[0]))(outputs)
    assert is_finite(gradient) and gradient[0].any() and not gradient[1:].any()


@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_weight_0_change_no_loss(name):
    kind, loss = LOSSES[name]
    check_padding(Objective(loss), *KINDS[kind])


def test_every_public_metric_has_a_case():
    # Metrics are values, which name no module.
    values = {name for name, value in vars(metrics).items() if isinstance(value, Metric) and not name.startswith("_")}
    assert set(METRICS) == values | returning(metrics, "Metric")


def test_metrics_of_one_kind_have_names_of_their_own():
    for kind, loss in LOSS_OF.items():
        together = [metric for of, metric in METRICS.values() if of == kind]
        assert len(check_objective(loss, together).metrics) == len(together) > 1


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_which_direction_is_better(name):
    metric = METRICS[name][1]
    assert isinstance(metric.name, str) and metric.name
    assert metric.mode in ("min", "max", None)
    if metric.mode is not None:
        outputs, targets = KINDS[METRICS[name][0]]
        right = np.eye(3, dtype=np.float32)[targets] if targets.ndim == 1 else targets
        perfect = {"numbers": right, "labels": 9 * right, "answers": 18 * right - 9}[METRICS[name][0]]
        objective = Objective(LOSS_OF[METRICS[name][0]], (metric,))
        guessed, known = (float(values_of(objective, counted(of, targets))[metric.name]) for of in (outputs, perfect))
        assert known < guessed if metric.mode == "min" else known > guessed


@pytest.mark.parametrize("name", METRICS)
def test_merged_parts_of_the_rows_give_the_metric_of_all(name):
    kind, metric = METRICS[name]
    outputs, targets = KINDS[kind]
    objective = Objective(LOSS_OF[kind], (metric,))
    whole = values_of(objective, counted(outputs, targets))
    assert list(whole) == ["loss", metric.name]
    for value in whole.values():
        assert value.shape == () and value.dtype == np.float32 and is_finite(value)
    for parts in (np.split(np.arange(ROWS), 2), RANDOM.permutation(ROWS).reshape(3, 4)):
        batches = [counted(outputs[rows], targets[rows]) for rows in parts]
        close(values_of(objective, *batches), whole)
        close(values_of(objective, *reversed(batches)), whole)


@pytest.mark.parametrize("name", METRICS)
def test_rows_of_weight_0_change_no_metric(name):
    kind, metric = METRICS[name]
    objective = Objective(LOSS_OF[kind], (metric,))
    check_padding(objective, *KINDS[kind])
    # Nor does a batch that holds nothing else.
    outputs, targets = KINDS[kind]
    empty = outputs, targets, np.zeros(ROWS, np.float32)
    close(
        values_of(objective, empty, counted(outputs, targets)), values_of(objective, counted(outputs, targets), empty)
    )
    close(values_of(objective, empty, counted(outputs, targets)), values_of(objective, counted(outputs, targets)))


# Rules

RULES = {
    "early_stopping": [
        (lambda: early_stopping(patience=2), ()),
        (lambda: early_stopping("val_loss", patience=None, mode="max", start_from_epoch=1, baseline=0.5), ()),
    ],
    "reduce_on_plateau": [
        (lambda: reduce_on_plateau(patience=2, factor=0.5), (jnp.float32(0.1),)),
        (lambda: reduce_on_plateau("loss", patience=1, mode="max", cooldown=2, min_learning_rate=0.05), (0.1,)),
    ],
}
MONITORED = np.array([3.0, 2.0, np.nan, 2.5, 2.4, np.inf, 1.0, 1.5], np.float32)


@pytest.fixture(params=[(name, number) for name, cases in RULES.items() for number in range(len(cases))], ids=str)
def rule_case(request):
    name, number = request.param
    make, arguments = RULES[name][number]
    return make(), arguments


def states_of(update, state, values=MONITORED):
    """Return the states after each value."""
    states = []
    for epoch, value in enumerate(values, 1):
        state = update(state, jnp.float32(value), jnp.int32(epoch))
        states.append(state)
    return states


def test_every_public_rule_has_a_case():
    assert set(RULES) == returning(jaxdl.train, "Rule")


def test_a_rule_is_a_record_that_can_be_a_static_argument(rule_case):
    rule, _ = rule_case
    assert isinstance(rule, Rule) and hash(rule) == hash(rule)
    assert rule.monitor is None or isinstance(rule.monitor, str)
    assert rule.mode in ("min", "max", None)
    assert (rule.maximizing is None) == (rule.mode is not None)


def test_a_rule_keeps_the_kinds_of_its_state(rule_case):
    rule, arguments = rule_case
    state = rule.init(*arguments)
    for leaf in jax.tree.leaves(state):
        assert leaf.shape == () and leaf.dtype in (np.int32, np.float32, np.bool_)
    assert any(leaf.dtype == np.int32 for leaf in jax.tree.leaves(state))
    for later in states_of(jax.jit(rule.update), state):
        assert kinds(later) == kinds(state) and type(later) is type(state)
    if rule.resume is not None:
        assert kinds(rule.resume(state)) == kinds(state)


def test_a_rule_is_pure_and_the_same_under_jit_vmap_and_scan(rule_case):
    rule, arguments = rule_case
    state = rule.init(*arguments)
    before = jax.tree.map(np.array, state)
    update = jax.jit(rule.update)
    states = states_of(update, state)
    same_bits(state, jax.tree.map(jnp.asarray, before))
    same_bits(rule.init(*arguments), state)
    same_bits(states_of(update, state), states)
    same_bits(states_of(rule.update, state, MONITORED[:3]), states[:3])
    epochs = jnp.arange(1, len(MONITORED) + 1, dtype=jnp.int32)

    def step(state, given):
        state = rule.update(state, *given)
        return state, state

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    same_bits(jax.jit(lambda: jax.lax.scan(step, state, (jnp.asarray(MONITORED), epochs)))()[1], stacked)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    together = jax.jit(jax.vmap(rule.update, (0, 0, None)))(twice, jnp.float32([3.0, 2.0]), jnp.int32(1))
    same_bits(jax.tree.map(lambda leaf: leaf[0], together), states[0])


def test_a_rule_without_a_mode_has_a_mirror_image(rule_case):
    rule, arguments = rule_case
    if rule.maximizing is None:
        return
    mirrored = states_of(jax.jit(rule.maximizing.update), rule.maximizing.init(*arguments), -MONITORED)
    for one, other in zip(states_of(jax.jit(rule.update), rule.init(*arguments)), mirrored, strict=True):
        same_bits(one._replace(best=-one.best), other)


# Callbacks

EPOCHS = 3
DATA = dataset(TABLE, TABLE[:, :1])
MODEL, OPTIMIZER = jaxdl.nn.mlp((2,)), optax.sgd(0.01)


@functools.cache
def beginning():
    plan = make_plan(MODEL, losses.squared_error, OPTIMIZER, metrics=[metrics.rmse], batch_size=3)
    return plan, start(plan, DATA, key=jax.random.key(0))


def bar_in(**console):
    return lambda folder: callbacks.progress_bar(EPOCHS, ("loss",), console=Console(file=io.StringIO(), **console))


CALLBACKS = {
    "csv_log": [lambda folder: callbacks.csv_log(folder / "history.csv")],
    "tensorboard": [lambda folder: callbacks.tensorboard(folder / "board")],
    "histograms": [lambda folder: callbacks.histograms(folder / "layers", beginning()[0], DATA, beginning()[1])],
    "progress_bar": [bar_in(), bar_in(force_terminal=True), bar_in(quiet=True)],
    "profiler": [lambda folder: callbacks.profiler(folder / "trace", epochs=1)],
}
# Functions that are no callbacks, because they write once, and the types of callbacks.
OTHERS = {"description", "results", "pictures", "Callback", "Stop"}


@pytest.fixture(params=[(name, number) for name, cases in CALLBACKS.items() for number in range(len(cases))], ids=str)
def callback(request, tmp_path, capsys):
    """A function that gives the context manager, always with the same arguments."""
    name, number = request.param
    return functools.partial(CALLBACKS[name][number], tmp_path)


def run_with(*on_epoch):
    return fit(
        MODEL,
        losses.squared_error,
        OPTIMIZER,
        DATA,
        metrics=[metrics.rmse],
        epochs=EPOCHS,
        batch_size=3,
        callbacks=on_epoch,
    )


@functools.cache
def run_alone():
    return run_with()


def check_run(run):
    """Check that a run is the one without a callback; the clock is not compared."""
    same_bits((run.best, run.final), (run_alone().best, run_alone().final))
    same_bits(run.state, run_alone().state)
    assert json.dumps(run.records) == json.dumps(run_alone().records)


def test_every_public_callback_has_a_case():
    result = returning(callbacks, "Iterator[Callback]", "AbstractContextManager[Callback]")
    assert set(CALLBACKS) == result
    assert set(public(callbacks)) == result | OTHERS


def test_a_callback_is_called_each_epoch_and_changes_nothing(callback):
    epochs = []
    with callback() as observe:

        def watched(run_state, history):
            before = jax.tree.map(jnp.copy, run_state), copy.deepcopy(history)
            assert observe(run_state, history) is None
            same_bits(run_state, before[0])
            assert history == before[1]
            epochs.append([record["epoch"] for record in history])

        run = run_with(watched)
    assert epochs == [[1], [1, 2], [1, 2, 3]]
    check_run(run)


def test_a_callback_can_be_used_again_in_the_same_place(callback):
    for _ in range(2):
        with callback() as observe:
            run = run_with(observe)
        check_run(run)


def test_a_run_opens_a_callback_and_closes_it(callback, tmp_path):
    check_run(run_with(callback()))
    if any(tmp_path.iterdir()):
        # A second run can write there, because the first one has left its files.
        check_run(run_with(callback()))


def test_a_callback_is_a_record_of_hooks(callback):
    with callback() as observe:
        assert isinstance(observe, callbacks.Callback)
        assert not observe.after and observe.state_dict is None


def test_a_callback_that_was_entered_before_is_refused(callback):
    observe = callback()
    with observe:
        pass
    if hasattr(observe, "gen"):
        with pytest.raises(jaxdl.InputError, match="entered before"):
            run_with(observe)


def test_a_callback_of_a_run_of_no_epoch_ends_too(callback):
    with callback() as observe:
        assert callable(observe)


def test_an_exception_passes_through_a_callback(callback):
    class OwnError(Exception):
        pass

    def fails(run_state, history):
        raise OwnError

    for _ in range(2):
        with pytest.raises(OwnError), callback() as observe:
            run_with(observe, fails)
    with callback() as observe:
        run = run_with(observe)
    check_run(run)
