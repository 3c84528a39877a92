"""Inputs, targets and outputs that are pytrees: the same bits as one array, wherever the data are."""

from collections import namedtuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error

from jaxdl import (
    Dataset,
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
    from_nnx,
    grid,
    load,
    losses,
    make_plan,
    metrics,
    mlp,
    predict,
    predict_mean,
    run_epoch,
    save,
    start,
    summary,
    sweep,
)
from jaxdl.data import DataSource, from_random_access, memory_mapped, take
from jaxdl.data.batches import default_batch_size
from jaxdl.data.streaming import read_rows
from jaxdl.saving import predict_script
from jaxdl.saving.export import export_model, load_model, save_model
from jaxdl.train.epoch import eval_batch_size

RANDOM = np.random.default_rng(0)
X, AGE = RANDOM.normal(size=(53, 3)).astype(np.float32), RANDOM.normal(size=53).astype(np.float32)
Y = (X @ [[1.0], [2.0], [-1.0]] + 0.1).astype(np.float32)
WEIGHT = RANDOM.integers(0, 3, 53).astype(np.float32)
PLAIN, NORMED, SGD = mlp(()), mlp((4,), input_norm=True, dropout=0.2), optax.sgd(0.05)
TRAIN, VALIDATION = dataset(X[:40], Y[:40]), dataset(X[40:], Y[40:])
Inputs = namedtuple("Inputs", "x age")


def of_key(model, key="x"):
    """A model of a container with one array, which takes that array."""
    return Model(
        lambda rng, inputs: model.init(rng, inputs[key]),
        lambda variables, inputs, **options: model.apply(variables, inputs[key], **options),
    )


def wrapped(rows, wrap=lambda array: {"x": array}):
    return Dataset(wrap(rows.inputs), rows.targets, rows.sample_weight)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


KEYED, KEYED_NORMED = of_key(PLAIN), of_key(NORMED)


@pytest.mark.parametrize("weights", [None, WEIGHT[:40]], ids=["ones", "weights"])
def test_a_dict_of_one_array_trains_to_the_bits_of_the_array(weights):
    train = TRAIN if weights is None else dataset(X[:40], Y[:40], weights)
    options = {"metrics": [metrics.rmse], "epochs": 3, "batch_size": 16, "seed": 1}
    plain = fit(NORMED, losses.squared_error, SGD, train, VALIDATION, **options)
    keyed = fit(KEYED_NORMED, losses.squared_error, SGD, wrapped(train), wrapped(VALIDATION), **options)
    assert keyed.records == plain.records
    same(keyed.final, plain.final)
    same(keyed.best, plain.best)
    values, keyed_values = (
        evaluate(model, plain.best, rows, losses.squared_error, metrics=[metrics.mae], batch_size=5)
        for model, rows in ((NORMED, VALIDATION), (KEYED_NORMED, wrapped(VALIDATION)))
    )
    same(values, keyed_values)
    for size in (None, 4):
        same(
            predict(NORMED, plain.best, X, batch_size=size),
            predict(KEYED_NORMED, plain.best, {"x": X}, batch_size=size),
        )


def test_many_runs_of_a_dict_are_those_of_the_array():
    options = {"seeds": (0, 1), "epochs": 2, "batch_size": 16}
    plain = fit_seeds(PLAIN, losses.squared_error, SGD, TRAIN, VALIDATION, **options)
    keyed = fit_seeds(KEYED, losses.squared_error, SGD, wrapped(TRAIN), wrapped(VALIDATION), **options)
    same(keyed.best, plain.best)
    same(
        evaluate_members(KEYED, plain.best, wrapped(VALIDATION), losses.squared_error),
        evaluate_members(PLAIN, plain.best, VALIDATION, losses.squared_error),
    )
    same(predict_mean(KEYED, plain.best, {"x": X}), predict_mean(PLAIN, plain.best, X))


def test_a_sweep_of_a_dict_is_that_of_the_array():
    def table(model, train):
        def make(rate):
            return make_plan(model, losses.squared_error, optax.sgd(rate), batch_size=16)

        return sweep(make, grid(rate=(0.1, 0.01)), train, seeds=(0, 1), epochs=2).table

    assert table(KEYED, wrapped(TRAIN)).equals(table(PLAIN, TRAIN))


def test_an_epoch_by_hand_and_a_saved_model_take_a_dict(tmp_path):
    states = []
    for model, rows in ((PLAIN, TRAIN), (KEYED, wrapped(TRAIN))):
        plan = make_plan(model, losses.squared_error, SGD, batch_size=16)
        states.append(run_epoch(start(plan, rows, key=jax.random.key(0)), rows, None, plan=plan))
    (plain, record), (keyed, keyed_record) = states
    same(record, keyed_record)
    same(plain.train_state.variables, keyed.train_state.variables)
    save(tmp_path / "model", keyed.train_state.variables)
    same(load(tmp_path / "model"), jax.tree.map(np.asarray, keyed.train_state.variables))


def test_eight_devices_train_a_dict_as_the_array():
    mesh = distributed.make_mesh()
    train, keyed = (distributed.shard_dataset(rows, mesh) for rows in (TRAIN, wrapped(TRAIN)))
    options = {"epochs": 2, "batch_size": 15}
    plain = fit(PLAIN, losses.squared_error, SGD, train, VALIDATION, **options)
    result = fit(KEYED, losses.squared_error, SGD, keyed, wrapped(VALIDATION), **options)
    assert result.records == plain.records
    same(result.final, plain.final)
    alone = fit(KEYED, losses.squared_error, SGD, wrapped(TRAIN), wrapped(VALIDATION), **options)
    np.testing.assert_allclose([r["loss"] for r in result.records], [r["loss"] for r in alone.records], rtol=1e-5)


class Both(nn.Module):
    """Two inputs by name, two outputs."""

    @nn.compact
    def __call__(self, x, age, train: bool = False):
        hidden = jnp.concatenate([nn.BatchNorm(use_running_average=not train)(x), age[:, None]], axis=1)
        return {"a": nn.Dense(1)(hidden), "b": nn.Dense(4)(hidden)}


class Paired(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x, age, scale=None):
        x = x if scale is None else x * scale[:, None]
        return self.dense(jnp.concatenate([x, age[:, None]], axis=1))


BOTH = from_linen(Both())
TWO = {"x": X, "age": AGE}
LABELS = RANDOM.integers(0, 4, 53)


def both_loss(outputs, targets):
    return losses.squared_error(outputs["a"], targets["a"]) + losses.softmax_cross_entropy(outputs["b"], targets["b"])


ROWS = dataset(TWO, {"a": Y, "b": LABELS}, WEIGHT)


def window_source(rows, mean=None):
    return DataSource(len(rows.sample_weight), lambda numbers: take(rows, numbers), mean)


@pytest.mark.parametrize("devices", [None, 8])
def test_a_stream_of_several_inputs_trains_as_memory_does(devices):
    plan = make_plan(BOTH, both_loss, optax.adam(0.01), batch_size=16)
    source = window_source(ROWS, float(WEIGHT.mean(dtype=np.float64)))
    state = start(plan, ROWS, key=jax.random.key(0))
    train = ROWS
    if devices:
        mesh = distributed.make_mesh()
        state, train = distributed.shard_state(state, mesh), distributed.shard_dataset(ROWS, mesh)
    memory, streamed = (
        fit(BOTH, both_loss, optax.adam(0.01), rows, epochs=3, batch_size=16, state=state) for rows in (train, source)
    )
    if devices:
        np.testing.assert_allclose(
            [r["loss"] for r in streamed.records], [r["loss"] for r in memory.records], rtol=1e-5
        )
    else:
        assert memory.records == streamed.records
        same(memory.final, streamed.final)
    values = [evaluate(BOTH, memory.best, rows, both_loss, batch_size=7)["loss"] for rows in (ROWS, source)]
    np.testing.assert_allclose(*values, rtol=1e-6)
    outputs = [predict(BOTH, memory.best, rows, batch_size=7) for rows in (TWO, source)]
    assert outputs[1]["b"].shape == (53, 4)
    for one, other in zip(*map(jax.tree.leaves, outputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_two_inputs_and_outputs_equal_the_sum_by_hand_in_numpy():
    variables = BOTH.init(jax.random.key(0), TWO)
    outputs = predict(BOTH, variables, TWO, batch_size=10)
    kernels, table = variables.params, np.concatenate([X / np.sqrt(1 + 1e-5), AGE[:, None]], axis=1)
    a, b = (table @ np.asarray(kernels[name]["kernel"]) for name in ("Dense_0", "Dense_1"))
    np.testing.assert_allclose(outputs["a"], a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["b"], b, rtol=1e-4, atol=1e-5)
    log = b - np.log(np.exp(b).sum(1, keepdims=True))
    values = (a - Y)[:, 0] ** 2 - log[np.arange(53), LABELS]
    expected = (values * WEIGHT).sum() / WEIGHT.sum()
    assert float(evaluate(BOTH, variables, ROWS, both_loss, batch_size=8)["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("inputs", "kind", "names"),
    [
        (TWO, dict, ["age", "x"]),
        ({"deep": TWO, "x": X}, dict, ["deep", "x"]),
        ((X, AGE), tuple, None),
        ([X, AGE], tuple, None),
        (Inputs(X, AGE), Inputs, None),
    ],
    ids=["dict", "nested", "tuple", "list", "NamedTuple"],
)
def test_a_dataset_holds_containers_of_arrays(inputs, kind, names):
    rows = dataset(inputs, Y)
    assert type(rows.inputs) is kind and (names is None or sorted(rows.inputs) == names)
    assert {len(leaf) for leaf in jax.tree.leaves(rows)} == {53}
    part = take(rows, [3, 1])
    np.testing.assert_array_equal(jax.tree.leaves(part.inputs)[-1], jax.tree.leaves(rows.inputs)[-1][[3, 1]])


def test_a_list_of_arrays_is_rows_unless_it_has_an_array_for_each_of_several_inputs():
    assert dataset([*X], Y).inputs.shape == (53, 3)
    assert dataset([*X], [*Y]).targets.shape == (53, 1)
    rows = dataset([X, AGE], [Y, LABELS])
    assert [leaf.shape for leaf in rows.inputs + rows.targets] == [(53, 3), (53,), (53, 1), (53,)]
    with pytest.raises(InputError, match=r"a list of 3 arrays of 3 rows may be 3 examples or 3 inputs"):
        dataset([*np.eye(3)], [1.0, 2.0, 3.0])


def test_the_text_of_a_dataset_shows_its_containers():
    rows = dataset({"x": X, "pair": (AGE, Inputs(X, AGE))}, [Y, LABELS])
    assert repr(rows) == (
        "Dataset(inputs={'x': float32[53, 3], 'pair': (float32[53], Inputs(x=float32[53, 3], age=float32[53]))}, "
        "targets=(float32[53, 1], int64[53]), sample_weight=float32[53])"
    )
    assert repr(dataset(X)) == "Dataset(inputs=float32[53, 3], sample_weight=float32[53])"


def test_modules_of_several_arguments_take_a_dict_of_their_names():
    model = from_nnx(lambda rngs: Paired(rngs))
    variables = model.init(jax.random.key(0), TWO)
    expected = np.concatenate([X, AGE[:, None]], 1) @ np.asarray(variables.params["dense"]["kernel"])
    np.testing.assert_allclose(predict(model, variables, TWO), expected, rtol=1e-4, atol=1e-5)
    same(predict(model, variables, TWO), predict(model, variables, {**TWO, "scale": np.ones(53, np.float32)}))
    for inputs, words in (
        ({"x": X}, "its inputs are a dict of x"),
        (X, r"its inputs are an array of shape \(53, 3\)"),
        ((X, AGE), "its inputs are a tuple"),
    ):
        with pytest.raises(InputError, match=f"the model needs x, age, and {words}.*Use dataset"):
            BOTH.init(jax.random.key(0), inputs)


def test_the_largest_input_sets_the_batch_size_of_an_evaluation():
    small, images = np.zeros((9, 2), np.float32), np.zeros((9, 64, 64, 3), np.float32)
    assert default_batch_size({"a": small, "b": images}) == default_batch_size(images)
    assert eval_batch_size((small, images), None) == eval_batch_size(images, None) < 1024


def test_a_summary_and_a_program_take_several_inputs(tmp_path):
    table = summary(BOTH, ROWS)
    assert table.parameters == 4 + 1 + 16 + 4 + 6 + 6
    variables = BOTH.init(jax.random.key(0), TWO)
    save_model(tmp_path / "program", BOTH, variables, TWO)
    same(predict(load_model(tmp_path / "program", variables), variables, TWO), predict(BOTH, variables, TWO))
    folder = export_model(tmp_path / "folder", BOTH, variables, TWO)
    same(predict_script.load(folder).predict(TWO), predict(BOTH, variables, TWO))


def test_files_and_records_may_hold_several_arrays(tmp_path):
    for name, array in {"x": X, "age": AGE, "y": Y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    numbers = np.array([5, 2, 2])
    source = memory_mapped({"x": tmp_path / "x.npy", "age": tmp_path / "age.npy"}, tmp_path / "y.npy")
    same(read_rows(source, numbers), take(dataset(TWO, Y), numbers))
    records = [{"x": x, "age": age, "y": y} for x, age, y in zip(X, AGE, Y, strict=True)]
    source = from_random_access(records, lambda row: (Inputs(row["x"], row["age"]), row["y"]))
    same(read_rows(source, numbers), take(dataset(Inputs(X, AGE), Y), numbers))
    source = from_random_access(records, lambda row: ({"x": row["x"]} if row["age"] > 0 else {"y": row["x"]}, row["y"]))
    with pytest.raises(InputError, match="inputs must have one structure in all rows"):
        read_rows(source, np.arange(9))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (Dataset({"x": X, "age": AGE[:9]}, Y, WEIGHT), "train must have one row of inputs['x'] for each of the 9 rows"),
        (Dataset({"x": X, "age": 3}, Y, WEIGHT), "train must hold arrays, got 3 for its inputs['age']"),
        (Dataset({"x": X, "age": AGE.astype(">f4")}, Y, WEIGHT), "train.inputs['age'] must be an array of numbers"),
        (Dataset({}, Y, WEIGHT), "train must hold arrays, got a dict for its inputs"),
    ],
)
def test_a_message_names_the_array_of_a_container(rows, words):
    with pytest.raises(InputError) as caught:
        fit(BOTH, both_loss, SGD, rows)
    assert words in str(caught.value)


def test_validation_data_must_have_the_arrays_of_the_training_data():
    other = dataset({"x": X, "age": X}, ROWS.targets)
    with pytest.raises(InputError, match=r"training inputs, \{'age': \(\), 'x': \(3,\)\} for each example, got"):
        fit(BOTH, both_loss, SGD, ROWS, other)
    with pytest.raises(InputError, match=r"train and validation must both hold bytes or neither, got inputs\['x'\]"):
        fit(BOTH, both_loss, SGD, ROWS, dataset({"x": X.astype(np.uint8), "age": AGE}, ROWS.targets))


def test_variables_that_do_not_fit_several_inputs_are_named():
    variables = BOTH.init(jax.random.key(0), TWO)
    with pytest.raises(InputError, match=r"inputs of shape \(batch\), \(batch, 2\): .*BatchNorm_0"):
        predict(BOTH, variables, {"x": X[:, :2], "age": AGE})


def test_a_nan_of_one_input_is_reported_by_its_name():
    train = dataset({"x": X, "age": AGE.copy()}, {"a": Y, "b": LABELS})
    train.inputs["age"][7] = np.inf
    with pytest.warns(RuntimeWarning, match=r"inf in the inputs\['age'\], first for training row 7"):
        fit(BOTH, both_loss, SGD, train, batch_size=16, epochs=1)


def test_a_second_output_of_weight_0_changes_no_bit():
    one, targets = of_key(PLAIN), {"a": Y, "b": LABELS}

    def init(key, inputs):
        variables = PLAIN.init(key, inputs)
        return variables._replace(params={"a": variables.params, "b": jnp.ones((3, 4))})

    def apply(variables, inputs, **options):
        outputs, stats = PLAIN.apply(Variables(variables.params["a"], {}), inputs, **options)
        return {"a": outputs, "b": inputs @ variables.params["b"]}, stats

    parts = {"a": losses.squared_error, "b": losses.softmax_cross_entropy}
    two = losses.weighted_sum(parts, {"a": 1.0, "b": 0.0})
    options = {"epochs": 3, "batch_size": 16}
    plain = fit(one, losses.squared_error, SGD, dataset({"x": X}, Y), metrics=[metrics.rmse], **options)
    both = fit(
        Model(init, apply), two, SGD, dataset(X, targets), metrics=[metrics.of_output("a", metrics.rmse)], **options
    )
    assert [r["loss"] for r in both.records] == [r["loss"] for r in plain.records]
    assert [r["a_rmse"] for r in both.records] == [r["rmse"] for r in plain.records]
    same(both.final.params["a"], plain.final.params)
    np.testing.assert_array_equal(both.final.params["b"], 1)


def test_metrics_of_outputs_are_those_of_scikit_learn():
    parts = {"a": losses.squared_error, "b": losses.softmax_cross_entropy}
    variables = BOTH.init(jax.random.key(0), TWO)
    chosen = [metrics.of_output("a", metrics.mae), metrics.of_output(("b",), metrics.accuracy)]
    values = evaluate(BOTH, variables, ROWS, losses.weighted_sum(parts, {"a": 2.0, "b": 0.5}), metrics=chosen)
    outputs = jax.tree.map(np.asarray, predict(BOTH, variables, TWO))
    mae = mean_absolute_error(Y, outputs["a"], sample_weight=WEIGHT)
    accuracy = accuracy_score(LABELS, outputs["b"].argmax(1), sample_weight=WEIGHT)
    loss = 2 * mean_squared_error(Y, outputs["a"], sample_weight=WEIGHT) + 0.5 * log_loss(
        LABELS, jax.nn.softmax(outputs["b"]), sample_weight=WEIGHT
    )
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {"loss": loss, "a_mae": mae, "b_accuracy": accuracy}, rel=1e-5
    )


class Tagger(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(3)(nn.Embed(7, 8)(tokens))


def test_a_tagger_of_padded_sequences_learns_with_a_mask():
    tokens = RANDOM.integers(0, 7, (64, 6)).astype(np.int32)
    mask = np.arange(6) < RANDOM.integers(0, 7, 64)[:, None]
    rows = dataset(tokens, {"labels": np.where(mask, tokens % 3, -1), "mask": mask})
    right = metrics.mean("accuracy", losses.masked(metrics.accuracy.per_example), mode="max")
    loss = losses.masked(losses.softmax_cross_entropy)
    run = fit(from_linen(Tagger()), loss, optax.adam(0.05), rows, rows, metrics=[right], epochs=10, batch_size=16)
    assert run.records[-1]["val_loss"] < 0.1
    assert run.records[-1]["val_accuracy"] == pytest.approx(mask.any(1).mean(), rel=1e-6)


@pytest.mark.parametrize("outputs", [lambda x: (x, 3), lambda x: {"a": x, "b": x.sum()}], ids=["number", "sum"])
def test_outputs_that_are_no_arrays_of_examples_are_refused(outputs):
    model = Model(lambda key, inputs: Variables({}, {}), lambda variables, inputs, **_: (outputs(inputs), {}))
    with pytest.raises(InputError, match=r"a model must return (an array of outputs|outputs\['b'\] \(batch, ...\))"):
        fit(model, both_loss, SGD, dataset(X, Y), epochs=1)
    with pytest.raises(InputError, match="a model must return"):
        predict(model, Variables({}, {}), X)


def test_the_weight_of_an_output_is_a_number_of_a_sweep():
    parts = {"a": losses.squared_error, "b": losses.softmax_cross_entropy}

    def make(weight):
        return make_plan(BOTH, losses.weighted_sum(parts, {"a": 1.0, "b": weight}), SGD, batch_size=16)

    table = sweep(make, grid(weight=(0.5, 2.0)), ROWS, seeds=(0,), epochs=1).table
    for weight in (0.5, 2.0):
        loss = losses.weighted_sum(parts, {"a": 1.0, "b": weight})
        run = fit(BOTH, loss, SGD, ROWS, batch_size=16, epochs=1, seed=0)
        value = table.loc[table["weight"] == weight, "loss"].item()
        assert value == pytest.approx(run.records[-1]["loss"], rel=1e-5)


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        hidden = nn.Dense(4)(inputs)
        self.sow("intermediates", "activity", (hidden**2).mean(1))
        return nn.Dense(1)(hidden)


def test_values_that_a_module_sows_are_added_by_a_model_loss():
    model = from_linen(Sowing())

    def penalized(variables, batch, key, train):
        outputs, values = Sowing().apply({"params": variables.params}, batch.inputs, mutable="intermediates")
        (activity,) = values["intermediates"]["activity"]
        return losses.squared_error(outputs, batch.targets) + 0.1 * activity, outputs

    variables = model.init(jax.random.key(0), X)
    hidden = X @ np.asarray(variables.params["Dense_0"]["kernel"])
    outputs = hidden @ np.asarray(variables.params["Dense_1"]["kernel"])
    expected = np.mean((outputs - Y) ** 2) + 0.1 * np.mean(hidden**2)
    value = evaluate(model, variables, dataset(X, Y), losses.model_loss(penalized))["loss"]
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": {"a": losses.squared_error}}, "got a dict. Use losses.weighted_sum"),
        ({"loss": both_loss, "metrics": {"a": metrics.mae}}, r"Use \[metrics.of_output\(name, metric\), ...\]"),
    ],
)
def test_dicts_of_losses_and_metrics_name_the_function_to_use(options, words):
    with pytest.raises(InputError, match=words):
        fit(BOTH, optimizer=SGD, train=ROWS, **options)


@pytest.mark.parametrize("loss", ["plain", "model"])
def test_a_run_of_several_inputs_resumes_to_the_bits_of_one_that_went_on(loss):
    loss = both_loss if loss == "plain" else losses.model_loss(both_of)
    options = {"batch_size": 16, "metrics": [metrics.of_output("a", metrics.rmse)]}
    whole = fit(BOTH, loss, optax.adam(0.01), ROWS, ROWS, epochs=3, **options)
    first = fit(BOTH, loss, optax.adam(0.01), ROWS, ROWS, epochs=1, **options)
    resumed = fit(BOTH, loss, optax.adam(0.01), ROWS, ROWS, epochs=3, state=first, **options)
    assert resumed.records == whole.records
    same(resumed.final, whole.final)


def both_of(variables, batch, key, train):
    outputs, stats = BOTH.apply(variables, batch.inputs, train=train, key=key, mask=batch.mask)
    return both_loss(outputs, batch.targets), outputs, stats
