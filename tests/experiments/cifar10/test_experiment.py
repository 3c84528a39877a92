"""The CIFAR-10 experiment as people run it: folder, figures, metrics, bad input; and what it learns."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cifar10.experiment import RECIPES, Config, build, resolve, run, split_sets
from experiments.cifar10.report import confusion
from jaxdl.datasets import load_cifar10
from jaxdl.errors import InputError
from jaxdl.runs.command import command
from jaxdl.saving import load
from jaxdl.train import epochs, make_plan
from jaxdl.train.evaluate import predict
from tests.quick import quick_programs

ROOT = Path(__file__).parents[3]
IMAGES = "simulated:360"
QUICK = ("--data", IMAGES, "--train-size", "250", "--epochs", "2", "--no-compilation-cache")
FIGURES = {"samples", "accuracy", "loss", "confusion", "errors", "kernels"}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_programs():
        yield


@pytest.fixture
def as_users_compile(quick):
    """Programs as fast as they are outside of the tests, where much is computed."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def call(*arguments):
    return command(Config, run, "cifar10", [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one short run, which the tests below only read."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    assert call(*QUICK, "--recipe", "pooled", "--workdir", folder) == 0
    return folder


def read(folder, name="metrics.json"):
    return json.loads((folder / name).read_text())


def test_a_run_writes_its_folder(finished):
    assert {"config.json", "history.csv", "metrics.json"} <= {path.name for path in finished.iterdir()}
    assert {path.stem for path in (finished / "figures").iterdir()} == FIGURES
    assert (finished / "checkpoints/best").is_dir() and (finished / "checkpoints/final").is_dir()
    history = pd.read_csv(finished / "history.csv")
    names = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"]
    assert list(history) == names and history["epoch"].tolist() == [1, 2]


def test_tensorboard_gets_the_same_pictures(finished):
    events = EventAccumulator(str(finished / "tensorboard" / "pictures"))
    events.Reload()
    assert set(events.Tags()["images"]) == FIGURES
    (calls,) = events.Images("samples")
    assert calls.encoded_image_string == (finished / "figures/samples.png").read_bytes()


def test_metrics_are_those_of_scikit_learn_on_the_kept_weights(finished):
    metrics, images = read(finished), load_cifar10(IMAGES)
    built = build(Config(recipe="pooled", train_size=250), images)
    for folder, suffix in (("final", ""), ("best", "_best")):
        weights = load(finished / "checkpoints" / folder)
        for name, rows in built.sets.items():
            outputs = np.asarray(predict(built.plan.model, weights, rows.inputs))
            chances = np.asarray(jax.nn.softmax(outputs))
            true = np.asarray(rows.targets)
            np.testing.assert_allclose(metrics[f"accuracy{suffix}"][name], accuracy_score(true, chances.argmax(1)))
            np.testing.assert_allclose(
                metrics[f"loss{suffix}"][name], log_loss(true, chances, labels=range(10)), rtol=1e-4
            )
    outputs = np.asarray(predict(built.plan.model, load(finished / "checkpoints/final"), images.test.inputs))
    recalls = recall_score(images.test.targets, outputs.argmax(1), average=None, labels=range(10))
    assert list(metrics["per_class_accuracy"]) == list(images.classes)
    np.testing.assert_allclose(list(metrics["per_class_accuracy"].values()), recalls)
    assert metrics["baselines"]["chance"] == {"test_accuracy": 0.1}
    assert metrics["baselines"]["majority_class"]["test_accuracy"] == pytest.approx(0.1, abs=0.05)
    assert (metrics["parameters"], metrics["epochs"], metrics["reason"]) == (57060, 2, "epochs")
    assert metrics["dataset"]["rows"] == {"train": 250, "validation": 50, "test": 60}
    assert set(metrics["seconds"]) == {"import", "data", "compile", "fit", "total"}


def test_the_confusion_matrix_is_scikit_learns():
    true, guessed = np.random.default_rng(0).integers(0, 4, (2, 50))
    np.testing.assert_array_equal(confusion(true, guessed, 5), confusion_matrix(true, guessed, labels=range(5)))


@pytest.mark.slow
def test_the_lessons_split_validates_on_the_test_images_and_says_so(tmp_path, capsys):
    arguments = ("--data", IMAGES, "--train-size", "300", "--epochs", "1", "--no-compilation-cache")
    assert call(*arguments, "--recipe", "dense", "--lesson-split", "--workdir", tmp_path / "run") == 0
    metrics, out = read(tmp_path / "run"), capsys.readouterr().out
    assert "VALIDATED ON THE TEST IMAGES" in out and "test images" in out
    assert "VALIDATED ON THE TEST IMAGES" in metrics["dataset"]["note"] and metrics["dataset"]["lesson_split"] is True
    assert metrics["accuracy"]["validation"] == metrics["accuracy"]["test"]
    assert metrics["parameters"] == 312860
    assert {path.stem for path in (tmp_path / "run/figures").iterdir()} == FIGURES - {"kernels"}


def test_three_sets_are_the_first_images_the_rest_and_the_test_file():
    images = load_cifar10(IMAGES)
    rows, sets = split_sets(resolve(Config(train_size=250)), images)
    np.testing.assert_array_equal(sets["train"].inputs, images.train.inputs[:250])
    np.testing.assert_array_equal(sets["validation"].inputs, images.train.inputs[250:])
    assert sets["test"] is images.test
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [250, 50, 60]
    # Not a copy: the images are most of what a run keeps in memory.
    assert np.shares_memory(sets["train"].inputs, images.train.inputs)


@pytest.mark.slow
def test_training_compiles_once_a_run(compilations):
    built = build(Config(recipe="dense", train_size=250, epochs=3, seed=5), load_cifar10(IMAGES))
    with compilations() as names:
        assert len(list(epochs(built.plan, built.start, built.sets["train"], built.sets["validation"], last=3))) == 3
    assert names.count("chunk_program") == 1


@pytest.mark.slow
def test_the_strong_recipe_runs_with_all_that_it_has(tmp_path, monkeypatch):
    plans = []
    spy = lambda *a, **k: plans.append(make_plan(*a, **k)) or plans[-1]  # noqa: E731
    monkeypatch.setattr("jaxdl.runs.experiment.make_plan", spy)
    arguments = (*QUICK, "--recipe", "strong", "--width", "2", "--batch-size", "50", "--patience", "5")
    assert call(*arguments, "--workdir", tmp_path / "run") == 0
    history, config = pd.read_csv(tmp_path / "run/history.csv"), read(tmp_path / "run", "config.json")
    # A cosine from a 25th of the greatest rate up to it and down to nearly nothing.
    assert history["learning_rate"].iloc[-1] < 0.02 < history["learning_rate"].max() <= 0.2
    assert (config["width"], config["batch_size"], config["learning_rate"]) == (2, 50, 0.2)
    (plan,) = plans
    assert plan.ema_decay == 0.99
    assert plan.objective.loss(np.zeros((1, 10)), np.array([3])) == pytest.approx(np.log(10))


def test_every_recipe_settles_to_its_values():
    for name, recipe in RECIPES.items():
        config = resolve(Config(recipe=name))
        assert {key: getattr(config, key) for key in recipe._fields} == recipe._asdict()
    assert resolve(Config(recipe="dropout", dropout=0.7)).dropout == 0.7


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (("--train-size", "300"), "--train-size must be at most 299 of the 300 training images"),
        (("--train-size", "301", "--lesson-split"), "--train-size must be at most 300 of the 300 training images"),
        (("--train-size", "0"), "--train-size must be from 1 to"),
        (("--train-size", "12"), "every class must be among the 12 images to train on, got none of"),
        (
            ("--train-size", "250", "--batch-size", "251"),
            "batch_size=251 leaves no full batch in 250 training examples",
        ),
        (("--epochs", "0"), "--epochs must be from 1 to 1000000, got 0"),
        (("--batch-size", "0"), "--batch-size must be from 1 to"),
        (("--patience", "0"), "--patience must be from 1 to"),
        (("--learning-rate", "0"), "--learning-rate must be above 0"),
        (("--dropout", "0.5"), "--dropout must come with --recipe dropout, got --recipe small"),
        (
            ("--recipe", "dropout", "--dropout", "1.5", "--train-size", "250"),
            "dropout must be a rate from 0 to below 1",
        ),
        (("--width", "8"), "--width must come with --recipe strong"),
        (("--recipe", "strong", "--width", "0", "--train-size", "250"), "--width must be from 1 to 4096, got 0"),
        (("--seed", "-1"), "seed must be from 0"),
        (("--epochs", "3000000000"), "--epochs must be from 1 to 1000000, got 3000000000"),
        (("--recipe", "strong", "--width", "1000000"), "--width must be from 1 to 4096"),
        (("--data", "a" * 300 + "/b"), "is no source of images"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, output, tmp_path, capsys):
    assert call("--data", IMAGES, "--no-compilation-cache", "--workdir", tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert output in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["empty folder", "truncated", "unknown word"])
def test_data_that_cannot_be_read_is_one_message_and_exit_code_2(damage, tmp_path, capsys, real_data):
    data = tmp_path / "data"
    data.mkdir()
    if damage == "truncated":
        shutil.copytree(Path(real_data) / "cifar-10-batches-py", data, dirs_exist_ok=True)
        file = data / "data_batch_2"
        file.write_bytes(file.read_bytes()[:-5000])
    assert call("--data", "photos" if damage == "unknown word" else data, "--workdir", tmp_path / "run") == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_shown_and_not_changed(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert call(*QUICK, "--workdir", finished) == 0
    assert "holds a finished run (pooled, seed 0); nothing is changed" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_the_folder_of_another_experiment_is_refused(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "metrics.json").write_text('{"rmse": {}, "recipe": "plain", "seed": 0}')
    assert call(*QUICK, "--workdir", folder) == 2
    assert "must hold the metrics of a CIFAR-10 run" in capsys.readouterr().err


MEMORY = """
import resource, sys
import numpy as np, optax
from jaxdl import dataset, fit
from jaxdl.nn import convnet
from jaxdl.losses import softmax_cross_entropy
rows = int(sys.argv[1])
data = dataset(np.full((rows, 32, 32, 3), 7, np.uint8), np.arange(rows, dtype=np.int32) % 10)
fit(convnet(()), softmax_cross_entropy, optax.sgd(0.1), data, data, epochs=2, batch_size=500)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, data.inputs.nbytes / 2**20)
"""


@pytest.mark.slow
def test_twice_the_images_take_no_more_memory_than_the_images():
    peaks, sizes = [], []
    for rows in (20_000, 40_000):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(rows)], capture_output=True, text=True, check=True, cwd=ROOT
        )
        peak, size = map(float, done.stdout.split())
        peaks.append(peak)
        sizes.append(size)
    # 59 MiB more of images; what two runs of the same differ by is a few.
    assert peaks[1] - peaks[0] < 1.25 * (sizes[1] - sizes[0])


@pytest.mark.slow
def test_the_real_images_are_learned(real_data, as_users_compile):
    """A tenth of the lesson: one epoch of the smallest ConvNet is far above chance."""
    built = build(replace(Config(recipe="pooled", data=real_data), train_size=1000, epochs=4), load_cifar10(real_data))
    train, test = built.sets["train"], built.sets["test"]
    *_, (_, record) = epochs(built.plan, built.start, train, test, last=4)
    assert record["val_accuracy"] > 0.22


@pytest.mark.slow
def test_a_diverged_model_is_right_about_nothing(tmp_path):
    arguments = (
        *QUICK,
        "--recipe",
        "dense",
        "--learning-rate",
        "1e29",
        "--on-nan",
        "continue",
        "--workdir",
        tmp_path / "run$1_$2",
    )
    assert call(*arguments) == 0
    metrics = read(tmp_path / "run$1_$2")
    assert set(metrics["per_class_accuracy"].values()) == {0.0} and metrics["accuracy"]["test"] == 0
    assert metrics["loss"]["test"] is None


def test_unknown_recipes_exit_with_2():
    with pytest.raises(SystemExit) as ended:
        call("--recipe", "huge")
    assert ended.value.code == 2


def test_images_of_another_size_are_refused():
    images = load_cifar10(IMAGES)
    wide = images._replace(train=images.train._replace(inputs=images.train.inputs[:, :, :2]))
    with pytest.raises(InputError, match="needs images of at least"):
        build(Config(train_size=250), wide).start  # noqa: B018
