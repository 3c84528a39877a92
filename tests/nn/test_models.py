"""The shipped networks, against NumPy and closed forms."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl.errors import InputError
from jaxdl.nn import (
    MLP,
    Conv,
    ModelSpec,
    build_model,
    convnet,
    from_linen,
    mlp,
    residual_net,
    summary,
    with_flip_averaging,
)
from jaxdl.nn.models import from_json, to_json
from jaxdl.types import Variables

KEY = jax.random.key(0)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(model, features):
    return jax.eval_shape(model.init, KEY, jnp.ones((1, features)))


def drawn(model, features):
    """Weights from NumPy: compiling JAX's own draws takes longer than all else here."""
    draws, of = np.random.default_rng(0), shapes(model, features)
    params = jax.tree.map(lambda leaf: draws.normal(0, 0.5, leaf.shape).astype(np.float32), of.params)
    moments = {"mean": np.zeros(features, np.float32), "var": np.ones(features, np.float32)}
    return Variables(params, {"batch_stats": {"BatchNorm_0": moments}} if of.stats else {})


def run(model, *arguments, train, **keywords):
    """`model.apply` as one program."""
    return jax.jit(partial(model.apply, train=train))(*arguments, **keywords)


@pytest.mark.parametrize(
    ("widths", "outputs", "input_norm", "trained", "moving"),
    [
        ((100, 50), 1, False, 14101, 0),
        # Scale and offset of each of the 89 features are trained, its mean and variance are not.
        ((100, 50), 1, True, 14101 + 2 * 89, 178),
        ((10, 5), 1, False, 89 * 10 + 10 + 10 * 5 + 5 + 5 + 1, 0),
        ((), 3, False, 89 * 3 + 3, 0),
    ],
)
def test_numbers_of_parameters(widths, outputs, input_norm, trained, moving):
    variables = shapes(mlp(widths, outputs=outputs, input_norm=input_norm), 89)
    assert (count(variables.params), count(variables.stats)) == (trained, moving)


def test_the_lessons_network_with_input_norm_holds_14457_numbers():
    assert count(shapes(mlp((100, 50), input_norm=True), 89)) == 14457


def test_kernels_begin_as_kerass_glorot_uniform_and_biases_as_zeros():
    params = jax.jit(mlp((100, 50)).init)(KEY, jnp.ones((1, 89))).params
    for name, (fan_in, fan_out) in {"Dense_0": (89, 100), "Dense_1": (100, 50), "Dense_2": (50, 1)}.items():
        limit = np.sqrt(6 / (fan_in + fan_out))
        kernel = np.asarray(params[name]["kernel"])
        assert kernel.shape == (fan_in, fan_out)
        assert np.abs(kernel).max() <= limit
        # Of n draws the largest falls short of the limit by a share of about 1 / n.
        assert np.abs(kernel).max() > limit * (1 - 10 / kernel.size)
        np.testing.assert_array_equal(params[name]["bias"], np.zeros(fan_out))
    # A uniform draw between -a and a has the deviation a / sqrt(3).
    np.testing.assert_allclose(np.std(params["Dense_0"]["kernel"]), np.sqrt(6 / 189) / np.sqrt(3), rtol=0.02)
    assert not np.array_equal(params["Dense_0"]["kernel"][:50, :50], params["Dense_1"]["kernel"][:50])


def test_outputs_are_those_of_numpy():
    inputs = np.random.default_rng(0).normal(0, 1, (7, 4)).astype(np.float32)
    model = mlp((6, 5), outputs=2)
    variables = drawn(model, 4)
    params, hidden = variables.params, inputs
    for name in ("Dense_0", "Dense_1"):
        hidden = np.maximum(hidden @ params[name]["kernel"] + params[name]["bias"], 0)
    expected = hidden @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
    outputs, _ = run(model, variables, inputs, train=False)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    # No relu after the last layer: predictions may be negative.
    assert (expected < 0).any()


@pytest.mark.parametrize("input_norm", [False, True])
def test_bfloat16_is_the_dtype_of_the_computation_only(input_norm):
    inputs = np.random.default_rng(1).normal(0, 1, (16, 8)).astype(np.float32)
    half = mlp((32,), outputs=3, input_norm=input_norm, dtype=jnp.bfloat16)
    variables = drawn(half, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    # Not as one program, in which XLA may leave out the last rounding.
    outputs, stats = half.apply(variables, inputs, train=True)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} <= {jnp.dtype(jnp.float32)}
    program = jax.make_jaxpr(lambda inputs: half.apply(variables, inputs, train=True)[0])(inputs)
    products = [step for step in program.eqns if step.primitive.name == "dot_general"]
    assert [variable.aval.dtype for step in products for variable in step.invars] == [jnp.bfloat16] * 4
    # What was computed in bfloat16 fits bfloat16 exactly, and is near what float32 gives.
    np.testing.assert_array_equal(outputs, np.asarray(outputs).astype(jnp.bfloat16).astype(np.float32))
    full, _ = run(mlp((32,), outputs=3, input_norm=input_norm), variables, inputs, train=True)
    assert not np.array_equal(outputs, full)
    np.testing.assert_allclose(outputs, full, atol=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_padding_rows_change_neither_outputs_nor_statistics(dropout):
    # 5 real rows and 3 of padding, far from the real ones, as if one had gone wrong.
    real = np.random.default_rng(0).normal(3, 2, (5, 4)).astype(np.float32)
    padded = np.concatenate([real, np.full((3, 4), 1e4, np.float32)])
    model = mlp((6,), input_norm=True, dropout=dropout)
    variables = drawn(model, 4)
    alone, stats_alone = run(model, variables, real, train=True, key=KEY)
    outputs, stats = run(model, variables, padded, train=True, key=KEY, mask=np.arange(8) < 5)
    np.testing.assert_allclose(outputs[:5], alone, rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6), stats, stats_alone)


def normalizing(column_count):
    """A model that is its BatchNorm: no hidden layers, and a last layer that changes nothing."""
    model = mlp((), outputs=column_count, input_norm=True)
    params = {
        "BatchNorm_0": {"scale": np.ones(column_count, np.float32), "bias": np.zeros(column_count, np.float32)},
        "Dense_0": {"kernel": np.eye(column_count, dtype=np.float32), "bias": np.zeros(column_count, np.float32)},
    }
    return model, drawn(model, column_count)._replace(params=params)


def test_batchnorm_of_a_column_with_mean_100_and_deviation_a_thousandth():
    model, variables = normalizing(1)
    column = np.random.default_rng(0).normal(100, 1e-3, (512, 1)).astype(np.float32)
    exact = column.astype(np.float64)
    # From moments of 0, so that the new ones show the batch's own to all digits.
    variables = variables._replace(stats=jax.tree.map(np.zeros_like, variables.stats))
    outputs, stats = run(model, variables, column, train=True)
    moving = stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(moving["var"], 0.01 * exact.var(0), rtol=0.02)
    np.testing.assert_allclose(moving["mean"], 0.01 * exact.mean(0), rtol=1e-6)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-3)
    np.testing.assert_allclose(np.std(outputs), np.std(expected), rtol=0.02)
    # A float32 near 100 has steps of 8e-6, a hundredth of the deviation.
    np.testing.assert_allclose(outputs, expected, atol=0.02 * np.std(expected))


def test_batchnorm_has_kerass_momentum_and_epsilon():
    model, variables = normalizing(3)
    batches = np.random.default_rng(0).normal([5, -1, 0], [0.1, 1, 0.01], (4, 32, 3)).astype(np.float32)
    mean, variance = np.zeros(3), np.ones(3)
    step = jax.jit(partial(model.apply, train=True))
    for batch in batches:
        outputs, stats = step(variables, batch)
        variables = variables._replace(stats=stats)
        mean, variance = 0.99 * mean + 0.01 * batch.mean(0), 0.99 * variance + 0.01 * batch.var(0)
        expected = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-3)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    moving = stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(moving["mean"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(moving["var"], variance, rtol=1e-5)
    predicted, _ = run(model, variables, batches[0], train=False)
    np.testing.assert_allclose(predicted, (batches[0] - mean) / np.sqrt(variance + 1e-3), rtol=1e-4, atol=1e-5)


def test_dropout_scales_what_it_keeps_and_does_nothing_in_prediction():
    # Weights of 1 on 4,000 hidden units of value 1: the output counts the units that are kept, each at 1 / 0.75.
    model = mlp((4000,), dropout=0.25)
    variables = Variables(
        {
            "Dense_0": {"kernel": np.ones((1, 4000), np.float32), "bias": np.zeros(4000, np.float32)},
            "Dense_1": {"kernel": np.ones((4000, 1), np.float32), "bias": np.zeros(1, np.float32)},
        },
        {},
    )
    inputs = np.ones((2, 1), np.float32)
    outputs, _ = run(model, variables, inputs, train=True, key=KEY)
    remaining = np.asarray(outputs)[:, 0] * 0.75
    np.testing.assert_allclose(remaining, np.round(remaining), atol=1e-2)
    # Binomial: 3,000 on average, with a deviation of 27.
    np.testing.assert_allclose(remaining, 3000, atol=5 * 27)
    assert remaining[0] != remaining[1]
    np.testing.assert_allclose(run(model, variables, inputs, train=False)[0], 4000)


@pytest.mark.parametrize(
    ("make", "shape"), [(partial(mlp, (8, 8)), (6, 3)), (partial(convnet, (4, 4), pool=True), (6, 10, 10, 3))]
)
def test_one_program_of_a_traced_dropout_rate_gives_what_each_rate_gives_alone(make, shape, compilations):
    inputs = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    variables = random_weights(make(), inputs)

    def of_rate(rate):
        return make(dropout=rate).apply(variables, inputs, train=True, key=KEY)[0]

    together, rates = jax.jit(of_rate), (0.0, 0.3, 0.9)
    with compilations() as names:
        result = [together(np.float32(rate)) for rate in rates]
    assert names.count("of_rate") == 1
    batched = jax.jit(jax.vmap(of_rate))(np.float32(rates))
    # A rate of 0 has no layer alone.
    for one, other, alone in zip(result, batched, jax.jit(lambda: [*map(of_rate, rates)])(), strict=True):
        np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other, alone, rtol=1e-5, atol=1e-6)
    assert not np.allclose(result[0], result[1])


def test_kernels_of_a_scale_of_1_begin_with_the_bits_of_glorot_uniform():
    inputs = jnp.ones((1, 7))
    ours, plain = (jax.jit(model.init)(KEY, inputs).params for model in (mlp((20, 5)), from_linen(MLP((20, 5)))))
    jax.tree.map(np.testing.assert_array_equal, ours, plain)


def begun(scale):
    return mlp((20, 5), init_scale=scale).init(KEY, jnp.ones((1, 7))).params


begun_traced, begun_known = jax.jit(begun), jax.jit(begun, static_argnums=0)


@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0])
def test_init_scale_multiplies_the_initial_kernels_traced_or_not(scale):
    wanted = jax.tree.map(lambda leaf: np.float32(scale) * np.asarray(leaf), begun_known(1.0))
    for result in (begun_known(scale), begun_traced(np.float32(scale))):
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-6), result, wanted)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_an_init_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(InputError, match="init_scale must be a positive number, got"):
        mlp((10,), init_scale=scale)


@pytest.mark.parametrize(("widths", "outputs"), [((0,), 1), ((100, -1), 1), ((10,), 0)])
def test_widths_below_1_are_refused(widths, outputs):
    with pytest.raises(InputError, match=r"(widths|outputs) must be at least 1"):
        mlp(widths, outputs=outputs)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_rates_outside_0_to_1_are_refused(dropout):
    with pytest.raises(InputError, match="dropout must be a rate from 0 to below 1"):
        mlp((10,), dropout=dropout)


def test_equal_calls_give_networks_that_compute_the_same():
    inputs = jnp.ones((2, 3))
    one, two = mlp((4,), dtype="bfloat16"), mlp([4], dtype=jnp.bfloat16)
    variables = drawn(one, 3)
    np.testing.assert_array_equal(
        one.apply(variables, inputs, train=False)[0], two.apply(variables, inputs, train=False)[0]
    )


PICTURE = jnp.zeros((1, 32, 32, 3), jnp.uint8)
LESSON = {
    "small": convnet((50, 50)),
    "dense": convnet((), widths=(100, 50)),
    "pooled": convnet((50, 50, 50), widths=(50,), pool=True),
    "dropout": convnet((50, 50, 50), widths=(50,), pool=True, dropout=0.2),
}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("small", {"Conv_0": ((30, 30, 50), 1400), "Conv_1": ((28, 28, 50), 22550), "Flatten_0": ((39200,), 0)}),
        ("small", {"Dense_0": ((10,), 392010)}),
        # The lesson's exercise: 3,072 features, and a dense layer of 100 on them.
        ("dense", {"Flatten_0": ((3072,), 0), "Dense_0": ((100,), 307300), "Dense_1": ((50,), 5050)}),
        ("pooled", {"Conv_0": ((30, 30, 50), 1400), "MaxPool_0": ((15, 15, 50), 0), "Conv_1": ((13, 13, 50), 22550)}),
        ("pooled", {"MaxPool_1": ((6, 6, 50), 0), "Conv_2": ((4, 4, 50), 22550), "MaxPool_2": ((2, 2, 50), 0)}),
        ("pooled", {"Dense_0": ((50,), 10050), "Dense_1": ((10,), 510)}),
        ("dropout", {"Dropout_0": ((15, 15, 50), 0), "Dropout_2": ((2, 2, 50), 0)}),
    ],
)
def test_output_shapes_and_parameters_of_the_lessons_networks(name, layers):
    result = {layer.name: (layer.shape, layer.trained) for layer in summary(LESSON[name], PICTURE).layers}
    assert {layer: result[layer] for layer in layers} == layers


@pytest.mark.parametrize(("name", "parameters"), [("small", 415960), ("dense", 312860), ("pooled", 57060)])
def test_parameters_of_the_lessons_networks(name, parameters):
    assert summary(LESSON[name], PICTURE).parameters == parameters
    assert count(jax.eval_shape(LESSON[name].init, KEY, PICTURE)) == parameters


def test_a_hundred_kernels_have_2700_numbers_where_a_dense_layer_has_307300():
    layer = Conv(100, use_bias=False)
    assert count(jax.eval_shape(layer.init, KEY, PICTURE.astype(jnp.float32))) == 2700 == 100 * 3 * 3 * 3


@pytest.mark.parametrize(("padding", "sides"), [("VALID", (30, 28)), ("SAME", (32, 32))])
def test_valid_padding_shrinks_the_borders_and_same_does_not(padding, sides):
    layers = summary(convnet((5, 5), padding=padding), PICTURE).layers
    assert tuple(layer.shape[0] for layer in layers[:2]) == sides == tuple(layer.shape[1] for layer in layers[:2])


def random_weights(model, inputs):
    draws = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY, inputs)
    params = jax.tree.map(lambda leaf: draws.normal(0, 0.3, leaf.shape).astype(np.float32), shapes.params)
    return Variables(params, jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes.stats))


def test_a_convnet_is_convolutions_pooling_and_dense_layers():
    from sklearn.feature_extraction.image import extract_patches_2d

    images = np.random.default_rng(1).integers(0, 256, (2, 10, 9, 3)).astype(np.uint8)
    model = convnet((4,), widths=(6,), outputs=3, pool=True)
    variables = random_weights(model, images)
    kernel, bias = (variables.params["Conv_0"][name] for name in ("kernel", "bias"))
    wanted = []
    for image in images / 255:
        patches = extract_patches_2d(image, (3, 3)).reshape(-1, 27)
        hidden = np.maximum(patches @ kernel.reshape(27, 4) + bias, 0).reshape(8, 7, 4)
        pooled = np.array(
            [[hidden[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((0, 1)) for j in range(3)] for i in range(4)]
        )
        row = np.maximum(
            pooled.ravel() @ variables.params["Dense_0"]["kernel"] + variables.params["Dense_0"]["bias"], 0
        )
        wanted.append(row @ variables.params["Dense_1"]["kernel"] + variables.params["Dense_1"]["bias"])
    outputs, _ = run(model, variables, images, train=False)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-4)
    # Bytes and the floats that they stand for are the same picture.
    floats, _ = run(model, variables, images.astype(np.float32) / np.float32(255), train=False)
    np.testing.assert_allclose(outputs, floats, rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_alone_and_draws_with_the_key():
    images = np.random.default_rng(1).integers(0, 256, (2, 10, 10, 3)).astype(np.uint8)
    model = convnet((4,), pool=True, dropout=0.5)
    variables = random_weights(model, images)

    programs = {train: jax.jit(partial(model.apply, train=train)) for train in (True, False)}

    def outputs(train, seed):
        return np.asarray(programs[train](variables, images, key=jax.random.key(seed))[0])

    np.testing.assert_array_equal(outputs(False, 0), outputs(False, 1))
    np.testing.assert_array_equal(outputs(True, 0), outputs(True, 0))
    assert not np.array_equal(outputs(True, 0), outputs(True, 1))


def test_a_residual_net_does_not_see_padding():
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    model = residual_net(2)
    variables = random_weights(model, images)
    step = jax.jit(lambda given: model.apply(variables, given, train=True, mask=jnp.arange(4) < 3))
    other = images.copy()
    other[3] = 255 - other[3]
    (one, stats), (two, others) = step(images), step(other)
    np.testing.assert_allclose(one[:3], two[:3], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, stats, others)


@pytest.mark.parametrize("model", [convnet((4,), dtype=jnp.bfloat16), residual_net(2, dtype=jnp.bfloat16)])
def test_bfloat16_computes_near_float32_and_gives_float32(model):
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    variables = jax.tree.map(lambda leaf: leaf / 3, random_weights(model, images))
    outputs, _ = run(model, variables, images, train=False)
    assert outputs.dtype == jnp.float32 and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda: convnet((0,)), r"filters must be at least 1, got \(0,\)"),
        (lambda: convnet((5,), kernel=0), "must be at least 1"),
        (lambda: convnet((5,), dropout=1.0), "dropout must be a rate from 0 to below 1, got 1.0"),
        (lambda: convnet((5,), padding="valid"), 'padding must be "VALID" or "SAME", got "valid"'),
        (lambda: residual_net(4).init(KEY, jnp.zeros((1, 4, 4, 3))), "needs images of at least 8 x 8"),
        (lambda: residual_net(4).init(KEY, jnp.zeros((4, 4, 3))), "needs images \\(batch, height, width, channels\\)"),
        (lambda: convnet((4,)).init(KEY, jnp.zeros((1, 8, 8, 3), jnp.int32)), "images must be uint8"),
        (lambda: residual_net(0), "width must be at least 1, got 0"),
        (lambda: convnet((5, 5), pool=True).init(KEY, jnp.zeros((1, 5, 5, 3))), "needs images of at least"),
        (lambda: convnet((5,)).init(KEY, jnp.zeros((1, 5))), "needs images \\(batch, height, width, channels\\)"),
        (lambda: convnet((5,)).init(KEY, jnp.zeros((1, 2, 9, 3))), "needs images of at least 3 x 3 here, got 2 x 9"),
    ],
)
def test_networks_that_make_no_sense_are_refused(make, output):
    with pytest.raises(InputError, match=output):
        make()


# Networks as data: built again from JSON they are the same to the bit, and what is no network is refused.

ROWS = np.random.default_rng(0).normal(0, 1, (5, 7)).astype(np.float32)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("network", "original", "inputs"),
    [
        (ModelSpec("mlp", {"widths": (9, 4), "input_norm": True}), mlp((9, 4), input_norm=True), ROWS),
        (
            ModelSpec("mlp", {"widths": (), "outputs": 3, "dtype": "bfloat16"}),
            mlp((), outputs=3, dtype="bfloat16"),
            ROWS,
        ),
        (
            ModelSpec("convnet", {"filters": (18, 5), "widths": (6,), "pool": True, "dropout": 0.2}),
            convnet((18, 5), widths=(6,), pool=True, dropout=0.2),
            IMAGES,
        ),
        (ModelSpec("residual_net", {"width": 2}, True), with_flip_averaging(residual_net(2)), IMAGES),
    ],
)
def test_a_network_that_went_through_a_file_is_the_original_to_the_bit(network, original, inputs):
    rebuilt = build_model(from_json(json.loads(json.dumps(to_json(network)))))
    variables = [jax.jit(model.init)(jax.random.key(3), inputs) for model in (original, rebuilt)]
    assert jax.tree.structure(variables[0]) == jax.tree.structure(variables[1])
    for train in (False, True):
        outputs = [
            jax.jit(lambda w, x, model=model, train=train: model.apply(w, x, train=train, key=jax.random.key(1)))(
                w, inputs
            )
            for model, w in zip((original, rebuilt), variables, strict=True)
        ]
        for one, other in zip(*map(jax.tree.leaves, outputs), strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_the_experiments_describe_the_networks_that_their_help_describes():
    # Parameters as Keras counts them, from the tables of the README.
    counted = {"small": 415_960, "dense": 312_860, "pooled": 57_060, "dropout": 57_060, "strong": 414_074}
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    for recipe, count in counted.items():
        network = cifar10.network(cifar10.resolve(cifar10.Config(recipe=recipe)))
        variables = jax.eval_shape(build_model(network).init, jax.random.key(0), images)
        assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count, recipe
        assert network.flip_averaged == (recipe == "strong")


def test_what_a_weather_run_trains_is_what_it_describes():
    dataset = weather.load(weather.Config(data="simulated:90"))
    for recipe in weather.RECIPES:
        built = weather.build(weather.Config(recipe=recipe, data="simulated:90"), dataset)
        described = build_model(built.network)
        variables, inputs = built.start.train_state.variables, built.sets["test"].inputs
        for train in (False, True):
            ours, theirs = (m.apply(variables, inputs, train=train)[0] for m in (described, built.plan.model))
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("network", "output"),
    [
        (ModelSpec("transformer", {}), "one of mlp, convnet, residual_net, got 'transformer'"),
        (ModelSpec("mlp", {"widths": [5], "depth": 3}), "takes widths, .*init_scale, got 'depth'"),
        (ModelSpec("mlp", {}), "cannot be made of {}: .*widths"),
        (ModelSpec("mlp", {"widths": [0]}), "widths must be at least 1"),
        (ModelSpec("mlp", {"widths": 5}), "cannot be made of"),
        (ModelSpec("mlp", {"widths": [5], "dtype": "float31"}), "cannot be made of .*float31"),
        (ModelSpec("convnet", {"filters": ["a"]}), "cannot be made of"),
    ],
)
def test_what_describes_no_network_is_refused(network, output):
    with pytest.raises(InputError, match=output):
        build_model(network)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "mlp",
        {"kind": "mlp", "arguments": {}},
        {"kind": "mlp", "arguments": [], "flip_averaged": False},
        {"kind": 1, "arguments": {}, "flip_averaged": False},
        {"kind": "mlp", "arguments": {}, "flip_averaged": False, "more": 1},
    ],
)
def test_an_entry_that_is_no_description_is_refused(entry):
    with pytest.raises(InputError, match=re.escape(f"kind, arguments and flip_averaged, got {entry!r}")):
        from_json(entry)
