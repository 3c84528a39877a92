"""Convolution, pooling, dropout and BatchNorm against XLA's and Flax's own, or chance; and their place in programs."""

from functools import partial

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax
from scipy.stats import binom, chi2

from jaxdl import InputError
from jaxdl.nn import BatchNorm, Conv, Dropout, Flatten, MaxPool, dropout, max_pool
from jaxdl.nn.convolution import add_bias, convolve

NUMBERS = ("NHWC", "HWIO", "NHWC")
TEXTS = ("SAME", "VALID")
# Every example compiles programs of its own.
QUICK = settings(max_examples=8, deadline=None)


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def framed(images, pads):
    """Images with zeros around them, and without their edges where a number is below zero."""
    images = np.pad(np.float64(images), ((0, 0), *(np.maximum(pad, 0) for pad in pads), (0, 0)))
    (top, bottom), (left, right) = np.maximum(np.negative(pads), 0)
    return images[:, top : images.shape[1] - bottom, left : images.shape[2] - right]


def by_hand(images, kernel, pads):
    """A convolution as the sum over the kernel's places, in float64."""
    images = framed(images, pads)
    height, width = images.shape[1] - kernel.shape[0] + 1, images.shape[2] - kernel.shape[1] + 1
    return sum(
        np.einsum("bhwc,ck->bhwk", images[:, i : i + height, j : j + width], np.float64(kernel[i, j]))
        for i, j in np.ndindex(kernel.shape[:2])
    )


def slopes_by_hand(images, kernel, pads, slope):
    """The gradients of a convolution by its images and its kernel, as sums over the kernel's places, in float64."""
    images, slope = framed(images, pads), np.float64(slope)
    height, width = slope.shape[1:3]
    to_images, to_kernel = np.zeros(images.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(kernel.shape[:2]):
        to_images[:, i : i + height, j : j + width] += slope @ np.float64(kernel[i, j]).T
        to_kernel[i, j] = np.tensordot(images[:, i : i + height, j : j + width], slope, ((0, 1, 2), (0, 1, 2)))
    return framed(to_images, np.negative(pads)), to_kernel


def functional(function):
    """The values of a convolution of two arguments, and the gradients of a random functional of it."""

    def run(images, kernel):
        values, back = jax.vjp(function, images, kernel)
        return values, *back(random(7, *values.shape).astype(values.dtype))

    return run


def both(images, kernel, padding, repeats=1):
    """Values and gradients of a random functional of the convolution: ours, and the definition's."""
    pads = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (1, 1), padding) if padding in TEXTS else padding
    ours = jax.jit(functional(lambda i, k: convolve(i, k, (1, 1), padding, dimension_numbers=NUMBERS)))
    values = by_hand(images, kernel, pads)
    theirs = values, *slopes_by_hand(images, kernel, pads, random(7, *values.shape))
    for _ in range(repeats):
        yield from zip(ours(images, kernel), theirs, strict=True)


shapes = st.tuples(*(st.integers(low, high) for low, high in ((1, 4), (3, 9), (3, 9), (1, 5), (1, 3), (1, 3), (1, 6))))
paddings = st.one_of(
    st.sampled_from(TEXTS),
    st.tuples(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(st.integers(0, 3), st.integers(0, 3))),
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(shapes, paddings, st.integers(0, 9))
def test_values_and_gradients_are_those_of_the_definition(shape, padding, seed):
    rows, height, width, channels, kernel_height, kernel_width, filters = shape
    images, kernel = (
        random(seed, rows, height, width, channels),
        random(seed + 1, kernel_height, kernel_width, channels, filters),
    )
    for mine, other in both(images, kernel, padding):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5 * (1 + np.abs(other).max()))


@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (0, 3)), ((4, 4), (4, 4))])
def test_values_are_those_of_the_definition(pads):
    images, kernel = random(0, 2, 7, 6, 3), random(1, 3, 2, 3, 4)
    ours = convolve(images, kernel, (1, 1), pads, dimension_numbers=NUMBERS)
    np.testing.assert_allclose(ours, by_hand(images, kernel, pads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"window_strides": (2, 2), "padding": "SAME"},
        {"window_strides": (1, 1), "padding": "VALID", "rhs_dilation": (2, 1)},
        {"window_strides": (1, 1), "padding": ((1, 1), (0, 0)), "lhs_dilation": (2, 2)},
        {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2},
        {"window_strides": (1, 1), "padding": ((-1, 0), (0, -1))},
    ],
)
def test_what_the_fast_path_does_not_cover_is_xlas_own(how):
    images = random(0, 2, 9, 8, 4)
    kernel = random(1, 3, 3, 4 // how.get("feature_group_count", 1), 6)
    run = jax.jit(
        lambda *given: [
            functional(partial(convolution, dimension_numbers=NUMBERS, **how))(*given)
            for convolution in (convolve, lax.conv_general_dilated)
        ]
    )
    for mine, other in zip(*run(images, kernel), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pads", [((3, 1), (2, 2)), ((3, 1), (3, 2)), ((-1, 2), (1, -1)), ((0, 4), (4, 0))])
def test_padding_beyond_the_kernel_and_below_zero(pads):
    # Where XLA's own gradient reads memory that is not its own, so it cannot be the oracle.
    for rows in (1, 2, 4):
        images, kernel = random(rows, rows, 8, 5, 3), random(1, 3, 3, 3, 2)
        for mine, other in both(images, kernel, pads, repeats=3):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions_and_layouts_are_passed_on(dimensions):
    places = (6,) * dimensions
    images, kernel = random(0, 2, *places, 3), random(1, *(2,) * dimensions, 3, 4)
    ours = nn.Conv(4, (2,) * dimensions, conv_general_dilated=convolve)
    theirs = nn.Conv(4, (2,) * dimensions)
    weights = {"params": {"kernel": kernel, "bias": jnp.zeros(4)}}
    np.testing.assert_allclose(ours.apply(weights, images), theirs.apply(weights, images), rtol=1e-5, atol=1e-5)


def ours_squared(images, kernel):
    """The sum of squares through our convolution."""
    return (convolve(images, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS) ** 2).sum()


def theirs_squared(images, kernel):
    """The sum of squares through Flax's."""
    return (lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS) ** 2).sum()


def test_gradients_under_vmap_over_images_and_over_kernels():
    images, kernels = random(0, 3, 2, 6, 5, 3), random(1, 3, 3, 3, 3, 4)
    mine, theirs = (jax.grad(squared, (0, 1)) for squared in (ours_squared, theirs_squared))
    alone = jax.jit(theirs)
    together = jax.jit(jax.vmap(mine))(images, kernels)
    for number in range(3):
        for ours, other in zip(together, alone(images[number], kernels[number]), strict=True):
            np.testing.assert_allclose(ours[number], other, rtol=1e-5, atol=1e-4)
    shared = jax.jit(jax.vmap(mine, (None, 0)))(images[0], kernels)
    for number in range(3):
        for ours, other in zip(shared, alone(images[0], kernels[number]), strict=True):
            np.testing.assert_allclose(ours[number], other, rtol=1e-5, atol=1e-4)


def test_gradients_under_checkpoint_and_in_a_loop():
    images, kernel = random(0, 2, 6, 5, 3), random(1, 3, 3, 3, 4)
    plain = jax.jit(jax.grad(lambda k: theirs_squared(images, k)))(kernel)
    saved = jax.jit(jax.grad(jax.checkpoint(lambda k: ours_squared(images, k))))(kernel)
    np.testing.assert_allclose(saved, plain, rtol=1e-5, atol=1e-3)

    def body(_, total):
        return total + jax.grad(lambda k: ours_squared(images, k))(kernel)

    looped = jax.jit(lambda: lax.fori_loop(0, 3, body, jnp.zeros_like(kernel)))()
    np.testing.assert_allclose(looped, 3 * plain, rtol=1e-5, atol=1e-3)


def test_bfloat16_gradients_keep_their_dtype_and_agree():
    images, kernel = (
        jnp.asarray(random(s, *shape), jnp.bfloat16) for s, shape in ((0, (2, 6, 5, 3)), (1, (3, 3, 3, 4)))
    )
    mine, theirs = (jax.jit(jax.grad(squared, (0, 1)))(images, kernel) for squared in (ours_squared, theirs_squared))
    for ours, other in zip(mine, theirs, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(ours), np.float32(other), rtol=2e-2, atol=2e-2 * np.abs(other).max())


def test_other_platforms_get_the_stock_gradient():
    images, kernel = random(0, 2, 6, 5, 3), random(1, 3, 3, 3, 4)
    step = jax.jit(jax.grad(lambda k: ours_squared(images, k)))
    stock = jax.jit(jax.grad(lambda k: theirs_squared(images, k)))

    def shapes_on(function, platform):
        text = function.trace(kernel).lower(lowering_platforms=(platform,)).as_text()
        return sorted(line.split(" : ")[-1] for line in text.splitlines() if "stablehlo.convolution" in line)

    assert shapes_on(step, "cuda") == shapes_on(stock, "cuda")
    assert shapes_on(step, "tpu") == shapes_on(stock, "tpu")
    assert shapes_on(step, "cpu") != shapes_on(stock, "cpu")


@QUICK
@given(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
def test_pooling_is_flaxs(rows, height, width, channels, size, seed):
    size = min(size, height, width)
    images = random(seed, rows, height, width, channels)

    def both(images):
        for function in (lambda i: max_pool(i, size), lambda i: nn.max_pool(i, (size, size), (size, size))):
            values, back = jax.vjp(function, images)
            yield values, back(2 * values)[0]

    (values, mine), (expected, other) = jax.jit(lambda images: [*both(images)])(images)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_ties_share_the_gradient():
    slope = jax.grad(lambda images: max_pool(images).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(slope, np.full((1, 2, 2, 1), 0.25))


@pytest.mark.parametrize("size", [0, 4])
def test_a_square_that_does_not_fit_is_refused(size):
    with pytest.raises(InputError, match=rf"max_pool needs a size .* 3 x 5, got {size}"):
        max_pool(jnp.zeros((1, 3, 5, 1)), size)


def test_layers_are_the_functions():
    images = random(0, 2, 6, 6, 3)
    np.testing.assert_array_equal(MaxPool(3).apply({}, images), max_pool(images, 3))
    np.testing.assert_array_equal(Flatten().apply({}, images), images.reshape(2, 108))


def normalized(inputs, mask, momentum=0.9):
    """Outputs, gradients and moving moments: ours, and those of Flax's two-pass form."""
    weights = {
        "params": {"scale": random(3, inputs.shape[-1]), "bias": random(4, inputs.shape[-1])},
        "batch_stats": {"mean": random(5, inputs.shape[-1]), "var": random(6, inputs.shape[-1]) ** 2},
    }
    rendered = np.ones(len(inputs), bool) if mask is None else mask
    wide = None if mask is None else mask.reshape(-1, *[1] * (inputs.ndim - 1))

    def run(inputs, module, mask, **switch):
        def cubed(inputs):
            outputs, stats = module.apply(weights, inputs, mask=mask, mutable=["batch_stats"], **switch)
            return (outputs[rendered] ** 3).sum(), (outputs[rendered], stats["batch_stats"])

        slopes, (outputs, moments) = jax.grad(cubed, has_aux=True)(inputs)
        return outputs, slopes[rendered], moments["mean"], moments["var"]

    theirs = nn.BatchNorm(momentum=momentum, epsilon=1e-3, use_fast_variance=False)
    together = jax.jit(
        lambda inputs: (
            run(inputs, BatchNorm(momentum=momentum), mask, train=True),
            run(inputs, theirs, wide, use_running_average=False),
        )
    )
    return together(inputs)


@QUICK
@given(st.integers(2, 6), st.lists(st.integers(1, 4), max_size=2), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_batch_norm_is_flaxs(rows, places, channels, padded, seed):
    mask = np.arange(rows + 1) < rows if padded else None
    inputs = random(seed, rows + padded, *places, channels)
    for mine, other in zip(*normalized(inputs, mask), strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-4, atol=2e-4)


def test_batch_norm_does_not_see_padding():
    inputs = random(0, 4, 3, 3, 2)
    mask = np.array([True, True, True, False])
    layer = BatchNorm()
    weights = layer.init(jax.random.key(0), inputs, train=False)
    other = np.concatenate([inputs[:3], 100 * inputs[3:]])
    (one, stats), (two, others) = (
        layer.apply(weights, given, train=True, mask=mask, mutable=["batch_stats"]) for given in (inputs, other)
    )
    np.testing.assert_array_equal(one[:3], two[:3])
    jax.tree.map(np.testing.assert_array_equal, stats, others)


def test_batch_norm_of_a_large_mean_and_a_small_spread():
    inputs = (100 + 1e-3 * random(0, 64, 4, 4, 1)).astype(np.float32)
    layer = BatchNorm(epsilon=1e-12)
    weights = layer.init(jax.random.key(0), inputs, train=False)
    outputs, _ = layer.apply(weights, inputs, train=True, mutable=["batch_stats"])
    exact = np.float64(inputs)
    np.testing.assert_allclose(outputs, (exact - exact.mean()) / exact.std(), atol=0.05)


ASKEW = ((2, 0), (0, 3))


@pytest.mark.parametrize(
    ("filters", "channels", "pads"),
    [
        *((filters, channels, ASKEW) for filters in (15, 16, 17, 20, 21, 34, 50) for channels in (3, 18)),
        # One of each way: the convolution, columns, and filters apart.
        *((*case, pads) for case in ((15, 3), (17, 3), (50, 18)) for pads in (((0, 0), (0, 0)), ((1, 1), (1, 1)))),
    ],
)
def test_filters_that_fill_no_vector_are_computed_apart_with_the_same_result(filters, channels, pads):
    images, kernel = random(0, 2, 7, 6, channels), random(1, 3, 2, channels, filters)
    for mine, other in both(images, kernel, pads):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("rows", [1, 23])
@pytest.mark.parametrize("channels", [3, 20])
def test_a_large_batch_is_taken_in_parts_with_the_same_result(rows, channels):
    """The gradient of a kernel is added up over parts of the batch, here of 23 x 26 x 28 pixels."""
    images, kernel = random(1, rows, 28, 30, channels), random(2, 3, 3, channels, 20)
    for mine, other in both(images, kernel, "VALID"):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("size", [1, 3, 9])
def test_few_channels_as_columns_of_a_product_give_the_same_under_vmap_over_kernels(size):
    """Nine pixels a side exceed these images, of which nothing is left."""
    images, kernels = random(1, 5, 8, 7, 3), random(2, 4, size, size, 3, 18)
    how = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": NUMBERS}
    ours = jax.jit(jax.vmap(lambda kernel: convolve(images, kernel, **how)))(kernels)
    stock = jax.jit(lambda kernel: lax.conv_general_dilated(images, kernel, **how))
    theirs = [stock(kernel) for kernel in kernels]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_columns_and_parts_are_as_exact_in_bfloat16_as_the_convolution():
    images, kernel = (
        jnp.asarray(random(seed, *shape), jnp.bfloat16) for seed, shape in ((1, (40, 20, 20, 3)), (2, (3, 3, 3, 18)))
    )
    exact = by_hand(np.float32(images), np.float32(kernel), ((0, 0), (0, 0)))
    ours, stock = (
        jax.jit(lambda i, k, f=f: f(i, k, (1, 1), "VALID", dimension_numbers=NUMBERS))(images, kernel)
        for f in (convolve, lax.conv_general_dilated)
    )
    errors = [np.abs(np.float64(result) - exact).max() for result in (ours, stock)]
    assert ours.dtype == jnp.bfloat16 and errors[0] <= 1.01 * errors[1]


def test_the_bias_is_added_and_its_gradient_is_the_sum():
    images, bias = random(0, 3, 5, 4, 6), random(1, 6)
    np.testing.assert_array_equal(add_bias(images, bias), images + bias[None, None, None, :])
    weights = random(2, 3, 5, 4, 6)
    to_images, to_bias = jax.grad(lambda i, b: (add_bias(i, b) * weights).sum(), (0, 1))(images, bias)
    np.testing.assert_array_equal(to_images, weights)
    np.testing.assert_allclose(to_bias, np.float64(weights).sum((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_layer_is_flaxs_with_the_same_parameters(padding, dtype):
    ours, theirs = Conv(18, padding=padding, dtype=dtype), nn.Conv(18, (3, 3), padding=padding, dtype=dtype)
    images = random(0, 2, 7, 6, 17)
    weights = {"params": {"kernel": 0.1 * random(1, 3, 3, 17, 18), "bias": 0.1 * random(2, 18)}}
    for layer in (ours, theirs):
        begun = jax.eval_shape(layer.init, jax.random.key(0), images)
        assert jax.tree.map(jnp.shape, begun) == jax.tree.map(np.shape, weights)
    mine, other = jax.jit(
        lambda w: [jax.grad(lambda w, m=m: (m.apply(w, images) ** 2).sum())(w) for m in (ours, theirs)]
    )(weights)
    bound = 1e-5 if dtype == jnp.float32 else 2e-2
    for one, two in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=bound, atol=bound * np.abs(two).max())
    assert jax.eval_shape(ours.apply, weights, images).dtype == dtype


@pytest.mark.parametrize(("mean", "spread"), [(5, 0.1), (30, 1)])
def test_batch_norm_in_bfloat16_is_as_exact_as_its_result(mean, spread):
    inputs = jnp.asarray(mean + spread * random(0, 64, 4, 4, 2), jnp.bfloat16)
    layer = BatchNorm(epsilon=1e-12, dtype=jnp.bfloat16)
    weights = layer.init(jax.random.key(0), inputs, train=False)
    outputs, _ = layer.apply(weights, inputs, train=True, mutable=["batch_stats"])
    exact = np.float64(inputs)
    wanted = (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2))
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(outputs), wanted, atol=0.02)


def test_filters_apart_are_as_exact_in_bfloat16_as_the_others():
    images, kernel = (
        jnp.asarray(random(s, *shape), jnp.bfloat16) for s, shape in ((0, (2, 9, 9, 50)), (1, (3, 3, 50, 50)))
    )
    exact = by_hand(np.float64(images), np.float64(kernel), ((0, 0), (0, 0)))
    run = jax.jit(lambda i, k: convolve(i, k, (1, 1), "VALID", dimension_numbers=NUMBERS))
    result = np.float64(run(images, kernel))
    errors = np.abs(result - exact).max((0, 1, 2)) / np.abs(exact).max()
    assert errors[48:].max() < 1.5 * errors[:48].max()


def test_a_large_kernel_is_not_taken_apart():
    images, kernel = random(0, 2, 9, 9, 16), random(1, 6, 6, 16, 17)
    text = str(jax.make_jaxpr(lambda i, k: convolve(i, k, (1, 1), "VALID", dimension_numbers=NUMBERS))(images, kernel))
    assert "dot_general" not in text
    for mine, other in both(images, kernel, "VALID"):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_float64_stays_float64():
    with jax.enable_x64(True):
        images, kernel = (
            np.random.default_rng(s).standard_normal(n) for s, n in ((0, (2, 6, 6, 18)), (1, (3, 3, 18, 50)))
        )
        result = convolve(images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NUMBERS)
        np.testing.assert_allclose(result, by_hand(images, kernel, ((1, 1), (1, 1))), rtol=1e-11, atol=1e-11)


KEY = jax.random.key(3)
RATES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.8, 0.95)


def dropped(rate, inputs, key=KEY):
    """The inputs after the layer, in training."""
    return Dropout(rate).apply({}, inputs, train=True, rngs={"dropout": key})


jit_dropped = jax.jit(dropped)
dropped_by_none = jax.jit(partial(dropped, 0.0))


def deviates(seeds, size, rate, steps=False):
    """Whether each number is kept, as (keys, size) numbers of mean 0 and variance 1."""
    draw = jax.jit(lambda key: dropout(key, jnp.ones(size), rate) > 0)
    remaining = np.stack(
        [draw(jax.random.fold_in(KEY, seed) if steps else jax.random.key(seed)) for seed in range(seeds)]
    )
    return (remaining - (1 - rate)) / np.sqrt(rate * (1 - rate))


@pytest.mark.parametrize("rate", RATES)
def test_dropout_scales_exactly_what_it_keeps_and_keeps_the_right_share(rate):
    inputs = 1 + random(0, 500, 400) ** 2
    outputs = np.asarray(dropped(rate, inputs))
    remaining = outputs != 0
    np.testing.assert_array_equal(outputs[remaining], (inputs * (1 / (1 - np.float32(rate))))[remaining])
    low, high = binom.interval(1 - 1e-6, inputs.size, 1 - rate)
    assert low <= remaining.sum() <= high


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([1, 40]).flatmap(
        lambda size: st.lists(st.floats(width=32, allow_subnormal=False), min_size=size, max_size=size)
    )
)
def test_a_rate_of_0_keeps_every_bit(numbers):
    # XLA on a CPU takes subnormal numbers for 0, whatever is done with them.
    inputs = np.float32(numbers)
    for result in (dropped_by_none(inputs), jit_dropped(np.float32(0), inputs)):
        same = np.asarray(result).view(np.uint32) == inputs.view(np.uint32)
        assert (same | np.isnan(inputs)).all() and np.isnan(result[np.isnan(inputs)]).all()


def test_values_and_gradients_are_those_of_flaxs_dropout_where_both_keep():
    inputs = random(0, 300, 40)
    theirs = nn.Dropout(0.3, deterministic=False)

    def values_and_slopes(inputs):
        for function in (partial(dropped, 0.3), lambda i: theirs.apply({}, i, rngs={"dropout": KEY})):
            values, back = jax.vjp(function, inputs)
            yield values, back(2 * values)[0]

    for mine, other in zip(*jax.jit(lambda inputs: [*values_and_slopes(inputs)])(inputs), strict=True):
        mine, other = np.asarray(mine), np.asarray(other)
        both = (mine != 0) & (other != 0)
        np.testing.assert_allclose(both.mean(), 0.7**2, atol=0.02)
        np.testing.assert_allclose(mine[both], other[both], rtol=1e-6)


def test_the_gradient_is_the_scale_of_what_is_kept():
    inputs = random(0, 50, 40)

    def values_and_slopes(inputs):
        values, back = jax.vjp(partial(dropped, 0.2), inputs)
        return values, back(jnp.ones_like(values))[0]

    outputs, slopes = jax.jit(values_and_slopes)(inputs)
    np.testing.assert_array_equal(slopes, np.where(np.asarray(outputs) != 0, np.float32(1.25), 0))


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("steps", [True, False], ids=["steps of a key", "keys that count up"])
def test_masks_of_different_keys_are_independent(steps, rate):
    keys, size = 32, 2**17
    result = deviates(keys, size, rate, steps)
    # Correlations times sqrt(size) are standard normals where masks are independent.
    pairs = (result @ result.T / np.sqrt(size))[np.triu_indices(keys, 1)]
    assert (pairs**2).sum() < chi2.ppf(0.9999, len(pairs)) and np.abs(pairs).max() < 5
    # The last key's mask moved by a few places is not that of another key either.
    moved = [(result[-1, shift:] * result[0, :-shift]).sum() / np.sqrt(size - shift) for shift in range(1, 40)]
    assert np.abs(moved).max() < 5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_places_rows_and_channels_are_independent(rate):
    rows, columns, channels = 64, 32, 50
    result = deviates(32, rows * columns * channels, rate, steps=True)
    lags = [*range(1, 20), channels, 2 * channels, columns * channels, 2**8, 2**10, 2**12]
    # Each product of neighbours has mean 0 and variance 1.
    sums = np.array([[(one[:-lag] * one[lag:]).sum() / np.sqrt(one.size - lag) for lag in lags] for one in result])
    assert (sums**2).sum() < chi2.ppf(0.9999, sums.size) and np.abs(sums).max() < 5.5
    images = result.reshape(-1, rows, columns, channels)
    for axes in ((2, 3), (1, 3), (1, 2)):
        shares = images.sum(axes) / np.sqrt(np.prod([images.shape[axis] for axis in axes]))
        assert (shares**2).sum() < chi2.ppf(0.9999, shares.size)


def test_all_patterns_of_eight_neighbours_are_equally_likely():
    remaining = deviates(16, 2**16, 0.5, steps=True) > 0
    patterns = np.bincount((remaining.reshape(-1, 8) * 2 ** np.arange(8)).sum(1), minlength=256)
    expected = patterns.sum() / 256
    assert ((patterns - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, 255)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.lists(st.integers(1, 5), max_size=3))
def test_rows_draw_the_same_whatever_rows_follow(rows, more, shape):
    inputs = np.ones((rows + more, *shape), np.float32)
    all_rows, first = jax.jit(lambda all_rows, first: (dropped(0.5, all_rows), dropped(0.5, first)))(
        inputs, inputs[:rows]
    )
    np.testing.assert_array_equal(all_rows[:rows], first)


def test_layers_of_a_network_and_steps_of_training_draw_apart():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return Dropout(0.5)(inputs, train=True), Dropout(0.5)(inputs, train=True)

    inputs = jnp.ones((100, 100))
    masks = [
        mask for step in range(3) for mask in Two().apply({}, inputs, rngs={"params": jax.random.fold_in(KEY, step)})
    ]
    result = np.corrcoef([np.ravel(mask) for mask in masks])
    assert np.abs(result - np.eye(6)).max() < 5 / np.sqrt(inputs.size)


def test_one_program_serves_all_rates_with_the_bits_of_each_alone(compilations):
    inputs = random(0, 30, 20)

    def traced_dropout(rate):
        return dropped(rate, inputs)

    together = jax.jit(traced_dropout)
    with compilations() as names:
        result = [together(np.float32(rate)) for rate in RATES]
    assert names.count("traced_dropout") == 1
    mapped = jax.jit(partial(lax.map, traced_dropout))(np.float32(RATES))
    batched = jax.jit(jax.vmap(traced_dropout))(np.float32(RATES))
    for index, rate in enumerate(RATES):
        for other in (result[index], mapped[index], batched[index]):
            np.testing.assert_array_equal(other, dropped(rate, inputs))


def test_a_member_under_vmap_draws_the_bits_that_it_draws_alone():
    keys, inputs, rates = jax.random.split(KEY, 4), random(0, 4, 30, 20), np.float32([0, 0.1, 0.5, 0.9])

    def squared(inputs, rate, key):
        outputs = dropped(rate, inputs, key)
        return (outputs**2).sum(), outputs

    slopes, together = jax.jit(jax.vmap(jax.grad(squared, has_aux=True)))(inputs, rates, keys)
    for index in range(4):
        alone = np.asarray(jit_dropped(rates[index], inputs[index], keys[index]))
        np.testing.assert_array_equal(together[index], alone)
        np.testing.assert_allclose(slopes[index], 2 * alone / (1 - rates[index]), rtol=1e-6)


def test_a_higher_rate_drops_what_a_lower_one_drops_and_more():
    low, high = (np.asarray(dropped(rate, jnp.ones(1000))) == 0 for rate in (0.2, 0.6))
    assert (low <= high).all() and low.sum() < high.sum()


def test_dropout_of_bfloat16_is_that_of_float32_rounded_once():
    inputs = jnp.asarray(random(0, 200, 50), jnp.bfloat16)
    result = dropped(0.1, inputs)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, dropped(0.1, inputs.astype(jnp.float32)).astype(jnp.bfloat16))


def test_dropout_of_float64_stays_float64():
    with jax.enable_x64(True):
        inputs = np.random.default_rng(0).standard_normal(100)
        result = dropped(0.5, inputs)
        assert result.dtype == np.float64
        np.testing.assert_array_equal(result, np.where(result == 0, 0, 2 * inputs))


def test_old_keys_and_keys_of_another_kind_draw_too():
    for key in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        assert 0.4 < (dropped(0.5, jnp.ones(1000), key) == 0).mean() < 0.6
    np.testing.assert_array_equal(
        dropped(0.5, jnp.ones(1000), jax.random.PRNGKey(0)), dropped(0.5, jnp.ones(1000), jax.random.key(0))
    )


def test_without_training_dropout_needs_no_key_and_changes_nothing():
    inputs = random(0, 5, 4)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, inputs, train=False), inputs)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1 - 1e-9, float("nan"), np.float32(1), jnp.float32(2)])
def test_a_share_that_cannot_be_dropped_is_refused(rate):
    with pytest.raises(InputError, match="dropout must be a rate from 0 to below 1, got"):
        dropped(rate, jnp.ones(3))
