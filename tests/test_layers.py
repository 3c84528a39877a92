"""Convolution, pooling and BatchNorm against XLA's and Flax's own, on random shapes; and their place in programs."""

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

from jaxdl import InputError
from jaxdl.convolutions import add_bias, convolve
from jaxdl.layers import BatchNorm, Conv, Flatten, MaxPool, max_pool

NUMBERS = ("NHWC", "HWIO", "NHWC")
# Every example compiles programs of its own.
QUICK = settings(max_examples=8, deadline=None)


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_hand(images, kernel, pads):
    """A convolution as the sum over the kernel's places, in float64."""
    images = np.pad(np.float64(images), ((0, 0), *pads, (0, 0)))
    height, width = images.shape[1] - kernel.shape[0] + 1, images.shape[2] - kernel.shape[1] + 1
    return sum(
        np.einsum("bhwc,ck->bhwk", images[:, i : i + height, j : j + width], np.float64(kernel[i, j]))
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )


def defined(images, kernel, window_strides, padding, dimension_numbers):
    """The definition of a convolution without any convolution of XLA, to be differentiated."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], window_strides, padding)
    images = lax.pad(images, jnp.float32(0), ((0, 0, 0), *((*pads, 0) for pads in padding), (0, 0, 0)))
    height, width = images.shape[1] - kernel.shape[0] + 1, images.shape[2] - kernel.shape[1] + 1
    parts = (
        jnp.einsum("bhwc,ck->bhwk", images[:, i : i + height, j : j + width], kernel[i, j], precision="highest")
        for i, j in np.ndindex(kernel.shape[:2])
    )
    return sum(parts, jnp.float32(0))


def both(images, kernel, oracle=lax.conv_general_dilated, **how):
    """Values and gradients of a random functional of the convolution: ours, and the oracle's."""
    results = []
    for function in (convolve, oracle):

        def out(images, kernel, function=function):
            return function(images, kernel, dimension_numbers=NUMBERS, **how)

        shape = jax.eval_shape(out, images, kernel).shape
        weights = random(7, *shape)
        slopes = jax.grad(lambda i, k, out=out, weights=weights: (out(i, k) * weights).sum(), (0, 1))(images, kernel)
        results.append((out(images, kernel), *slopes))
    return results


shapes = st.tuples(*(st.integers(low, high) for low, high in ((1, 4), (3, 9), (3, 9), (1, 5), (1, 3), (1, 3), (1, 6))))
paddings = st.one_of(
    st.sampled_from(["SAME", "VALID"]),
    st.tuples(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(st.integers(0, 3), st.integers(0, 3))),
)


@settings(max_examples=20, deadline=None)
@given(shapes, paddings, st.integers(0, 9))
def test_values_and_gradients_are_those_of_the_definition(shape, padding, seed):
    rows, height, width, channels, kernel_height, kernel_width, filters = shape
    images, kernel = (
        random(seed, rows, height, width, channels),
        random(seed + 1, kernel_height, kernel_width, channels, filters),
    )
    ours, theirs = both(images, kernel, defined, window_strides=(1, 1), padding=padding)
    for mine, other in zip(ours, theirs, strict=True):
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
    for mine, other in zip(*both(images, kernel, **how), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pads", [((3, 1), (2, 2)), ((3, 1), (3, 2)), ((-1, 2), (1, -1)), ((0, 4), (4, 0))])
def test_padding_beyond_the_kernel_and_below_zero(pads):
    # Where XLA's own gradient reads memory that is not its own, so it cannot be the oracle.
    for rows in (1, 2, 4):
        images, kernel = random(rows, rows, 8, 5, 3), random(1, 3, 3, 3, 2)
        for _ in range(3):
            for mine, other in zip(*both(images, kernel, defined, window_strides=(1, 1), padding=pads), strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions_and_layouts_are_passed_on(dimensions):
    places = (6,) * dimensions
    images, kernel = random(0, 2, *places, 3), random(1, *(2,) * dimensions, 3, 4)
    ours = nn.Conv(4, (2,) * dimensions, conv_general_dilated=convolve)
    theirs = nn.Conv(4, (2,) * dimensions)
    weights = {"params": {"kernel": kernel, "bias": jnp.zeros(4)}}
    np.testing.assert_allclose(ours.apply(weights, images), theirs.apply(weights, images), rtol=1e-5, atol=1e-5)


def losses(images, kernel):
    """The sum of squares through our convolution and through Flax's."""
    ours = convolve(images, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)
    theirs = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)
    return (ours**2).sum(), (theirs**2).sum()


def test_gradients_under_vmap_over_images_and_over_kernels():
    images, kernels = random(0, 3, 2, 6, 5, 3), random(1, 3, 3, 3, 3, 4)
    mine = jax.vmap(jax.grad(lambda i, k: losses(i, k)[0], (0, 1)))(images, kernels)
    theirs = jax.vmap(jax.grad(lambda i, k: losses(i, k)[1], (0, 1)))(images, kernels)
    for ours, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-4)
    shared = jax.vmap(jax.grad(lambda i, k: losses(i, k)[0], (0, 1)), (None, 0))(images[0], kernels)
    for number in range(3):
        alone = jax.grad(lambda i, k: losses(i, k)[1], (0, 1))(images[0], kernels[number])
        for ours, other in zip(shared, alone, strict=True):
            np.testing.assert_allclose(ours[number], other, rtol=1e-5, atol=1e-4)


def test_gradients_under_checkpoint_and_in_a_loop():
    images, kernel = random(0, 2, 6, 5, 3), random(1, 3, 3, 3, 4)
    plain = jax.grad(lambda k: losses(images, k)[1])(kernel)
    saved = jax.jit(jax.grad(jax.checkpoint(lambda k: losses(images, k)[0])))(kernel)
    np.testing.assert_allclose(saved, plain, rtol=1e-5, atol=1e-3)

    def body(_, total):
        return total + jax.grad(lambda k: losses(images, k)[0])(kernel)

    looped = jax.jit(lambda: lax.fori_loop(0, 3, body, jnp.zeros_like(kernel)))()
    np.testing.assert_allclose(looped, 3 * plain, rtol=1e-5, atol=1e-3)


def test_bfloat16_gradients_keep_their_dtype_and_agree():
    images, kernel = (
        jnp.asarray(random(s, *shape), jnp.bfloat16) for s, shape in ((0, (2, 6, 5, 3)), (1, (3, 3, 3, 4)))
    )
    mine = jax.grad(lambda i, k: losses(i, k)[0], (0, 1))(images, kernel)
    theirs = jax.grad(lambda i, k: losses(i, k)[1], (0, 1))(images, kernel)
    for ours, other in zip(mine, theirs, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(ours), np.float32(other), rtol=2e-2, atol=2e-2 * np.abs(other).max())


def test_other_platforms_get_the_stock_gradient():
    images, kernel = random(0, 2, 6, 5, 3), random(1, 3, 3, 3, 4)
    step = jax.jit(jax.grad(lambda k: losses(images, k)[0]))
    stock = jax.jit(jax.grad(lambda k: losses(images, k)[1]))

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

    def theirs(images):
        return nn.max_pool(images, (size, size), (size, size))

    np.testing.assert_array_equal(max_pool(images, size), theirs(images))
    mine, other = (jax.grad(lambda i, f=f: (f(i) ** 2).sum())(images) for f in (lambda i: max_pool(i, size), theirs))
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


def normalised(inputs, mask, momentum=0.9):
    """Outputs, gradients and moving moments: ours, and those of Flax's two-pass form."""
    results = []
    for module, switch in (
        (BatchNorm(momentum=momentum), {"train": True}),
        (nn.BatchNorm(momentum=momentum, epsilon=1e-3, use_fast_variance=False), {"use_running_average": False}),
    ):
        weights = {
            "params": {"scale": random(3, inputs.shape[-1]), "bias": random(4, inputs.shape[-1])},
            "batch_stats": {"mean": random(5, inputs.shape[-1]), "var": random(6, inputs.shape[-1]) ** 2},
        }
        wide = None if mask is None else mask.reshape(-1, *[1] * (inputs.ndim - 1))

        def run(inputs, module=module, switch=switch, weights=weights, wide=wide):
            own = mask if isinstance(module, BatchNorm) else wide
            return module.apply(weights, inputs, mask=own, mutable=["batch_stats"], **switch)

        outputs, stats = run(inputs)
        shown = np.ones(len(inputs), bool) if mask is None else mask
        slopes = jax.grad(lambda i, run=run, shown=shown: (run(i)[0][shown] ** 3).sum())(inputs)
        results.append((outputs[shown], slopes[shown], stats["batch_stats"]["mean"], stats["batch_stats"]["var"]))
    return results


@QUICK
@given(st.integers(2, 6), st.lists(st.integers(1, 4), max_size=2), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_batch_norm_is_flaxs(rows, places, channels, padded, seed):
    mask = np.arange(rows + 1) < rows if padded else None
    inputs = random(seed, rows + padded, *places, channels)
    for mine, other in zip(*normalised(inputs, mask), strict=True):
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


@pytest.mark.parametrize("filters", [15, 16, 17, 20, 21, 34, 50])
@pytest.mark.parametrize("channels", [3, 18])
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (0, 3))])
def test_filters_that_fill_no_vector_are_computed_apart_with_the_same_result(filters, channels, pads):
    images, kernel = random(0, 2, 7, 6, channels), random(1, 3, 2, channels, filters)
    for mine, other in zip(*both(images, kernel, defined, window_strides=(1, 1), padding=pads), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=2e-5 * np.abs(other).max())


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
    weights = theirs.init(jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), images)) == jax.tree.map(jnp.shape, weights)
    mine, other = (jax.jit(jax.grad(lambda w, m=m: (m.apply(w, images) ** 2).sum()))(weights) for m in (ours, theirs))
    bound = 1e-5 if dtype == jnp.float32 else 2e-2
    for one, two in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=bound, atol=bound * np.abs(two).max())
    assert ours.apply(weights, images).dtype == dtype


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
    found = np.float64(convolve(images, kernel, (1, 1), "VALID", dimension_numbers=NUMBERS))
    errors = np.abs(found - exact).max((0, 1, 2)) / np.abs(exact).max()
    assert errors[48:].max() < 1.5 * errors[:48].max()


def test_a_large_kernel_is_not_taken_apart():
    images, kernel = random(0, 2, 9, 9, 16), random(1, 6, 6, 16, 17)
    text = str(jax.make_jaxpr(lambda i, k: convolve(i, k, (1, 1), "VALID", dimension_numbers=NUMBERS))(images, kernel))
    assert "dot_general" not in text
    for mine, other in zip(*both(images, kernel, window_strides=(1, 1), padding="VALID"), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_float64_stays_float64():
    with jax.enable_x64(True):
        images, kernel = (
            np.random.default_rng(s).standard_normal(n) for s, n in ((0, (2, 6, 6, 18)), (1, (3, 3, 18, 50)))
        )
        found = convolve(images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NUMBERS)
        np.testing.assert_allclose(found, by_hand(images, kernel, ((1, 1), (1, 1))), rtol=1e-11, atol=1e-11)
