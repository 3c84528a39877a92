"""Weights on disk: what comes back is what was saved, bit for bit, or an error."""

import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.saving import load, save
from jaxdl.train.evaluate import predict
from jaxdl.types import Variables

DRAWS = np.random.default_rng(0)
# As a network has them: several layers, the statistics beside the parameters.
WEIGHTS = Variables(
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
        Variables({"w": jnp.asarray(DRAWS.normal(0, 1, (4, 3)), jnp.bfloat16), "scale": jnp.float32(1 / 3)}, {}),
        Variables({"w": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)}, {}),
        Variables({"w": jnp.ones((2, 2))}, {"counters": {"calls": jnp.int32(7), "on": jnp.array([True, False])}}),
        Variables({"layers": {str(n): {"kernel": np.full((2,), n, np.float16)} for n in range(12)}}, {}),
        Variables({"quantised": np.arange(-128, 128).astype(np.int8), "pixels": np.arange(256).astype(np.uint8)}, {}),
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
    weights = Variables({"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 50)), jnp.float32)}, {})
    save(tmp_path / "model", weights)
    largest = max((path for path in (tmp_path / "model").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    whole = largest.read_bytes()
    for place in (len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4):
        largest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="damaged"):
            load(tmp_path / "model")


def test_brackets_which_orbax_takes_for_a_pattern_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"without \[ and \]"):
        save(tmp_path / "[best]", Variables({"w": jnp.ones(2)}, {}))


class Pair(NamedTuple):
    kernel: Any
    bias: Any


NAMED = Pair(np.ones((2, 3), np.float32), np.zeros(3, np.float32))


@pytest.mark.parametrize(
    "params",
    [
        {"a.b": jnp.zeros(2), "a": {"b": jnp.ones(2)}, "a/b": jnp.full(2, 2.0), "": jnp.full(2, 3.0)},
        {"empty": np.zeros((0, 3), np.float32), "flat": np.zeros(0, np.int8)},
        {"none": None, "dict": {}, "list": [], "tuple": (), "some": [jnp.ones(2), (jnp.zeros(1),), None]},
        {"layers": {0: jnp.ones(2), 10: jnp.zeros(2), 2: jnp.full(2, 2.0)}},
        {"narrow": jnp.asarray(np.arange(-4, 4), jnp.int4), "float8": jnp.asarray(np.arange(8.0), jnp.float8_e4m3fn)},
        {"number": jnp.float32(2), "scalar": np.float32(0.1), "complex": np.array([1 + 2j], np.complex64)},
        [jnp.ones(2), {"w": jnp.zeros(3)}],
        jnp.ones(3),
        None,
    ],
    ids=["dots", "no numbers", "empty containers", "whole keys", "narrow", "scalars", "list", "array", "nothing"],
)
def test_uneven_trees_come_back_as_they_were(tmp_path, params):
    weights = Variables(params, {"also": params})
    save(tmp_path / "model", weights)
    assert_same_bits(load(tmp_path / "model"), weights)
    assert_same_bits(load(tmp_path / "model", like=weights), weights)
    assert_same_bits(load(tmp_path / "model", like=jax.eval_shape(lambda: weights)), weights)


def test_numbers_of_python_and_keys_come_back_as_such(tmp_path):
    weights = Variables({"n": 3, "x": 0.1, "on": True, "key": jax.random.key(7, impl="rbg")}, {})
    save(tmp_path / "model", weights)
    for restored in (load(tmp_path / "model").params, load(tmp_path / "model", like=weights).params):
        assert [(type(restored[name]), restored[name]) for name in ("n", "x", "on")] == [
            (int, 3),
            (float, 0.1),
            (bool, True),
        ]
        assert jax.random.key_impl(restored["key"]) == "rbg"
        np.testing.assert_array_equal(jax.random.bits(restored["key"]), jax.random.bits(weights.params["key"]))


def trees_of_others():
    import equinox as eqx
    from flax import nnx
    from flax.core import freeze

    network = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    state = nnx.state(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.1, rngs=nnx.Rngs(1))))
    return {
        "NamedTuple": NAMED,
        "deep NamedTuple": {"layers": [NAMED, (NAMED,)]},
        "Equinox": eqx.filter(network, eqx.is_array),
        "FrozenDict": freeze({"a": {"b": jnp.ones(2)}}),
        "NNX": state,
        "tuple keys": {(0, 1): jnp.ones(2), (1, 0): jnp.zeros(2)},
    }


@pytest.mark.parametrize("name", ["NamedTuple", "deep NamedTuple", "Equinox", "FrozenDict", "NNX", "tuple keys"])
def test_trees_of_other_libraries_come_back_by_their_like(tmp_path, name):
    params = trees_of_others()[name]
    save(tmp_path / "model", Variables(params, {}))
    other = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 0 * leaf, params)
    restored = load(tmp_path / "model", like=Variables(other, {})).params
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype and bool(jnp.all(a == b))
    if name in ("NamedTuple", "Equinox", "tuple keys"):
        with pytest.raises(InputError, match=r"which load cannot make. Write load\(path, like=variables\)"):
            load(tmp_path / "model")


@pytest.mark.parametrize(
    "like, words",
    [  # What is saved: {"a": {"w": float32 (2,)}, "b": float64 (3,)}.
        ({"a": {"w": np.ones(2, np.float32)}}, r"float64 of shape \(3,\) at params\['b'\], and like has nothing"),
        (
            {"a": {"w": np.ones(2, np.float32)}, "b": np.ones(3), "c": 1},
            r"holds nothing at params\['c'\], and like has a Python int",
        ),
        (
            {"a": {"w": np.ones(3, np.float32)}, "b": np.ones(3)},
            r"holds float32 of shape \(2,\) at params\['a'\]\['w'\], and like has float32",
        ),
        ({"a": {"w": np.ones(2, np.float16)}, "b": np.ones(3)}, "and like has float16 of shape"),
        ({"a": {"w": 1.0}, "b": np.ones(3)}, "and like has a Python float"),
    ],
)
def test_a_like_that_differs_is_refused_by_its_path(tmp_path, like, words):
    save(tmp_path / "model", Variables({"a": {"w": np.ones(2, np.float32)}, "b": np.ones(3)}, {}))
    with pytest.raises(InputError, match=words):
        load(tmp_path / "model", like=Variables(like, {}))


@pytest.mark.parametrize(
    "leaf, words",
    [
        (np.array([np.ones(2), np.ones(3)], object), "of dtype object"),
        (np.array(["a"]), "of dtype <U1"),
        ("name", "str"),
        (jnp.tanh, "of dtype object"),
        (np.ma.masked_equal(np.arange(3), 1), "MaskedArray"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
    ],
    ids=["ragged", "strings", "string", "function", "masked", "dates"],
)
def test_leaves_that_are_no_numbers_are_refused_before_anything_is_written(tmp_path, leaf, words):
    with pytest.raises(InputError, match=rf"save keeps arrays of numbers, got .*{words}.* at params\['layer'\]\[0\]"):
        save(tmp_path / "model", Variables({"layer": [leaf]}, {}))
    assert not (tmp_path / "model").exists()


def test_what_is_not_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"save needs Variables\(params, stats\), got dict"):
        save(tmp_path / "model", {"w": jnp.ones(2)})
    save(tmp_path / "model", WEIGHTS)
    with pytest.raises(InputError, match=r"load needs Variables\(params, stats\) as like, got dict"):
        load(tmp_path / "model", like={"w": jnp.ones(2)})


def test_a_save_that_fails_leaves_nothing_and_harms_nothing(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    save(tmp_path / "before", WEIGHTS)
    monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
    with pytest.raises(InputError, match="No space left on device"):
        save(tmp_path / "model", WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["before"]
    assert_same_bits(load(tmp_path / "before"), WEIGHTS)


def test_lists_and_tuples_come_back_as_they_were(tmp_path):
    save(tmp_path / "model", Variables([jnp.ones(2), (jnp.zeros(1),)], {}))
    restored = load(tmp_path / "model").params
    assert type(restored) is list and type(restored[1]) is tuple
    first, (second,) = restored
    np.testing.assert_array_equal(first, np.ones(2))
    np.testing.assert_array_equal(second, np.zeros(1))
