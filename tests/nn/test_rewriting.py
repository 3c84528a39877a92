"""Models with fast convolutions, pooling and biases: values and derivatives are those of what the models wrote."""

import inspect
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxdl
from jaxdl import InputError, Variables
from jaxdl._jit import has_convolution
from jaxdl.nn.rewriting import with_fast_convolutions

LAYOUTS = {
    "NHWC": ("NHWC", "HWIO", "NHWC"),
    "NCHW": ("NCHW", "OIHW", "NCHW"),
    "mixed": ("CHWN", "IHWO", "NHWC"),
}


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(ours, theirs, bound=1e-5):
    """Whether two pytrees agree to a fraction of the largest number of a leaf."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        mine, other = np.asarray(mine), np.asarray(other)
        assert mine.dtype == other.dtype
        mine, other = (values.astype(np.float64) if values.dtype.kind != "i" else values for values in (mine, other))
        np.testing.assert_allclose(mine, other, rtol=bound, atol=bound * max(1e-30, np.abs(other).max(initial=0)))


def derivatives(function, *arguments):
    """Values, gradients of a random functional, a directional derivative, and a product with the Hessian."""
    directions = tuple(jnp.asarray(random(9, *x.shape), x.dtype) for x in arguments)
    values, back = jax.vjp(function, *arguments)
    slopes = jnp.asarray(random(8, *values.shape), values.dtype)

    def gradients(*arguments):
        return jax.grad(lambda *a: (function(*a) ** 2).sum(), tuple(range(len(arguments))))(*arguments)

    _, tangents = jax.jvp(function, arguments, directions)
    _, curvature = jax.jvp(gradients, arguments, directions)
    return values, back(slopes), tangents, curvature


def check(function, *arguments, bound=1e-5, changes=True, oracle=None):
    """Compare the derivatives of the fast function with those of the function, or of an oracle, both compiled."""
    fast = with_fast_convolutions(function)
    assert (text(fast, *arguments) != text(function, *arguments)) == changes
    ours, theirs = (jax.jit(partial(derivatives, run))(*arguments) for run in (fast, oracle or function))
    close(ours, theirs, bound)


def text(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments))


def convolution(layout="NHWC", strides=(1, 1), padding="SAME", **options):
    return lambda images, kernel: lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=LAYOUTS[layout], **options
    )


def padded(layout, strides, padding):
    """A convolution of images that are padded or cropped first: XLA's gradient may read beyond its input."""
    if isinstance(padding, str):
        return convolution(layout, strides, padding)
    spatial = iter(padding)
    widths = [(*next(spatial), 0) if axis in "HW" else (0, 0, 0) for axis in LAYOUTS[layout][0]]
    return lambda images, kernel: convolution(layout, strides, "VALID")(lax.pad(images, 0.0, widths), kernel)


def arranged(array, axes, order):
    return array.transpose([axes.index(axis) for axis in order])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 3)), ((-1, 2), (1, -1))])
def test_layouts_and_padding(layout, padding):
    lhs, rhs, _ = LAYOUTS[layout]
    images, kernel = arranged(random(0, 2, 7, 6, 3), "NHWC", lhs), arranged(random(1, 3, 2, 3, 17), "HWIO", rhs)
    check(convolution(layout, padding=padding), images, kernel, oracle=padded(layout, (1, 1), padding))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("strides", [(2, 2), (1, 3), (3, 2)])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 4)])
def test_strides(layout, strides, size):
    lhs, rhs, _ = LAYOUTS[layout]
    images, kernel = arranged(random(0, 2, 11, 8, 3), "NHWC", lhs), arranged(random(1, *size, 3, 17), "HWIO", rhs)
    for padding in ("SAME", "VALID", ((2, 1), (0, 3))):
        check(convolution(layout, strides, padding), images, kernel, oracle=padded(layout, strides, padding))


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 6},
        {"feature_group_count": 6, "strides": (2, 1), "padding": ((1, 0), (2, 1)), "rhs_dilation": (1, 2)},
        {"feature_group_count": 3},
        {"feature_group_count": 2, "strides": (2, 2)},
        {"rhs_dilation": (2, 1)},
        {"lhs_dilation": (1, 2), "padding": ((1, 1), (1, 0))},
        {"lhs_dilation": (2, 2), "padding": ((2, 1), (1, 1)), "feature_group_count": 6},
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_and_dilation(options, layout):
    lhs, rhs, _ = LAYOUTS[layout]
    images = arranged(random(0, 2, 7, 6, 6), "NHWC", lhs)
    kernel = arranged(random(1, 3, 2, 6 // options.get("feature_group_count", 1), 12), "HWIO", rhs)
    check(convolution(layout, **options), images, kernel)


def test_a_convolution_with_a_wider_result_stays_as_it_is():
    images, kernel = (jnp.asarray(x, jnp.bfloat16) for x in (random(0, 2, 7, 6, 3), random(1, 3, 2, 3, 6)))
    function = convolution(preferred_element_type=jnp.float32)
    assert text(with_fast_convolutions(function), images, kernel) == text(function, images, kernel)


def test_groups_of_the_batch_and_integers_stay_as_they_are():
    images, kernel = random(0, 2, 7, 6, 3), random(1, 3, 2, 3, 6)
    check(convolution(batch_group_count=2), images, kernel, changes=False)
    whole = [np.arange(x.size, dtype=np.int32).reshape(x.shape) for x in (images, kernel)]
    ours, theirs = (jax.jit(f)(*whole) for f in (with_fast_convolutions(convolution()), convolution()))
    np.testing.assert_array_equal(ours, theirs)


def test_one_and_three_spatial_axes():
    for axes, changes in ((1, True), (3, False)):
        layer = nn.Conv(5, (3,) * axes, strides=2)
        images = random(0, 2, *(7,) * axes, 3)
        weights = layer.init(jax.random.key(0), images)["params"]

        def function(images, kernel, bias, layer=layer):
            return layer.apply({"params": {"kernel": kernel, "bias": bias}}, images)

        check(function, images, weights["kernel"], weights["bias"], changes=changes)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_biases(layout):
    lhs, rhs, _ = LAYOUTS[layout]
    images, kernel = arranged(random(0, 2, 6, 5, 3), "NHWC", lhs), arranged(random(1, 3, 3, 3, 6), "HWIO", rhs)
    bias = arranged(random(2, 1, 1, 1, 6), "NHWC", lhs)
    for add in (lambda *a: convolution(layout)(*a[:2]) + a[2], lambda *a: a[2] + convolution(layout)(*a[:2])):
        check(add, images, kernel, bias)
        assert "dot_general" in text(with_fast_convolutions(add), images, kernel, bias)
    check(lambda images, bias: images + bias, images, bias[:, :3] if layout == "NCHW" else bias[..., :3], changes=False)


def pool(images, kind, window=(1, 2, 2, 1), strides=None, padding="VALID"):
    start, reduce = (-jnp.inf, lax.max) if kind == "max" else (0.0, lax.add)
    return lax.reduce_window(images, np.asarray(start, images.dtype), reduce, window, strides or window, padding)


@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize("window", [(1, 2, 2, 1), (1, 1, 3, 2), (1, 3, 1, 1), (2, 2, 2, 4)])
def test_pooling(kind, window):
    check(partial(pool, kind=kind, window=window), random(0, 2, 7, 6, 4))


@pytest.mark.parametrize("kind", ["max", "sum"])
def test_other_pooling_stays_as_it_is(kind):
    for options in ({"strides": (1, 1, 1, 1)}, {"window": (1, 3, 3, 1), "strides": (1, 2, 2, 1), "padding": "SAME"}):
        function, images = partial(pool, kind=kind, **options), random(0, 2, 7, 6, 4)
        assert text(with_fast_convolutions(function), images) == text(function, images)


def test_windows_larger_than_the_images_are_none():
    run = with_fast_convolutions(partial(pool, kind="max", window=(1, 3, 3, 1)))
    assert jax.jit(run)(random(0, 2, 2, 7, 4)).shape == (2, 0, 2, 4)


def test_the_first_of_equal_pixels_gets_the_gradient_as_it_does_from_xla():
    images = np.random.default_rng(0).integers(0, 2, (3, 8, 9, 4)).astype(np.float32)
    check(partial(pool, kind="max"), images)
    run = with_fast_convolutions(partial(pool, kind="max"))
    slope = jax.jit(jax.grad(lambda images: run(images).sum()))(jnp.zeros((1, 2, 2, 1)))
    assert slope.ravel().tolist() == [1, 0, 0, 0]


def test_nan_stays_nan():
    images, kernel = random(0, 2, 8, 8, 3), random(1, 3, 3, 3, 17)
    images[0, 3, 4, 1] = np.nan

    def function(images, kernel):
        return pool(convolution()(images, kernel), "max")

    ours, theirs = (jax.jit(f)(images, kernel) for f in (with_fast_convolutions(function), function))
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.isnan(ours).any() and not np.isnan(ours).all()
    to_kernel = jax.jit(jax.grad(lambda k: with_fast_convolutions(function)(images, k).sum()))(kernel)
    assert np.isnan(to_kernel).any()


def test_low_precision_keeps_its_dtype():
    for dtype in (jnp.bfloat16, jnp.float16):
        images, kernel = (jnp.asarray(x, dtype) for x in (random(0, 2, 8, 8, 3), 0.1 * random(1, 3, 3, 3, 17)))

        def function(images, kernel):
            return pool(convolution()(images, kernel), "max")

        fast = with_fast_convolutions(function)
        ours, theirs = (
            jax.jit(jax.grad(lambda *a, f=f: f(*a).astype(jnp.float32).sum(), (0, 1)))(images, kernel)
            for f in (fast, function)
        )
        close(ours, theirs, 3e-2)
        close(jax.jit(fast)(images, kernel), jax.jit(function)(images, kernel), 2e-2)


def test_a_default_precision_of_a_context_counts():
    def function(images, kernel):
        with jax.default_matmul_precision("highest"):
            return convolution()(images, kernel)

    images, kernel = random(0, 2, 8, 8, 3), random(1, 3, 3, 3, 17)
    lowered = jax.jit(with_fast_convolutions(function)).trace(images, kernel).lower(lowering_platforms=("tpu",))
    assert "HIGHEST" in lowered.as_text()


def network(images, kernel):
    return pool(jax.nn.relu(convolution()(images, kernel)), "max").mean((1, 2))


@jax.custom_vjp
def own_rule(images, kernel):
    return network(images, kernel)


own_rule.defvjp(lambda *given: jax.vjp(network, *given), lambda back, slope: jax.tree.map(lambda x: 2 * x, back(slope)))


def repeated(images, kernel):
    def body(total, kernel):
        return total + network(images, kernel), network(images, kernel).sum()

    start = jnp.zeros((len(images), kernel.shape[-1]))
    return lax.scan(body, start, jnp.stack([kernel, 2 * kernel]))[0]


@pytest.mark.parametrize(
    "function",
    [
        jax.jit(network),
        jax.checkpoint(network),
        jax.checkpoint(jax.jit(network), policy=jax.checkpoint_policies.dots_saveable),
        lambda images, kernel: lax.cond(images.sum() > 0, network, lambda *a: 2 * network(*a), images, kernel),
        repeated,
    ],
)
def test_inner_functions(function):
    check(function, random(0, 2, 6, 6, 3), random(1, 3, 3, 3, 17), bound=3e-5)


def test_derivatives_of_the_users_stay():
    images, kernel = random(0, 2, 6, 6, 3), random(1, 3, 3, 3, 17)
    ours, theirs = (
        jax.jit(jax.value_and_grad(lambda *a, f=f: f(*a).sum(), (0, 1)))(images, kernel)
        for f in (with_fast_convolutions(own_rule), own_rule)
    )
    close(ours, theirs)


def test_loops_with_a_condition():
    def function(images, kernel):
        def body(carry):
            return carry[0] + 1, carry[1] + network(images, kernel)

        return lax.while_loop(lambda carry: carry[0] < 3, body, (0, jnp.zeros((2, 17))))[1]

    images, kernel = random(0, 2, 6, 6, 3), random(1, 3, 3, 3, 17)
    close(*(jax.jit(f)(images, kernel) for f in (with_fast_convolutions(function), function)))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (3, 1)])
def test_vmap_inside_and_outside(axes):
    images, kernel = random(0, 2, 6, 6, 3), random(1, 3, 3, 3, 17)
    given = [
        x if axis is None else np.stack([x, 2 * x + 1, x**2], axis)
        for axis, x in zip(axes, (images, kernel), strict=True)
    ]
    check(jax.vmap(network, axes), *given, bound=3e-5)
    outside = jax.vmap(with_fast_convolutions(network), axes)
    close(*(jax.jit(partial(derivatives, f))(*given) for f in (outside, jax.vmap(network, axes))), 3e-5)
    # In two levels, of which the gradient of the inner one is taken.
    doubled = [jnp.stack([x, x]) for x in given]

    def gradients(function):
        return jax.vmap(jax.vmap(jax.grad(lambda *a: (function(*a) ** 2).sum(), (0, 1)), axes))

    close(*(jax.jit(gradients(f))(*doubled) for f in (with_fast_convolutions(network), network)), 3e-5)


def test_arguments_and_results_may_be_any_pytree():
    def function(tree, *, key, train, mask=None):
        assert train is True and mask is None and tree["name"] == "x"
        noise = jax.random.normal(key, tree["images"].shape)
        outputs = network(tree["images"] + noise, tree["kernel"])
        return {"outputs": outputs, "rate": 0.5, "none": None, "same": tree["images"], "key": key, "name": "y"}

    tree = {"images": random(0, 2, 6, 6, 3), "kernel": random(1, 3, 3, 3, 17)}
    key = jax.random.key(0)

    def run(function):
        static = {}

        def inner(tree, key):
            results = function({**tree, "name": "x"}, key=key, train=True)
            static.update({name: results.pop(name) for name in ("rate", "none", "name")})
            assert results["same"].shape == (2, 6, 6, 3)
            return results["outputs"], jax.random.key_data(results["key"])

        return jax.jit(inner)(tree, key), static

    (ours, mine), (theirs, other) = run(with_fast_convolutions(function)), run(function)
    close(ours, theirs)
    assert mine == other == {"rate": 0.5, "none": None, "name": "y"}


def test_errors_come_through():
    def function(images):
        raise InputError("no images")

    with pytest.raises(InputError, match="no images"):
        jax.eval_shape(with_fast_convolutions(function), random(0, 2, 6, 6, 3))


def test_effects_and_names_stay():
    lines = []

    def function(images, kernel):
        jax.debug.callback(lambda: lines.append("called"))
        with jax.named_scope("block"):
            return network(images, kernel)

    images, kernel = random(0, 2, 6, 6, 3), random(1, 3, 3, 3, 17)
    lowered = jax.jit(with_fast_convolutions(function)).lower(images, kernel)
    assert "block" in lowered.as_text(debug_info=True)
    jax.block_until_ready(lowered.compile()(images, kernel))
    jax.effects_barrier()
    assert lines == ["called"]


@pytest.mark.parametrize("shape", [(4, 5)])
def test_tables_are_not_traced_twice(shape):
    calls = []

    def function(inputs):
        calls.append(type(inputs))
        return inputs

    jax.jit(with_fast_convolutions(function))(jnp.ones(shape))
    with_fast_convolutions(function)(jnp.ones((1, 2, 3)))
    assert len(calls) == 2 and "Tracer" not in calls[1].__name__


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_compute_what_the_model_wrote(platform):
    images, kernel = random(0, 2, 6, 6, 3), random(1, 3, 3, 3, 17)

    def operations(function, platform):
        step = jax.jit(jax.grad(lambda *a: function(*a).sum(), (0, 1)))
        text = step.trace(images, kernel).lower(lowering_platforms=(platform,)).as_text()
        names = ("stablehlo.convolution", "stablehlo.reduce_window", "stablehlo.select_and_scatter", "transpose")
        return sorted(line.split(" : ")[-1] for line in text.splitlines() if any(name in line for name in names))

    fast = with_fast_convolutions(network)
    assert operations(fast, platform) == operations(network, platform)
    assert operations(fast, "cpu") != operations(network, "cpu")


class Net(nn.Module):
    """A stock ConvNet."""

    @nn.compact
    def __call__(self, images, train=False):
        hidden = nn.relu(nn.Conv(18, (3, 3))(images))
        hidden = nn.avg_pool(nn.max_pool(hidden, (2, 2), (2, 2)), (2, 2), (2, 2))
        hidden = nn.Conv(20, (3, 3), (2, 2))(hidden)
        return nn.Dense(3)(hidden.reshape(hidden.shape[0], -1))


class Layers(nnx.Module):
    """A stock ConvNet of NNX."""

    def __init__(self, rngs):
        self.conv, self.dense = nnx.Conv(3, 18, (3, 3), rngs=rngs), nnx.Linear(18, 3, rngs=rngs)

    def __call__(self, images):
        return self.dense(nnx.max_pool(nnx.relu(self.conv(images)), (2, 2), (2, 2)).mean((1, 2)))


MODELS = {"linen": lambda: jaxdl.from_linen(Net()), "nnx": lambda: jaxdl.from_nnx(lambda rngs: Layers(rngs))}


@pytest.mark.parametrize("kind", MODELS)
def test_models_have_all_derivatives(kind):
    model, images = MODELS[kind](), random(0, 4, 9, 8, 3)
    variables = model.init(jax.random.key(0), images[:1])

    def outputs(params, apply=model.apply):
        return apply(Variables(params, variables.stats), images, train=True, key=jax.random.key(0))[0]

    stock = partial(outputs, apply=inspect.unwrap(model.apply))
    assert "convolution[" in text(outputs, variables.params) and "convolution[" not in text(stock, variables.params)
    pair = [(jax.jit(f)(variables.params), jax.jit(jax.jacrev(f))(variables.params)) for f in (outputs, stock)]
    close(*pair)
    close(jax.jit(jax.jacfwd(outputs))(variables.params), pair[1][1])


def test_models_of_jaxdl_have_forward_derivatives():
    model, images = jaxdl.convnet((18,), pool=True, outputs=3), random(0, 2, 8, 8, 3)
    variables = model.init(jax.random.key(0), images[:1])

    def outputs(params):
        return model.apply(Variables(params, {}), images, train=False)[0]

    close(jax.jit(jax.jacfwd(outputs))(variables.params), jax.jit(jax.jacrev(outputs))(variables.params))


@pytest.mark.parametrize("shape", [(3, 3, 3, 18), (18, 3, 3, 3)])
def test_layouts_of_other_libraries_have_the_options_of_convolutions(shape):
    images = jnp.ones((4, 3, 32, 32)) if shape[0] == 18 else jnp.ones((4, 32, 32, 3))
    assert has_convolution({"kernel": jnp.ones(shape)}, (images, jnp.ones(4)))


def test_a_model_is_exported_for_all_platforms():
    model, images = jaxdl.from_linen(Net()), random(0, 4, 9, 8, 3)
    variables = model.init(jax.random.key(0), images[:1])

    def outputs(images):
        return model.apply(variables, images, train=False)[0]

    (batch,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
    program = jax.export.export(jax.jit(outputs), platforms=["cpu", "cuda", "tpu"])(spec)
    again = jax.export.deserialize(program.serialize())
    close(again.call(images), outputs(images))
    close(again.call(images[:1]), outputs(images[:1]))


def test_the_summary_lists_the_layers():
    layers = jaxdl.summary(jaxdl.from_linen(Net()), np.zeros((1, 9, 8, 3), np.float32)).layers
    assert [layer.name for layer in layers] == ["Conv_0", "Conv_1", "Dense_0"]
    assert layers[0].shape == (9, 8, 18)
