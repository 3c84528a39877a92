"""Weights on disk: what comes back is what was saved, bit for bit, or an error."""

import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.errors import InputError
from jaxdl.models import mlp
from jaxdl.passes import predict
from jaxdl.types import Weights
from jaxdl.weights import load, save

DRAWS = np.random.default_rng(0)
# As a network has them: several layers, the statistics beside the parameters.
WEIGHTS = Weights(
    {"Dense_0": {"kernel": DRAWS.normal(0, 1, (300, 100)).astype(np.float32), "bias": np.zeros(100, np.float32)}},
    {"batch_stats": {"BatchNorm_0": {"mean": DRAWS.normal(0, 1, 300).astype(np.float32)}}},
)


def assert_same_bits(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        # As bytes: nan must equal nan, and 0.0 must not equal -0.0.
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    "weights",
    [
        WEIGHTS,
        Weights({"w": jnp.asarray(DRAWS.normal(0, 1, (4, 3)), jnp.bfloat16), "scale": jnp.float32(1 / 3)}, {}),
        Weights({"w": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)}, {}),
        Weights({"w": jnp.ones((2, 2))}, {"counters": {"calls": jnp.int32(7), "on": jnp.array([True, False])}}),
        Weights({"layers": {str(n): {"kernel": np.full((2,), n, np.float16)} for n in range(12)}}, {}),
        Weights({"quantised": np.arange(-128, 128).astype(np.int8), "pixels": np.arange(256).astype(np.uint8)}, {}),
    ],
    ids=["network", "bfloat16", "not finite", "counters", "twelve layers", "integers"],
)
def test_a_round_trip_keeps_every_bit(tmp_path, weights):
    save(tmp_path / "model", weights)
    restored = load(tmp_path / "model")
    assert_same_bits(restored, weights)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))


def test_names_may_be_strings_relative_or_deep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("runs/one/best", WEIGHTS)
    assert_same_bits(load("runs/one/best"), WEIGHTS)
    assert_same_bits(load(str(tmp_path / "runs" / "one" / "best")), WEIGHTS)


def test_restored_weights_predict_what_the_saved_ones_do(tmp_path):
    model, inputs = mlp((8,), input_norm=True), DRAWS.normal(0, 1, (5, 3)).astype(np.float32)
    weights = jax.jit(model.init)(jax.random.key(0), inputs)
    save(tmp_path / "model", weights)
    restored = load(tmp_path / "model")
    np.testing.assert_array_equal(predict(model, restored, inputs), predict(model, weights, inputs))


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path):
    save(tmp_path / "model", WEIGHTS)
    other = jax.tree.map(np.zeros_like, WEIGHTS)
    with pytest.raises(InputError, match="save needs a new folder"):
        save(tmp_path / "model", other)
    assert_same_bits(load(tmp_path / "model"), WEIGHTS)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_that_is_taken_is_refused(tmp_path, kind):
    taken = tmp_path / "model"
    taken.mkdir() if kind == "folder" else taken.write_text("mine")
    with pytest.raises(InputError, match="save needs a new folder"):
        save(taken, WEIGHTS)
    assert taken.is_dir() or taken.read_text() == "mine"


@pytest.mark.parametrize("kind", ["missing", "folder", "file", "under a file"])
def test_loading_from_anything_else_is_refused(tmp_path, kind):
    place = tmp_path / "model"
    if kind == "folder":
        (place / "d").mkdir(parents=True)
    elif kind != "missing":
        place.write_text("not weights")
    with pytest.raises(InputError, match="load needs a folder that save wrote"):
        load(place / "below" if kind == "under a file" else place)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(folder, WEIGHTS)
    return folder


def remove(file):
    file.unlink()


def cut_to_half(file):
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def cut_one_byte(file):
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)


def make_empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, cut_to_half, cut_one_byte, make_empty], ids=lambda damage: damage.__name__)
def test_a_damaged_file_gives_the_saved_numbers_or_an_error(tmp_path, saved, damage):
    refused = set()
    names = sorted(file.relative_to(saved) for file in saved.rglob("*") if file.is_file())
    for number, name in enumerate(names):
        copy = tmp_path / str(number)
        shutil.copytree(saved, copy)
        damage(copy / name)
        try:
            restored = load(copy)
        except InputError as error:
            refused.add(name)
            assert str(copy) in str(error)
        else:
            # Orbax keeps files that a restore does not need.
            assert_same_bits(restored, WEIGHTS)
    # The numbers themselves lie in the folder d, whose files are named by what they hold.
    data = {name for name in names if name.parts[0] == "d"}
    assert data and data <= refused


def test_weights_that_hold_something_else_are_refused(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "other").absolute(), {"theta": np.ones(3)})
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path / "other")


def test_flipped_bits_never_become_other_numbers(tmp_path):
    weights = Weights({"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 50)), jnp.float32)}, {})
    save(tmp_path / "model", weights)
    largest = max((path for path in (tmp_path / "model").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    whole = largest.read_bytes()
    for place in (len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4):
        largest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="damaged"):
            load(tmp_path / "model")


def test_brackets_which_orbax_takes_for_a_pattern_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"without \[ and \]"):
        save(tmp_path / "[best]", Weights({"w": jnp.ones(2)}, {}))


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@pytest.mark.parametrize("params", [Pair(jnp.ones(2), jnp.ones(1)), {"layers": {0: jnp.ones(2)}}])
def test_trees_that_could_not_be_read_again_are_refused_before_anything_is_written(params, tmp_path):
    with pytest.raises(InputError, match="arrays in dicts of strings and in lists"):
        save(tmp_path / "model", Weights(params, {}))
    assert not (tmp_path / "model").exists()


def test_lists_come_back_and_tuples_as_lists(tmp_path):
    save(tmp_path / "model", Weights([jnp.ones(2), (jnp.zeros(1),)], {}))
    first, (second,) = load(tmp_path / "model").params
    np.testing.assert_array_equal(first, np.ones(2))
    np.testing.assert_array_equal(second, np.zeros(1))
