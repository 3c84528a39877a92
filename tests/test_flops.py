"""FLOPs against closed forms, against XLA's own count, and against counting by hand."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxdl.convolutions import convolve
from jaxdl.flops import _MOVES, _OPAQUE, flops
from jaxdl.layers import Conv

KEY = jax.random.key(0)
NUMBERS = ("NHWC", "HWIO", "NHWC")


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def by_xla(function, *arguments):
    """XLA's count, of the operations as they are written: before it replaces any."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def forward(module, *arguments):
    variables = jax.eval_shape(module.init, KEY, *arguments)
    return flops(module.apply, variables, *arguments)


@given(rows=st.integers(1, 9), features=st.integers(1, 9), width=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_a_dense_layer_is_a_matrix_product_and_its_biases(rows, features, width):
    assert forward(nn.Dense(width), shape(rows, features)).total == rows * (2 * features * width + width)


sizes = st.lists(st.integers(1, 5), max_size=2)


@given(batch=sizes, left=sizes, right=sizes, contracted=sizes)
@settings(max_examples=30, deadline=None)
def test_a_matrix_product_of_any_shape(batch, left, right, contracted):
    def product(a, b):
        first = tuple(range(len(batch)))
        of_a = tuple(range(len(batch) + len(left), len(batch) + len(left) + len(contracted)))
        of_b = tuple(range(len(batch), len(batch) + len(contracted)))
        return lax.dot_general(a, b, ((of_a, of_b), (first, first)))

    a, b = shape(*batch, *left, *contracted), shape(*batch, *contracted, *right)
    expected = 2 * math.prod((*batch, *left, *right, *contracted))
    assert flops(product, a, b).total == expected == by_xla(product, a, b)


@pytest.mark.parametrize(
    ("operation", "each"),
    [(jnp.add, 1), (jnp.multiply, 1), (jnp.maximum, 1), (lambda a, b: -(a * b) + b, 3), (lambda a, b: a > b, 1)],
)
def test_operations_by_number_cost_one_a_number(operation, each):
    a, b = shape(7, 5), shape(7, 5)
    assert flops(operation, a, b).total == each * 35 == by_xla(operation, a, b)


def products(side, kernel, stride, low, high, dilation=1):
    """By hand: how many numbers of the input the windows of one axis meet."""
    padded = [0] * low + [1] * side + [0] * high
    span = dilation * (kernel - 1) + 1
    return sum(sum(padded[start : start + span : dilation]) for start in range(0, len(padded) - span + 1, stride))


@pytest.mark.parametrize(("side", "kernel", "stride"), [(8, 3, 1), (8, 3, 2), (9, 2, 3), (5, 5, 1)])
def test_a_convolution_without_padding(side, kernel, stride):
    found = forward(nn.Conv(6, (kernel, kernel), stride, "VALID", use_bias=False), shape(2, side, side, 3)).total
    outputs = (side - kernel) // stride + 1
    assert found == 2 * 2 * outputs**2 * 6 * kernel**2 * 3


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "low", "high"), [(8, 3, 1, 1, 1), (8, 3, 2, 0, 1), (5, 4, 1, 1, 2)]
)
def test_products_with_padding_are_none(side, kernel, stride, low, high):
    module, images = nn.Conv(6, (kernel, kernel), stride, "SAME", use_bias=False), shape(2, side, side, 3)
    variables = jax.eval_shape(module.init, KEY, images)
    expected = 2 * 2 * products(side, kernel, stride, low, high) ** 2 * 6 * 3
    assert forward(module, images).total == expected == by_xla(module.apply, variables, images)


@given(
    side=st.integers(1, 8),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.integers(1, 3),
    holes=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_convolutions_with_any_padding_stride_and_dilation(side, kernel, stride, pads, dilation, holes):
    ones = lax.conv_general_dilated(
        jnp.ones((1, side, 1)),
        jnp.ones((kernel, 1, 1)),
        *((stride,), [pads], (holes,), (dilation,), ("NWC", "WIO", "NWC")),
    )
    found = flops(
        lambda a, b: lax.conv_general_dilated(a, b, (stride,), [pads], (holes,), (dilation,), ("NWC", "WIO", "NWC")),
        *(shape(2, side, 3), shape(kernel, 3, 5)),
    ).total
    # Of ones, each output is the number of products that it adds up.
    assert found == 2 * int(ones.sum()) * 2 * 3 * 5


def test_groups_see_only_their_own_channels():
    whole, grouped = (nn.Conv(8, (3, 3), padding="VALID", use_bias=False, feature_group_count=g) for g in (1, 4))
    images = shape(2, 6, 6, 4)
    assert forward(whole, images).total == 4 * forward(grouped, images).total == 2 * 2 * 16 * 8 * 9 * 4


@pytest.mark.parametrize(("groups", "batch_groups"), [(3, 1), (1, 3)])
def test_groups_of_channels_and_of_rows_are_counted_as_xla_does(groups, batch_groups):
    def convolution(images, kernel):
        counts = {"feature_group_count": groups, "batch_group_count": batch_groups}
        return lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=NUMBERS, **counts)

    images, kernel = shape(6, 5, 5, 3), shape(2, 2, 3 // groups, 9)
    assert flops(convolution, images, kernel).total == by_xla(convolution, images, kernel)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_the_convolution_for_cpus_counts_as_flax_does(padding):
    images = shape(2, 9, 9, 16)
    # 18 filters: two of them go another way on a CPU.
    ours, theirs = Conv(18, 3, padding), nn.Conv(18, (3, 3), padding=padding)
    assert forward(ours, images).total == forward(theirs, images).total


def gradient_flops(convolution, padding):
    def total(images, kernel):
        return jnp.vdot(convolution(images, kernel, (1, 1), padding, dimension_numbers=NUMBERS), jnp.ones(()))

    def product(images, kernel, slope):
        return jax.vjp(lambda *a: convolution(*a, (1, 1), padding, dimension_numbers=NUMBERS), images, kernel)[1](slope)

    side = 9 if padding == "SAME" else 7
    return flops(product, shape(2, 9, 9, 16), shape(3, 3, 16, 18), shape(2, side, side, 18)).total


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_both_gradients_of_a_convolution_cost_what_it_costs(padding):
    once = forward(nn.Conv(18, (3, 3), padding=padding, use_bias=False), shape(2, 9, 9, 16)).total
    # The convolution itself is not needed for them.
    assert gradient_flops(lax.conv_general_dilated, padding) == 2 * once
    assert gradient_flops(convolve, padding) == 2 * once


def test_only_the_gradients_that_are_used_count():
    def loss(images, kernel):
        return convolve(images, kernel, (1, 1), "VALID", dimension_numbers=NUMBERS).sum()

    arguments = shape(2, 9, 9, 16), shape(3, 3, 16, 18)
    once = 2 * 2 * 7 * 7 * 9 * 16 * 18
    both, one = (flops(jax.grad(loss, of), *arguments).total for of in ((0, 1), 1))
    assert both == one + once
    assert once <= one < 1.01 * once


def test_a_loop_of_known_length_counts_every_trip():
    def step(carry, _):
        return jnp.tanh(carry @ carry), None

    once = 2 * 4**3 + 4 * 4
    assert flops(lambda a: lax.scan(step, a, None, 7)[0], shape(4, 4)).total == 7 * once
    assert flops(lambda a: lax.fori_loop(0, 5, lambda _, x: step(x, None)[0], a), shape(4, 4)).total == 5 * once


def test_a_loop_of_unknown_length_counts_one_trip_and_says_so():
    found = flops(lambda a, n: lax.fori_loop(0, n, lambda _, x: x @ x, a), shape(4, 4), shape(dtype=jnp.int32))
    assert found.total == 2 * 4**3 and found.least == {"while"}


def test_a_loop_over_whole_numbers_costs_nothing_whatever_its_length():
    found = flops(lambda n: lax.fori_loop(0, n, lambda _, x: x + 1, 0), shape(dtype=jnp.int32))
    assert found == (0, {}, frozenset())


def test_vmap_multiplies_by_the_members():
    def layer(kernel, inputs):
        return jnp.tanh(inputs @ kernel)

    one = flops(layer, shape(3, 4), shape(5, 3)).total
    assert flops(jax.vmap(layer), shape(6, 3, 4), shape(6, 5, 3)).total == 6 * one == 6 * (2 * 5 * 3 * 4 + 5 * 4)


def test_of_branches_the_greatest_counts():
    def choose(which, a):
        return lax.switch(which, [jnp.sin, lambda a: a @ a, lambda a: a], a)

    assert flops(choose, shape(dtype=jnp.int32), shape(4, 4)).total == 2 * 4**3


def test_of_platforms_the_default_counts():
    def choose(a):
        return lax.platform_dependent(a, cpu=lambda a: a @ a @ a, default=lambda a: a @ a)

    assert flops(choose, shape(4, 4)).total == 2 * 4**3


def test_what_is_computed_again_counts_again():
    def loss(a):
        return jnp.sin(a @ a).sum()

    def steps(function):
        return flops(jax.value_and_grad(function), shape(4, 4)).total

    # The product is computed once more; its sine is not, for only its cosine is needed.
    assert steps(jax.checkpoint(loss)) == steps(loss) + 2 * 4**3


def test_every_device_of_a_mesh_counts():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    spec = PartitionSpec("data")
    split = jax.shard_map(lambda rows: rows * 2, mesh=mesh, in_specs=spec, out_specs=spec)
    assert flops(split, shape(8, 3)).total == 8 * 3


@pytest.mark.parametrize("way", [jax.jit, jax.checkpoint, jax.vmap, jax.named_call])
def test_what_wraps_a_function_changes_nothing(way):
    assert flops(way(lambda a: jnp.tanh(a) + 1), shape(3, 4)).total == 2 * 12


def test_results_that_nobody_uses_cost_nothing():
    def function(a):
        jnp.exp(a)
        return jax.jit(lambda a: (a + 1, a @ a))(a)[0]

    assert flops(function, shape(4, 4)).total == 16


def test_reductions_cost_one_for_each_number_that_they_take():
    for reduce in (jnp.sum, jnp.max, jnp.prod, jnp.argmax, jnp.cumsum):
        assert flops(reduce, shape(6, 5)).total == 30
    assert flops(lambda a: a.at[jnp.array([1, 1])].add(2 * a[:2]), shape(6, 5)).total == 10 + 10


@pytest.mark.parametrize("stride", [1, 2])
def test_a_window_costs_its_size(stride):
    def pool(a):
        return lax.reduce_window(a, -jnp.inf, lax.max, (2, 2), (stride, stride), "VALID")

    windows = (5 // stride) * (5 // stride) if stride == 2 else 25
    side = 6 if stride == 1 else 5
    assert flops(pool, shape(side, side)).total == 4 * windows


def test_moving_and_choosing_numbers_costs_nothing():
    def function(a, where):
        padded = jnp.pad(a.T.reshape(2, -1)[::-1], 1)
        return jnp.where(where, jnp.concatenate([padded, padded]), 0).astype(jnp.bfloat16), jnp.sort(a)

    assert flops(function, shape(4, 3), shape(8, 8, dtype=bool)).total == 0


def test_whole_numbers_cost_nothing():
    assert flops(lambda a: (a @ a + 1).sum() % 3, shape(4, 4, dtype=jnp.int32)).total == 0
    assert flops(lambda key: jax.random.bits(key, (9,)), KEY).total == 0


def test_what_is_not_known_is_told():
    found = flops(lambda a, b: jnp.linalg.cholesky(a) @ b, shape(4, 4), shape(4, 4))
    assert found.least == {"cholesky"} and found.total >= 2 * 4**3
    assert flops(jnp.fft.fft, shape(4)).least == {"fft"}


def test_primitives_are_named_as_jax_names_them():
    from jax.extend.core import primitives

    known = {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}
    # Those that jax.extend does not list, and names of other versions.
    others = {"all_gather_invariant", "copy_p", "empty", "ffi_call", "geqrf", "io_callback", "optimization_barrier"}
    others |= {"pallas_call", "pcast", "pure_callback", "pvary", "ragged_dot_general", "reshard", "split"}
    assert known | others >= _MOVES | _OPAQUE


class Net(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2, name="head")(nn.relu(nn.Dense(5, name="first")(inputs)))


def test_scopes_name_flax_modules_and_add_up():
    found = forward(Net(), shape(4, 3))
    assert found.scopes == {"Net/first": 4 * (2 * 3 * 5 + 5), "Net": 4 * 5, "Net/head": 4 * (2 * 5 * 2 + 2)}
    assert found.total == sum(found.scopes.values())


def test_gradients_bear_the_name_of_their_layer():
    module, inputs = Net(), jnp.ones((4, 3))
    variables = module.init(KEY, inputs)
    found = flops(jax.grad(lambda variables: module.apply(variables, inputs).sum()), variables).scopes
    assert set(found) <= {"Net/first", "Net", "Net/head", ""}
    # The kernel's gradient is a product of its own, and so is that of the inputs, which `head` alone needs.
    assert found["Net/first"] >= 2 * 2 * 4 * 3 * 5
    assert 2 * 2 * 4 * 5 * 2 <= found["Net/head"] < 3 * 2 * 4 * 5 * 2 + 4 * 2 * 3


def test_scopes_reach_into_inner_functions():
    @jax.jit
    def inner(a):
        with jax.named_scope("deep"):
            return jnp.sin(a)

    def outer(a):
        with jax.named_scope("outer"):
            return inner(a)

    assert flops(jax.vmap(outer), shape(3, 2)).scopes == {"outer/deep": 6}


def test_nothing_is_computed_and_nothing_compiled(compilations):
    with compilations() as names:
        assert flops(lambda a: a @ a, shape(10**6, 10**6)).total == 2 * 10**18
    assert names == []


def test_numbers_beyond_64_bits_are_exact():
    assert flops(lambda a: a @ a, shape(10**7, 10**7)).total == 2 * 10**21


def test_arrays_and_their_shapes_count_the_same():
    inputs = np.ones((3, 4), np.float32)
    assert flops(jnp.tanh, inputs) == flops(jnp.tanh, shape(3, 4))
