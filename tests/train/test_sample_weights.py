"""Sample weights, examples of weight 0 and padding, against closed forms, NumPy, scikit-learn and invariances."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LinearRegression

from jaxdl import (
    Dataset,
    Model,
    Variables,
    dataset,
    evaluate,
    evaluate_members,
    fit,
    fit_seeds,
    losses,
    make_plan,
    metrics,
    mlp,
    run_epoch,
    start,
)
from jaxdl.data import DataSource, from_random_access, memory_mapped, take
from jaxdl.data.arrays import with_class_weight
from jaxdl.data.batches import batches_of, training_rows
from jaxdl.distributed import make_mesh, shard_dataset
from jaxdl.errors import InputError
from jaxdl.train import make_eval_step, make_train_state, make_train_step
from jaxdl.train.step import make_gradient
from jaxdl.types import Objective
from tests.padding import pad

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(70, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]], np.float32) + RANDOM.normal(size=(70, 1))).astype(np.float32)
W = RANDOM.uniform(0.1, 4.0, 70).astype(np.float32)
ZEROS = np.where(np.arange(70) % 3 == 0, 0, W).astype(np.float32)  # a third of the examples must not count
SQUARED = Objective(losses.squared_error, (metrics.mae,))


def linear():
    """y = x w + b."""

    def init(key, inputs):
        return Variables({"w": jnp.zeros((inputs.shape[1], 1)), "b": jnp.zeros(1)}, {})

    def apply(weights, inputs, *, train, key=None, mask=None):
        return inputs @ weights.params["w"] + weights.params["b"][None, :], weights.stats

    return Model(init, apply)


LINEAR = linear()
SGD = optax.sgd(0.05)
NORMED, ADAM = mlp((4,), input_norm=True), optax.adam(0.01)


def begun(model):
    return jax.jit(model.init)(jax.random.key(0), X)


@partial(jax.jit, static_argnames="batch_size")
def mean_gradient(state, rows, *, batch_size):
    """The mean of the gradients of an epoch's batches."""
    batch, gradient = batches_of(rows, jax.random.key(1), 0, batch_size), make_gradient(LINEAR, SQUARED)
    each = jax.lax.map(lambda number: gradient(state, batch(number)), jnp.arange(70 // batch_size))
    return jax.tree.map(lambda leaf: leaf.mean(0), each)


def leaves_equal(one, other):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


def leaves_close(one, other, rtol=1e-4, atol=1e-5):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


def with_garbage(inputs=np.nan, targets=np.nan):
    """The data with anything in the examples of weight 0."""
    x, y = X.copy(), Y.copy()
    x[ZEROS == 0], y[ZEROS == 0] = inputs, targets
    return dataset(x, y, ZEROS)


@pytest.mark.parametrize("weights", [W, ZEROS], ids=["weights", "some of them 0"])
@pytest.mark.parametrize("batch_size", [1, 7, 14, 70])
def test_the_mean_gradient_of_an_epoch_is_that_of_the_weighted_mean_loss(batch_size, weights):
    weights_now = Variables({"w": jnp.array([[0.3], [0.1], [-0.2]]), "b": jnp.array([0.4])}, {})
    state = make_train_state(weights_now, optax.sgd(0.1), jax.random.key(0))
    rows = jax.tree.map(jnp.asarray, training_rows(dataset(X, Y, weights)))
    result = mean_gradient(state, rows, batch_size=batch_size)
    x, y, w = (np.float64(each) for each in (X, Y, weights[:, None]))
    error = x @ np.array([[0.3], [0.1], [-0.2]]) + 0.4 - y
    np.testing.assert_allclose(result["b"], [(2 * w * error).sum() / w.sum()], rtol=1e-4)
    np.testing.assert_allclose(result["w"], 2 * x.T @ (w * error) / w.sum(), rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_balanced_class_weights_give_even_odds(batch_size):
    # One in a hundred is positive; with balanced weights the best constant is a probability of one half.
    labels = (np.arange(200) % 100 == 0).astype(np.float32)[:, None]
    weights = np.where(labels[:, 0] == 1, 50, 50 / 99).astype(np.float32)
    rows = dataset(np.zeros((200, 1), np.float32), labels, weights)
    schedule = optax.cosine_decay_schedule(0.05, 60 * -(-200 // batch_size))
    run = fit(LINEAR, losses.sigmoid_cross_entropy, optax.sgd(schedule), rows, epochs=60,
              batch_size=batch_size)  # fmt: skip
    assert abs(1 / (1 + np.exp(-float(run.final.params["b"][0]))) - 0.5) < 0.05


def test_weights_of_one_change_no_bit_and_their_scale_does_not_matter():
    plain = fit(LINEAR, losses.squared_error, SGD, dataset(X, Y), metrics=[metrics.mae], epochs=3, batch_size=16)
    ones = fit(
        LINEAR, losses.squared_error, SGD, dataset(X, Y, np.ones(70)), metrics=[metrics.mae], epochs=3, batch_size=16
    )
    leaves_equal(plain.final, ones.final)
    fives = fit(
        LINEAR,
        losses.squared_error,
        SGD,
        dataset(X, Y, np.full(70, 5.0)),
        metrics=[metrics.mae],
        epochs=3,
        batch_size=16,
    )
    leaves_close(plain.final, fives.final, rtol=1e-5)
    one, other = (
        fit(LINEAR, losses.squared_error, SGD, dataset(X, Y, s * W), metrics=[metrics.mae], epochs=3, batch_size=16)
        for s in (1, 99)
    )
    leaves_close(one.final, other.final)


def test_full_batches_find_the_weighted_regression_of_scikit_learn():
    run = fit(
        LINEAR,
        losses.squared_error,
        optax.adam(0.1),
        dataset(X, Y, ZEROS),
        metrics=[metrics.mae],
        epochs=400,
        batch_size=70,
    )
    wanted = LinearRegression().fit(X, Y, sample_weight=ZEROS)
    np.testing.assert_allclose(run.final.params["w"][:, 0], wanted.coef_[0], atol=2e-3)
    np.testing.assert_allclose(run.final.params["b"], wanted.intercept_, atol=2e-3)


def test_metrics_are_those_of_scikit_learn_with_sample_weights():
    weights = LINEAR.init(jax.random.key(0), X)
    result = evaluate(LINEAR, weights, dataset(X, Y, W), losses.squared_error, metrics=[metrics.mae], batch_size=16)
    np.testing.assert_allclose(result["loss"], sk.mean_squared_error(Y, 0 * Y, sample_weight=W), rtol=1e-5)
    np.testing.assert_allclose(result["mae"], sk.mean_absolute_error(Y, 0 * Y, sample_weight=W), rtol=1e-5)


def test_weight_0_is_as_if_the_examples_were_not_there():
    model = NORMED
    remaining = np.flatnonzero(ZEROS)
    left_out = take(dataset(X, Y, W), remaining)
    weights = begun(model)
    both = [
        fit(
            model,
            losses.squared_error,
            SGD,
            rows,
            metrics=[metrics.mae],
            epochs=4,
            batch_size=len(rows.sample_weight),
            variables=weights,
        )
        for rows in (with_garbage(), left_out)
    ]
    leaves_close(both[0].final, both[1].final)
    np.testing.assert_allclose(both[0].records[-1]["loss"], both[1].records[-1]["loss"], rtol=1e-4)


eval_step = jax.jit(make_eval_step(NORMED, losses.squared_error, metrics=[metrics.mae]))
train_step = jax.jit(make_train_step(NORMED, losses.squared_error, ADAM, metrics=[metrics.mae]))
GARBAGE = [(np.nan, np.nan), (1e30, -np.inf)]


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_what_an_example_of_weight_0_holds_changes_no_bit(garbage):
    model, optimizer = NORMED, ADAM
    weights = begun(model)
    both = []
    for rows in (with_garbage(*garbage), with_garbage(0.0, 0.0)):
        source = DataSource(70, lambda numbers, rows=rows: take(rows, numbers), mean_weight=float(ZEROS.mean()))
        plan = make_plan(model, losses.squared_error, optimizer, metrics=[metrics.mae], batch_size=16)
        both.append(
            [
                fit(
                    model, losses.squared_error, optimizer, rows, rows, metrics=[metrics.mae], epochs=2, batch_size=16
                ).final,
                fit(
                    model,
                    losses.squared_error,
                    optimizer,
                    jax.tree.map(jnp.asarray, rows),
                    metrics=[metrics.mae],
                    epochs=2,
                    batch_size=16,
                ).final,
                fit(
                    model, losses.squared_error, optimizer, source, rows, metrics=[metrics.mae], epochs=2, batch_size=16
                ).final,
                fit_seeds(
                    model,
                    losses.squared_error,
                    optimizer,
                    rows,
                    rows,
                    metrics=[metrics.mae],
                    seeds=(0, 1),
                    epochs=2,
                    batch_size=16,
                ).final,
                run_epoch(start(plan, rows, rows, key=jax.random.key(0)), rows, rows, plan=plan)[1],
                evaluate(model, weights, rows, losses.squared_error, metrics=[metrics.mae], batch_size=16),
                evaluate(model, weights, source, losses.squared_error, metrics=[metrics.mae]),
                evaluate_members(
                    model,
                    jax.tree.map(lambda leaf: leaf[None], weights),
                    rows,
                    losses.squared_error,
                    metrics=[metrics.mae],
                ),
                eval_step(weights, rows),
                train_step(make_train_state(weights, optimizer, jax.random.key(0)), rows)[0].variables,
            ]
        )
    leaves_equal(*both)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(both))


def test_a_label_that_is_no_class_may_have_weight_0():
    labels = np.where(ZEROS == 0, -1, RANDOM.integers(0, 3, 70)).astype(np.int32)
    model = mlp((4,), outputs=3)
    rows = dataset(X, labels, ZEROS)
    run = fit(model, losses.softmax_cross_entropy, optax.adam(0.01), rows, rows, metrics=[metrics.accuracy], epochs=2)
    assert run.reason == "epochs" and np.isfinite(list(run.records[-1].values())).all()
    counted = take(rows, np.flatnonzero(ZEROS))
    for name, value in evaluate(
        model, run.final, counted, losses.softmax_cross_entropy, metrics=[metrics.accuracy]
    ).items():
        np.testing.assert_allclose(
            value,
            evaluate(model, run.final, rows, losses.softmax_cross_entropy, metrics=[metrics.accuracy])[name],
            rtol=1e-5,
        )


@pytest.mark.parametrize("input_norm", [False, True])
def test_a_batch_whose_examples_all_have_weight_0_changes_nothing(input_norm):
    model, optimizer = mlp((4,), input_norm=input_norm), optax.adam(0.1)
    state = make_train_state(begun(model), optimizer, jax.random.key(0))
    step = jax.jit(make_train_step(model, losses.squared_error, optimizer, metrics=[metrics.mae]))
    state, _ = step(state, dataset(X, Y))  # so that there is momentum
    nothing = Dataset(np.full_like(X, np.nan), np.full_like(Y, np.nan), np.zeros(70, np.float32))
    after, sums = step(state, nothing)
    leaves_equal((after.variables, after.opt_state), (state.variables, state.opt_state))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(sums))
    # In a run such batches come up where few examples count.
    few = np.where(np.arange(70) == 5, 1, 0).astype(np.float32)
    run = fit(
        model,
        losses.squared_error,
        optimizer,
        dataset(np.where(few[:, None] > 0, X, np.nan), Y, few),
        metrics=[metrics.mae],
        epochs=2,
        batch_size=4,
    )
    assert run.reason == "epochs" and np.isfinite(run.records[-1]["loss"])


def test_padding_is_no_example_but_weight_0_is_one():
    rows = dataset(X[:31], Y[:31])
    weights = Variables({"w": jnp.ones((3, 1)), "b": jnp.zeros(1)}, {})
    state = make_train_state(weights, optax.sgd(0.1), jax.random.key(0))
    gradient = jax.jit(make_gradient(LINEAR, SQUARED))
    alone, padded = gradient(state, rows), gradient(state, pad(rows, 32))
    leaves_close(alone, padded, rtol=1e-5)
    zero = Dataset(X[:32], Y[:32], np.array([1] * 31 + [0], np.float32))
    leaves_close(jax.tree.map(lambda leaf: leaf * 31 / 32, alone), gradient(state, zero), rtol=1e-5)


def test_rows_to_blame_are_those_that_count():
    x, y, w = X.copy(), Y.copy(), ZEROS.copy()
    x[w == 0], y[w == 0] = np.nan, np.inf
    place = int(np.flatnonzero(w)[4])
    y[place] = 1e30  # whose square is infinite
    with pytest.warns(RuntimeWarning, match=rf"first for training row {place} \(counted"):
        run = fit(
            LINEAR,
            losses.squared_error,
            optax.sgd(0.1),
            dataset(x, y, w),
            metrics=[metrics.mae],
            epochs=1,
            batch_size=70,
        )
    assert run.reason == "not-finite"


def test_a_source_with_weights_trains_as_rows_in_memory(tmp_path):
    for name, array in (("x", X), ("y", Y), ("w", W)):
        np.save(tmp_path / f"{name}.npy", array)
    wanted = fit(
        LINEAR, losses.squared_error, SGD, dataset(X, Y, W), metrics=[metrics.mae], epochs=3, batch_size=16
    ).final
    files = memory_mapped(tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / "w.npy")
    leaves_close(
        wanted,
        fit(LINEAR, losses.squared_error, SGD, files, metrics=[metrics.mae], epochs=3, batch_size=16).final,
        rtol=1e-5,
    )
    records = from_random_access(range(70), lambda n: (X[n], Y[n], W[n]), mean_weight=float(W.mean()))
    leaves_close(
        wanted,
        fit(LINEAR, losses.squared_error, SGD, records, metrics=[metrics.mae], epochs=3, batch_size=16).final,
        rtol=1e-5,
    )


def test_a_source_with_weights_whose_mean_is_not_known_cannot_train():
    records = from_random_access(range(70), lambda n: (X[n], Y[n], W[n]))
    with pytest.raises(InputError, match=r"must know their mean .* Give it as mean_weight="):
        fit(LINEAR, losses.squared_error, SGD, records, metrics=[metrics.mae], epochs=1)
    with pytest.raises(InputError, match="mean_weight must be above 0, got 0"):
        DataSource(3, lambda rows: None, mean_weight=0.0)
    weights = LINEAR.init(jax.random.key(0), X)
    wanted = evaluate(LINEAR, weights, dataset(X, Y, W), losses.squared_error, metrics=[metrics.mae])
    np.testing.assert_allclose(
        evaluate(LINEAR, weights, records, losses.squared_error, metrics=[metrics.mae])["loss"],
        wanted["loss"],
        rtol=1e-5,
    )


def test_weights_mean_the_same_on_several_devices():
    rows, mesh = with_garbage(), make_mesh(jax.devices()[:4])
    one = fit(LINEAR, losses.squared_error, SGD, rows, rows, metrics=[metrics.mae], epochs=3, batch_size=15)
    many = fit(
        LINEAR,
        losses.squared_error,
        SGD,
        shard_dataset(rows, mesh),
        shard_dataset(rows, mesh),
        metrics=[metrics.mae],
        epochs=3,
        batch_size=15,
    )
    leaves_close(one.final, many.final, rtol=1e-5)
    np.testing.assert_allclose(one.records[-1]["val_loss"], many.records[-1]["val_loss"], rtol=1e-5)


def test_what_counts_must_be_finite():
    x = X.copy()
    x[1] = np.nan
    with pytest.raises(InputError, match=r"inputs must be finite, got nan at \(1, 0\)"):
        dataset(x, Y, W)
    with pytest.raises(InputError, match=r"not all 0, got shape \(70,\), minimum 0"):
        dataset(X, Y, 0 * W)


LABELS = np.arange(24) % 3
CLASSES = dataset(RANDOM.normal(size=(24, 2)), LABELS, 1 + np.arange(24) % 2)
CLASS_WEIGHT = [1.0, 0.3, 5.0]
CLASSIFIER = mlp((), outputs=3)


@pytest.mark.parametrize(
    "class_weight",
    [CLASS_WEIGHT, {0: 1, 1: 0.3, 2: 5}, {2: 5.0, 1: np.float32(0.3)}, np.array(CLASS_WEIGHT)],
    ids=["list", "dict", "some", "array"],
)
def test_class_weights_are_sample_weights_to_the_bit(class_weight):
    by_hand = CLASSES._replace(sample_weight=CLASSES.sample_weight * np.float32(CLASS_WEIGHT)[LABELS])
    options = {"epochs": 2, "batch_size": 7}
    one = fit(
        CLASSIFIER, losses.softmax_cross_entropy, optax.sgd(0.1), CLASSES, CLASSES, class_weight=class_weight, **options
    )
    other = fit(CLASSIFIER, losses.softmax_cross_entropy, optax.sgd(0.1), by_hand, CLASSES, **options)
    assert one.records == other.records
    for a, b in zip(jax.tree.leaves(one.final), jax.tree.leaves(other.final), strict=True):
        np.testing.assert_array_equal(a, b)


def test_class_weights_of_many_runs_and_of_arrays_on_a_device():
    by_hand = CLASSES._replace(sample_weight=CLASSES.sample_weight * np.float32(CLASS_WEIGHT)[LABELS])
    options = {"epochs": 1, "batch_size": 8, "seeds": (0, 1)}
    placed = jax.tree.map(jnp.asarray, CLASSES)
    runs = [
        fit_seeds(CLASSIFIER, losses.softmax_cross_entropy, optax.sgd(0.1), rows, class_weight=weights, **options)
        for rows, weights in ((by_hand, None), (CLASSES, CLASS_WEIGHT), (placed, CLASS_WEIGHT))
    ]
    for run in runs[1:]:
        assert run.history.equals(runs[0].history)


def test_class_weights_are_those_of_keras():
    keras = pytest.importorskip("keras.src.trainers.data_adapters.data_adapter_utils")
    ones = dataset(np.arange(24.0)[:, None], LABELS)
    weights = keras.class_weight_to_sample_weights(LABELS, {1: 0.3, 2: 5.0})
    np.testing.assert_array_equal(with_class_weight(ones, {1: 0.3, 2: 5.0}).sample_weight, weights)


def test_examples_that_do_not_count_need_no_class():
    rows = CLASSES._replace(targets=np.where(np.arange(24) == 5, -1, LABELS))
    rows = rows._replace(sample_weight=np.where(np.arange(24) == 5, np.float32(0), rows.sample_weight))
    assert with_class_weight(rows, CLASS_WEIGHT).sample_weight[5] == 0


@pytest.mark.parametrize(
    ("rows", "weights", "words"),
    [
        (dataset(np.eye(24), np.eye(24)), CLASS_WEIGHT, r"needs integer labels \(N,\) as targets, got Dataset"),
        (dataset(np.eye(24), LABELS * 1.0), CLASS_WEIGHT, r"Use targets.astype\(int\)"),
        (dataset(np.eye(24), {"a": LABELS}), CLASS_WEIGHT, r"needs integer labels"),
        (dataset(np.eye(24)), CLASS_WEIGHT, r"needs integer labels"),
        (DataSource(24, lambda numbers: take(CLASSES, numbers)), CLASS_WEIGHT, "a dataset in memory, got a DataSource"),
        (CLASSES, {0: 1.0, 7: 2.0}, "labels of train, 0, 1, 2, got the weights of 0, 7: 7 is in one of them alone"),
        (CLASSES, [1.0, 2.0], "got the weights of 0, 1: 2 is in one of them alone"),
        (CLASSES, {"a": 1.0}, "a class of class_weight must be a whole number"),
        (CLASSES, "balanced", r'must be a dict \{class: weight\}, or the weight of each class, got "balanced"'),
        (CLASSES, {1: -0.5}, r"class_weight\[1\] must be a number from 0 on, got -0.5"),
        (CLASSES, [1.0, np.nan, 1.0], r"class_weight\[1\] must be a number from 0 on, got nan"),
        (CLASSES, [1.0, np.inf, 1.0], r"class_weight\[1\] must be a number from 0 on, got inf"),
        (CLASSES, [0.0, 0, 0], "sample_weight must not all be 0"),
    ],
)
def test_class_weights_that_fit_no_labels_are_refused(rows, weights, words):
    with pytest.raises(InputError, match=words):
        fit(
            CLASSIFIER, losses.softmax_cross_entropy, optax.sgd(0.1), rows, class_weight=weights, batch_size=8, epochs=1
        )
