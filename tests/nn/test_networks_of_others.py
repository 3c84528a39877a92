"""Networks as the examples of their libraries write them train, predict, are saved and exported without glue."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import jaxdl
from jaxdl import InputError, dataset, losses, metrics
from jaxdl.saving import predict_script
from jaxdl.saving.export import export_model

RANDOM = np.random.default_rng(0)
LABELS = (np.arange(40) % 2).astype(np.int32)


def pictures(size, channels):
    """Return images (40, size, size, channels) of two classes, the second of which is brighter at the left."""
    images = RANDOM.normal(0, 1, (40, size, size, channels)).astype(np.float32)
    images[LABELS == 1, :, : size // 2] += 1.5
    return images


@pytest.fixture(autouse=True)
def ranks_as_users_have_them():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def trained(tmp_path):
    """`trained(model, data, loss)` trains, summarizes, predicts, saves and loads; it returns the run and outputs."""

    def train(model, data, loss, *, epochs=2, **options):
        run = jaxdl.fit(model, loss, optax.adam(1e-2), data, data, epochs=epochs, batch_size=16, **options)
        values = [record["loss"] for record in run.records]
        assert np.isfinite(values).all() and values[-1] < values[0]
        assert all(np.isfinite(record["val_loss"]) for record in run.records)
        numbers = sum(np.size(leaf) for leaf in jax.tree.leaves(run.final))
        assert jaxdl.summary(model, data).parameters == numbers
        outputs = jaxdl.predict(model, run.final, data.inputs, batch_size=16)
        jaxdl.save(tmp_path / "variables", run.final)
        again = jaxdl.predict(model, jaxdl.load(tmp_path / "variables"), data.inputs, batch_size=16)
        jax.tree.map(np.testing.assert_array_equal, again, outputs)
        return run, outputs

    return train


def assert_close(outputs, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), outputs, expected)


def check_export(folder, model, run, data, outputs):
    """Export the network, and compare what its folder predicts, for another batch size, with `outputs`."""
    export_model(folder / "exported", model, run.final, data.inputs[:2])
    expected = np.asarray(outputs).reshape(len(outputs), -1)
    assert_close(predict_script.load(folder / "exported").predict(np.asarray(data.inputs)), expected)


def fill(network, variables):
    """Put trained variables into an NNX module, and switch it to evaluation."""
    values = flatten_dict(variables.params) | flatten_dict(variables.stats)
    for path, variable in nnx.iter_graph(network):
        if isinstance(variable, (nnx.Param, nnx.BatchStat)):
            variable[...] = values.pop(tuple(map(str, path)))
    assert not values
    network.eval()


# A residual network of ImageNet, in Linen. The user types jaxdl.from_linen(ResNet(...)).


class ResNetBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    act: Callable
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        y = self.act(self.norm()(self.conv(self.filters, (3, 3), self.strides)(x)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(self.filters, (3, 3))(y))
        if x.shape != y.shape:
            x = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return self.act(x + y)


class BottleneckBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    act: Callable
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        y = self.act(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = self.act(self.norm()(self.conv(self.filters, (3, 3), self.strides)(y)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(4 * self.filters, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(self.conv(4 * self.filters, (1, 1), self.strides, name="conv_proj")(x))
        return self.act(x + y)


class ResNet(nn.Module):
    stage_sizes: Sequence[int]
    block_cls: Any
    num_classes: int
    num_filters: int = 64
    dtype: Any = jnp.float32
    act: Callable = nn.relu
    conv: Any = nn.Conv
    axis_name: str | None = None  # of pmap

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(self.conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        x = conv(self.num_filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = nn.max_pool(nn.relu(norm(name="bn_init")(x)), (3, 3), strides=(2, 2), padding="SAME")
        for stage, size in enumerate(self.stage_sizes):
            for number in range(size):
                strides = (2, 2) if stage > 0 and number == 0 else (1, 1)
                filters = self.num_filters * 2**stage
                x = self.block_cls(filters, strides=strides, conv=conv, norm=norm, act=self.act)(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
        return jnp.asarray(x, self.dtype)


@pytest.mark.parametrize("block", [ResNetBlock, BottleneckBlock])
def test_the_resnet_of_imagenet(trained, tmp_path, block):
    network, data = ResNet([1, 1], block, num_classes=2, num_filters=4), dataset(pictures(16, 3), LABELS)
    model = jaxdl.from_linen(network)
    run, outputs = trained(model, data, losses.softmax_cross_entropy)
    assert_close(outputs, network.apply({"params": run.final.params, **run.final.stats}, data.inputs, train=False))
    assert "norm_proj" in run.final.stats["batch_stats"][f"{block.__name__}_1"]
    check_export(tmp_path, model, run, data, outputs)


def test_the_axis_of_pmap_is_refused_with_the_argument_to_leave_out():
    model = jaxdl.from_linen(ResNet([1], ResNetBlock, 2, num_filters=4, axis_name="batch"))
    with pytest.raises(InputError, match=r"bn_init averages over the axis 'batch' of jax.pmap.* Leave axis_name out"):
        model.init(jax.random.key(0), pictures(16, 3))

    def make(rngs):
        return nnx.BatchNorm(3, axis_name="batch", rngs=rngs)

    with pytest.raises(InputError, match="Leave axis_name out"):
        jaxdl.from_nnx(make).init(jax.random.key(0), np.ones((4, 3), np.float32))


def test_a_network_that_is_not_made_yet_is_refused_with_the_line_that_makes_it():
    with pytest.raises(InputError, match=r"a partial of ResNet, .* Write from_linen\(ResNet\(...\)\)"):
        jaxdl.from_linen(partial(ResNet, stage_sizes=[1]))
    with pytest.raises(InputError, match=r"takes rngs. Write from_nnx\(lambda rngs: NNXCNN\(..., rngs=rngs\)\)"):
        jaxdl.from_nnx(NNXCNN)


def test_a_resnet_of_half_precision(trained, tmp_path):
    network, data = ResNet([1], ResNetBlock, 2, num_filters=4, dtype=jnp.bfloat16), dataset(pictures(16, 3), LABELS)
    model = jaxdl.from_linen(network)
    run, outputs = trained(model, data, losses.softmax_cross_entropy)
    assert outputs.dtype == jnp.bfloat16
    folder = export_model(tmp_path / "exported", model, run.final, data.inputs)
    exported = predict_script.load(folder).predict(np.asarray(data.inputs))
    np.testing.assert_allclose(exported, outputs.astype(np.float32), atol=0.05)


# A network of MNIST, in Linen and in NNX. The user types jaxdl.from_linen(CNN()) and
# jaxdl.from_nnx(lambda rngs: NNXCNN(rngs=rngs)).


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(features=4, kernel_size=(3, 3))(x)), window_shape=(2, 2), strides=(2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(features=8, kernel_size=(3, 3))(x)), window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(features=10)(nn.relu(nn.Dense(features=16)(x)))


class NNXCNN(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 4, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.dropout1 = nnx.Dropout(rate=0.025)
        self.conv2 = nnx.Conv(4, 8, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm2 = nnx.BatchNorm(8, rngs=rngs)
        self.avg_pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(2 * 2 * 8, 16, rngs=rngs)
        self.dropout2 = nnx.Dropout(rate=0.025)
        self.linear2 = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x, rngs: nnx.Rngs | None = None):
        x = self.avg_pool(nnx.relu(self.batch_norm1(self.dropout1(self.conv1(x), rngs=rngs))))
        x = self.avg_pool(nnx.relu(self.batch_norm2(self.conv2(x))))
        x = x.reshape(x.shape[0], -1)  # flatten
        x = nnx.relu(self.dropout2(self.linear1(x), rngs=rngs))
        return self.linear2(x)


def test_the_linen_cnn_of_mnist(trained, tmp_path):
    network, data = CNN(), dataset(pictures(8, 1), LABELS)
    model = jaxdl.from_linen(network)
    run, outputs = trained(model, data, losses.softmax_cross_entropy)
    assert_close(outputs, network.apply({"params": run.final.params}, data.inputs))
    check_export(tmp_path, model, run, data, outputs)


def test_the_nnx_cnn_of_mnist(trained, tmp_path):
    data = dataset(pictures(8, 1), LABELS)
    model = jaxdl.from_nnx(lambda rngs: NNXCNN(rngs=rngs))
    run, outputs = trained(model, data, losses.softmax_cross_entropy)
    network = NNXCNN(rngs=nnx.Rngs(0))
    fill(network, run.final)
    assert_close(outputs, network(data.inputs))
    check_export(tmp_path, model, run, data, outputs)


# A vision transformer in NNX. The user types jaxdl.from_nnx(lambda rngs: VisionTransformer(..., rngs=rngs)).


class TransformerEncoder(nnx.Module):
    def __init__(self, hidden_size, mlp_dim, num_heads, dropout_rate=0.0, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(hidden_size, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(
            num_heads=num_heads,
            in_features=hidden_size,
            dropout_rate=dropout_rate,
            broadcast_dropout=False,
            decode=False,
            deterministic=False,
            rngs=rngs,
        )
        self.norm2 = nnx.LayerNorm(hidden_size, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(hidden_size, mlp_dim, rngs=rngs),
            nnx.gelu,
            nnx.Dropout(dropout_rate, rngs=rngs),
            nnx.Linear(mlp_dim, hidden_size, rngs=rngs),
            nnx.Dropout(dropout_rate, rngs=rngs),
        )

    def __call__(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nnx.Module):
    def __init__(self, num_classes, img_size, patch_size, hidden_size, num_layers=2, *, rngs: nnx.Rngs):
        self.patch_embeddings = nnx.Conv(
            3, hidden_size, (patch_size, patch_size), strides=(patch_size, patch_size), padding="VALID", rngs=rngs
        )
        initializer = jax.nn.initializers.truncated_normal(stddev=0.02)
        places = (img_size // patch_size) ** 2 + 1
        self.position_embeddings = nnx.Param(initializer(rngs.params(), (1, places, hidden_size), jnp.float32))
        self.cls_token = nnx.Param(jnp.zeros((1, 1, hidden_size)))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        blocks = [TransformerEncoder(hidden_size, 16, 2, 0.1, rngs=rngs) for _ in range(num_layers)]
        self.encoder = nnx.Sequential(*blocks)
        self.final_norm = nnx.LayerNorm(hidden_size, rngs=rngs)
        self.classifier = nnx.Linear(hidden_size, num_classes, rngs=rngs)

    def __call__(self, x):
        patches = self.patch_embeddings(x)
        batch_size = patches.shape[0]
        patches = patches.reshape(batch_size, -1, patches.shape[-1])
        cls_token = jnp.tile(self.cls_token, [batch_size, 1, 1])
        embeddings = jnp.concat([cls_token, patches], axis=1) + self.position_embeddings
        x = self.final_norm(self.encoder(self.dropout(embeddings)))
        return self.classifier(x[:, 0])


def test_a_vision_transformer_in_nnx(trained, tmp_path):
    data = dataset(pictures(8, 3), LABELS)

    def make(rngs):
        return VisionTransformer(2, 8, 4, 8, rngs=rngs)

    model = jaxdl.from_nnx(make)
    run, outputs = trained(model, data, losses.softmax_cross_entropy, epochs=4)
    network = make(nnx.Rngs(0))
    fill(network, run.final)
    assert_close(outputs, network(data.inputs))
    check_export(tmp_path, model, run, data, outputs)


# A transformer in Linen. Its `deterministic` is True in evaluation: the user types the line of the error,
# jaxdl.from_linen(module, train="deterministic", inverted=True).


class EncoderBlock(nn.Module):
    num_heads: int
    dropout_rate: float = 0.1

    @nn.compact
    def __call__(self, x, mask, deterministic):
        y = nn.SelfAttention(self.num_heads, dropout_rate=self.dropout_rate, deterministic=deterministic)(
            nn.LayerNorm()(x), mask
        )
        x = x + nn.Dropout(rate=self.dropout_rate)(y, deterministic=deterministic)
        y = nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return x + nn.Dropout(rate=self.dropout_rate)(y, deterministic=deterministic)


class Transformer(nn.Module):
    vocab_size: int
    classes: int
    tagging: bool = False
    emb_dim: int = 8
    max_len: int = 16

    @nn.compact
    def __call__(self, inputs, *, deterministic: bool):
        x = nn.Embed(self.vocab_size, self.emb_dim)(inputs.astype("int32"))
        positions = self.param("pos_embedding", nn.initializers.normal(0.02), (1, self.max_len, self.emb_dim))
        x = nn.Dropout(rate=0.1)(x + positions[:, : x.shape[1]], deterministic=deterministic)
        mask = nn.make_attention_mask(inputs > 0, inputs > 0)
        for number in range(2):
            x = EncoderBlock(num_heads=2, name=f"encoderblock_{number}")(x, mask, deterministic)
        x = nn.LayerNorm(name="encoder_norm")(x)
        if not self.tagging:
            weights = (inputs > 0)[..., None]
            x = (x * weights).sum(1) / weights.sum(1)
        return nn.Dense(self.classes, name="logits")(x)


TOKENS = RANDOM.integers(1, 12, (40, 7)).astype(np.int32)
TOKENS[:, 5:] *= RANDOM.integers(0, 2, (40, 1)).astype(np.int32)  # 0 is padding


@pytest.mark.parametrize("tagging", [False, True], ids=["sequences", "tokens"])
def test_a_transformer_in_linen(trained, tmp_path, tagging):
    network = Transformer(12, 3, tagging)
    with pytest.raises(InputError, match=r'Write from_linen\(module, train="deterministic", inverted=True\)'):
        jaxdl.from_linen(network)
    model = jaxdl.from_linen(network, train="deterministic", inverted=True)
    if tagging:
        data = dataset(TOKENS, np.where(TOKENS > 0, TOKENS % 3, -1))
        loss = losses.masked(losses.softmax_cross_entropy, ignore_label=-1)
        with pytest.raises(InputError) as caught:
            jaxdl.fit(model, loss, optax.sgd(0.1), data, metrics=[metrics.accuracy], epochs=1)
        line = 'metrics.mean("accuracy", losses.masked(metrics.accuracy.per_example, ignore_label=-1))'
        assert line in str(caught.value)
        options = {"metrics": [eval(line)]}
    else:
        data, loss, options = dataset(TOKENS, TOKENS[:, 0] % 3), losses.softmax_cross_entropy, {}
    run, outputs = trained(model, data, loss, epochs=4, **options)
    assert outputs.shape == ((40, 7, 3) if tagging else (40, 3))
    assert_close(outputs, network.apply({"params": run.final.params}, TOKENS, deterministic=True))
    if tagging:
        right = (outputs.argmax(2) == TOKENS % 3) & (TOKENS > 0)
        expected = (right.sum(1) / (TOKENS > 0).sum(1)).mean()
        np.testing.assert_allclose(run.records[-1]["val_accuracy"], expected, rtol=1e-5)
    check_export(tmp_path, model, run, data, outputs)


# A variational autoencoder in Linen. The user types jaxdl.from_linen(VAE()) and a loss of the model. The key that
# `__call__` takes in Flax's example is refused with the line to write. Predictions need a switch, too.


class VAE(nn.Module):
    latents: int = 2

    @nn.compact
    def __call__(self, x, train: bool = True):
        hidden = nn.relu(nn.Dense(16, name="fc1")(x))
        mean = nn.Dense(self.latents, name="fc2_mean")(hidden)
        logvar = nn.Dense(self.latents, name="fc2_logvar")(hidden)
        z = mean
        if train:
            z += jnp.exp(0.5 * logvar) * jax.random.normal(self.make_rng("latent"), logvar.shape)
        return nn.Dense(x.shape[-1], name="fc4")(nn.relu(nn.Dense(16, name="fc3")(z))), mean, logvar


class AlwaysDrawing(nn.Module):
    @nn.compact
    def __call__(self, x):
        return VAE()(x)


def bound(model):
    def loss(variables, batch, key, train):
        (recon, mean, logvar), _ = model.apply(variables, batch.inputs, train=train, key=key)
        divergence = -0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar), axis=-1)
        return jnp.sum((recon - batch.inputs) ** 2, axis=-1) + divergence, (recon, mean, logvar)

    return losses.model_loss(loss)


def test_a_vae_in_linen(trained, tmp_path):
    network, data = VAE(), dataset(pictures(4, 1).reshape(40, -1))
    model = jaxdl.from_linen(network)
    run, outputs = trained(model, data, bound(model))
    assert_close(outputs, network.apply({"params": run.final.params}, data.inputs, train=False))
    export_model(tmp_path / "exported", model, run.final, data.inputs)
    assert_close(predict_script.load(tmp_path / "exported").predict(np.asarray(data.inputs)), outputs)


def test_a_vae_without_a_switch_trains_and_says_what_a_prediction_needs():
    model, data = jaxdl.from_linen(AlwaysDrawing()), dataset(pictures(4, 1).reshape(40, -1))
    run = jaxdl.fit(model, bound(model), optax.adam(1e-2), data, data, epochs=2, batch_size=16)
    assert run.records[-1]["val_loss"] < run.records[0]["val_loss"]
    assert jaxdl.summary(model, data).parameters == sum(map(np.size, jax.tree.leaves(run.final)))
    with pytest.raises(InputError, match=r"AlwaysDrawing draws from the stream 'latent' .* self.make_rng\('latent'\)"):
        jaxdl.predict(model, run.final, data.inputs)


def test_a_key_among_the_inputs_is_refused():
    class Keyed(nn.Module):
        @nn.compact
        def __call__(self, x, z_rng):
            return x + jax.random.normal(z_rng, x.shape)

    with pytest.raises(InputError, match=r"Leave z_rng out and draw with self.make_rng\('dropout'\)"):
        jaxdl.from_linen(Keyed())


def test_queries_keys_and_values_are_inputs():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, query, key, value):
            return nn.MultiHeadDotProductAttention(2)(query, key, value)

    inputs = {name: RANDOM.normal(0, 1, (4, 3, 8)).astype(np.float32) for name in ("query", "key", "value")}
    model = jaxdl.from_linen(Attention())
    variables = model.init(jax.random.key(0), inputs)
    outputs = jaxdl.predict(model, variables, inputs)
    assert_close(outputs, Attention().apply({"params": variables.params}, **inputs))
    with pytest.raises(
        InputError, match=r'needs query, key, value, .* dataset\({"query": ..., "key": ..., "value": ...}'
    ):
        jaxdl.predict(model, variables, inputs["query"])


def test_advice_for_several_inputs_names_no_switch_where_one_is_set():
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, ids, attention_mask, deterministic: bool = True):
            return nn.Dropout(0.1)(nn.Embed(9, 4)(ids) * attention_mask[..., None], deterministic=deterministic)

    model = jaxdl.from_linen(Masked(), train="deterministic", inverted=True)
    with pytest.raises(InputError, match=r"or give all arguments but one a default value\.$"):
        model.init(jax.random.key(0), TOKENS)


# A ConvNet with BatchNorm in Equinox. The user types jaxdl.from_equinox(make), for a function of a key.


def test_a_convnet_with_state_in_equinox(trained, tmp_path):
    eqx = pytest.importorskip("equinox")

    class ConvNet(eqx.Module):
        conv1: eqx.nn.Conv2d
        norm1: eqx.nn.BatchNorm
        conv2: eqx.nn.Conv2d
        norm2: eqx.nn.BatchNorm
        pool: eqx.nn.AvgPool2d
        dropout: eqx.nn.Dropout
        linear: eqx.nn.Linear

        def __init__(self, key):
            key1, key2, key3 = jax.random.split(key, 3)
            self.conv1 = eqx.nn.Conv2d(1, 4, kernel_size=3, padding=1, use_bias=False, key=key1)
            self.norm1 = eqx.nn.BatchNorm(input_size=4, axis_name="batch", mode="batch")
            self.conv2 = eqx.nn.Conv2d(4, 8, kernel_size=3, stride=2, padding=1, use_bias=False, key=key2)
            self.norm2 = eqx.nn.BatchNorm(input_size=8, axis_name="batch", mode="batch")
            self.pool = eqx.nn.AvgPool2d(kernel_size=2, stride=2)
            self.dropout = eqx.nn.Dropout(0.1)
            self.linear = eqx.nn.Linear(8 * 2 * 2, 2, key=key3)

        def __call__(self, x, state, key=None):
            x, state = self.norm1(self.conv1(x), state)
            x, state = self.norm2(self.conv2(jax.nn.relu(x)), state)
            x = self.dropout(jnp.ravel(self.pool(jax.nn.relu(x))), key=key)
            return self.linear(x), state

    def make(key):
        return ConvNet(key)

    data = dataset(np.moveaxis(pictures(8, 1), 3, 1), LABELS)
    model = jaxdl.from_equinox(make)
    run, outputs = trained(model, data, losses.softmax_cross_entropy)
    module, state = jaxdl.to_equinox(make, run.final)
    inference = jax.vmap(eqx.nn.inference_mode(module), in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    assert_close(outputs, inference(data.inputs, state)[0])
    check_export(tmp_path, model, run, data, outputs)

    # Its examples call jax.vmap(module)(inputs), which the message names.
    for wrapped in (jax.vmap(module), eqx.filter_vmap(module)):
        with pytest.raises(InputError, match=r"needs the ConvNet itself, without jax.vmap .* Give the module"):
            jaxdl.from_equinox(wrapped)

    # Equinox's examples make the pair of the module and its state.
    pair = eqx.nn.make_with_state(ConvNet)(jax.random.key(0))
    first = jaxdl.from_equinox(pair)
    assert_close(jaxdl.predict(first, run.final, data.inputs), outputs)


# Keras. The user types jaxdl.from_keras(network).


def test_a_functional_network_of_two_inputs_and_outputs_in_keras(trained, tmp_path):
    keras = pytest.importorskip("keras")
    image = keras.Input((8, 8, 1), name="image")
    table = keras.Input((3,), name="table")
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.concatenate([x, keras.layers.Dense(4, activation="relu")(table)])
    x = keras.layers.Dropout(0.1)(x)
    outputs = {"label": keras.layers.Dense(2, name="label")(x), "score": keras.layers.Dense(1, name="score")(x)}
    network = keras.Model({"image": image, "table": table}, outputs)

    inputs = {"image": pictures(8, 1), "table": RANDOM.normal(0, 1, (40, 3)).astype(np.float32)}
    data = dataset(inputs, {"label": LABELS, "score": inputs["table"].sum(1, keepdims=True)})
    model = jaxdl.from_keras(network)
    loss = losses.weighted_sum(
        {"label": losses.softmax_cross_entropy, "score": losses.squared_error}, {"label": 1.0, "score": 0.5}
    )
    accuracy = metrics.of_output("label", metrics.accuracy)
    run, outputs = trained(model, data, loss, metrics=[accuracy])
    jaxdl.to_keras(network, run.final)
    assert_close(outputs, network.predict(inputs, verbose=0))
    export_model(tmp_path / "exported", model, run.final, inputs)
    exported = predict_script.load(tmp_path / "exported").predict(inputs)
    for name, values in outputs.items():
        np.testing.assert_allclose(exported[name], values, rtol=1e-4, atol=1e-4)


def test_a_subclassed_network_in_keras(trained, tmp_path):
    keras = pytest.importorskip("keras")

    class MyModel(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(4, 3, activation="relu")
            self.norm = keras.layers.BatchNormalization(momentum=0.5)
            self.flatten = keras.layers.Flatten()
            self.dropout = keras.layers.Dropout(0.1)
            self.dense = keras.layers.Dense(2)

        def call(self, x, training=False):
            x = self.norm(self.conv(x), training=training)
            return self.dense(self.dropout(self.flatten(x), training=training))

    network, data = MyModel(), dataset(pictures(8, 1), LABELS)
    model = jaxdl.from_keras(network)
    run, outputs = trained(model, data, losses.softmax_cross_entropy)
    jaxdl.to_keras(network, run.final)
    assert_close(outputs, network.predict(data.inputs, verbose=0))
    check_export(tmp_path, model, run, data, outputs)
