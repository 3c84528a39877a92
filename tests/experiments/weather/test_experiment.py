"""The weather experiment from its command line: what it writes, what it refuses, and the lesson's figures."""

import json
import re
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.linear_model import Ridge
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from experiments.weather.experiment import RECIPES, Config, build, resolve, run
from experiments.weather.report import baselines
from jaxdl.datasets import load_weather, simulated_weather
from jaxdl.errors import InputError
from jaxdl.runs.command import command
from jaxdl.runs.folders import prepare_workdir
from jaxdl.saving import load
from jaxdl.train.evaluate import evaluate

QUICK = ("--data", "simulated:400", "--no-compilation-cache", "--epochs", "3")


def call(*arguments):
    return command(Config, run, "weather", [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one short run, which the tests below only read."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    assert call(*QUICK, "--workdir", folder) == 0
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_writes_its_folder(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert names >= {"config.json", "history.csv", "metrics.json", "figures/history.png", "figures/predictions.png"}
    assert (finished / "checkpoints/best").is_dir() and (finished / "checkpoints/final").is_dir()
    runs = {path.parent.name for path in (finished / "tensorboard").rglob("events.*")}
    assert runs == {"train", "validation", "pictures", "run"}
    for picture in (finished / "figures").iterdir():
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_history_has_a_row_an_epoch(finished):
    history = pd.read_csv(finished / "history.csv")
    assert list(history) == ["epoch", "loss", "rmse", "val_loss", "val_rmse", "learning_rate", "seconds"]
    assert history["epoch"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(history["rmse"], np.sqrt(history["loss"]), rtol=1e-5)
    assert (history["seconds"] > 0).all()


def test_metrics_say_what_was_measured(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    history = pd.read_csv(finished / "history.csv")
    assert metrics["dataset"]["rows"] == {"train": 279, "validation": 60, "test": 60}
    assert metrics["dataset"]["source"].startswith("simulated") and len(metrics["dataset"]["sha256"]) == 64
    assert metrics["dataset"]["features"] == 89 and metrics["parameters"] == 14457
    assert set(metrics["rmse"]) == set(metrics["rmse_best"]) == {"train", "validation", "test"}
    np.testing.assert_allclose(metrics["rmse"]["validation"], history["val_rmse"].iloc[-1], rtol=1e-5)
    np.testing.assert_allclose(metrics["rmse_best"]["validation"], history["val_rmse"].min(), rtol=1e-5)
    assert (metrics["epochs"], metrics["reason"], metrics["seed"]) == (3, "epochs", 0)
    assert metrics["best_epoch"] == history["val_loss"].idxmin() + 1
    seconds = metrics["seconds"]
    assert set(seconds) == {"import", "data", "compile", "fit", "total"} and min(seconds.values()) > 0


def test_config_says_what_was_run(finished):
    config = json.loads((finished / "config.json").read_text())
    assert (config["recipe"], config["hidden"], config["epochs"], config["patience"]) == ("batchnorm", [100, 50], 3, 10)
    assert config["versions"]["jax"] and (config["commit"] is None or re.fullmatch("[0-9a-f]{40}", config["commit"]))


def test_the_kept_weights_are_those_that_were_measured(finished):
    dataset = load_weather("simulated:400")
    built = build(Config(data="simulated:400", epochs=3), dataset)
    metrics = json.loads((finished / "metrics.json").read_text())
    for name, key in (("final", "rmse"), ("best", "rmse_best")):
        weights = load(finished / "checkpoints" / name)
        result = evaluate(
            built.plan.model,
            weights,
            built.sets["test"],
            built.plan.objective.loss,
            metrics=built.plan.objective.metrics,
        )
        np.testing.assert_allclose(result["rmse"], metrics[key]["test"], rtol=1e-5)


def test_a_finished_run_is_shown_and_not_changed(finished, capsys):
    before = contents(finished)
    assert call(*QUICK, "--workdir", finished) == 0
    assert "holds a finished run (batchnorm, seed 0); nothing is changed" in capsys.readouterr().out
    assert contents(finished) == before


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, tmp_path):
    quick = (*QUICK, "--no-tensorboard")
    assert call(*quick, "--workdir", tmp_path / "again") == 0
    assert call(*quick, "--workdir", tmp_path / "other", "--seed", "1") == 0
    first, again, other = (pd.read_csv(p / "history.csv") for p in (finished, tmp_path / "again", tmp_path / "other"))
    pd.testing.assert_series_equal(first["val_loss"], again["val_loss"], check_exact=True)
    assert (first["val_loss"] != other["val_loss"]).all()


def test_flags_override_the_recipe():
    config = resolve(Config(recipe="plain", patience=4, hidden=(7,), epochs=9))
    network = build(config, load_weather("simulated:400")).network
    assert (network.arguments["widths"], network.arguments["input_norm"]) == ((7,), False)
    assert (config.patience, config.hidden, config.epochs) == (4, (7,), 9)


@pytest.mark.slow
def test_bfloat16_trains_and_patience_stops_a_recipe_that_has_none(tmp_path):
    arguments = ("--recipe", "plain", "--data", "simulated:400", "--no-compilation-cache", "--dtype", "bfloat16")
    assert call(*arguments, "--patience", "1", "--workdir", tmp_path / "run") == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["reason"] == "early-stopping" and metrics["epochs"] < 200


def test_baselines_are_those_of_scikit_learn_and_pandas():
    dataset = load_weather("simulated:400")
    built = build(Config(data="simulated:400"), dataset)
    table = simulated_weather(400)
    frame = table.drop(columns=["DATE", "MONTH"])
    x, y = frame.iloc[:-1], frame["BASEL_sunshine"].to_numpy()[1:]
    month = pd.Series(table["MONTH"].to_numpy()[1:])
    train, rest = train_test_split(np.arange(399), test_size=0.3, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0)
    result = baselines(dataset, built.rows)
    np.testing.assert_allclose(result["persistence"], x["BASEL_sunshine"].to_numpy()[test], rtol=1e-6)
    weekly = x["BASEL_sunshine"].rolling(7, min_periods=1).mean().to_numpy()
    np.testing.assert_allclose(result["mean_of_last_days"], weekly[test], rtol=1e-5)
    means = pd.Series(y[train]).groupby(month[train].to_numpy()).mean()
    np.testing.assert_allclose(result["climatology"], means.reindex(month[test]).fillna(y[train].mean()), rtol=1e-5)
    scaled = StandardScaler().fit(x.to_numpy()[train]).transform(x.to_numpy())
    fits = [Ridge(alpha).fit(scaled[train], y[train]) for alpha in (0.1, 1, 10, 100, 1000)]
    best = min(fits, key=lambda fit: root_mean_squared_error(y[validation], fit.predict(scaled[validation])))
    np.testing.assert_allclose(result["ridge"], best.predict(scaled[test]), rtol=1e-3)


@pytest.fixture
def table(tmp_path):
    """A CSV file of 200 simulated days, to be damaged."""
    path = tmp_path / "weather.csv"
    simulated_weather(200).to_csv(path, index=False)
    return path


def with_cell(path, row, column, text):
    frame = pd.read_csv(path, dtype=str)
    frame.loc[row, column] = text
    frame.to_csv(path, index=False)


DAMAGES = {
    "missing file": (lambda path: path.unlink(), "weather.csv"),
    "empty file": (lambda path: path.write_text(""), "empty"),
    "missing target": (
        lambda path: pd.read_csv(path).rename(columns={"BASEL_sunshine": "BASEL_sunshin"}).to_csv(path, index=False),
        "has no column BASEL_sunshine",
    ),
    "text": (lambda path: with_cell(path, 5, "BASEL_humidity", "wet"), "BASEL_humidity"),
    "an empty cell": (lambda path: with_cell(path, 150, "BASEL_humidity", ""), "BASEL_humidity"),
    "infinity": (lambda path: with_cell(path, 7, "BASEL_pressure", "inf"), "BASEL_pressure"),
    "a date twice": (lambda path: with_cell(path, 7, "DATE", pd.read_csv(path, dtype=str)["DATE"][6]), "2000"),
    "a gap": (lambda path: pd.read_csv(path).drop(index=9).to_csv(path, index=False), "2000"),
    "too few rows": (
        lambda path: pd.read_csv(path)[:20].to_csv(path, index=False),
        "batch_size=32 leaves no full batch",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_data_ends_in_one_message_and_leaves_nothing(damage, table, tmp_path, capsys):
    spoil, fragment = DAMAGES[damage]
    spoil(table)
    assert call("--data", table, "--workdir", tmp_path / "run", "--no-compilation-cache") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and fragment in message and "Traceback" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--batch-size", "4096"), "batch_size=4096 leaves no full batch in 279 training examples. Use at most 279."),
        (("--batch-size", "0"), "batch_size must be at least 1"),
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--learning-rate", "-1"), "--learning-rate must be above 0"),
        (("--learning-rate", "inf"), "--learning-rate must be above 0 and finite"),
        (("--learning-rate", "1e37"), "between 1e-30 and 1e30"),
        (("--seed", "-1"), "seed must be from 0 to 4294967295, got -1"),
        (("--seed", "99999999999999999999"), "seed must be from 0"),
        (("--patience", "2147483648"), "patience must be at most"),
        (("--patience", "-1"), "patience must be at least 0"),
        (("--hidden", "0"), "widths must be at least 1"),
        (("--data", "simulatd"), "simulatd"),
        (("--data", "simulated:none"), "simulated[:DAYS[:SEED]]"),
    ],
)
def test_flags_that_make_no_sense_end_in_one_message(arguments, fragment, tmp_path, capsys):
    assert call(*QUICK, *arguments, "--workdir", tmp_path / "run") == 2
    assert fragment in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments", [("--recipe", "plane"), ("--recip", "plain"), ("--dtype", "int8"), ("--epochs", "x")]
)
def test_unknown_flags_and_values_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == 2


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        assert call(*QUICK, "--workdir", folder) == 2
        assert "--workdir" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_files_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert call(*QUICK, "--workdir", tmp_path) == 2
    assert "must be new, empty or the folder of a run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{}", '{"rmse": 1}', "[]", ""])
def test_a_folder_whose_metrics_are_damaged_is_refused(content, finished, tmp_path, capsys):
    (shutil.copytree(finished, tmp_path / "run") / "metrics.json").write_text(content)
    assert call(*QUICK, "--workdir", tmp_path / "run") == 2
    assert "metrics.json" in capsys.readouterr().err


def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    made = [prepare_workdir(None, False, "plain", Console()).name for _ in range(3)]
    assert made == ["now-plain", "now-plain-2", "now-plain-3"]


def test_a_fallback_is_told_again_with_the_result(finished, tmp_path, capsys):
    metrics = json.loads((finished / "metrics.json").read_text())
    metrics["dataset"]["note"] = "SIMULATED WEATHER"
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert call("--workdir", folder) == 0
    assert "WARNING: SIMULATED WEATHER" in capsys.readouterr().out


@pytest.mark.slow
def test_a_network_that_diverges_ends_well(tmp_path, capsys):
    arguments = ("--data", "simulated:400", "--no-compilation-cache", "--epochs", "12", "--learning-rate", "1e29")
    assert call(*arguments, "--on-nan", "continue", "--workdir", tmp_path / "run") == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["rmse"]["test"] is None and metrics["best_epoch"] == 0
    assert "last epoch (no epoch was finite)" in capsys.readouterr().out


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        call("--help")
    output = capsys.readouterr().out
    assert stop.value.code == 0
    for name in (
        "recipe",
        "labels",
        "data",
        "seed",
        "epochs",
        "batch-size",
        "learning-rate",
        "patience",
        "hidden",
        "dtype",
        "workdir",
    ):
        assert f"--{name}" in output


@pytest.mark.parametrize(
    ("recipe", "features", "rows", "persistence", "parameters"),
    [
        ("plain", 163, (767, 164, 165), 3.877323, 21501),
        ("basel", 9, (2300, 493, 493), 4.2486, 6137),
        ("all-years", 163, (2557, 548, 548), 3.9858, 22153),
    ],
)
def test_the_real_files_known_figures(recipe, features, rows, persistence, parameters, real_data):
    dataset = load_weather(real_data, days=RECIPES[recipe].days, places=RECIPES[recipe].places)
    built = build(Config(recipe=recipe), dataset)
    assert len(dataset.columns) == features and tuple(len(chosen) for chosen in built.rows.values()) == rows
    guess = baselines(dataset, built.rows)["persistence"]
    result = root_mean_squared_error(built.sets["test"].targets[:, 0], guess)
    np.testing.assert_allclose(result, persistence, rtol=0, atol=5e-7 if recipe == "plain" else 5e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(built.start.best)) == parameters


@pytest.mark.slow
def test_a_run_on_the_real_file_beats_persistence(real_data, tmp_path):
    assert call("--no-compilation-cache", "--workdir", tmp_path / "run") == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["reason"] == "early-stopping"
    assert (
        metrics["rmse"]["test"] < metrics["baselines"]["persistence"]["test_rmse"] == pytest.approx(3.877323, abs=5e-7)
    )


@pytest.mark.slow
def test_a_network_comes_near_what_is_possible_and_a_linear_model_does_not(tmp_path):
    arguments = ("--recipe", "all-years", "--data", "simulated:12001", "--no-compilation-cache")
    # Larger steps, of which fewer take the network as near.
    steps = ("--batch-size", "128", "--learning-rate", "0.003")
    assert call(*arguments, *steps, "--workdir", tmp_path / "run") == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert sum(metrics["dataset"]["rows"].values()) == 12_000
    possible = metrics["dataset"]["irreducible_test_rmse"]
    assert possible < metrics["rmse"]["test"] < 1.1 * possible < metrics["baselines"]["ridge"]["test_rmse"]


def test_settings_that_cannot_work_are_input_errors():
    with pytest.raises(InputError):
        resolve(Config(learning_rate=float("nan")))
