"""The contestants of the benchmark table that need no environment of their own, and how they are talked to."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.contestants import protocol, sklearn_loop
from benchmarks.contestants.protocol import Result, replies
from benchmarks.tasks import BATCH, PATIENCE, Arrays, Task, load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ROWS, VALIDATED, COLUMNS = 3 * BATCH + 5, 40, 4


def table(random=0, noise=0.1):
    """A linear target of four columns."""
    random = np.random.default_rng(random)

    def part(rows):
        inputs = random.normal(size=(rows, COLUMNS)).astype(np.float32)
        targets = inputs @ [[1.0], [-2.0], [0.5], [0.0]] + noise * random.normal(size=(rows, 1))
        return inputs, targets.astype(np.float32)

    return Arrays(part(ROWS), part(VALIDATED))


def task_of(mode="train", folder="", rows=ROWS, **others):
    fields = {"name": "table", "kind": "mlp", "widths": (32, 16), **others}
    return Task(mode=mode, folder=str(folder), rows=rows, **fields)


def stored(folder, arrays):
    for split, (inputs, targets) in zip(("train", "validation"), arrays, strict=True):
        np.save(folder / f"{split}-inputs.npy", inputs)
        np.save(folder / f"{split}-targets.npy", targets)
    return folder


def counting(task, arrays):
    """A contestant whose value is the seed times the rows it was given."""

    def run(times, seed):
        if seed < 0:
            raise MemoryError("too much")
        return Result([protocol.time.perf_counter() for _ in range(times)], float(seed * len(arrays.train[0])))

    return run


def requests(*questions, prepare=counting):
    return list(replies(prepare, [json.dumps(question) for question in questions]))


# How a contestant is talked to.


def test_every_request_has_an_answer_in_order(tmp_path):
    task = task_of(folder=stored(tmp_path, table()), rows=7)
    prepared, first, second = requests({"prepare": task._asdict()}, {"run": 3, "seed": 2}, {"run": 1, "seed": 5})
    assert prepared.keys() == {"seconds", "memory"} and prepared["memory"] > 1
    assert (first["value"], second["value"]) == (14, 35)
    assert [len(first["ends"]), len(second["ends"])] == [3, 1]


def test_ends_count_from_the_start_of_their_run(tmp_path):
    def slow(task, arrays):
        def run(times, seed):
            protocol.time.sleep(0.05)
            return Result([protocol.time.perf_counter()], 0.0)

        protocol.time.sleep(0.2)
        return run

    task = task_of(folder=stored(tmp_path, table()))._asdict()
    prepared, *runs = requests({"prepare": task}, *[{"run": 1, "seed": 0}] * 2, prepare=slow)
    assert prepared["seconds"] >= 0.2
    assert all(0.05 <= answer["ends"][0] < 0.2 for answer in runs)


def test_widths_are_a_tuple_after_json(tmp_path):
    calls = []
    task = task_of(folder=stored(tmp_path, table()))
    requests({"prepare": task._asdict()}, prepare=lambda given, arrays: calls.append(given))
    assert calls == [task]


def test_an_error_is_an_answer_and_the_next_request_runs(tmp_path):
    task = task_of(folder=stored(tmp_path, table()), rows=7)._asdict()
    questions = {"prepare": task}, {"run": 1, "seed": -1}, {"run": 1, "seed": 1}
    _, failed, fine = requests(*questions)
    assert failed == {"error": "MemoryError: too much"}
    assert fine["value"] == 7


def test_a_run_without_a_prepared_task_is_an_error(tmp_path):
    task = task_of(folder=stored(tmp_path, table()))._asdict()
    run = {"run": 1, "seed": 1}
    absent = {"prepare": {**task, "folder": str(tmp_path / "absent")}}
    before, _, _, failed, after = requests(run, {"prepare": task}, run, absent, run)
    assert before == after == {"error": "AssertionError: nothing is prepared"}
    assert failed["error"].startswith("FileNotFoundError")


def test_a_process_writes_answers_only_to_stdout(tmp_path):
    task = task_of(folder=stored(tmp_path, table()))._asdict()
    lines = [json.dumps({"prepare": task}), json.dumps({"run": 2, "seed": 0})]
    code = (
        "from benchmarks.contestants.protocol import Result, serve\n"
        "def prepare(task, arrays):\n    print('chatter')\n    return lambda times, seed: Result([], 4.0)\n"
        "serve(prepare)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True, cwd=ROOT)
    prepared, ran = map(json.loads, done.stdout.splitlines())
    assert "seconds" in prepared and ran["value"] == 4
    assert "chatter" in done.stderr


# What a contestant is given.


@pytest.mark.parametrize(("mode", "train", "validation"), [
    ("train", 7, VALIDATED), ("stop", 7, VALIDATED), ("evaluate", ROWS, 7), ("predict", ROWS, 7),
])  # fmt: skip
def test_a_task_limits_the_examples_that_its_mode_uses(tmp_path, mode, train, validation):
    arrays = table()
    read = load(task_of(mode, stored(tmp_path, arrays), rows=7))
    for (inputs, targets), (all_inputs, all_targets), rows in zip(read, arrays, (train, validation), strict=True):
        np.testing.assert_array_equal(inputs, all_inputs[:rows])
        np.testing.assert_array_equal(targets, all_targets[:rows])
        assert type(inputs) is np.ndarray  # in memory: nothing is read from the file while a run is measured


# scikit-learn.


def forward(model, inputs):
    """The network of ReLUs, written out."""
    values = inputs
    for kernel, bias in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        values = np.maximum(values @ kernel + bias, 0)
    return values @ model.coefs_[-1] + model.intercepts_[-1]


def fitted(seed, epochs):
    task, arrays = task_of(), table()
    model = sklearn_loop.network(task, seed)
    for _ in range(epochs):
        model.partial_fit(arrays.train[0], arrays.train[1][:, 0])
    return model, arrays


@pytest.mark.parametrize("seed", [0, 3])
def test_the_value_of_training_is_the_mean_squared_error_of_the_validation_rows(seed):
    model, arrays = fitted(seed, epochs=4)
    inputs, targets = arrays.validation
    result = sklearn_loop.prepare(task_of(), arrays)(4, seed)
    assert len(result.ends) == 4 and result.ends == sorted(result.ends)
    np.testing.assert_allclose(result.value, np.mean((forward(model, inputs) - targets) ** 2), rtol=1e-5)


def test_the_weights_are_float32_with_the_widths_of_the_task():
    model, _ = fitted(seed=0, epochs=1)
    assert [kernel.shape for kernel in model.coefs_] == [(COLUMNS, 32), (32, 16), (16, 1)]
    assert {array.dtype for array in (*model.coefs_, *model.intercepts_)} == {np.dtype(np.float32)}


def test_each_epoch_has_its_own_order_of_all_examples(monkeypatch):
    from sklearn.neural_network import _multilayer_perceptron as perceptron

    orders, shuffle = [], perceptron.shuffle

    def calls(rows, random_state):
        orders.append(shuffle(rows, random_state=random_state))
        return orders[-1]

    monkeypatch.setattr(perceptron, "shuffle", calls)
    model, _ = fitted(seed=0, epochs=3)
    assert [sorted(order) for order in orders] == [list(range(ROWS))] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert model._optimizer.t == 3 * 4  # three whole batches and the short one, three times


def test_training_reaches_the_noise_of_a_linear_target():
    arrays = table()
    losses = [sklearn_loop.prepare(task_of(), arrays)(epochs, 0).value for epochs in (1, 300)]
    assert losses[1] < 0.1 < 1 < losses[0]


def test_early_stopping_ends_ten_epochs_after_the_best_one():
    arrays = table(noise=10)
    stopped = sklearn_loop.prepare(task_of("stop"), arrays)(1, 0)
    train, losses = sklearn_loop.prepare(task_of(), arrays), []
    while len(losses) < 1000 and len(losses) - int(np.argmin([np.inf, *losses])) < PATIENCE:
        losses.append(train(len(losses) + 1, 0).value)
    assert len(stopped.ends) == len(losses) > PATIENCE
    assert stopped.value == losses[-1] > min(losses)


@pytest.mark.parametrize("mode", ["evaluate", "predict"])
def test_evaluation_and_prediction_are_repeated(mode):
    arrays = table()
    model = sklearn_loop.network(task_of(), 1)
    model.partial_fit(arrays.train[0][:BATCH], arrays.train[1][:BATCH, 0])
    outputs = forward(model, arrays.validation[0])
    expected = {"evaluate": np.mean((outputs - arrays.validation[1]) ** 2), "predict": outputs.sum()}[mode]
    result = sklearn_loop.prepare(task_of(mode), arrays)(3, 1)
    assert len(result.ends) == 3
    np.testing.assert_allclose(result.value, expected, rtol=1e-4)


@pytest.mark.parametrize("others", [{"norm": True}, {"kind": "convnet", "recipe": "small"}], ids=["norm", "convnet"])
def test_tasks_that_scikit_learn_cannot_do_are_rejected(others):
    with pytest.raises(
        ValueError, match=r"scikit-learn has dense layers only, but the task table needs (BatchNorm|a convnet)"
    ):
        sklearn_loop.prepare(task_of(**others), table())


def test_the_process_of_scikit_learn_runs_one_task_and_ends(tmp_path):
    task = task_of(folder=stored(tmp_path, table()))
    command = [sys.executable, "-m", "benchmarks.contestants.sklearn_loop", "--once", json.dumps(task._asdict())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    output = json.loads(done.stdout)
    assert output["value"] == sklearn_loop.prepare(task, table())(1, 0).value and output["memory"] > 10


# Keras, with the backend that the tests give it.


@pytest.fixture
def keras_loop():
    pytest.importorskip("keras", reason="Keras, the contestant of these tests, is not installed")
    from benchmarks.contestants import keras_loop

    with jax.numpy_rank_promotion("allow"):  # which Keras's own layers need
        yield keras_loop


def images():
    random = np.random.default_rng(0)

    def part(rows):
        pictures = random.random((rows, 32, 32, 3), np.float32)
        return pictures, random.integers(0, 10, rows).astype(np.int32)

    return Arrays(part(BATCH + 3), part(6))


KERAS_TASKS = {
    "mlp": (task_of(), table),
    "norm": (task_of(norm=True), table),
    "early_stopping": (task_of("stop"), lambda: table(noise=10)),
    "evaluate": (task_of("evaluate"), table),
    "predict": (task_of("predict"), table),
    "dropout": (task_of(kind="convnet", recipe="dropout"), images),
}


@pytest.mark.parametrize("large", [False, True], ids=["", "large"])
@pytest.mark.parametrize("name", KERAS_TASKS)
def test_runs_of_keras_compile_nothing_and_a_seed_determines_the_value(keras_loop, compilations, name, large):
    task, arrays = KERAS_TASKS[name][0], KERAS_TASKS[name][1]()
    run = keras_loop.prepare(task, arrays, large)
    with compilations() as names:
        values = [run(2, seed) for seed in (1, 2, 1)]
    assert names == []
    assert values[0].value == values[2].value != values[1].value
    assert len(values[0].ends) == 2 if task.mode != "stop" else len(values[0].ends) > PATIENCE


def test_keras_trains_down_to_the_noise(keras_loop):
    run = keras_loop.prepare(task_of(), table())
    assert run(1, 0).value > 1
    assert run(300, 0).value < 0.1


def test_the_new_weights_of_keras_are_glorot_uniform_with_biases_of_zero(keras_loop, monkeypatch):
    # The outputs of a network without hidden layers, of the unit vectors, are its weights.
    columns = 2000
    inputs = np.eye(columns, dtype=np.float32)
    arrays = Arrays((inputs, inputs[:, :1]), (np.concatenate([inputs, 0 * inputs[:1]]), np.zeros((columns + 1, 1))))
    calls, repeat = [], keras_loop.repeat

    def watched(model, *others):
        calls.append(model.predict(arrays.validation[0], verbose=0)[:, 0])
        return repeat(model, *others)

    monkeypatch.setattr(keras_loop, "repeat", watched)
    run = keras_loop.prepare(task_of("predict", widths=()), arrays)
    value = run(1, 4).value
    *weights, bias = calls[-1]
    bound = np.sqrt(6 / (columns + 1))
    assert bias == 0 and np.max(np.abs(weights)) <= bound
    np.testing.assert_allclose(np.std(weights), bound / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(value, np.sum(weights), rtol=1e-3)


# The environment.


def test_every_requirement_of_the_peers_is_pinned():
    comment, *lines = (ROOT / "benchmarks" / "peers" / "requirements.txt").read_text().splitlines()
    assert comment.startswith("#") and "pip install -r benchmarks/peers/requirements.txt" in comment
    assert all("==" in line for line in lines if not line.startswith("#"))
    assert not [line for line in lines if line.startswith("jaxdl")]
