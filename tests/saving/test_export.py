"""What is exported: the folder, its numbers, and an environment that holds nothing but what it needs."""

import csv
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from packaging.requirements import Requirement
from safetensors.numpy import load_file
from scipy.special import expit, softmax

from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl.__main__ import main
from jaxdl._files import draft_name, exclusive
from jaxdl._tree import flatten_named
from jaxdl.data import StandardScaler, fit_scaler, standardize
from jaxdl.datasets import load_weather as weather_data
from jaxdl.distributed import make_mesh
from jaxdl.errors import InputError
from jaxdl.nn import convnet, flip, from_linen, mlp, residual_net, with_augmentation, with_flip_averaging
from jaxdl.runs.command import command
from jaxdl.runs.export import export_run
from jaxdl.saving import OutputSpec, load, predict_script
from jaxdl.saving.export import export_model, inference
from jaxdl.train.evaluate import predict
from jaxdl.types import Model, Variables

ROOT = Path(__file__).parents[2]
DRAWS = np.random.default_rng(0)
ROWS = DRAWS.normal(5, 2, (33, 3)).astype(np.float32)
MODEL = mlp((8,), input_norm=True)


@functools.cache
def network():
    return jax.jit(MODEL.init)(jax.random.key(0), ROWS)


FILES = ["README.md", "SHA256SUMS", "model.json", "model.stablehlo", "predict.py", "weights.safetensors"]


def run_folder(module, folder, *flags):
    flags = [*flags, "--no-compilation-cache", "--epochs", "1", "--mesh", "data=1", "--workdir", str(folder)]
    assert command(module.Config, module.run, "run", flags) == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of short runs by name, which the tests below only read."""
    above = tmp_path_factory.mktemp("runs")
    pictures = ("--data", "simulated:720", "--train-size", "200")
    return {
        "sunshine": run_folder(weather, above / "sunshine", "--data", "simulated:400"),
        "barbecue": run_folder(weather, above / "barbecue", "--data", "simulated:400", "--labels", "bbq"),
        "pictures": run_folder(cifar10, above / "pictures", *pictures, "--recipe", "pooled"),
    }


@pytest.fixture(scope="module")
def built(runs):
    """What each run was, made again by the experiments' own code."""
    sunshine, barbecue = (weather.Config(data="simulated:400", epochs=1, labels=of) for of in ("sunshine", "bbq"))
    pictures = cifar10.Config(data="simulated:720", epochs=1, train_size=200, recipe="pooled")
    return {
        "sunshine": weather.build(sunshine, weather.load(sunshine)),
        "barbecue": weather.build(barbecue, weather.load(barbecue)),
        "pictures": cifar10.build(pictures, cifar10.load(pictures)),
    }


def test_the_folder_holds_all_and_its_checksums_agree(tmp_path):
    folder = export_model(tmp_path / "above" / "model", MODEL, network(), ROWS, card="# Rain\n\nAs it falls.\n")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(FILES) - 1
    assert (folder / "README.md").read_text().startswith("# Rain\n\nAs it falls.\n\n## Usage\n")
    assert (folder / "predict.py").read_bytes() == (ROOT / "jaxdl" / "saving" / "predict_script.py").read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_weights_beside_the_program_are_the_same_to_the_bit(tmp_path, dtype):
    model = Model(
        lambda key, inputs: Variables({"a": {"b": jnp.zeros((3, 2), dtype)}}, {"c": jnp.float32(0)}),
        lambda weights, inputs, **_: (inputs @ weights.params["a"]["b"].astype(jnp.float32) + weights.stats["c"], {}),
    )
    weights = Variables({"a": {"b": DRAWS.normal(0, 1, (2, 3)).astype(dtype).T}}, {"c": np.float32(1 / 3)})
    folder = export_model(tmp_path / "model", model, weights, ROWS)
    result, wanted = load_file(folder / "weights.safetensors"), flatten_named(weights)
    assert result.keys() == wanted.keys() == {"params/a/b", "stats/c"}
    for name, array in result.items():
        assert (array.dtype, array.shape) == (wanted[name].dtype, wanted[name].shape)
        assert array.tobytes() == np.asarray(wanted[name]).tobytes()


def test_a_scaling_is_part_of_the_program(tmp_path):
    scaling = fit_scaler(ROWS)
    folder = export_model(tmp_path / "model", MODEL, network(), ROWS, scaling=scaling)
    wanted = predict(MODEL, network(), standardize(ROWS, scaling))
    np.testing.assert_allclose(predict_script.load(folder).predict(ROWS), wanted, rtol=1e-6, atol=1e-6)


def test_weights_on_a_mesh_of_devices_are_exported_for_one(tmp_path):
    mesh = make_mesh()
    spread = jax.device_put(network(), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    one, many = (
        predict_script.load(export_model(tmp_path / name, MODEL, w, ROWS))
        for name, w in (("one", network()), ("many", spread))
    )
    assert mesh.size > 1
    np.testing.assert_array_equal(one.predict(ROWS), many.predict(ROWS))


def test_inputs_of_python_are_those_of_float32(tmp_path):
    folder = export_model(tmp_path / "model", MODEL, network(), ROWS.tolist())
    about = json.loads((folder / "model.json").read_text())
    assert about["inputs"] == {"shape": [3], "dtype": "float32", "columns": ["x1", "x2", "x3"]}
    assert about["outputs"]["names"] == ["prediction"] and about["platforms"] == ["cpu", "cuda", "tpu"]


def test_nothing_is_written_over(tmp_path):
    folder = export_model(tmp_path / "model", MODEL, network(), ROWS)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("model", "link"):
        with pytest.raises(InputError, match=f"needs a new folder, got .*{name}, which exists"):
            export_model(tmp_path / name, MODEL, network(), ROWS)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr("jaxdl._files.checksum_lines", fails)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError, match=r"No space|^$"):
        export_model(tmp_path / "model", MODEL, network(), ROWS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "output"),
    [
        (
            {"variables": lambda weights: jax.tree.map(lambda leaf: leaf * np.float32(np.nan), weights)},
            "must be finite",
        ),
        (
            {"variables": lambda weights: weights._replace(params={})},
            "those of the model, got no such array for params/.*has ",
        ),
        (
            {"variables": lambda weights: jax.tree.map(lambda leaf: leaf[:1], weights)},
            r"those of the model, got \(1,\) for .*has \(3,\)",
        ),
        ({"inputs": np.array([["a", "b", "c"]])}, "inputs must be rows of numbers, got <U1"),
        ({"inputs": 1.0}, "inputs must be rows of numbers"),
        ({"columns": ["a", "b"]}, r"columns must be 3 different names .* got \['a', 'b'\]"),
        ({"columns": ["a", "b", "a"]}, "columns must be 3 different names"),
        ({"columns": ["a", "b", " c"]}, "columns must be 3 different names"),
        (
            {"outputs": OutputSpec(["a", "b"])},
            r"outputs must have 1 different names, one for each output of the model, got \['a', 'b'\]",
        ),
        ({"outputs": OutputSpec(link="log")}, "link must be one of"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tmp_path, change, output):
    given = {"model": MODEL, "variables": network(), "inputs": ROWS, **change}
    if callable(given["variables"]):
        given["variables"] = given["variables"](network())
    with pytest.raises(InputError, match=output):
        export_model(tmp_path / "model", **given)
    assert list(tmp_path.iterdir()) == []


def test_config_json_describes_what_is_trained(runs):
    dataset = weather_data("simulated:400")
    config = json.loads((runs["sunshine"] / "config.json").read_text())
    assert config["network"]["arguments"] == {"widths": [100, 50], "input_norm": True, "dtype": "float32"}
    assert config["inputs"] == {"shape": [89], "dtype": "float32", "columns": list(dataset.columns)}
    assert config["outputs"] == {"names": ["sunshine_hours"], "link": "none", "unit": "hours"}
    assert config["terms"]["licence"] == "none needed."
    links = {name: json.loads((folder / "config.json").read_text())["outputs"]["link"] for name, folder in runs.items()}
    assert links == {"sunshine": "none", "barbecue": "sigmoid", "pictures": "softmax"}


@pytest.mark.parametrize("remaining", ["best", "final"])
@pytest.mark.parametrize("name", ["sunshine", "barbecue", "pictures"])
def test_an_exported_run_predicts_what_the_run_does(runs, built, tmp_path, name, remaining):
    assert main(["export", str(runs[name]), str(tmp_path / "out"), "--weights", remaining]) == 0
    was = built[name]
    inputs = was.sets["test"].inputs
    outputs = np.asarray(predict(was.plan.model, load(runs[name] / "checkpoints" / remaining), inputs), np.float64)
    link = {"sunshine": lambda result: result, "barbecue": expit, "pictures": lambda result: softmax(result, -1)}[name]
    model = predict_script.load(tmp_path / "out")
    for count in (1, 7, 33):
        np.testing.assert_allclose(model.predict(inputs[:count]), link(outputs[:count]), rtol=1e-6, atol=1e-6)


def test_the_card_says_how_good_the_run_is(runs, tmp_path):
    card = (export_run(runs["pictures"], tmp_path / "out", which="final") / "README.md").read_text()
    metrics = json.loads((runs["pictures"] / "metrics.json").read_text())
    share, error = metrics["accuracy"]["test"], metrics["test_errors"]["accuracy"]
    assert f"{share:.3f} +- {error:.3f} |" in card and "| accuracy of chance | | | 0.100 |" in card
    assert error == pytest.approx(np.sqrt(share * (1 - share) / 120), rel=0.05)
    assert f"SHA-256 {metrics['dataset']['sha256']}" in card and "airplane, automobile" in card


def test_exporting_imports_no_experiment(runs, tmp_path):
    program = (
        "import sys; sys.modules['experiments'] = None; from jaxdl.__main__ import main; "
        f"sys.exit(main(['export', {str(runs['sunshine'])!r}, {str(tmp_path / 'out')!r}]))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_a_run_that_is_not_finished_or_lacks_its_network_is_refused_until_it_goes_on(runs, tmp_path, capsys):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", runs["sunshine"], folder], check=True)
    config = json.loads((folder / "config.json").read_text())
    usage = ("network", "inputs", "outputs", "card", "terms")
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in config if name not in usage}))
    assert main(["export", str(folder), str(tmp_path / "out")]) == 2
    assert "must describe the model, but 'inputs' is missing or wrong" in capsys.readouterr().err
    metrics = (folder / "metrics.json").read_bytes()
    (folder / "metrics.json").unlink()
    assert main(["export", str(folder), str(tmp_path / "out")]) == 2
    assert "is not finished: it has no metrics.json" in capsys.readouterr().err
    # Goes on from where it was, without a flag changed.
    flags = ["--no-compilation-cache", "--mesh", "data=1", "--workdir", str(folder)]
    assert command(weather.Config, weather.run, "run", flags) == 0
    assert json.loads((folder / "config.json").read_text()) == config
    assert json.loads((folder / "metrics.json").read_text())["rmse"] == json.loads(metrics)["rmse"]
    assert main(["export", str(folder), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"network": {"kind": "mlp"}},
        {"inputs": {}},
        {"inputs": {"shape": [89], "dtype": "float32"}},
        {"inputs": {"shape": [89], "dtype": "float32", "columns": [["a"]]}},
        {"inputs": {"shape": [10**40], "dtype": "float32", "columns": None}},
        {"outputs": {"a": 1}},
        {"outputs": {"names": ["hours"], "unit": [1]}},
        {"outputs": {"names": [1]}},
        {"card": None},
    ],
)
def test_a_damaged_description_is_bad_input(runs, tmp_path, damage):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "metrics.json"):
        (folder / name).write_bytes((runs["sunshine"] / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **damage}))
    with pytest.raises(InputError, match=r"must describe the model|a network must be an object"):
        export_run(folder, tmp_path / "out")


def test_an_untrained_run_has_no_best_weights(runs, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", runs["sunshine"], folder], check=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "best_epoch": 0}))
    with pytest.raises(InputError, match="has no best epoch, because no loss was finite"):
        export_run(folder, tmp_path / "out")


def needed(*names):
    """The distributions that these need, themselves among them, without extras."""
    result, open_ = {}, list(names)
    while open_:
        name = open_.pop()
        if name not in result:
            result[name] = importlib.metadata.distribution(name)
            required = map(Requirement, result[name].requires or [])
            open_ += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return result.values()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of an environment that holds jax, numpy and flatbuffers and what they need, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    inside = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    for distribution in needed("jax", "numpy", "flatbuffers"):
        for top in {path.parts[0] for path in distribution.files if path.parts[0] not in ("..", "__pycache__")}:
            (inside / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


def call(python, *arguments, cwd):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([python, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, env=clean)


@pytest.mark.slow
def test_the_bare_environment_is_bare(bare, tmp_path):
    for package in ("flax", "optax", "orbax", "pandas", "PIL", "jaxdl", "experiments", "safetensors"):
        assert f"No module named '{package}'" in call(bare, "-c", f"import {package}", cwd=tmp_path).stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sunshine", "pictures"])
def test_an_exported_run_predicts_where_nothing_but_jax_and_numpy_is(runs, built, bare, tmp_path, name):
    out = export_run(runs[name], tmp_path / "out")
    was = built[name]
    inputs = np.asarray(was.sets["test"].inputs)
    data = tmp_path / ("data.npy" if name == "pictures" else "data.csv")
    if name == "pictures":
        np.save(data, inputs)
    else:
        with data.open("w", newline="") as file:
            csv.writer(file).writerows([was.dataset.columns, *inputs.astype(str)])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = call(bare, out / "predict.py", data, "-o", "found.csv", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    with (elsewhere / "found.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    outputs = np.asarray(predict(was.plan.model, load(runs[name] / "checkpoints" / "best"), inputs), np.float64)
    if name == "sunshine":
        assert header == ["sunshine_hours"]
        np.testing.assert_allclose(np.array(rows, float), outputs, rtol=1e-6, atol=1e-6)
    else:
        assert header == ["class", "probability", *was.dataset.classes]
        chances = softmax(outputs, -1)
        np.testing.assert_allclose(np.array([row[2:] for row in rows], float), chances, rtol=1e-6, atol=1e-6)
        assert [row[0] for row in rows] == [was.dataset.classes[best] for best in chances.argmax(1)]
        assert [row[1] for row in rows] == [max(row[2:], key=float) for row in rows]


def test_what_a_killed_export_left_is_removed_by_the_next_and_one_under_way_stays(tmp_path):
    killed, going, other = (draft_name(tmp_path / name) for name in ("model", "model", "another"))
    for draft in (killed, going, other, tmp_path / ".model-4711.part"):
        draft.mkdir()
        (draft / "weights.safetensors").write_text("half")
    with exclusive(going):
        export_model(tmp_path / "model", MODEL, network(), ROWS)
    assert not killed.exists() and going.exists() and other.exists() and (tmp_path / ".model-4711.part").exists()


# The exported program: its numbers are those of `predict`, its preprocessing that of `standardize`.

WIDE = DRAWS.normal(0, 1, (33, 11)).astype(np.float32)
IMAGES = DRAWS.integers(0, 256, (33, 16, 16, 3), np.uint8)
MODELS = {
    "mlp": (mlp((20, 5), input_norm=True), WIDE, "none"),
    "yes or no": (mlp((20,)), WIDE, "sigmoid"),
    "convnet": (convnet((18, 50), widths=(9,), outputs=4, dropout=0.3, pool=True), IMAGES, "softmax"),
    "residual": (with_flip_averaging(with_augmentation(residual_net(4, outputs=4), flip)), IMAGES, "softmax"),
}
LINKS = {"none": lambda outputs: outputs, "sigmoid": expit, "softmax": lambda outputs: softmax(outputs, -1)}


def trained_weights(model, inputs):
    """Weights that no initializer gives: BatchNorm's moments too are far from 0 and 1."""
    weights = jax.jit(model.init)(jax.random.key(0), jax.tree.map(lambda leaf: leaf[:1], inputs))
    leaves, structure = jax.tree.flatten(weights)
    moved = [leaf + np.abs(DRAWS.normal(0, 0.2, leaf.shape)).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.parametrize("name", MODELS)
def test_predictions_of_any_number_of_rows_are_those_of_predict(name):
    model, inputs, link = MODELS[name]
    weights = trained_weights(model, inputs)
    program = jax.export.deserialize(bytearray(inference(model, weights, inputs, link=link).serialize()))
    for count in (1, 7, 33):
        wanted = LINKS[link](np.asarray(predict(model, weights, inputs[:count]), np.float64))
        np.testing.assert_allclose(program.call(inputs[:count]), wanted, rtol=1e-6, atol=1e-6)


def filters_in(text):
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    return {int(re.search(r"-> tensor<[\dx?]*x(\d+)xf32>", line)[1]) for line in lines}


def test_a_program_is_for_all_three_platforms_with_the_convolution_of_each(monkeypatch):
    model = convnet((50, 50))
    weights = trained_weights(model, IMAGES)
    program = inference(model, weights, IMAGES)
    assert program.platforms == ("cpu", "cuda", "tpu") and program.nr_devices == 1
    # On a CPU the convolution of three channels is a matrix product, as are two of the 50 filters of the other, which
    # fill no vector; elsewhere nothing is split.
    for platform, expected in (("cpu", {48}), ("cuda", {50}), ("tpu", {50})):
        monkeypatch.setattr("jaxdl.saving.export.PLATFORMS", (platform,))
        assert filters_in(inference(model, weights, IMAGES).mlir_module()) == expected
    # The program of all holds both, of which one is chosen where it runs.
    text = program.mlir_module()
    assert filters_in(text) == {48, 50} and "stablehlo.case" in text and "_platform_index" in text
    compiled = jax.jit(program.call).lower(IMAGES).compile().as_text()
    assert "conditional" not in compiled


def test_a_scaling_is_taken_off_as_standardize_does_where_means_are_large_and_spreads_small():
    table = DRAWS.normal([1013.25, 0.3, -4000.0, 1e-5], [8.0, 1e-3, 0.5, 1e-6], (200, 4)).astype(np.float32)
    scaling = fit_scaler(table[:100])
    nothing = Model(lambda key, inputs: Variables({}, {}), lambda weights, inputs, **_: (inputs, {}))
    result = inference(nothing, Variables({}, {}), table, scaling=scaling).call(table)
    np.testing.assert_allclose(result, standardize(table, scaling), rtol=1e-6, atol=1e-6)
    # Which float32 alone does not do.
    naive = (table - scaling.mean.astype(np.float32)) / scaling.scale.astype(np.float32)
    assert np.abs(naive - standardize(table, scaling)).max() > 1e-5


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_outputs_are_numbers_a_row_whatever_the_model_gives(shape):
    model = Model(
        lambda key, inputs: Variables({}, {}),
        lambda weights, x, **_: (x[:, 0].reshape(-1, *[1] * len(shape)) * np.ones((1, *shape), np.float32), {}),
    )
    assert inference(model, Variables({}, {}), WIDE).call(WIDE).shape == (33, int(np.prod(shape)))


def test_another_link_or_the_scaling_of_other_columns_is_refused():
    model = mlp(())
    weights = trained_weights(model, WIDE)
    with pytest.raises(InputError, match="link must be one of none, sigmoid, softmax, got 'logit'"):
        inference(model, weights, WIDE, link="logit")
    with pytest.raises(InputError, match=r"a mean and a scale for each column of \(33, 11\)"):
        inference(model, weights, WIDE, scaling=StandardScaler(np.zeros(3), np.ones(3)))


# Models of several inputs and outputs: the containers, shapes and dtypes are those of `predict`.

TABLE = {
    "image": DRAWS.normal(0, 1, (33, 4, 4)).astype(np.float32),
    "height": DRAWS.normal(0, 1, 33).astype(np.float32),
}
TREE = {
    "words": (DRAWS.integers(0, 9, (33, 5)).astype(np.int32), DRAWS.random((33, 5)) < 0.5),
    "deep": {"pixels": IMAGES[:, :2, :2], "height": TABLE["height"]},
}


class Pair(NamedTuple):
    left: Any
    right: Any


def several(outputs, example):
    """A model of one kernel: the outputs are a function of the kernel and the inputs."""
    kernel = DRAWS.normal(0, 1, (4, 4)).astype(np.float32)
    model = Model(
        lambda key, inputs: Variables({"kernel": jnp.zeros((4, 4))}, {}),
        lambda variables, inputs, **_: (outputs(variables.params["kernel"], inputs), {}),
    )
    return model, Variables({"kernel": kernel}, {}), example


def of_tree(kernel, inputs):
    (tokens, mask), deep = inputs["words"], inputs["deep"]
    pixels = deep["pixels"].astype(jnp.float32)[..., 0].reshape(-1, 4) @ kernel / 100
    total = jnp.where(mask, tokens, 0).sum(1)
    return {"z": (total, pixels[:, None, :]), "a": Pair(mask, (pixels.sum(1) + deep["height"]).astype(jnp.bfloat16))}


SEVERAL = {
    "dict to dict": several(
        lambda k, x: {"rows": x["image"] @ k, "file": x["height"][:, None] + k[:1], "age": x["height"]}, TABLE
    ),
    "tree to tree": several(of_tree, TREE),
    "tuple to array": several(lambda k, x: x[0] @ k + x[1][:, None], (WIDE[:, :4], TABLE["height"])),
    "NamedTuple to list": several(
        lambda k, x: [x.left @ k, jnp.argmax(x.right, 1)], Pair(WIDE[:, :4], TABLE["image"][:, 0])
    ),
    "array to tuple": several(lambda k, x: (x @ k, None, (x @ k).sum(1)), WIDE[:, :4]),
}


def as_plain(tree):
    """A tree with NamedTuples as dicts, and lists as tuples."""
    if isinstance(tree, dict) or hasattr(tree, "_asdict"):
        return {name: as_plain(part) for name, part in getattr(tree, "_asdict", lambda: tree)().items()}
    return tuple(map(as_plain, tree)) if isinstance(tree, (tuple, list)) else tree


def assert_equal_trees(result, wanted):
    wanted = as_plain(wanted)
    assert jax.tree.structure(result) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(wanted), strict=True):
        floats = jnp.issubdtype(other.dtype, jnp.floating)
        assert (one.dtype, one.shape) == (jnp.float32 if floats else other.dtype, other.shape)
        np.testing.assert_allclose(one, np.asarray(other, one.dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_arrays_are_predicted_as_predict_does_in_the_same_containers(tmp_path, name):
    model, variables, example = SEVERAL[name]
    folder = export_model(tmp_path / "model", model, variables, example, batch_size=8)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    exported = predict_script.load(folder)
    for count in (1, 7, 8, 33):
        inputs = jax.tree.map(lambda leaf, count=count: leaf[:count], example)
        wanted = predict(model, variables, inputs)
        assert_equal_trees(exported.predict(inputs), wanted)
        # By the names in model.json too, as from a .npz file.
        assert_equal_trees(exported.predict(predict_script.named_arrays(inputs, "inputs")), wanted)
    empty = exported.predict(jax.tree.map(lambda leaf: leaf[:0], example))
    assert {len(leaf) for leaf in jax.tree.leaves(empty)} == {0}


def test_the_description_of_several_arrays_has_their_names_shapes_and_dtypes(tmp_path):
    model, variables, example = SEVERAL["tree to tree"]
    folder = export_model(tmp_path / "model", model, variables, example)
    about = json.loads((folder / "model.json").read_text())
    assert about["inputs"] == [
        {"name": "deep/height", "shape": [], "dtype": "float32"},
        {"name": "deep/pixels", "shape": [2, 2, 3], "dtype": "uint8"},
        {"name": "words/0", "shape": [5], "dtype": "int32"},
        {"name": "words/1", "shape": [5], "dtype": "bool"},
    ]
    assert about["outputs"] == [
        {"name": "a/left", "shape": [5], "dtype": "bool"},
        {"name": "a/right", "shape": [], "dtype": "float32"},
        {"name": "z/0", "shape": [], "dtype": "int32"},
        {"name": "z/1", "shape": [1, 4], "dtype": "float32"},
    ]
    assert about["structure"] == {"a": {"left": "a/left", "right": "a/right"}, "z": ["z/0", "z/1"]}
    card = (folder / "README.md").read_text()
    assert "python predict.py data.npz -o predictions.npz" in card
    assert "- `deep/pixels`: uint8 of shape (rows, 2, 2, 3)\n" in card and "- `z/0`: int32 of shape (rows)\n" in card


def test_a_trained_network_of_several_arrays_is_exported_with_what_it_does_not_use(tmp_path):
    class Portrait(nn.Module):
        @nn.compact
        def __call__(self, image, height, unused):
            hidden = nn.relu(nn.Dense(16)(jnp.concatenate([image.reshape(image.shape[0], -1), height[:, None]], 1)))
            return {"age": nn.Dense(1)(hidden), "group": nn.Dense(3)(hidden)}

    model, inputs = from_linen(Portrait()), {**TABLE, "unused": np.zeros(33, np.float32)}
    variables = trained_weights(model, inputs)
    exported = predict_script.load(export_model(tmp_path / "model", model, variables, inputs))
    assert_equal_trees(exported.predict(inputs), predict(model, variables, inputs))


def test_a_model_that_needs_the_number_of_rows_is_refused_with_what_to_write(tmp_path):
    for inputs, outputs in (
        (WIDE, lambda k, x: x.reshape(len(x), -1)),
        (TABLE, lambda k, x: jnp.ones(len(x["height"]))),
    ):
        model, variables, _ = several(outputs, inputs)
        with pytest.raises(InputError, match=r"any batch size to be exported, got: .* Write x\.shape\[0\] in place of"):
            export_model(tmp_path / "model", model, variables, inputs)


def test_a_scaling_of_one_table_is_part_of_a_program_of_several_outputs(tmp_path):
    model, variables, table = SEVERAL["array to tuple"]
    scaling = fit_scaler(table)
    folder = export_model(tmp_path / "model", model, variables, table, scaling=scaling)
    assert_equal_trees(
        predict_script.load(folder).predict(table), predict(model, variables, standardize(table, scaling))
    )


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({"columns": ["a", "b"]}, "columns must be left out: the model has several inputs or outputs"),
        ({"outputs": OutputSpec(link="softmax")}, "outputs must be left out: .* Apply a sigmoid or softmax in the"),
        ({"scaling": StandardScaler(np.zeros(4), np.ones(4))}, "scaling must be left out"),
        (
            {"inputs": {"image": TABLE["image"], "height": np.array(["tall"])}},
            r"inputs\['height'\] must be rows of num",
        ),
        ({"inputs": {"image": TABLE["image"], "height": 1.0}}, r"inputs\['height'\] must be rows of numbers"),
        ({"inputs": {**TABLE, "a/b": WIDE, "a": {"b": WIDE}}}, "inputs must be .* different names, got .*a/b, a/b|a/b"),
        ({"inputs": {**TABLE, "more": {1: WIDE}}}, "inputs must be an array, or dicts of strings"),
        ({"model": lambda k, x: {"all": x["image"].sum()}}, r"outputs must be numbers .* got float32\(\)"),
        ({"model": lambda k, x: {"all": x["image"].reshape(-1, 4)}}, r"outputs must be numbers .* got float32\("),
        ({"model": lambda k, x: {"all": x["height"] + 1j}}, "outputs must be numbers .* got complex64"),
        ({"model": lambda k, x: {0: x["height"]}}, "outputs must be an array, or dicts of strings"),
        ({"model": lambda k, x: ()}, "outputs must be an array, .* got no array"),
    ],
)
def test_options_and_containers_that_do_not_fit_several_arrays_are_refused(tmp_path, change, output):
    model, variables, inputs = SEVERAL["dict to dict"]
    arguments = {"model": model, "variables": variables, "inputs": inputs, **change}
    if "model" in change:
        arguments["model"] = several(change["model"], inputs)[0]
    with pytest.raises(InputError, match=output):
        export_model(tmp_path / "model", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_lesson_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "lesson"}')
    with pytest.raises(InputError, match="must be the folder of a run, got that of a lesson"):
        export_run(tmp_path, tmp_path / "model")
