"""The model card: figures where they belong, the data's terms, and nothing of the machine that trained."""

import copy

import pytest

from jaxdl.datasets._weather import WEATHER
from jaxdl.runs.export import metrics_table, model_card
from jaxdl.saving.export import usage_section

SETS = {"train": 1.5, "validation": 2.5, "test": 3.5}
BEST = {"train": 1.25, "validation": 2.25, "test": 3.25}
DATA = {
    "name": "weather",
    "source": "file:/home/somebody/private/weather.csv",
    "sha256": "ab12",
    "rows": {"train": 7670, "validation": 164, "test": 165},
    "note": None,
}
METRICS = {
    "dataset": DATA,
    "rmse": SETS,
    "rmse_best": BEST,
    "test_errors": {"rmse": 0.35, "rmse_best": 0.325},
    "baselines": {"mean_of_last_days": {"test_rmse": 4.0, "test_rmse_error": 0.4}, "ridge": {"test_rmse": 3.0}},
    "epochs": 30,
    "best_epoch": 20,
}
CONFIG = {
    "card": {"title": "Sunshine", "predicts": "Hours of sun.", "limits": "Three years of one place."},
    "terms": WEATHER._asdict(),
    "outputs": {"names": ["sun"], "link": "none", "unit": "hours"},
    "network": {"kind": "mlp"},
    "seed": 3,
    "recipe": "batchnorm",
    "commit": "c0ffee",
    "versions": {"jax": "0.10.2"},
}


@pytest.mark.parametrize(
    ("remaining", "model", "epoch"),
    [
        ("best", "| rmse (hours) | 1.250 | 2.250 | 3.250 +- 0.325 |", "best weights, of epoch 20 of 30, seed 3"),
        ("final", "| rmse (hours) | 1.500 | 2.500 | 3.500 +- 0.350 |", "final weights, of epoch 30 of 30, seed 3"),
    ],
)
def test_a_card_has_the_figures_of_the_weights_that_are_kept(remaining, model, epoch):
    card = model_card(CONFIG, METRICS, remaining)
    assert model in card and epoch in card
    assert "| rmse (hours) of mean of last days | | | 4.000 +- 0.400 |" in card
    assert "| rmse (hours) of ridge | | | 3.000 |" in card
    assert sum(line.startswith("| rmse") for line in card.splitlines()) == 3


def test_a_card_names_the_data_its_terms_and_the_code():
    card = model_card(CONFIG, METRICS, "best")
    assert card.startswith("# Sunshine\n\nHours of sun.\n")
    for output in (
        WEATHER.data,
        WEATHER.licence,
        *WEATHER.cite,
        "CC BY 4.0",
        "c0ffee",
        "jax 0.10.2",
        "7,670 train",
        "Three years",
        "ab12",
    ):
        assert output in card
    assert "weather.csv" in card and "somebody" not in card


def test_a_note_about_the_data_cannot_be_overlooked():
    noted = copy.deepcopy(METRICS)
    noted["dataset"]["note"] = "SIMULATED WEATHER, NOT MEASURED."
    assert "\n\n**SIMULATED WEATHER, NOT MEASURED.**\n\n## How good it is" in model_card(CONFIG, noted, "best")


def test_figures_of_an_older_run_have_no_errors_and_one_that_diverged_no_number():
    older = {"accuracy_best": {**BEST, "test": None}, "accuracy": SETS, "baselines": {"chance": {"test_loss": 2.0}}}
    assert metrics_table(older, "final", "hours").splitlines()[2:] == ["| accuracy | 1.500 | 2.500 | 3.500 |"]
    assert metrics_table(older, "best").splitlines()[2:] == ["| accuracy | 1.250 | 2.250 | not finite |"]


@pytest.mark.parametrize(
    ("inputs", "data", "output"),
    [
        ({"shape": [2], "dtype": "float32", "columns": ["a", "b"]}, "data.csv", "the 2 columns `a`, `b`, in any order"),
        ({"shape": [8, 8, 3], "dtype": "uint8", "columns": None}, "pictures/", "uint8 of shape (rows, 8, 8, 3)"),
        ({"shape": [5, 4], "dtype": "float32", "columns": None}, "data.npy", "float32 of shape (rows, 5, 4)"),
        ({"shape": [99], "dtype": "float32", "columns": [f"x{n}" for n in range(99)]}, "data.csv", "has all of them"),
    ],
)
def test_a_card_says_how_this_kind_of_data_is_given(inputs, data, output):
    outputs = {"names": ["cat", "dog"], "link": "softmax", "unit": ""}
    text = usage_section({"inputs": inputs, "outputs": outputs, "platforms": ["cpu"], "versions": {"jax": "0.10.2"}})
    assert f"python predict.py {data} -o predictions.csv" in text and output in text
    assert "`cat`, `dog` (probabilities, which add up to 1)" in text


HOSTILE = "<script>alert(1)</script>\x1b[2J"


def test_a_card_holds_no_html_and_commands_no_terminal():
    config = copy.deepcopy(CONFIG)
    config["card"] = dict.fromkeys(config["card"], HOSTILE)
    config["recipe"] = config["outputs"]["unit"] = config["terms"]["licence"] = HOSTILE
    metrics = {
        **METRICS,
        "dataset": {**DATA, "source": HOSTILE, "note": HOSTILE},
        "baselines": {HOSTILE: {"test_rmse": 1.0}},
    }
    inputs = {"shape": [1], "dtype": "float32", "columns": [HOSTILE]}
    outputs = {"names": [HOSTILE], "link": "none"}
    about = {"inputs": inputs, "outputs": outputs, "platforms": [HOSTILE], "versions": {"jax": HOSTILE}}
    for card in (model_card(config, metrics, "best"), usage_section(about)):
        assert "<" not in card and "\x1b" not in card and "&lt;script&gt;" in card
