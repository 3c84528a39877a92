"""The lesson in one command, made small: what it writes, what it refuses, and how it goes on."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from jax.experimental.compilation_cache import compilation_cache
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from experiments.lesson import exercises, page, training
from experiments.lesson.exercises import (
    BARBECUE,
    CIFAR10,
    EXERCISES,
    NEXT,
    PRINTED,
    SIZES,
    Budget,
    Weather,
    baseline_rows,
    truths,
)
from experiments.lesson.figures import figures
from experiments.lesson.findings import bars
from experiments.lesson.lesson import Config, Data, run
from experiments.lesson.training import Truth
from experiments.weather.experiment import LOSSES, METRICS, split_sets
from jaxdl._files import lock_folder
from jaxdl.datasets import BASEL, load_cifar10, load_weather
from jaxdl.ensembles import seeds, sweeps
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import accuracy
from jaxdl.nn import convnet, mlp
from jaxdl.runs.command import command
from jaxdl.train import early_stopping
from jaxdl.train.evaluate import predict
from jaxdl.train.fit import fit
from tests.quick import quick_programs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
DAYS, SEEDS, BUDGET = 400, 3, Budget(64, 32, 1, 2, (0.0, 0.5))
QUICK = ("--data", f"simulated:{DAYS}", "--seeds", SEEDS, "--no-compilation-cache")
SETS = ("train", "validation", "test")
# Of so few days the first has the rows of "BatchNorm"; the second differs in its labels alone, as another row does too.
LEFT_OUT = {"all years", "BatchNorm, yes or no"}
ADAM = optax.adam(1e-3)


def shorter(exercise):
    """The exercise with what is quick to compile: a patience, which never ends four epochs, and few layers."""
    recipe = exercise.recipe
    hidden = () if recipe.input_norm else recipe.hidden
    return exercise._replace(recipe=recipe._replace(epochs=4, patience=10, hidden=hidden))


SMALLER = tuple(shorter(of) for of in exercises.SMALLER if of.name in ("100, 50", "10, 5"))
EXERCISED = tuple(shorter(of) for of in exercises.EXERCISED if of.section == EXERCISES or of.name == "oversampled")
BBQ = tuple(shorter(of) for of in exercises.BBQ)


def call(*arguments):
    return command(Config, run, "lesson", [str(argument) for argument in arguments])


def only_steps(patch, wanted):
    """The lesson with those weather exercises alone for whose name `wanted` is true."""
    steps = exercises.weather_steps
    patch.setattr(exercises, "weather_steps", lambda *of: [step for step in steps(*of) if all(map(wanted, step.names))])


def make_small(patch):
    only_steps(patch, lambda name: name not in LEFT_OUT)
    patch.setattr(page, "DOTS", 1)
    for name, value in (("SMALLER", SMALLER), ("EXERCISED", EXERCISED), ("BBQ", BBQ), ("QUICK", BUDGET)):
        patch.setattr(exercises, name, value)


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """Each program is compiled once."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    with quick_programs():
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The lesson with fewer exercises and epochs."""
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small lesson; only read."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        assert call(*QUICK, "--workdir", folder) == 0
    return folder


@pytest.fixture(scope="module")
def again(finished, tmp_path_factory):
    """The folder of the small lesson after a second start, in which no network may be trained, and what was said."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("again") / "copy")
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        make_small(patch)
        forbid_training(patch)
        assert call("--workdir", folder) == 0
    return folder, output.getvalue()


@pytest.fixture
def copied(finished, tmp_path):
    """A small lesson, finished, to do with as a test likes."""
    return shutil.copytree(finished, tmp_path / "copy")


def forbid_training(patch):
    def fail(*_, **__):
        raise AssertionError("a network is trained")

    patch.setattr(seeds, "fit_seeds", fail)
    patch.setattr(sweeps, "sweep", fail)


@pytest.fixture
def untrained(monkeypatch):
    """Whatever trains a network raises."""
    forbid_training(monkeypatch)


@pytest.fixture
def three_exercises(monkeypatch):
    """A size, a regression and a classification, without the rest."""
    only_steps(monkeypatch, {"10, 5", "BatchNorm", "one place, yes or no"}.__contains__)


@pytest.fixture
def without_networks(monkeypatch):
    """The lesson as far as it needs no network."""
    monkeypatch.setattr(exercises, "weather_steps", lambda *_: ())
    monkeypatch.setattr(exercises, "cifar10_steps", lambda *_: ())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder):
    return pd.read_csv(folder / "lesson.csv", dtype={"parameters": "Int64"}).set_index(["section", "row"]).sort_index()


def seeds_of(folder):
    return pd.read_csv(folder / "seeds.csv").set_index(["section", "row"]).sort_index()


def text_of(folder):
    return " ".join(re.sub("<[^>]*>", " ", (folder / "lesson.html").read_text(encoding="utf-8")).split())


# What it writes


def test_a_lesson_writes_its_folder(finished):
    names = {path.as_posix() for path in contents(finished)}
    assert {"lesson.csv", "seeds.csv", "lesson.html", "config.json"} <= names
    assert {name for name in names if name.startswith("figures/")} == {
        f"figures/{name}.png"
        for name in (
            *("history-plain", "history-10-5", "history-early-stopping", "history-batchnorm"),
            *("history-dense", "history-small", "history-pooled", "predictions", "coverage", "intervals", "sizes"),
            *("seeds-the-lesson-s-exercises", "seeds-the-lesson-s-open-questions", "seeds-cifar-10", "roc"),
        )
    }
    assert all((finished / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith(".png"))
    config = json.loads((finished / "config.json").read_text())
    assert (config["seeds"], config["only"], config["target"]) == (SEEDS, "all", "BASEL_sunshine")
    assert set(config["checksums"]) == {"weather", "labels", "cifar10"} and config["versions"]["jax"]
    assert "lock" not in names and not [name for name in names if name.endswith(".part")]


def test_every_exercise_is_a_row_and_in_the_page(finished):
    rows, text = rows_of(finished), text_of(finished)
    trained = {(of.section, of.name) for of in (*SMALLER, *EXERCISED, *BBQ) if of.name not in LEFT_OUT}
    trained |= {(EXERCISES, "plain"), (EXERCISES, "small")}
    trained |= {(CIFAR10, name) for name in ("dense", "small", "pooled", "dropout 0.5")}
    assert set(rows.index[rows["seeds"] > 0]) == trained
    places = ("", ", one place", ", all years")
    baselines = {(EXERCISES, f"{name}{place}") for name in ("as today", "ridge regression") for place in places}
    baselines |= {
        (BARBECUE, f"{name}{place}, yes or no")
        for name in ("as today", "ridge regression", "always the same")
        for place in places[:2]
    }
    assert set(rows.index[rows["seeds"] == 0]) == baselines | {(NEXT, f"all {SEEDS} together")}
    for section, name in rows.index:
        assert section.replace("'", "&#x27;") in text and name in text
    assert (
        rows["seeds"][rows["seeds"] > 0]
        == np.where(rows[rows["seeds"] > 0].index.get_level_values(0) == CIFAR10, 2, SEEDS)
    ).all()
    # What is a size and an exercise too has the same figures.
    for size, name in (("100, 50", "plain"), ("10, 5", "small")):
        np.testing.assert_array_equal(rows.loc[(SIZES, size), "test_mean"], rows.loc[(EXERCISES, name), "test_mean"])


def solo(exercise, target):
    """The sets of data, and the outputs for their rows, of networks that are trained alone: by the name of a set."""
    of = Weather(load_weather(f"simulated:{DAYS}", days=None, target=target), target)
    recipe, (_, sets) = exercise.recipe, split_sets(of.dataset(exercise))
    sets["train"] = exercise.draw(sets["train"])
    model = mlp(recipe.hidden, input_norm=recipe.input_norm)
    labels = "bbq" if of.labels() else "sunshine"
    stop = early_stopping("val_loss", patience=recipe.patience)
    return sets, [
        outputs_of(
            model,
            sets,
            fit(
                model,
                LOSSES[labels],
                ADAM,
                sets["train"],
                sets["validation"],
                metrics=METRICS[labels],
                seed=seed,
                **how,
            ).final,
        )
        for how in [{"epochs": recipe.epochs, "batch_size": 32, "early_stopping": stop}]
        for seed in range(SEEDS)
    ]


def outputs_of(model, sets, weights):
    """By the name of a set; one program for all of them."""
    message = np.asarray(predict(model, weights, np.concatenate([sets[name].inputs for name in SETS])))
    ends = np.cumsum([len(sets[name].sample_weight) for name in SETS])[:-1]
    return dict(zip(SETS, np.split(message, ends), strict=True))


@pytest.mark.parametrize("name", ["10, 5", "BatchNorm", "one place", "oversampled", "one place, yes or no"])
def test_a_row_has_the_figures_of_networks_that_are_trained_alone(name, finished):
    exercise = next(of for of in (*SMALLER, *EXERCISED, *BBQ) if of.name == name)
    labels = exercise.section == BARBECUE
    rows = seeds_of(finished).loc[exercise.section, name]
    assert rows["seed"].tolist() == list(range(SEEDS))
    sets, message = solo(exercise, BASEL if labels else "BASEL_sunshine")
    for seed, outputs in enumerate(message):
        for which in SETS:
            targets, rendered = sets[which].targets, rows[which].iloc[seed]
            if labels:
                # A row that is nearly undecided may fall on either side.
                right = accuracy_score(targets, outputs[which] > 0)
                assert rendered == pytest.approx(100 * right, abs=100.1 / len(targets))
            else:
                assert rendered == pytest.approx(root_mean_squared_error(targets, outputs[which]), rel=0.01)
    if name == "BatchNorm":
        together = rows_of(finished).loc[(NEXT, f"all {SEEDS} together"), "test_mean"]
        mean = np.mean([outputs["test"] for outputs in message], 0)
        assert together == pytest.approx(root_mean_squared_error(sets["test"].targets, mean), rel=0.01)


def test_a_row_of_photographs_has_the_figures_of_networks_that_are_trained_alone(finished):
    model, dataset = convnet((), widths=(100, 50)), load_cifar10(f"simulated:{DAYS}")
    sets = exercises.split_images(dataset, BUDGET)
    assert [len(sets[name].sample_weight) for name in SETS[:2]] == [64, 32]
    rows = seeds_of(finished).loc[CIFAR10, "dense"]
    for seed in range(BUDGET.seeds):
        done = fit(
            model,
            softmax_cross_entropy,
            ADAM,
            sets["train"],
            sets["validation"],
            metrics=[accuracy],
            seed=seed,
            epochs=1,
        )
        outputs = outputs_of(model, sets, done.final)
        for which in SETS:
            right = accuracy_score(sets[which].targets, outputs[which].argmax(1))
            assert rows[which].iloc[seed] == pytest.approx(100 * right, abs=100.1 / len(sets[which].sample_weight))


def test_that_data_are_simulated_is_said_loudly_and_nothing_of_the_lesson_s_is_printed_beside(again):
    folder, rendered = again
    output, text = " ".join(rendered.split()), text_of(folder)
    for what in ("weather", "images"):
        note = f"SIMULATED {what.upper()}: no value of this lesson says anything about real {what}."
        assert f"WARNING: {note}" in output and text.count(note) == 1
    assert rows_of(folder)[[f"lesson_{name}" for name in SETS]].isna().all(axis=None)
    # Neither data set has had a part in it.
    assert "Klein Tank" not in text and "Krizhevsky" not in text
    assert f"python -m experiments.lesson --seeds {SEEDS} --data simulated:{DAYS}" in text


def test_a_fallback_is_told_in_its_own_words(copied, untrained, monkeypatch, capsys):
    note = "SIMULATED WEATHER, NOT THE DATA SET: no network."
    monkeypatch.setattr(
        "experiments.lesson.lesson.load_weather",
        lambda source, **flags: load_weather(source, **flags)._replace(note=note),
    )
    assert call("--workdir", copied, "--only", "weather") == 0
    assert f"WARNING: {note}" in capsys.readouterr().out and text_of(copied).count(note) == 1


def test_of_measured_data_there_is_no_note():
    measured = load_weather("simulated:90")._replace(source="file:/data/weather.csv")
    pictures = load_cifar10("simulated:120")._replace(source="file:/data/cifar-10-batches-py")
    assert Data((Weather(measured), Weather(measured, BASEL)), (pictures,)).notes() == []


def test_the_terminal_tells_all_in_80_columns(again):
    _, rendered = again
    output = " ".join(rendered.split())
    for name in ("BatchNorm", "one place, yes or no", "dropout 0.5", f"all {SEEDS} together", "is the standard error"):
        assert name in output
    assert (
        "…" not in rendered
        and "lesson.html" in rendered
        and "90 % intervals from the standard deviation of 3 networks" in output
    )


# How it goes on


def test_a_second_start_trains_nothing_and_gives_the_same_bytes(finished, again):
    folder, rendered = again
    assert "resumes after its finished rows" in rendered
    before, after = contents(finished), contents(folder)
    assert set(before) == set(after)
    changed = {path.as_posix() for path in before if before[path] != after[path]}
    # The one holds the folder's name; the other the date, which may have changed.
    assert changed <= {"config.json", "lesson.html"}
    without = [re.sub(rb"20\d\d-\d\d-\d\d, jax", b"", of[Path("lesson.html")]) for of in (before, after)]
    assert without[0] == without[1]


@pytest.mark.parametrize(
    ("missing", "more", "few"),
    [("*", 1, ("10, 5", "BatchNorm")), ("*questions*", 0, ()), ("*one-place*", 1, ())],
)
def test_a_lesson_that_was_killed_goes_on_to_the_same_table(missing, more, few, finished, tmp_path, monkeypatch):
    """missing: rows that are not finished yet. more: how many of them are saved before the lesson dies.

    few: the exercises with networks, where the lesson has not all of them.
    """
    folder, save, saved = tmp_path / "run", training.save, []
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("*.csv", "*.html", "figures"))
    for path in folder.glob(f"rows/{missing}"):
        path.unlink()

    def dying(folder, done):
        if len(saved) == more:
            raise MemoryError
        keeping(folder, done)

    def keeping(folder, done):
        saved.append((done.row.section, done.row.name))
        save(folder, done)

    if few:
        only_steps(monkeypatch, few.__contains__)
    monkeypatch.setattr(training, "save", dying)
    with pytest.raises(MemoryError):
        call(*QUICK, "--only", "weather", "--workdir", folder)
    assert not (folder / "lesson.csv").exists() and len(saved) == more
    monkeypatch.setattr(training, "save", keeping)
    assert call("--workdir", folder) == 0
    # Nothing that was finished is trained again.
    assert len(saved) > more and len(saved) == len(set(saved))
    expected, result = rows_of(finished).drop(CIFAR10), rows_of(folder)
    if few:
        # What is a size and an exercise too has two rows.
        names = expected.index.get_level_values("row")
        expected = expected[(expected["seeds"] == 0) | names.isin([*few, "small"])]
    pd.testing.assert_frame_equal(result.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seeds", 2), "--seeds is 3 in the lesson in {}, got 2."),
        (("--full",), "--full is False in the lesson in {}, got True."),
        (("--target", "KASSEL_temp_max"), "--target is BASEL_sunshine in the lesson in {}, got KASSEL_temp_max."),
        (("--data", "simulated:401"), "the lesson in {} has another data set of weather."),
    ],
)
def test_another_lesson_in_the_same_folder_is_refused(flags, message, copied, untrained, capsys):
    before = contents(copied)
    assert call("--workdir", copied, *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message.format(copied)}") and "--fresh" in captured.err
    assert "resumes" not in captured.out and contents(copied) == before


def test_a_damaged_row_is_named(copied, capsys):
    path = copied / "rows" / "cifar-10-dense.npz"
    path.write_bytes(path.read_bytes()[:-40])
    assert call("--workdir", copied) == 2
    assert f"error: {path} is damaged" in capsys.readouterr().err
    before = rows_of(copied)
    path.unlink()
    assert call("--workdir", copied) == 0
    pd.testing.assert_frame_equal(rows_of(copied).drop(columns="seconds"), before.drop(columns="seconds"))


def test_fresh_keeps_the_old_lesson(copied, tmp_path, without_networks, capsys):
    before = contents(copied)
    assert call(*QUICK, "--seeds", 5, "--only", "weather", "--workdir", copied, "--fresh") == 0
    assert contents(tmp_path / "copy-old-1") == before
    assert json.loads((copied / "config.json").read_text())["seeds"] == 5
    assert (rows_of(copied)["seeds"] == 0).all() and "is now" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--fresh",)])
def test_a_folder_in_use_is_refused_and_stays(flags, copied, capsys):
    before = contents(copied)
    with lock_folder(copied):
        assert call(*QUICK, "--workdir", copied, *flags) == 2
    assert f"is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert contents(copied) == before and [path.name for path in copied.parent.iterdir()] == ["copy"]


def test_the_folder_of_something_else_is_refused(tmp_path, without_networks, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"recipe": "batchnorm", "seed": 3}')
    assert call(*QUICK, "--workdir", tmp_path / "run") == 2
    assert "must be new, empty or the folder of a lesson" in capsys.readouterr().err
    assert (tmp_path / "run/config.json").read_text() == '{"recipe": "batchnorm", "seed": 3}'
    (tmp_path / "thesis.tex").touch()
    for flags in ((), ("--fresh",)):
        assert call(*QUICK, "--workdir", tmp_path, *flags) == 2
        assert "a folder that holds other files" in capsys.readouterr().err


# Flags


def test_one_part_of_the_lesson_alone(copied, finished, untrained):
    for only in ("cifar10", "weather"):
        assert call("--workdir", copied, "--only", only) == 0
        expected = rows_of(finished)
        chosen = (expected.index.get_level_values(0) == CIFAR10) == (only == "cifar10")
        pd.testing.assert_frame_equal(rows_of(copied), expected[chosen], check_exact=True)
        assert f"--only {only} --data" in text_of(copied)
    # And all of it again.
    assert call("--workdir", copied, "--only", "all") == 0
    assert (copied / "lesson.csv").read_bytes() == (finished / "lesson.csv").read_bytes()


def test_another_target_has_its_unit_and_none_of_the_lesson_s_figures(tmp_path, three_exercises):
    folder = tmp_path / "run"
    assert call(*QUICK, "--only", "weather", "--target", "KASSEL_temp_max", "--workdir", folder) == 0
    rows, text = rows_of(folder), text_of(folder)
    assert set(rows.loc[[EXERCISES, SIZES, NEXT], "unit"]) == {"°C"} and set(rows.loc[BARBECUE, "unit"]) == {"%"}
    assert rows[[f"lesson_{name}" for name in SETS]].isna().all(axis=None) and "RMSE in °C" in text
    assert "--target KASSEL_temp_max --only weather" in text
    # The one place is the target's, and so are the labels.
    one = load_weather(f"simulated:{DAYS}", days=3286, places=("KASSEL",), target="KASSEL_temp_max")
    chosen, sets = split_sets(one)
    off = root_mean_squared_error(sets["test"].targets[:, 0], one.today[chosen["test"]])
    assert rows.loc[(EXERCISES, "as today, one place"), "test_mean"] == pytest.approx(off)
    labels = load_weather(f"simulated:{DAYS}", days=3286, places=("KASSEL",), target="KASSEL_BBQ_weather")
    right = accuracy_score(split_sets(labels)[1]["test"].targets[:, 0], labels.today[chosen["test"]])
    assert rows.loc[(BARBECUE, "as today, one place, yes or no"), "test_mean"] == pytest.approx(100 * right)


@pytest.mark.parametrize("column", ["BASEL_humidity", "BASEL_global_radiation"])
def test_a_target_of_any_unit_is_told_with_one(column, tmp_path, without_networks, capsys):
    assert call(*QUICK, "--only", "weather", "--target", column, "--workdir", tmp_path / "run") == 0
    unit = {"BASEL_humidity": "units", "BASEL_global_radiation": "100 W/m2"}[column]
    assert f"RMSE in {unit}" in capsys.readouterr().out and f"RMSE in {unit}" in text_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--target", "BASEL_sunshin"), "BASEL_sunshine"),
        (("--target", "nonsense"), "has no column nonsense"),
        (("--target", "BASEL_BBQ_weather"), "--target must be a column of the weather, got BASEL_BBQ_weather."),
        (("--seeds", 0), "--seeds must be from 1 to 4096, got 0."),
        (("--seeds", -1), "--seeds must be from 1 to 4096, got -1."),
        (("--seeds", 5000), "--seeds must be from 1 to 4096, got 5000."),
        (("--data", "simulatd"), "simulatd"),
        (("--data", "/no/such/folder"), "/no/such/folder"),
    ],
)
def test_flags_that_make_no_sense_end_in_one_message_and_leave_nothing(flags, message, tmp_path, untrained, capsys):
    assert call(*QUICK, *flags, "--workdir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [("--only", "wether"), ("--seeds", "many"), ("--recipe", "plain")])
def test_unknown_flags_and_values_exit_with_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        call(*flags)
    assert stop.value.code == 2


def first_alone(done):
    """What a row's first seed left, as if it were the only one."""
    row = done.row
    values = {name: array[:1] for name, array in row.values.items()}
    return done._replace(
        row=row._replace(values=values, seeds=(0,), epochs=row.epochs[:1]),
        history=done.history[done.history["member"] == 0],
        outputs={name: array[:1] for name, array in done.outputs.items()},
    )


def test_one_seed_shows_no_errors_and_allows_no_findings(copied, finished, capsys):
    folder, config = copied, json.loads((copied / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "seeds": 1}))
    for of in (*SMALLER, *EXERCISED, *BBQ):
        if of.name not in LEFT_OUT:
            training.save(folder / "rows", first_alone(training.load(folder / "rows", of.section, of.name)))
    # One is trained, the only network of its row.
    (folder / "rows" / "the-lesson-s-exercises-batchnorm.npz").unlink()
    assert call("--seeds", 1, "--only", "weather", "--workdir", folder) == 0
    rendered, text, rows = capsys.readouterr().out, text_of(folder), rows_of(folder)
    first = seeds_of(finished).loc[EXERCISES, "BatchNorm"].iloc[0]
    assert rows.loc[(EXERCISES, "BatchNorm"), "test_mean"] == pytest.approx(first["test"], rel=0.01)
    assert set(rows["seeds"]) == {0, 1}
    assert rows[[f"{name}_error" for name in SETS]].isna().all(axis=None) and rows["test_mean"].notna().all()
    assert not re.search(r"\d \+- \d", rendered) and not re.search(r"\d ± \d", text)
    assert "is better than" not in rendered + text and ">Findings<" not in text
    assert "together" not in rendered and "nan" not in rendered


def test_a_file_holds_one_part_of_the_lesson_alone(tmp_path, capsys):
    file = tmp_path / "weather.csv"
    file.write_text("DATE,MONTH\n")
    assert call("--data", file, "--workdir", tmp_path / "lesson") == 2
    assert "must be a folder that holds the weather and the pictures" in capsys.readouterr().err
    assert not (tmp_path / "lesson").exists()


def test_help_fits_80_columns():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.lesson", "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name in ("workdir", "data", "seeds", "full", "target", "only", "fresh", "compilation-cache"):
        assert f"--{name}" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_lesson_and_says_how_it_goes_on(number, code, tmp_path):
    folder = tmp_path / "run"
    arguments = ["--only", "weather", "--data", "simulated:60", "--seeds", "2", "--workdir", str(folder)]
    # A shell starts what it puts in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.lesson", *arguments, "--no-compilation-cache"],
        cwd=ROOT,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    while not list(folder.glob("rows/*.npz")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    output, message = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in message
    assert f"interrupted; the same command with --workdir {folder} resumes after the finished rows." in message
    assert not (folder / "lesson.csv").exists() and "How small may the network be?: 100, 50" in output
    assert training.load(folder / "rows", SIZES, "100, 50").row.seeds == (0, 1)


# Networks that diverge


def with_nan(done, members):
    values = {name: np.where(members, np.nan, array) for name, array in done.row.values.items()}
    outputs = {name: np.where(members[:, None, None], np.nan, array) for name, array in done.outputs.items()}
    return done._replace(row=done.row._replace(values=values), outputs=outputs)


@pytest.mark.parametrize("lost", [[True, False, False], [True, True, True]])
def test_networks_that_diverge_do_not_end_the_lesson(lost, copied, untrained, capsys):
    for section, name in [(of.section, of.name) for of in (*SMALLER, *EXERCISED, *BBQ) if of.name not in LEFT_OUT]:
        done = training.load(copied / "rows", section, name)
        training.save(copied / "rows", with_nan(done, np.array(lost)))
    assert call("--workdir", copied, "--only", "weather") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert 'Sizes that cannot be compared, because a seed diverged: "100, 50", "10, 5".' in output
    assert (
        '"BatchNorm" and "as today" cannot be compared' in output.replace("- ", "") and "is better than" not in output
    )
    assert ("all 3 diverged" if all(lost) else "1 diverged") in text_of(copied)
    assert rows_of(copied).loc[(EXERCISES, "BatchNorm"), "diverged"] == sum(lost)


def test_bars_need_two_networks_that_are_finite(finished):
    done = training.load(finished / "rows", EXERCISES, "BatchNorm")
    numbers, labels = (load_weather(f"simulated:{DAYS}", days=None, target=of) for of in ("BASEL_sunshine", BASEL))
    truth = truths(Weather(numbers), Weather(labels, BASEL))["numbers"]
    result, mean = bars(done, truth), done.outputs["test"][..., 0].astype(float).mean(0)
    spread = done.outputs["test"][..., 0].astype(float).std(0)
    inside = np.abs(mean - truth.test[:, 0]) <= 1.6448536 * spread
    assert result.coverage["standard deviation of the networks"][0.9] == pytest.approx(inside.mean())
    np.testing.assert_allclose(result.mean, mean)
    assert bars(with_nan(done, np.array([False, True, False])), truth) is None
    one = done._replace(outputs={name: array[:1] for name, array in done.outputs.items()})
    assert bars(one, truth) is None


def test_days_of_one_kind_have_no_roc_curve(finished):
    done = training.load(finished / "rows", BARBECUE, "one place, yes or no")
    rows = len(done.outputs["test"][0])
    truth = Truth(np.zeros((rows, 1)), np.zeros((rows, 1)), np.zeros(rows))
    key = (BARBECUE, "one place, yes or no")
    assert [drawn.name for drawn in figures([done.row], {key: done}, {"labels": truth}, "")] == []


# Real data


def test_the_baselines_of_the_real_data_are_those_of_the_lesson(real_data):
    numbers, labels = (Weather(load_weather(real_data, days=None, target=of), of) for of in ("BASEL_sunshine", BASEL))
    rows = {row.name: row for row in baseline_rows(numbers, labels)}
    assert rows["as today"].values["test"] == pytest.approx(3.877323, abs=5e-7)
    assert rows["as today, one place"].values["test"] == pytest.approx(4.2486, abs=5e-5)
    assert rows["as today, all years"].values["test"] == pytest.approx(3.9858, abs=5e-5)
    assert rows["ridge regression"].values["test"] == pytest.approx(3.12, abs=5e-3)
    assert rows["as today"].printed == PRINTED["as today"] and rows["ridge regression"].printed == {}
    assert {row.unit for row in rows.values()} == {"hours", "%"}


def test_the_barbecue_baselines_of_the_real_data_are_those_of_scikit_learn(real_data):
    folder = Path(real_data) / "weather"
    table = pd.read_csv(folder / "weather_prediction_dataset.csv").drop(columns=["DATE", "MONTH"])
    label = pd.read_csv(folder / "weather_prediction_bbq_labels.csv")[BASEL].to_numpy(int)
    numbers, labels = (Weather(load_weather(real_data, days=None, target=of), of) for of in ("BASEL_sunshine", BASEL))
    rows = {row.name: row.values["test"] for row in baseline_rows(numbers, labels)}
    basel = table.filter(regex="^BASEL_")
    for days, inputs, place in ((1096, table, ""), (3286, basel, ", one place")):
        x, today, tomorrow = inputs.to_numpy()[:days], label[:days], label[1 : days + 1]
        train, rest = train_test_split(np.arange(days), test_size=0.3, random_state=0)
        validation, test = train_test_split(rest, test_size=0.5, random_state=0)
        scaled = StandardScaler().fit(x[train]).transform(x)
        fits = [Ridge(alpha).fit(scaled[train], tomorrow[train]) for alpha in (0.1, 1, 10, 100, 1000)]
        best = min(fits, key=lambda fit: np.mean((tomorrow[validation] - fit.predict(scaled[validation])) ** 2))
        guesses = {
            "as today": today[test],
            "always the same": np.full(len(test), tomorrow[train].mean() > 0.5),
            "ridge regression": best.predict(scaled[test]) > 0.5,
        }
        for name, guess in guesses.items():
            expected = 100 * accuracy_score(tomorrow[test], guess)
            assert rows[f"{name}{place}, yes or no"] == pytest.approx(expected, rel=1e-9), (name, place)


def test_another_target_of_the_real_data(real_data, tmp_path, without_networks):
    arguments = ("--data", real_data, "--only", "weather", "--target", "OSLO_temp_max", "--no-compilation-cache")
    assert call(*arguments, "--workdir", tmp_path / "run") == 0
    row = rows_of(tmp_path / "run").loc[(EXERCISES, "as today, all years")]
    column = pd.read_csv(Path(real_data) / "weather" / "weather_prediction_dataset.csv")["OSLO_temp_max"].to_numpy()
    _, rest = train_test_split(np.arange(len(column) - 1), test_size=0.3, random_state=0)
    _, test = train_test_split(rest, test_size=0.5, random_state=0)
    assert row["test_mean"] == pytest.approx(root_mean_squared_error(column[1:][test], column[:-1][test]), rel=1e-6)
    assert (
        row["unit"] == "°C"
        and "SIMULATED" not in text_of(tmp_path / "run")
        and "Klein Tank" in text_of(tmp_path / "run")
    )
    assert real_data not in (tmp_path / "run/lesson.html").read_text()
