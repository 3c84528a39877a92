"""The beginning of a run: what `start` gives, with the program of the chunks at hand."""

from threading import Event
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import losses, metrics
from jaxdl.data import DataSource, dataset
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train import chunks, make_plan, start
from jaxdl.train.epoch import draw
from jaxdl.train.fit import init_state
from jaxdl.train.loop import prepare_data
from jaxdl.types import Dataset
from tests.bits import bits

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(50, 3)).astype(np.float32)
TRAIN, VALIDATION = dataset(INPUTS[:33], INPUTS[:33, :1]), dataset(INPUTS[33:], INPUTS[33:, :1])
SOURCE = DataSource(33, lambda rows: Dataset(*(np.asarray(leaf)[rows] for leaf in TRAIN)))
KEY = jax.random.key(3)
OURS = {"_start", "chunk_program"}


def plan_of(width=4):
    model = mlp((width,), input_norm=True, dropout=0.1)
    return make_plan(model, losses.squared_error, optax.adam(0.01), metrics=[metrics.rmse], batch_size=8)


def bound(rows):
    return jax.device_put(rows, jax.devices()[0])


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (TRAIN, VALIDATION),
        (TRAIN, None),
        (SOURCE, VALIDATION),
        (jax.tree.map(jnp.asarray, TRAIN), VALIDATION),
        (bound(TRAIN), bound(VALIDATION)),
    ],
    ids=["rows", "without validation", "a source", "arrays of JAX", "on a device"],
)
def test_it_is_a_start_and_each_program_is_compiled_once(train, validation, compilations):
    plan = plan_of()
    with compilations() as names:
        run_state = init_state(plan, *prepare_data(plan, train, validation), key=KEY)
        ends = list(chunks(plan, run_state, train, validation, last=2))
    assert sorted(name for name in names if name in OURS) == sorted(OURS)
    assert len(ends) == 2
    assert bits(run_state) == bits(start(plan, TRAIN, VALIDATION if validation is not None else None, key=KEY))


def test_given_weights_are_begun_with():
    plan = plan_of()
    weights = plan.model.init(jax.random.key(9), INPUTS)
    assert bits(
        init_state(plan, *prepare_data(plan, TRAIN, None), key=KEY, variables=weights).train_state.variables
    ) == bits(weights)


def test_in_float64_nothing_is_compiled_for_float32(compilations):
    plan = make_plan(mlp((4,), dtype=jnp.float64), losses.squared_error, optax.adam(0.01), batch_size=8)
    with jax.enable_x64(True), compilations() as names:
        rows = dataset(INPUTS.astype(np.float64), INPUTS[:, :1].astype(np.float64))
        run_state = init_state(plan, *prepare_data(plan, rows, None), key=jax.random.key(0))
        list(chunks(plan, run_state, rows, last=2))
        assert run_state.train_state.variables.params["Dense_0"]["kernel"].dtype == jnp.float64
    assert sorted(name for name in names if name in OURS) == sorted(OURS)


def lowering_to(lowered):
    """A compiled function that `on` gives, and that is lowered to what is given."""
    return SimpleNamespace(on=lambda *_: SimpleNamespace(lower=lambda *_, **__: lowered))


def test_weights_are_drawn_while_the_other_program_is_compiled(monkeypatch):
    drawn = Event()

    def draw_and_tell(*arguments, **options):
        drawn.set()
        return draw(*arguments, **options)

    monkeypatch.setattr("jaxdl.train.fit.draw", draw_and_tell)
    waiting = SimpleNamespace(compile=lambda: drawn.wait(60) or pytest.fail("nothing was drawn meanwhile"))
    monkeypatch.setattr("jaxdl.train.fit.chunk_program", lowering_to(waiting))
    init_state(plan_of(), *prepare_data(plan_of(), TRAIN, None), key=KEY)
    assert drawn.is_set()


def test_what_fails_in_the_thread_is_raised(monkeypatch):
    def fail():
        raise MemoryError("no room for the program")

    monkeypatch.setattr("jaxdl.train.fit.chunk_program", lowering_to(SimpleNamespace(compile=fail)))
    with pytest.raises(MemoryError, match="no room for the program"):
        init_state(plan_of(), *prepare_data(plan_of(), TRAIN, None), key=KEY)


def test_rows_that_do_not_fit_are_refused_before_anything_is_compiled(compilations):
    with compilations() as names, pytest.raises(InputError, match="compares outputs with targets of the same shape"):
        init_state(plan_of(), *prepare_data(plan_of(), dataset(INPUTS, INPUTS), None), key=KEY)
    assert not OURS.intersection(names)
