"""The weather experiment on labels of barbecue weather: what it writes, what it refuses, and its figures."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from experiments.weather.bbq_report import NAMES, baselines, confusion, quality
from experiments.weather.experiment import RECIPES, Config, build, check_both_kinds, run
from jaxdl.data import dataset
from jaxdl.datasets import BASEL, load_weather, simulated_weather
from jaxdl.datasets._weather import RULE
from jaxdl.errors import InputError
from jaxdl.runs.command import command
from jaxdl.saving import load
from jaxdl.train.evaluate import predict
from tests.quick import quick_programs

DATA = ("--data", "simulated:400", "--no-compilation-cache")
QUICK = ("--labels", "bbq", *DATA, "--epochs", "3")
SETS = {"train", "validation", "test"}
LESSON = dict(RECIPES)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Small networks, which are quick to compile."""
    with quick_programs(), pytest.MonkeyPatch.context() as patch:
        for name, recipe in LESSON.items():
            patch.setitem(RECIPES, name, recipe._replace(hidden=(4,)))
        yield


@pytest.fixture
def as_users_compile(quick):
    """Programs as fast as they are outside of the tests, for a test that compares bits."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def call(*arguments):
    return command(Config, run, "weather", [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one short run, which the tests below only read."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    assert call(*QUICK, "--workdir", folder) == 0
    return folder


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def by_hand():
    """Today's labels of the simulated days, (399,), tomorrow's, and the rows of each set."""
    table = simulated_weather(400)
    labels = ((table["BASEL_precipitation"] == 0) & (table["BASEL_temp_max"] >= 18)).to_numpy(int)
    train, rest = train_test_split(np.arange(399), test_size=0.3, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0)
    return table, labels[:-1], labels[1:], {"train": train, "validation": validation, "test": test}


def test_a_run_writes_its_folder(finished):
    assert {path.name for path in (finished / "figures").iterdir()} == {
        *("loss.png", "accuracy.png", "roc.png", "precision_recall.png", "confusion.png")
    }
    history = pd.read_csv(finished / "history.csv")
    figures = ["loss", "accuracy", "balanced_accuracy"]
    assert list(history) == ["epoch", *figures, *(f"val_{name}" for name in figures), "learning_rate", "seconds"]
    assert json.loads((finished / "config.json").read_text())["labels"] == "bbq"
    data = metrics_of(finished)["dataset"]
    assert data["labels"] == RULE and data["note"] is None
    _, _, tomorrow, rows = by_hand()
    assert data["share_of_yes"] == {name: pytest.approx(tomorrow[rows[name]].mean()) for name in SETS}


def test_metrics_are_those_of_scikit_learn_on_the_kept_weights(finished):
    metrics = metrics_of(finished)
    built = build(Config(data="simulated:400", labels="bbq"), load_weather("simulated:400", target=BASEL))
    _, _, tomorrow, rows = by_hand()
    for remaining, suffix in (("final", ""), ("best", "_best")):
        weights = load(finished / "checkpoints" / remaining)
        for name in SETS:
            chances = expit(np.float64(predict(built.plan.model, weights, built.sets[name].inputs))[:, 0])
            true = tomorrow[rows[name]]
            expected = {
                "accuracy": sk.accuracy_score(true, chances > 0.5),
                "balanced_accuracy": sk.balanced_accuracy_score(true, chances > 0.5),
                "loss": sk.log_loss(true, chances),
                "roc_area": sk.roc_auc_score(true, chances),
                "average_precision": sk.average_precision_score(true, chances),
            }
            for figure, value in expected.items():
                assert metrics[figure + suffix][name] == pytest.approx(value, rel=1e-5), (figure, name)


def test_baselines_are_those_of_scikit_learn_and_pandas(finished):
    table, today, tomorrow, rows = by_hand()
    train, validation, test = rows["train"], rows["validation"], rows["test"]
    month = pd.Series(table["MONTH"].to_numpy()[1:])
    means = pd.Series(tomorrow[train]).groupby(month[train].to_numpy()).mean()
    x = table.drop(columns=["DATE", "MONTH"]).to_numpy()[:-1]
    scaled = StandardScaler().fit(x[train]).transform(x)
    fits = [Ridge(alpha).fit(scaled[train], tomorrow[train]) for alpha in (0.1, 1, 10, 100, 1000)]
    best = min(fits, key=lambda fit: np.mean((tomorrow[validation] - fit.predict(scaled[validation])) ** 2))
    expected = {
        "majority_class": np.zeros(len(test)),
        "persistence": today[test],
        "mean_of_last_days": pd.Series(today).rolling(7, min_periods=1).mean().to_numpy()[test],
        "climatology": means.reindex(month[test]).fillna(tomorrow[train].mean()).to_numpy(),
        "ridge": best.predict(scaled[test]),
    }
    built = build(Config(labels="bbq"), load_weather("simulated:400", target=BASEL))
    result, output = baselines(built), metrics_of(finished)["baselines"]
    assert set(result) == set(output) == set(expected) == set(NAMES)
    for name, scores in expected.items():
        np.testing.assert_allclose(result[name], scores, rtol=1e-3, atol=1e-5)
        assert output[name]["test_accuracy"] == pytest.approx(sk.accuracy_score(tomorrow[test], scores > 0.5))
        balanced = sk.balanced_accuracy_score(tomorrow[test], scores > 0.5)
        assert output[name]["test_balanced_accuracy"] == pytest.approx(balanced)
        assert output[name]["test_roc_area"] == pytest.approx(sk.roc_auc_score(tomorrow[test], result[name]))
        precision = sk.average_precision_score(tomorrow[test], result[name])
        assert output[name]["test_average_precision"] == pytest.approx(precision)


def test_the_terminal_shows_model_and_baselines(finished, capsys):
    assert call("--workdir", finished) == 0
    rendered = capsys.readouterr().out
    assert "holds a finished run (batchnorm, seed 0); nothing is changed" in rendered
    for text in ("Barbecue weather", "balanced", "average", "model, after epoch 3", *NAMES.values()):
        assert text in rendered
    majority = 1 - metrics_of(finished)["dataset"]["share_of_yes"]["test"]
    assert f"{100 * majority:.1f} %" in rendered and "Labels: computed: no precipitation" in " ".join(rendered.split())
    # Nothing is cut off where the terminal has 80 columns.
    assert "…" not in rendered


def test_the_confusion_matrix_is_that_of_scikit_learn():
    draws = np.random.default_rng(0)
    true, scores = draws.integers(0, 2, 100), draws.normal(size=100).round(1)
    np.testing.assert_array_equal(confusion(scores, true, 0.0), sk.confusion_matrix(true, scores > 0))
    scores[:10] = np.nan
    assert confusion(scores, true, 0.0).sum() == 90
    result = quality(scores, true, 0.0)
    assert np.isnan(result["roc_area"]) and result["accuracy"] < sk.accuracy_score(true[10:], scores[10:] > 0)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("sunshine", "bbq"), ("bbq", "sunshine")])
def test_a_run_cannot_go_on_with_other_labels(first, then, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    if first == "bbq":
        shutil.copytree(finished, folder)
    else:
        assert call(*DATA, "--epochs", 2, "--labels", first, "--workdir", folder) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for more in ((), ("--epochs", 4)):
        assert call("--workdir", folder, "--labels", then, *more) == 2
        assert f"--labels is {first} in that run, got {then}. Use --labels {first}" in capsys.readouterr().err
    remaining = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    assert {path: content for path, content in before.items() if path.name != "lock"} == remaining


@pytest.mark.slow
def test_more_epochs_continue_to_the_bits_of_one_run(as_users_compile, tmp_path):
    folder = tmp_path / "run"
    assert call(*QUICK, "--workdir", folder) == 0
    assert call("--workdir", folder, "--epochs", 5) == 0
    assert call(*QUICK[:-1], 5, "--workdir", tmp_path / "whole") == 0
    went_on, whole = metrics_of(folder), metrics_of(tmp_path / "whole")
    assert {**went_on, "seconds": None} == {**whole, "seconds": None} and whole["epochs"] == 5


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_file_of_labels(tmp_path, capsys):
    table = simulated_weather(400)
    table.to_csv(tmp_path / "weather.csv", index=False)
    labels = pd.DataFrame({"DATE": table["DATE"], BASEL: np.arange(400) % 3 == 0})
    labels.to_csv(tmp_path / "weather_prediction_bbq_labels.csv", index=False)
    arguments = ("--data", tmp_path, "--labels", "bbq", "--no-compilation-cache", "--workdir", tmp_path / "run")
    assert call(*arguments, "--epochs", 2) == 0
    labels.loc[7, BASEL] = ~labels.loc[7, BASEL]
    labels.to_csv(tmp_path / "weather_prediction_bbq_labels.csv", index=False)
    assert call(*arguments, "--epochs", 4) == 2
    assert "it was trained on other data" in capsys.readouterr().err


def test_a_damaged_file_of_labels_ends_in_one_message_and_leaves_nothing(tmp_path, capsys):
    table = simulated_weather(100)
    table.to_csv(tmp_path / "weather.csv", index=False)
    labels = pd.DataFrame({"DATE": table["DATE"], BASEL: "True"})
    labels.loc[5, BASEL] = "maybe"
    labels.to_csv(tmp_path / "weather_prediction_bbq_labels.csv", index=False)
    assert call("--data", tmp_path, "--labels", "bbq", "--workdir", tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "must be True or False, got 'maybe'" in message
    assert not (tmp_path / "run").exists()


def test_days_without_barbecue_weather_cannot_be_learnt(tmp_path, capsys):
    # They are all in winter.
    arguments = ("--labels", "bbq", "--data", "simulated:70", "--workdir", tmp_path / "run")
    assert call(*arguments) == 2
    message = capsys.readouterr().err
    assert (
        "--labels bbq needs days with and without barbecue weather, got no days with it among the 48 train" in message
    )
    with pytest.raises(InputError, match="got only days with it among the 3 test rows"):
        check_both_kinds({"train": dataset(np.ones(2), [0, 1]), "test": dataset(np.ones(3), np.ones(3))})


@pytest.mark.slow
def test_a_network_that_diverges_ends_well(tmp_path, capsys):
    arguments = ("--learning-rate", "1e29", "--on-nan", "continue", "--workdir", tmp_path / "run")
    assert call(*QUICK[:-1], 12, *arguments) == 0
    metrics = metrics_of(tmp_path / "run")
    assert metrics["roc_area"]["test"] is None and metrics["best_epoch"] == 0
    assert metrics["accuracy"]["test"] == metrics["balanced_accuracy"]["test"] == 0
    assert "last epoch (no epoch" in capsys.readouterr().out
    assert (tmp_path / "run/figures/roc.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["small", "basel", "all-years"])
def test_every_recipe_takes_the_labels(recipe, tmp_path):
    assert call("--recipe", recipe, *QUICK, "--workdir", tmp_path / "run") == 0
    assert metrics_of(tmp_path / "run")["recipe"] == recipe


@pytest.mark.parametrize(("recipe", "rows"), [("batchnorm", (767, 164, 165)), ("basel", (2300, 493, 493))])
def test_persistence_on_the_real_files_is_that_of_scikit_learn(recipe, rows, real_data):
    chosen = RECIPES[recipe]
    dataset = load_weather(real_data, days=chosen.days, places=chosen.places, target=BASEL)
    built = build(Config(recipe=recipe, labels="bbq"), dataset)
    assert tuple(map(len, built.rows.values())) == rows
    test = built.rows["test"]
    # Tomorrow's label of the day before is today's.
    assert (dataset.today[1:] == dataset.data.targets[:-1, 0]).all() and dataset.today[0] == 0
    guess = np.r_[0, dataset.data.targets[:-1, 0]][test]
    result = quality(baselines(built)["persistence"], built.sets["test"].targets[:, 0], 0.5)
    true = built.sets["test"].targets[:, 0]
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(true, guess))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(true, guess))


@pytest.mark.slow
def test_a_run_on_the_real_files_beats_the_simple_baselines(real_data, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "basel", LESSON["basel"])
    arguments = ("--labels", "bbq", "--recipe", "basel", "--data", real_data, "--no-compilation-cache")
    assert call(*arguments, "--workdir", tmp_path / "run") == 0
    metrics = metrics_of(tmp_path / "run")
    simple = metrics["baselines"]
    assert metrics["dataset"]["labels"] == "weather_prediction_bbq_labels.csv"
    assert metrics["accuracy"]["test"] > simple["majority_class"]["test_accuracy"] + 0.03
    assert metrics["roc_area"]["test"] > max(of["test_roc_area"] for of in simple.values())
