"""Early stopping and reduce-on-plateau, against Keras's callbacks and the loops in their docstrings."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.errors import InputError
from jaxdl.train import early_stopping, reduce_on_plateau

RANDOM = np.random.default_rng(0)
LENGTH = 14
# Few distinct values, so that ties, small improvements and relapses are frequent.
SERIES = RANDOM.choice(np.float32([0.0, 0.5, 0.95, 1.0, 1.02, 1.5, 2.0, 3.0]), (60, LENGTH))
OPTIONS = [
    {"patience": 0},
    {"patience": 1, "mode": "max"},
    {"patience": 2, "min_delta": 0.25},
    {"patience": 4},
    {"patience": 3, "min_delta": 0.25, "mode": "max"},
]


def follow(rule, series, *initial):
    """The states after each value of each series (S, T), as NumPy arrays (S, T), from one compiled program."""

    def update(state, row):
        state = rule.update(state, *row)
        return state, state

    def one(values):
        return jax.lax.scan(update, rule.init(*initial), (values, jnp.arange(1, len(values) + 1, dtype=jnp.int32)))[1]

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jnp.asarray(np.atleast_2d(series), jnp.float32)))


def states_of(rule, values, *initial):
    states = follow(rule, [values], *initial)
    return [jax.tree.map(lambda leaf, i=i: leaf[0, i].item(), states) for i in range(len(values))]


def keras_stops(values, **options):
    keras = pytest.importorskip("keras")
    callback = keras.callbacks.EarlyStopping(monitor="val_loss", **options)
    callback.set_model(SimpleNamespace(stop_training=False, metrics=[], get_weights=list))
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"val_loss": value})
        if callback.model.stop_training:
            return epoch + 1
    return None


@pytest.mark.parametrize("extra", [{}, {"baseline": 1.0}, {"start_from_epoch": 3}], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_early_stopping_stops_when_keras_does(options, extra):
    states = follow(early_stopping(**options, **extra), SERIES)
    for values, done in zip(SERIES, states.should_stop, strict=True):
        assert (int(done.argmax()) + 1 if done.any() else None) == keras_stops(values.tolist(), **options, **extra)


def test_early_stopping_is_the_loop_in_its_docstring(meaning):
    series = RANDOM.choice(np.float32([0.5, 1.0, 1.5, math.nan]), (60, LENGTH))
    states = follow(early_stopping(patience=2, min_delta=0.25, start_from_epoch=1), series)
    names = {"patience": 2, "min_delta": 0.25, "start_from_epoch": 1, "baseline": None, "inf": math.inf}
    for number, values in enumerate(series):
        expected = meaning(early_stopping, values=values.tolist(), **names)
        last = int(states.should_stop[number].argmax()) if expected["should_stop"] else -1
        for name in ("best", "best_epoch", "waited", "should_stop"):
            field = {"waited": "epochs_without_improvement"}.get(name, name)
            assert getattr(states, field)[number, last] == expected[name]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_not_finite_is_never_the_best_and_does_not_disable_the_rule(value, mode):
    states = states_of(early_stopping(patience=2, mode=mode), [value, 1.0, value, value])
    assert [state.improved for state in states] == [False, True, False, False]
    assert (states[-1].best, states[-1].best_epoch, states[-1].should_stop) == (1.0, 2, True)


def test_nothing_finite_stops_after_the_patience_without_a_best():
    states = states_of(early_stopping(patience=3), [math.nan] * 3)
    assert [state.should_stop for state in states] == [False, False, True]
    assert states[-1].best_epoch == 0


def test_no_patience_never_stops_and_remembers_the_best():
    states = states_of(early_stopping(patience=None), [3.0, 1.0] + [2.0] * 12)
    assert (states[-1].should_stop, states[-1].best_epoch) == (False, 2)


def test_done_stays_done():
    states = states_of(early_stopping(patience=1), [1.0, 2.0, 0.5])
    assert [state.should_stop for state in states] == [False, True, True]


def test_rules_run_under_vmap():
    rule = early_stopping(patience=1)
    values = jnp.array([[1.0, 2.0], [1.0, 0.5]], jnp.float32)
    state = jax.vmap(lambda _: rule.init())(values)
    for epoch in (1, 2):
        state = jax.vmap(rule.update, in_axes=(0, 0, None))(state, values[:, epoch - 1], jnp.int32(epoch))
    assert state.should_stop.tolist() == [True, False]
    assert state.best_epoch.tolist() == [1, 2]


def keras_rates(values, **options):
    keras = pytest.importorskip("keras")
    callback = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", **options)
    callback.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=0.1), metrics=[]))
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"val_loss": value})
        rates.append(callback.model.optimizer.learning_rate)
    return rates


@pytest.mark.parametrize("extra", [{}, {"cooldown": 2}, {"min_lr": 0.04}], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rates_are_those_of_keras(options, extra):
    floor = {"min_learning_rate": extra["min_lr"]} if "min_lr" in extra else extra
    states = follow(reduce_on_plateau(factor=0.5, **options, **floor), SERIES, jnp.float32(0.1))
    for values, rates in zip(SERIES, states.learning_rate, strict=True):
        np.testing.assert_allclose(rates, keras_rates(values.tolist(), factor=0.5, **options, **extra), rtol=1e-6)


def test_reduce_on_plateau_is_the_loop_in_its_docstring(meaning):
    series = RANDOM.choice(np.float32([0.5, 1.0, 1.5, math.nan]), (60, LENGTH))
    options = {"factor": 0.5, "patience": 2, "cooldown": 1, "min_delta": 0.25, "min_learning_rate": 0.03}
    states = follow(reduce_on_plateau(**options), series, jnp.float32(0.1))
    for number, values in enumerate(series):
        expected = meaning(reduce_on_plateau, values=values.tolist(), **options, inf=math.inf, rate=0.1)
        np.testing.assert_allclose(states.learning_rate[number, -1], expected["rate"], rtol=1e-6)
        assert states.best[number, -1] == expected["best"]
        assert (states.epochs_without_improvement[number, -1], states.cooldown[number, -1]) == (
            expected["waited"],
            expected["cool"],
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: early_stopping(patience=2**31), "patience must be at most 2147483647, got 2147483648"),
        (lambda: early_stopping(patience=-1), "patience must be at least 0, got -1"),
        (lambda: early_stopping(mode="lowest"), 'mode must be "min" or "max", got "lowest"'),
        (lambda: early_stopping(start_from_epoch=-1), "start_from_epoch must be at least 0"),
        (lambda: reduce_on_plateau(factor=1.0), "factor must lie between 0 and 1, got 1.0"),
        (lambda: reduce_on_plateau(cooldown=-1), "cooldown must be at least 0"),
    ],
)
def test_rules_that_make_no_sense_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
