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
from jaxdl import InputError, Variables, dataset, losses
from jaxdl.saving import predict_script
from jaxdl.saving.export import export_model

RANDOM = np.random.default_rng(0)
LABELS = (np.arange(40) % 2).astype(np.int32)
EXPORT_MANY = "export takes a model of one array of"


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


