"""Functions compiled as a whole: their options, and how they behave inside of other transformations."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import _jit
from jaxdl._jit import compiler_options, has_convolution, is_known_option, jit
from jaxdl._tree import is_traced
from jaxdl.data.batches import Window
from jaxdl.distributed import make_mesh
from jaxdl.types import Dataset


def power(x, n):
    return x**n


def test_every_call_gives_what_jit_gives():
    ours = jit(power, static_argnames="n")
    assert float(ours(3.0, n=2)) == 9.0
    assert float(jax.jit(lambda x: ours(x, n=2))(3.0)) == 9.0
    assert jax.vmap(lambda x: ours(x, n=2))(jnp.array([1.0, 3.0])).tolist() == [1.0, 9.0]
    assert float(jax.grad(lambda x: ours(x, n=2))(3.0)) == 6.0
    # Inside a trace although no argument is traced.
    assert float(jax.jit(lambda: ours(3.0, n=2))()) == 9.0
    assert float(jax.lax.fori_loop(0, 2, lambda _, x: ours(x, n=2), 3.0)) == 81.0
    assert ours.__name__ == "power"


def test_it_compiles_once(compilations):
    def cube(x, n):
        return x**n

    ours = jit(cube, static_argnames="n")
    compiler_options()
    with compilations() as names:
        for value in (1.0, 2.0, 3.0):
            ours(value, n=3)
    assert names.count("cube") == 1


def test_it_can_be_lowered_as_it_is_called(monkeypatch):
    ours = jit(power, static_argnames="n")
    assert float(ours.lower(3.0, n=2).compile()(3.0)) == 9.0
    # With the options of the call, here one that XLA refuses.
    monkeypatch.setattr(_jit, "compiler_options", lambda **_: {"xla_cpu_no_such_option": True})
    refusing = jit(power, static_argnames="n")
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError)):
        refusing.lower(3.0, n=2).compile()


def test_its_shapes_are_known_without_a_compilation(compilations):
    with compilations() as names:
        result = jit(power, static_argnames="n").eval_shape(jnp.ones((2, 3)), n=2)
    assert (result.shape, result.dtype) == ((2, 3), jnp.float32)
    assert "power" not in names


def test_it_is_lowered_for_the_mesh_of_its_arguments():
    def mesh_sizes(x, n):
        calls.append(dict(jax.sharding.get_abstract_mesh().shape))
        return x + n

    calls = []
    ours, mesh = jit(mesh_sizes, static_argnames="n"), make_mesh()
    x = jax.device_put(jnp.ones(8), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    compiled = ours.lower(x, n=1).compile()
    assert ours.eval_shape(x, n=1).shape == (8,)
    assert calls == [{"data": 8}]
    assert compiled(x).tolist() == [2.0] * 8


def test_only_values_inside_of_a_transformation_are_traced():
    calls = []

    def see(value):
        calls.append(is_traced(value))
        return value

    for transformed in (jax.jit(see), jax.grad(see), jax.vmap(see)):
        transformed(jnp.ones(2) if len(calls) == 2 else 1.0)
    assert calls == [True, True, True]
    assert not any(map(is_traced, (0, 0.5, jnp.float32(1), jnp.ones(2))))


def test_compiler_options_leave_out_unknown_options(monkeypatch):
    for options in ("TABLES_ON_CPU", "IMAGES_ON_CPU", "ONCE_ON_CPU"):
        monkeypatch.setattr(_jit, options, {"xla_cpu_no_such_option": True})
    compiler_options.cache_clear()
    try:
        assert compiler_options() == compiler_options(once=True) == compiler_options(convolves=True) == {}
        assert float(jit(power, static_argnames="n")(3.0, n=2)) == 9.0
    finally:
        monkeypatch.undo()
        compiler_options.cache_clear()


@pytest.mark.parametrize(
    ("option", "value"), [("xla_cpu_no_such_option", True), ("xla_cpu_experimental_ynn_fusion_type", "NONE")]
)
def test_is_known_option(option, value):
    assert not is_known_option(option, value)
    assert is_known_option("xla_backend_optimization_level", 1)


def test_once_gives_bit_identical_results():
    def draw(key, n):
        first, second = jax.random.split(key)
        return jax.random.uniform(first, (n, 33)) * jax.random.normal(second, (1, 33)), jax.random.permutation(first, n)

    key = jax.random.key(0)
    often, once = (jit(draw, static_argnames="n", once=once)(key, n=40) for once in (False, True))
    for one, other in zip(often, once, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert compiler_options(once=True) not in ({}, compiler_options())


def test_convolutions_have_options_of_their_own():
    @functools.partial(jit, static_argnames="n")
    def sums(values, kernel, n):
        return n * values.sum(-1) + kernel.sum()

    for shape, kernel in (((6, 5), (5,)), ((6, 4, 4, 5), (3, 3, 5, 2))):
        values = np.random.default_rng(0).random(shape, np.float32)
        np.testing.assert_allclose(sums(values, np.ones(kernel), n=2), 2 * values.sum(-1) + np.prod(kernel), rtol=1e-6)
    assert compiler_options(convolves=True) not in ({}, compiler_options())


@pytest.mark.parametrize(
    ("kernel", "images", "expected"),
    [
        ((3, 3, 3, 8), (9, 32, 32, 3), True),
        ((4, 3, 3, 3, 8), (9, 32, 32, 3), True),  # of members
        ((3, 3, 3, 8), (7, 9, 32, 32, 3), True),  # a window of batches
        ((3072, 8), (9, 32, 32, 3), False),  # a dense network that flattens images
        ((5, 8), (9, 5), False),
        ((5, 8), (7, 9, 5), False),
    ],
)
def test_has_convolution_needs_images_and_kernels(kernel, images, expected):
    weights, rows = {"kernel": np.zeros(kernel)}, (np.zeros(images), np.zeros(images[0]))
    held_out = np.zeros((2, *images[-3:])) if len(images) > 3 else rows
    assert has_convolution(weights, rows, held_out, 3, None, abs) is expected
    assert has_convolution({"a": 0.0, **weights}, rows) is expected


def test_no_option_for_other_platforms(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compiler_options.cache_clear()
    try:
        assert compiler_options() == compiler_options(once=True) == compiler_options(convolves=True) == {}
    finally:
        monkeypatch.undo()
        compiler_options.cache_clear()


def test_importing_it_inside_a_trace_does_not_confuse_it():
    code = """
import jax
def first(x):
    import jaxdl._jit
    return x
jax.jit(first)(1.0)
from jaxdl import _jit
assert _jit._state() == _jit._OUTSIDE
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_are_any_of_several_inputs():
    images, kernels, table = np.zeros((2, 8, 8, 3)), {"a": np.zeros(3), "k": np.zeros((3, 3, 3, 4))}, np.zeros((2, 5))
    for inputs in ({"age": table, "image": images}, (table, images), [table, images]):
        rows = Dataset(inputs, table, np.ones(2))
        assert has_convolution(kernels, rows) and has_convolution(kernels, inputs)
        assert has_convolution(kernels, Window(rows, 0, 2)) and not has_convolution(table, rows)
    assert not has_convolution(kernels, Dataset({"age": table}, table, np.ones(2)))


def test_rates_of_a_plan_reach_a_function_that_is_not_compiled():
    def updates(grads, optimizer):
        return optimizer.update(grads, optimizer.init(grads))[0]

    ours = jit(updates, static_argnames="optimizer")
    for disabled in (True, False, True):
        with jax.disable_jit(disabled):
            assert ours(jnp.ones(2), optimizer=optax.sgd(0.5)).tolist() == [-0.5, -0.5]
