"""Wrong guesses of people who come from other libraries: each ends in one sentence that names what to type."""

import contextlib
import os
import re
import subprocess
import sys
import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx
from sklearn.metrics import mean_squared_error

import jaxdl
from jaxdl import Dataset, InputError, Variables, data, losses, metrics, plots
from jaxdl.callbacks import Callback, Stop
from jaxdl.ensembles import evaluate_members, grid, predict_mean
from jaxdl.metrics import roc_curve
from jaxdl.nn import convnet, mlp, residual_net
from jaxdl.train import early_stopping, make_plan, reduce_on_plateau
from tests.quick import quick_programs

INPUTS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
TARGETS = INPUTS[:, :1] * 2
LABELS = np.arange(12) % 2
ROWS = jaxdl.dataset(INPUTS, TARGETS)
CLASSES = jaxdl.dataset(INPUTS, LABELS)
MODEL, TWO = mlp(()), mlp((), outputs=2)
SGD = optax.sgd(0.1)
# Shapes are enough for what is refused before anything is computed.
WEIGHTS = Variables({"Dense_0": {"kernel": np.zeros((4, 1), np.float32), "bias": np.zeros(1, np.float32)}}, {})
PAIR = Variables({"Dense_0": {"kernel": np.zeros((4, 2), np.float32), "bias": np.zeros(2, np.float32)}}, {})


class Net(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(1)(inputs)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.layer(inputs)


def fit(model=MODEL, loss=losses.squared_error, optimizer=SGD, train=ROWS, validation=None, **options):
    return jaxdl.fit(model, loss, optimizer, train, validation, **{"epochs": 1, "batch_size": 4, **options})


def fit_seeds(train=ROWS, validation=None, model=MODEL, loss=losses.squared_error, **options):
    options = {"epochs": 1, "batch_size": 4, "seeds": (0,), **options}
    return jaxdl.fit_seeds(model, loss, SGD, train, validation, **options)


def plan_of(rate):
    return make_plan(TWO, losses.softmax_cross_entropy, optax.sgd(rate), batch_size=4)


def sweep(trials=None, train=CLASSES, make=plan_of, **options):
    trials = grid(rate=(0.1,)) if trials is None else trials
    return jaxdl.sweep(make, trials, train, **{"epochs": 1, "seeds": (0,), **options})


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_programs():
        yield


@pytest.fixture(scope="module")
def run():
    return fit(loss=losses.squared_error, metrics=[metrics.rmse], validation=ROWS, epochs=2)


@pytest.fixture(scope="module")
def runs():
    return fit_seeds()


def refusal(call):
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def cases(**calls):
    return pytest.mark.parametrize(
        ("call", "words"), [pytest.param(call, words, id=name) for name, (call, words) in calls.items()]
    )


@cases(
    linen=(Net(), "got the Linen module Net. Use from_linen(Net(...))."),
    linen_class=(Net, "got the Linen class Net. Use from_linen(Net(...))."),
    nnx_class=(Layer, "Use from_nnx(lambda rngs: Layer(..., rngs=rngs))."),
    own_module=(jaxdl.MLP((3,)), "Use from_linen(MLP(...))."),
    function=(lambda inputs: inputs, "Use Model(init, apply) with two functions"),
    string=("mlp", 'got "mlp". Use mlp((100, 50))'),
    mlp=(mlp, "Call it: mlp((100, 50))."),
    convnet=(convnet, "Call it: convnet((50, 50))."),
    nothing=(None, "got None."),
    swapped=(ROWS, "The order is fit(model, loss, optimizer, train, validation)."),
)
@pytest.mark.parametrize(
    "entry",
    [
        lambda model: fit(model),
        lambda model: fit_seeds(model=model),
        lambda model: jaxdl.evaluate(model, WEIGHTS, ROWS, losses.squared_error),
        lambda model: jaxdl.predict(model, WEIGHTS, INPUTS),
        lambda model: jaxdl.make_eval_step(model, losses.squared_error),
    ],
)
def test_what_is_no_model_is_told_the_line_to_type(entry, call, words):
    assert words in refusal(lambda: entry(call))


def test_an_nnx_module_is_told_the_line_to_type():
    assert "got the NNX module Layer. Use from_nnx(" in refusal(lambda: fit(Layer(nnx.Rngs(0))))


def test_modules_of_equinox_and_haiku_are_told_the_line_to_type():
    module = eqx.nn.Identity()
    assert "got the Equinox module Identity. Use from_equinox(module)." in refusal(lambda: fit(module))
    assert "Use from_equinox(lambda key: Linear(..., key=key))." in refusal(lambda: fit(eqx.nn.Linear))
    pair = hk.transform(lambda inputs: inputs)
    assert "got the Haiku module Transformed. Use from_haiku(hk.transform_with_state(" in refusal(lambda: fit(pair))


def test_a_keras_model_is_told_the_line_to_type():
    # Classes are known by the package that made them, so that none of these needs to be imported.
    keras = {
        name: type(name, (), {"__module__": "keras.src", "__call__": print}) for name in ("Sequential", "Adam", "MSE")
    }
    model = keras["Sequential"]()
    assert "got the Keras module Sequential. Use from_keras(model)." in refusal(lambda: fit(model))
    assert "Use optax.adam(1e-3), say" in refusal(lambda: fit(optimizer=keras["Adam"]()))
    assert "Use losses.squared_error" in refusal(lambda: fit(loss=keras["MSE"]()))


@cases(
    name=("adam", 'got "adam". Use optax.adam(1e-3).'),
    other_name=("SGD", "Use optax.sgd(1e-3)."),
    not_called=(optax.adam, "got the function adam. Call it: optax.adam(1e-3)."),
    schedule=(optax.cosine_decay_schedule(1e-3, 10), "Use optax.adam(schedule)"),
    constant=(optax.constant_schedule(1e-3), "Use optax.adam(schedule)"),
    rate=(1e-3, "got 0.001. Use optax.adam(0.001)"),
    several=([optax.adam(1e-3)], "Use optax.chain(...)"),
    nothing=(None, "got None. Use optax.adam(1e-3)"),
    swapped=(ROWS, "The order is fit("),
    rule=(early_stopping(), "Give rules as early_stopping= or plateau=."),
)
def test_what_is_no_optimizer_is_told_the_line_to_type(call, words):
    assert words in refusal(lambda: fit(optimizer=call))
    assert words in refusal(lambda: make_plan(MODEL, losses.squared_error, call))
    assert words in refusal(lambda: jaxdl.make_train_step(MODEL, losses.squared_error, call))


@cases(
    string=("mse", 'got "mse". Use losses.squared_error'),
    pair=((losses.squared_error, ()), "got a tuple. Use losses.squared_error"),
    metric=(metrics.rmse, "got the metric rmse. Use metrics=[rmse] beside a loss"),
    swapped=(SGD, "The order is fit(model, loss, optimizer"),
    data=(ROWS, "evaluate(model, variables, dataset, loss)"),
    nothing=(None, "got None. Use losses.squared_error"),
    a_class=(dict, "got the class dict"),
    maker=(losses.huber, "call it first: huber(...)."),
    mean=(metrics.mean, "call it first: mean(...)."),
    smoothed=(losses.smoothed_cross_entropy, "call it first: smoothed_cross_entropy(...)."),
)
def test_what_is_no_loss_is_told_the_line_to_type(call, words):
    for entry in (
        lambda: fit(loss=call),
        lambda: fit_seeds(loss=call),
        lambda: make_plan(MODEL, call, SGD),
        lambda: jaxdl.evaluate(MODEL, WEIGHTS, ROWS, call),
        lambda: jaxdl.make_train_step(MODEL, call, SGD),
        lambda: jaxdl.make_eval_step(MODEL, call),
    ):
        message = refusal(entry)
        assert message.startswith("loss must be a function (outputs, targets) -> (batch,)")
        assert words in message


@cases(
    one_metric=(metrics.rmse, "got one Metric. Use metrics=[rmse]."),
    function=([losses.absolute_error], 'Use metrics.mean("absolute_error", absolute_error)'),
    name=(["rmse"], 'got "rmse". Use metrics.rmse'),
    bare_name=("rmse", "Use metrics.rmse"),
    maker=([metrics.r2], "call it: r2(...)."),
    by_name=({"rmse": metrics.rmse}, "got a dict"),
    nothing=(None, "got None"),
    twice=([metrics.rmse, metrics.rmse], 'got "rmse", which is taken'),
)
def test_what_are_no_metrics_is_told_the_line_to_type(call, words):
    for entry in (
        lambda: fit(metrics=call),
        lambda: fit_seeds(metrics=call),
        lambda: make_plan(MODEL, losses.squared_error, SGD, metrics=call),
        lambda: jaxdl.evaluate(MODEL, WEIGHTS, ROWS, losses.squared_error, metrics=call),
        lambda: jaxdl.make_eval_step(MODEL, losses.squared_error, metrics=call),
    ):
        assert words in refusal(entry)


@pytest.mark.parametrize("make", [list, tuple, iter])
def test_metrics_may_come_in_any_iterable(make):
    options = {"metrics": make([metrics.rmse, metrics.mae])}
    assert list(fit(**options).records[0]) == ["epoch", "loss", "rmse", "mae"]


def test_the_order_of_evaluate_is_told():
    message = refusal(lambda: jaxdl.evaluate(MODEL, losses.squared_error, WEIGHTS, ROWS))
    assert "The order is predict(model, variables, inputs) and evaluate(model, variables, dataset, loss)." in message


@cases(
    number=(3, "got 3. Use early_stopping(patience=3)."),
    name=("val_loss", 'Use early_stopping("val_loss").'),
    not_called=(early_stopping, "Call it: early_stopping(patience=3)."),
    nothing=(None, "Leave early_stopping out"),
    listed=([early_stopping()], "Give the rule itself: early_stopping=early_stopping(...)."),
    other_rule=(reduce_on_plateau(), "Give it as plateau=."),
    switch=(True, "got True."),
)
def test_what_is_no_stopping_rule_is_told_the_line_to_type(call, words):
    assert words in refusal(lambda: fit(early_stopping=call))
    assert words in refusal(lambda: fit_seeds(early_stopping=call))


@cases(
    number=(3, "Use reduce_on_plateau(patience=3)."),
    not_called=(reduce_on_plateau, "Call it: reduce_on_plateau(patience=3)."),
    other_rule=(early_stopping(), "Give it as early_stopping=."),
)
def test_what_is_no_plateau_rule_is_told_the_line_to_type(call, words):
    assert words in refusal(lambda: fit(plateau=call))


@cases(
    optimizer=(
        lambda: jaxdl.fit(MODEL, losses.squared_error, optimiser="adam", train=ROWS),
        "no argument optimiser. Use optimizer.",
    ),
    loss=(lambda: jaxdl.fit(MODEL, optimizer=SGD, train=ROWS, loss_fn=losses.squared_error), "Use loss."),
    metric=(lambda: fit(metric=[metrics.rmse]), "Use metrics."),
    callbacks=(lambda: fit(observers=[]), "Use callbacks."),
    rate=(lambda: fit(lr=0.1), "Use optimizer."),
    batch=(lambda: fit(batch=8), "Use batch_size."),
    validation_data=(lambda: fit(validation_data=ROWS), "Use validation."),
    inputs=(lambda: fit(x=INPUTS), "fit takes no argument x."),
    verbose=(lambda: fit(verbose=0), "fit takes no argument verbose."),
    sample_weight=(
        lambda: fit(sample_weight=LABELS),
        "Give sample weights to dataset(inputs, targets, sample_weight).",
    ),
    unknown=(lambda: fit(foo=1), "fit takes model, loss, optimizer, train, validation, metrics, epochs,"),
    missing=(lambda: jaxdl.fit(MODEL, losses.squared_error), "fit needs optimizer and train"),
    by_place=(
        lambda: jaxdl.fit(MODEL, losses.squared_error, SGD, ROWS, ROWS, 10),
        "Give the others by name, such as metrics=.",
    ),
    twice=(lambda: jaxdl.fit(MODEL, losses.squared_error, SGD, ROWS, model=MODEL), "fit got model twice"),
    seeds=(lambda: jaxdl.fit_seeds(MODEL, losses.squared_error, SGD, ROWS, seed=3), "Use seeds."),
    plan=(lambda: make_plan(MODEL, losses.squared_error, optimiser=SGD), "Use optimizer."),
    start=(lambda: jaxdl.start(make_plan(MODEL, losses.squared_error, SGD), ROWS), "start needs key"),
    key=(lambda: jaxdl.start(make_plan(MODEL, losses.squared_error, SGD), ROWS, key=0), "Use jax.random.key(0)"),
    summary=(lambda: jaxdl.summary(MODEL), "summary needs inputs"),
    no_inputs=(lambda: jaxdl.dataset(), "dataset needs inputs"),
    test_size=(lambda: data.split(70, test_size=0.3), "split takes count, fraction, seed."),
    monitor=(lambda: early_stopping(moniter="loss"), "Use monitor."),
    patience=(lambda: early_stopping("loss", 3), "such as patience=."),
    widths=(lambda: mlp(100, 50), "Use mlp((100, 50)) for several values."),
    filters=(lambda: convnet(32, 64), "Use convnet((32, 64)) for several values."),
    nothing=(lambda: mlp(), "mlp needs widths"),
    activation=(lambda: mlp((3,), activation="relu"), "mlp takes no argument activation."),
    batch_size=(lambda: jaxdl.predict(MODEL, WEIGHTS, INPUTS, 32), "such as batch_size=."),
    grid=(lambda: grid({"rate": (0.1,)}), "grid takes 0 arguments without a name"),
)
def test_a_call_that_the_signature_does_not_take_is_told_what_it_takes(call, words):
    assert words in refusal(call)


def test_a_type_error_inside_a_function_stays_a_type_error():
    def loss(outputs, targets):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        fit(loss=loss)


@cases(
    one=(lambda: mlp(100), "widths must be a tuple of whole numbers, one for each layer, got 100. Use widths=(100,)."),
    floats=(lambda: mlp((100.0,)), "widths[0] must be a whole number, got 100.0. Use 100."),
    strings=(lambda: mlp(("100",)), "Use 100."),
    string=(lambda: mlp("100"), "Use widths=(100, 50), say."),
    switch=(lambda: mlp((True,)), "got True"),
    nested=(lambda: mlp(((3,),)), "widths[0] must be a whole number, got a tuple"),
    outputs=(lambda: mlp((3,), outputs="2"), "outputs must be a whole number, at least 1"),
    dropout=(lambda: mlp((3,), dropout="0.5"), "dropout must be a number"),
    percent=(lambda: mlp((3,), dropout=50), "dropout must be a rate from 0 to below 1, got 50"),
    dtype=(lambda: mlp((3,), dtype="flaot"), 'dtype must be a floating dtype, got "flaot"'),
    scale=(lambda: mlp((3,), init_scale="a"), "init_scale must be a number"),
    filters=(lambda: convnet((3.5,)), "filters[0] must be a whole number, got 3.5"),
    kernel=(lambda: convnet((3,), kernel=(3, 3)), "kernel must be a whole number"),
    padding=(lambda: convnet((3,), padding="same"), 'Use "SAME".'),
    width=(lambda: residual_net((64,)), "width must be a whole number"),
)
def test_sizes_of_networks_that_are_none_are_refused(call, words):
    assert words in refusal(call)


@pytest.mark.parametrize("widths", [[3, 2], (np.int64(3), 2), np.array([3, 2]), range(2, 4)])
def test_every_row_of_whole_numbers_is_a_row_of_widths(widths):
    shapes = jax.eval_shape(mlp(widths).init, jax.random.key(0), INPUTS)
    assert len(shapes.params) == 3


NO_ROWS = {
    "dict": {"inputs": INPUTS, "targets": TARGETS},
    "pair": (INPUTS, TARGETS),
    "list": [INPUTS, TARGETS],
    "array": INPUTS,
    "table": pd.DataFrame(INPUTS),
    "fraction": 0.2,
    "nothing": None,
    "path": "train.csv",
    "lists": Dataset([[1.0]], [[1.0]], [1.0]),
    "unequal": Dataset(INPUTS, TARGETS[:3], np.ones(12, np.float32)),
    "weights": WEIGHTS,
    "generator": (batch for batch in [ROWS]),
}


@pytest.mark.parametrize("rows", NO_ROWS.values(), ids=NO_ROWS)
def test_what_are_no_examples_are_told_to_be_made(rows):
    for call in (lambda: fit(train=rows), lambda: fit_seeds(rows), lambda: sweep(train=rows)):
        assert re.match(r"train must .*dataset\(", refusal(call))
    assert re.match(
        r"dataset must .*dataset\(", refusal(lambda: jaxdl.evaluate(MODEL, WEIGHTS, rows, losses.squared_error))
    )
    if rows is not None:
        assert re.match(r"validation must .*dataset\(", refusal(lambda: fit(validation=rows)))
        assert re.match(r"validation must .*dataset\(", refusal(lambda: fit_seeds(validation=rows)))


@cases(
    columns=(jaxdl.dataset(INPUTS[:, :3], TARGETS), "validation inputs must have the shape of training inputs, (4,)"),
    targets=(jaxdl.dataset(INPUTS, TARGETS[:, 0]), "validation targets must have the shape of training targets"),
)
def test_validation_of_another_shape_is_refused(call, words):
    assert words in refusal(lambda: fit(validation=call))
    assert words in refusal(lambda: fit_seeds(validation=call))


@pytest.mark.parametrize("kinds", [(np.uint8, np.float32), (np.float32, np.uint8)])
def test_bytes_beside_floats_are_refused(kinds):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3))
    train, validation = (jaxdl.dataset(images.astype(kind), LABELS) for kind in kinds)
    words = "train and validation must both hold bytes or neither"
    assert words in refusal(
        lambda: fit(convnet((2,), outputs=2), losses.softmax_cross_entropy, train=train, validation=validation)
    )


@cases(
    run=("run", "got a FitResult. Use run.best, or run.final."),
    state=("state", "got a RunState. Use state.best"),
    params=(WEIGHTS.params, "got a dict. Use Variables(params, stats)."),
    path=("a/b", "Use jaxdl.load(path)."),
    swapped=(INPUTS, "The order is predict(model, variables, inputs)"),
)
def test_what_are_no_weights_are_told_the_line_to_type(call, words, run):
    given = {"run": run, "state": run.state}.get(call, call) if isinstance(call, str) else call
    assert words in refusal(lambda: jaxdl.predict(MODEL, given, INPUTS))
    assert words in refusal(lambda: jaxdl.evaluate(MODEL, given, ROWS, losses.squared_error))
    assert words in refusal(lambda: fit(variables=given))
    assert words in refusal(lambda: predict_mean(MODEL, given, INPUTS))
    assert words in refusal(lambda: evaluate_members(MODEL, given, ROWS, losses.squared_error))


@cases(
    examples=(ROWS, "Use its inputs: dataset.inputs."),
    row=(INPUTS[0], "Use inputs[None] for one example"),
    by_name=({"a": INPUTS}, "must take inputs that are a dict, of inputs['a'], and fails with"),
    path=("a.png", 'got "a.png"'),
    nothing=(None, "got None"),
    columns=(INPUTS[:, :3], "params['Dense_0']['kernel'] must be of shape (3, 1), got (4, 1)"),
)
def test_what_are_no_inputs_is_refused(call, words):
    assert words in refusal(lambda: jaxdl.predict(MODEL, WEIGHTS, call))


def test_weights_of_another_network_are_refused():
    words = "must be of shape (8,), got (1,)"
    assert words in refusal(lambda: fit(mlp((8,)), variables=WEIGHTS))
    assert words in refusal(lambda: jaxdl.evaluate(mlp((8,)), WEIGHTS, ROWS, losses.squared_error))


def test_a_column_of_inputs_is_told_to_be_a_table():
    words = "got (1,) for inputs of shape (4,). Use inputs[:, None] for one column."
    assert words in refusal(lambda: fit(train=jaxdl.dataset(INPUTS[:, 0], TARGETS)))


@cases(
    half=(2.5, "must be a whole number, at least 1, got 2.5."),
    string=("10", 'must be a whole number, at least 1, got "10". Use 10.'),
    switch=(True, "got True"),
    whole_float=(2.0, "Use 2."),
    numpy_float=(np.float32(2), "Use 2."),
    zero=(0, "must be at least 1, got 0"),
    negative=(-1, "must be at least 1, got -1"),
    several=([3], "got a list"),
)
def test_counts_are_whole_numbers(call, words):
    assert f"epochs {words}" in refusal(lambda: fit(epochs=call)) or words in refusal(lambda: fit(epochs=call))
    for entry in (
        lambda: fit(batch_size=call),
        lambda: fit(max_steps=call),
        lambda: fit(validate_every=call),
        lambda: fit(callbacks=[Callback(on_steps=lambda state, metrics: None, every_steps=call)]),
        lambda: fit_seeds(epochs=call),
        lambda: fit_seeds(batch_size=call),
        lambda: sweep(epochs=call),
        lambda: sweep(min_resource=call),
    ):
        assert words in refusal(entry)
    if call is not None:
        assert words in refusal(lambda: jaxdl.predict(MODEL, WEIGHTS, INPUTS, batch_size=call))
        assert words in refusal(lambda: jaxdl.evaluate(MODEL, WEIGHTS, ROWS, losses.squared_error, batch_size=call))


def test_whole_numbers_of_numpy_and_jax_are_counts(run):
    for two in (np.int64(2), np.array(2), jnp.int32(2)):
        assert (
            fit(
                loss=losses.squared_error, metrics=[metrics.rmse], validation=ROWS, epochs=two, seed=np.int64(0)
            ).records
            == run.records
        )


@cases(
    negative=(lambda: fit(seed=-1), "seed must be from 0 to 4294967295, got -1"),
    half=(lambda: fit(seed=1.5), "seed must be a whole number"),
    key=(lambda: fit(seed=jax.random.key(0)), "seed must be a whole number"),
    count_of_seeds=(lambda: fit_seeds(seeds=8), "Use range(16), say."),
    string_of_seeds=(lambda: fit_seeds(seeds="12"), "Use range(16), say."),
    average_1=(lambda: fit(ema_decay=1), "ema_decay must be from 0 to below 1"),
    average_true=(lambda: fit(ema_decay=True), "ema_decay must be a number, got True"),
    average_string=(lambda: fit(ema_decay="0.99"), "Use 0.99."),
    on_nan=(lambda: fit(on_nan="raise"), 'on_nan must be "stop" or "continue", got "raise"'),
    on_nan_case=(lambda: fit(on_nan="Stop"), 'Use "stop".'),
    method=(lambda: fit_seeds(method="pmap"), 'method must be "vmap" or "map"'),
    callback=(lambda: fit(callbacks=print), "Use callbacks=[function]."),
    no_function=(lambda: fit(callbacks=[3]), "got 3"),
    no_observers=(lambda: fit_seeds(callbacks=None), "got None"),
    half_patience=(lambda: early_stopping(patience=2.5), "patience must be a whole number"),
    true_patience=(lambda: reduce_on_plateau(patience=True), "patience must be a whole number"),
    min_delta=(lambda: early_stopping(min_delta="0.1"), "Use 0.1."),
    baseline=(lambda: early_stopping(baseline="a"), "baseline must be a number"),
    factor=(lambda: reduce_on_plateau(factor="0.1"), "Use 0.1."),
    monitors=(lambda: early_stopping(["loss"]), "monitor must be the name of one value, got a list. Use 'loss'."),
    monitor_number=(lambda: early_stopping(3), "Use patience=3"),
    monitor_metric=(lambda: early_stopping(metrics.rmse), 'Use "rmse".'),
)
def test_options_of_a_wrong_kind_are_refused(call, words):
    assert words in refusal(call)


@pytest.mark.parametrize(
    ("name", "meant"), [("Loss", "loss"), ("val loss", "val_loss"), ("RMSE", "rmse"), ("val-rmse", "val_rmse")]
)
def test_a_monitor_that_is_misspelt_is_told_the_nearest(name, meant):
    words = refusal(
        lambda: fit(
            loss=losses.squared_error,
            metrics=[metrics.rmse],
            validation=ROWS,
            early_stopping=early_stopping(name, mode="min"),
        )
    )
    assert words.endswith(f'This run measures: loss, rmse, val_loss, val_rmse. Use "{meant}".')


def test_callbacks_from_a_generator_are_called_after_every_epoch():
    observed = []
    fit(epochs=3, callbacks=(callback for callback in [lambda run_state, history: observed.append(len(history))]))
    assert observed == [1, 2, 3]


class Methods:
    """A callback as other libraries have them."""

    def on_train_begin(self, state, history):
        """Do nothing."""

    def on_epoch_end(self, state, history):
        """Do nothing."""


def hook(state, history):
    """Do nothing."""


@cases(
    methods=(
        [Methods()],
        ". Use Callback(on_train_begin=callback.on_train_begin, on_epoch_end=callback.on_epoch_end).",
    ),
    class_of_methods=([Methods], "callbacks must hold functions"),
    one=(Callback(on_epoch_end=hook), "Use callbacks=[function]."),
    no_hook=([Callback(on_epoch_end=3)], "on_epoch_end of a Callback must be a function (run_state, history), got 3"),
    few=([Callback(on_train_end=lambda: None)], "on_train_end of a Callback must be a function (run_state, history)"),
    metrics_alone=(
        [Callback(on_steps=len, every_steps=2)],
        "on_steps of a Callback must be a function (run_state, metr",
    ),
    how_often=([Callback(on_steps=hook)], "on_steps needs every_steps in a Callback."),
    what=([Callback(every_steps=3)], "every_steps and every_seconds need on_steps"),
    seconds=([Callback(on_steps=hook, every_seconds=0)], "every_seconds must be above 0, got 0."),
    text=([Callback(on_steps=hook, every_seconds="2")], 'every_seconds must be a number, got "2". Use 2.'),
    half_a_state=([Callback(name="a", state_dict=dict)], "needs both state_dict and load_state_dict"),
    no_name=([Callback(state_dict=dict, load_state_dict=print)], "needs a name"),
    one_name=([Callback(name="a", state_dict=dict, load_state_dict=print)] * 2, 'two with a state and name="a"'),
    no_json=(
        [Callback(name="a", state_dict=lambda: {"b": np.float32(1)}, load_state_dict=print)],
        'state_dict of the callback "a" must return numbers',
    ),
    no_stop=([lambda state, history: Stop], 'must return None, or Stop("reason") to end the run'),
    reason=([lambda state, history: Stop("")], 'must return None, or Stop("reason")'),
    condition=([lambda state, history: history[-1]["loss"] < 0.1], 'return Stop("diverged") if condition'),
    word=([lambda state, history: "stop"], 'got "stop"'),
)
def test_callbacks_that_cannot_be_meant_are_refused(call, words):
    assert words in refusal(lambda: fit(callbacks=call))


@pytest.mark.parametrize("minutes", [0, -1, "1", None])
def test_minutes_are_a_positive_number(minutes):
    if minutes is None:
        assert fit(epochs=1, max_minutes=None).reason == "epochs"
    else:
        assert "max_minutes must be" in refusal(lambda: fit(max_minutes=minutes))


def test_labels_beyond_the_outputs_are_refused_before_the_first_step():
    words = "labels must be from 0 to 1, because the model has 2 outputs, got 2 in row 1. Use outputs=3"
    beyond = jaxdl.dataset(INPUTS, LABELS + 1)
    on_device = jax.tree.map(jnp.asarray, beyond)
    for call in (
        lambda: fit(TWO, losses.softmax_cross_entropy, train=beyond),
        lambda: fit(TWO, losses.softmax_cross_entropy, train=on_device),
        lambda: fit(TWO, losses.softmax_cross_entropy, train=CLASSES, validation=beyond),
        lambda: fit(TWO, losses.smoothed_cross_entropy(0.1), train=beyond),
        lambda: fit_seeds(beyond, model=TWO, loss=losses.softmax_cross_entropy),
        lambda: sweep(train=beyond),
        lambda: jaxdl.evaluate(TWO, PAIR, beyond, losses.softmax_cross_entropy),
    ):
        assert words in refusal(call)
    negative = jaxdl.dataset(INPUTS, LABELS - 1)
    assert "got -1 in row 0 of train" in refusal(lambda: fit(TWO, losses.softmax_cross_entropy, train=negative))


def test_labels_of_examples_that_do_not_count_may_be_any():
    ignored = jaxdl.dataset(INPUTS, np.where(np.arange(12) < 4, -1, LABELS), np.arange(12) >= 4)
    losses.check_labels(TWO, losses.softmax_cross_entropy, ignored)


@cases(
    floats=(LABELS.astype(np.float32), 'Use targets.astype("int32")'),
    one_hot=(np.eye(2)[LABELS], "use targets.argmax(1)"),
    column=(LABELS[:, None], "Use targets[:, 0] as whole numbers"),
)
def test_labels_of_another_form_are_told_how_to_make_labels(call, words):
    assert words in refusal(lambda: fit(TWO, losses.softmax_cross_entropy, train=jaxdl.dataset(INPUTS, call)))


@cases(
    lists=(lambda: sweep([[0.1], [0.2]]), "got [0.1] for trial 0. Use grid("),
    by_name=(lambda: sweep({"rate": (0.1,)}), "Use grid(**trials)."),
    string=(lambda: sweep("rate"), "trials must be a list of dicts"),
    nothing=(lambda: sweep(make=lambda rate: None), "must return a Plan, got NoneType. Use make_plan(...)."),
    plan=(lambda: sweep(make=plan_of(0.1)), "make must be a function that returns make_plan(...), got a Plan"),
    structure=(lambda: sweep(structure="rate"), 'Use ("rate",).'),
    seeds=(lambda: sweep(seeds=3), "Use range(16), say."),
    eta=(lambda: sweep(eta=True), "eta must be a whole number"),
    method=(lambda: sweep(method="pmap"), 'method must be "vmap" or "map"'),
    rows=(lambda: sweep(rows=3), "rows must be a function"),
    rows_of_nothing=(lambda: sweep(rows=lambda rows, **_: None), "train must be a Dataset, got None"),
    one_value=(lambda: grid(rate=0.1), "Use (0.1,), say."),
)
def test_a_sweep_of_what_are_no_trials_is_refused(call, words):
    assert words in refusal(call)


@cases(
    examples=(lambda: data.split(ROWS, 0.3), "Use split(len(rows.targets), 0.3)"),
    array=(lambda: data.split(INPUTS, 0.3), "Use split(len(rows), 0.3)"),
    percent=(lambda: data.split(70, 30), "got fraction=30. Use 0.3."),
    string=(lambda: data.split(70, "0.3"), "Use 0.3."),
    all_rows=(lambda: data.split(70, 1), "split needs a fraction between 0 and 1"),
    transposed=(
        lambda: jaxdl.dataset(INPUTS.T, TARGETS),
        "the 4 inputs, got 12. The inputs' shape is (4, 12)",
    ),
    transposed_targets=(lambda: jaxdl.dataset(INPUTS, TARGETS.T), "use targets.T"),
    short=(lambda: jaxdl.dataset(INPUTS, TARGETS[:5]), "each of the 12 inputs, got 5"),
)
def test_data_of_a_wrong_form_are_refused(call, words):
    assert words in refusal(call)


def lines(figure):
    return [line.get_label() for line in figure.axes[0].get_lines()]


def test_a_history_is_drawn_from_a_table_a_run_and_records(run):
    frame = pd.DataFrame(run.records)
    for table in (run.history, run, run.records, frame):
        figure = plots.history(table, ["rmse", "val_rmse"])
        assert lines(figure) == ["training", "validation", "stopped after epoch 2"]
        np.testing.assert_array_equal(figure.axes[0].get_lines()[1].get_ydata(), frame["val_rmse"])
    assert lines(plots.history(run, "val_rmse"))[0] == "validation"
    assert lines(plots.history(run, ("rmse", "loss")))[:2] == ["rmse", "loss"]


@cases(
    case=(lambda run: plots.history(run, "RMSE"), "got 'RMSE'. Use \"rmse\"."),
    unknown=(lambda run: plots.history(run, ["rmse", "accuracy"]), "got 'accuracy'"),
    array=(lambda run: plots.history(INPUTS), "Use run.history of a run of fit."),
    empty=(lambda run: plots.history([]), "table must be the history of a run"),
    length=(lambda run: plots.predictions(TARGETS, INPUTS), "for each of the 12 true values, got 48"),
    string=(lambda run: plots.predictions("a", TARGETS), "true must be an array of numbers"),
    picture=(lambda run: plots.images(np.zeros((8, 8))), "Use pictures[None] for one."),
    curves=(lambda run: plots.roc([1, 2]), "curves must be a dict of curves by name"),
    confusion=(lambda run: plots.confusion([[1, 2]], ["a", "b"]), "must be of shape (classes, classes), got (1, 2)"),
    save=(lambda run: plots.save("a.png", plots.history(run)), "Use save(figure, path)."),
)
def test_what_cannot_be_drawn_is_refused(call, words, run):
    assert words in refusal(lambda: call(run))


def test_the_history_of_many_runs_is_not_drawn_as_one(runs):
    assert "choose one of its history" in refusal(lambda: plots.history(runs, "loss"))
    assert "Use table[table.member == 0]" in refusal(lambda: plots.history(runs.history, "loss"))


def test_one_array_of_predictions_and_one_curve_are_drawn(run, tmp_path):
    assert len(plots.predictions(TARGETS, TARGETS[:, 0]).axes) == 1
    assert len(plots.roc(roc_curve([0.1, 0.9], [0, 1])).axes) == 1
    plots.save(plots.history(run), f"{tmp_path}/history.png")
    assert (tmp_path / "history.png").read_bytes()[1:4] == b"PNG"


def test_results_are_printed_in_one_line(run, runs):
    things = (
        run,
        runs,
        sweep(),
        run.state,
        run.best,
        ROWS,
        make_plan(MODEL, losses.squared_error, SGD, metrics=[metrics.rmse]),
    )
    for thing in things:
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 200
    assert repr(run.best) == "Variables(params=5 numbers in 2 arrays, stats=0 numbers in 0 arrays)"
    assert repr(ROWS) == "Dataset(inputs=float32[12, 4], targets=float32[12, 1], sample_weight=float32[12])"
    assert repr(jax.tree.map(lambda leaf: None, run.best)).startswith("Variables(")


def test_a_warning_of_fit_points_at_the_line_of_the_caller():
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        fit(optimizer=optax.sgd(1e30), epochs=5)
    assert [os.path.basename(message.filename) for message in messages] == ["test_checks.py"]


PROGRAM = """
import numpy as np
import optax

import jaxdl
from jaxdl import losses
rows = jaxdl.dataset(np.ones((4, 1)), np.ones((4, 1)))
try:
    jaxdl.fit(jaxdl.mlp(()), losses.squared_error, optax.sgd(0.1), rows, batch_size=2)
except jaxdl.InputError as error:
    print(error)
"""


@pytest.mark.processes
@pytest.mark.parametrize("platform", ["tpu", "nonsense"])
def test_a_platform_that_is_not_there_is_told(platform):
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    output = f'JAX_PLATFORMS="{platform}" names a platform that JAX cannot start here'
    assert done.stdout.startswith(output), done.stderr
    assert "Use JAX_PLATFORMS=cpu, or unset it." in done.stdout


@pytest.mark.processes
@pytest.mark.parametrize(
    "command",
    [
        ("-m", "experiments.weather", "--data", "simulated:10", "--workdir"),
        ("-m", "jaxdl", "export", "nowhere"),
    ],
)
def test_a_command_tells_in_a_line_that_its_platform_is_not_there(command, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith('error: JAX_PLATFORMS="nonsense" names a platform that JAX cannot start here')
    assert done.stderr.count("\n") == 1


def test_a_platform_that_is_not_there_is_an_input_error(monkeypatch):
    from jaxdl import _checks

    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu': no tpu (set JAX_PLATFORMS='' to choose)")

    monkeypatch.setattr(jax, "default_backend", fail)
    monkeypatch.setattr(_checks, "_available_platforms", lambda: "cpu")
    with jax_platforms("tpu"):
        words = refusal(_checks.check_platform)
    assert words.startswith('JAX_PLATFORMS="tpu" names a platform that JAX cannot start here; this machine has cpu.')
    assert words.endswith("JAX says: Unable to initialize backend 'tpu': no tpu")


@contextlib.contextmanager
def jax_platforms(name):
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", name)
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            np.where(LABELS == 0, 1, -1).astype(np.float32),
            "sample_weight must be numbers from 0 on, got -1.0 in row 1.",
        ),
        (np.where(LABELS == 0, 1, np.nan).astype(np.float32), "must be numbers from 0 on, got nan in row 1."),
        (np.ones(12, np.int32), "train.sample_weight must be a row of floats, got int32 of shape (12,)."),
        (LABELS == 0, "train.sample_weight must be a row of floats, got bool of shape (12,)."),
        (np.ones((12, 1), np.float32), "train.sample_weight must be a row of floats, got float32 of shape (12, 1)."),
        (np.zeros(12, np.float32), "train.sample_weight must not all be 0"),
    ],
    ids=["negative", "nan", "integers", "booleans", "column", "zeros"],
)
def test_sample_weights_of_examples_made_by_hand_are_checked(weights, words):
    rows = Dataset(INPUTS, TARGETS, weights)
    assert words in refusal(lambda: fit(train=rows))
    assert words in refusal(lambda: jaxdl.fit_seeds(MODEL, losses.squared_error, SGD, rows, seeds=(0,), batch_size=4))


class Pair(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        outputs = nn.Dense(1)(inputs)
        return outputs, inputs


class Named(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return {"mean": nn.Dense(1)(inputs)}


@pytest.mark.parametrize(("module", "kind"), [(Pair(), "a tuple"), (Named(), "a dict")], ids=["tuple", "dict"])
def test_a_loss_of_one_array_names_the_one_for_several_outputs(module, kind):
    words = f"squared_error compares one array of outputs with one array of targets, got outputs {kind}. Use losses."
    assert words in refusal(lambda: fit(jaxdl.from_linen(module)))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda outputs, targets: np.square(np.asarray(outputs) - targets)[:, 0], "must compute with jax.numpy"),
        (mean_squared_error, "must compute with jax.numpy, and mean_squared_error asks for NumPy arrays"),
        (lambda outputs, targets: ((outputs - targets)[:, 0] ** 2, {}), "real numbers, shape (examples,), got a tuple"),
        (lambda outputs, targets: (outputs - targets)[:, 0] ** 2 + 0j, "shape (examples,), got complex64"),
    ],
    ids=["numpy", "scikit-learn", "tuple", "complex"],
)
def test_losses_that_no_step_can_differentiate_are_refused(loss, words):
    assert words in refusal(lambda: fit(loss=loss))


@pytest.mark.parametrize(("callback", "takes"), [(lambda: None, "nothing"), (lambda record: None, "record")])
def test_callbacks_that_do_not_take_two_values_are_refused_at_the_start(callback, takes):
    assert f"which takes {takes}. Let it take both." in refusal(lambda: fit(callbacks=[callback]))


def test_the_lowest_rate_of_keras_is_translated():
    assert "Use min_learning_rate." in refusal(lambda: reduce_on_plateau(min_lr=1e-5))
