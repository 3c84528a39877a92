"""Leaves by name: a round trip without loss, and differences in words."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import _tree, losses
from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train import make_plan, start

ROWS = dataset(np.ones((8, 3)), np.ones((8, 1)))


def progress_of(*hidden, **options):
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    plan = make_plan(mlp(hidden, input_norm=True), losses.squared_error, optimizer, batch_size=4, **options)
    return start(plan, ROWS, ROWS, key=jax.random.key(0))


def test_a_run_state_round_trip_is_bit_identical():
    run_state = progress_of(5, ema_decay=0.9)
    arrays = {name: np.asarray(array) for name, array in _tree.flatten_named(run_state).items()}
    again = _tree.unflatten_named(progress_of(5, ema_decay=0.9), arrays)
    assert jax.tree.structure(again) == jax.tree.structure(run_state)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(run_state), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and not getattr(one, "weak_type", False)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


def test_names_are_those_that_people_use():
    names = _tree.flatten_named(progress_of(5))
    assert {
        "train_state/variables/params/Dense_0/kernel",
        "epoch",
        "train_state/key",
        "sums/weight",
        "stopping/best",
    } <= set(names)
    assert len(names) == len(jax.tree.leaves(progress_of(5)))


def test_kinds_are_json():
    kinds = _tree.kinds(progress_of(5))
    assert kinds["train_state/variables/params/Dense_0/kernel"] == ["float32", [3, 5]]
    assert kinds["key"] == ["key<fry>", []]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((6,), r"holds params/Dense_0/kernel of shape \(3, 5\); this model expects \(3, 6\)"),
        ((5, 4), r"holds .*Dense_1/kernel of shape \(5, 1\); this model expects \(5, 4\)"),
        ((), r"holds .*Dense_0/kernel of shape \(3, 5\); this model expects \(3, 1\)"),
    ],
)
def test_check_structure_names_the_kernel_that_differs(other, message):
    with pytest.raises(InputError, match=message):
        _tree.check_structure(_tree.kinds(progress_of(5)), progress_of(*other))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": jnp.ones(2), "b": jnp.ones((2, 2))}, r"holds no b; this model expects it, of shape \(2, 2\)"),
        ({}, "holds a, which this model does not have"),
        ({"a": jnp.ones(2, jnp.bfloat16)}, "holds a of dtype float32; this model expects bfloat16"),
        ({"a": jax.random.key(0)}, r"holds a of shape \(2,\); this model expects \(\)"),
        ({"a": jax.random.split(jax.random.key(0), 2)}, "holds a of dtype float32; this model expects key<fry>"),
    ],
)
def test_every_difference_has_its_words(template, message):
    with pytest.raises(InputError, match=message):
        _tree.check_structure(_tree.kinds({"a": jnp.ones(2)}), template)
