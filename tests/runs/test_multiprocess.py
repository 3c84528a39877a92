"""A run of an experiment that real processes share: the losses of one, and how it is saved, goes on, ends and fails."""

import json
import shutil
import signal

import jax
import numpy as np
import pandas as pd
import pytest

from experiments.weather.experiment import Config, run
from jaxdl import saving
from jaxdl._files import lock_folder
from jaxdl.distributed import processes
from jaxdl.distributed.processes import free_port
from jaxdl.errors import InputError
from jaxdl.runs import multiprocess
from jaxdl.runs.command import command
from jaxdl.saving import load
from tests.groups import ended, running, scripts, until

pytestmark = pytest.mark.processes

# 279 rows of training: 9 steps an epoch, the last one not full.
FLAGS = ("--recipe", "plain", "--data", "simulated:400", "--hidden", 8, 4)
EPOCHS = 6
# Steps that are slow enough to do something to a run before it has done many, on batches that three cannot divide.
SLOW = ("--recipe", "plain", "--data", "simulated:4001", "--hidden", 300, 200, "--batch-size", 700)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache folder, where programs are kept from one test to the next."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def together(cache):
    """`with together(2, *flags) as members:` shares a run among two processes that were started by hand."""

    def start(number, *flags):
        where = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", number)
        calls = (["-m", "experiments.weather", *flags, *where, "--process-id", own] for own in range(number))
        return running(*calls, XDG_CACHE_HOME=cache)

    return start


def launch(cache, number, *flags):
    """The exit code of a run that the launcher starts, and what is written to stdout and stderr."""
    call = ["-m", "jaxdl.launch", "-n", number, "--", "-m", "experiments.weather", *flags]
    with running(call, XDG_CACHE_HOME=cache) as members:
        (code,), (output,) = ended(members)
    return code, *output


def alone(*flags):
    """A run in this process, on one of its devices."""
    flags = (*flags, "--no-compilation-cache", "--mesh", "data=1")
    return command(Config, run, "weather", [str(flag) for flag in flags])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert alone(*FLAGS, "--epochs", EPOCHS, "--workdir", folder) == 0
    return folder


def check_same(folder, expected, epochs=EPOCHS):
    """Of two runs: the losses of each epoch, and the weights at the end, to 1e-5."""
    one, other = (pd.read_csv(each / "history.csv").drop(columns="seconds") for each in (folder, expected))
    assert one["epoch"].tolist() == list(range(1, epochs + 1))
    pd.testing.assert_frame_equal(one, other, rtol=1e-5)
    one, other = (jax.tree.leaves(load(each / "checkpoints/final").params) for each in (folder, expected))
    for array, like in zip(one, other, strict=True):
        np.testing.assert_allclose(array, like, rtol=1e-5, atol=1e-5 * np.abs(like).max())


def saved(folder):
    return saving.restore_latest(folder / "checkpoints/progress", print)


def names_of(folder):
    """Its files but for the parts of checkpoints, each as often as it is there; the names of charts begin alike."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path).partition(".out.")[0] for path in paths if path.parts[0] != "checkpoints")


def saves_of(folder):
    return set((folder / "checkpoints/progress").glob("*/checksums.json"))


def rows_of(folder):
    history = folder / "history.csv"
    return max(0, len(history.read_text().splitlines()) - 1) if history.exists() else 0


# The run of one process


def test_two_processes_begun_by_hand_give_the_run_of_one_and_the_first_alone_speaks_and_writes(
    whole, together, tmp_path
):
    folder = tmp_path / "run"
    with together(2, *FLAGS, "--epochs", EPOCHS, "--workdir", folder) as members:
        codes, output = ended(members)
    assert codes == [0, 0], output
    assert output[1] == ("", "") and output[0][1] == ""
    assert f"Everything about this run is in {folder}" in output[0][0]
    check_same(folder, whole)
    assert names_of(folder) == names_of(whole)
    # Which process it was is not the run's: later it goes on alone.
    assert alone("--workdir", folder, "--epochs", EPOCHS + 1) == 0 and processes.count() == 1
    assert len(json.loads((folder / "config.json").read_text())["changes"]) == 1


def test_a_run_goes_from_one_process_to_two_on_a_mesh_that_is_named_and_is_then_shown(whole, cache, tmp_path):
    folder = tmp_path / "run"
    assert alone(*FLAGS, "--epochs", 3, "--workdir", folder) == 0
    code, out, message = launch(cache, 2, "--workdir", folder, "--epochs", EPOCHS, "--mesh", "data=2")
    assert (code, message) == (0, "") and "The run resumes after epoch 3 (" in out
    check_same(folder, whole)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, message = launch(cache, 2, "--workdir", folder)
    assert (code, message) == (0, "") and "holds a finished run (plain, seed 0); nothing is changed." in out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# Signals


@pytest.fixture(scope="module")
def stopped(together, tmp_path_factory):
    """The folder of a run of two processes that SIGTERM to process 1 has stopped, and what they told."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with together(2, *SLOW, "--epochs", 100_000, "--workdir", folder) as members:
        until(lambda: rows_of(folder), members)
        members[1].send_signal(signal.SIGTERM)
        return folder, *ended(members)


@pytest.fixture(scope="module")
def bereft(stopped, together, tmp_path_factory):
    """The folder of that run, gone on among three processes, then two, of which one was killed each time; of each time
    that one, the ids of the processes, what they told, and the epoch that was saved."""
    folder = shutil.copytree(stopped[0], tmp_path_factory.mktemp("bereft") / "run")

    def lose(number, gone):
        rows, saves = rows_of(folder), saves_of(folder)
        with together(number, "--workdir", folder, "--save-every", 0) as members:
            until(lambda: rows_of(folder) > rows + 2 and saves_of(folder) - saves, members)
            members[gone].send_signal(signal.SIGKILL)
            pids = [member.pid for member in members]
            return gone, pids, *ended(members, 30), int(saved(folder).arrays["epoch"])

    return folder, [lose(3, 1), lose(2, 0)]


def test_sigterm_to_one_process_saves_the_run_and_stops_all_of_them(stopped):
    folder, codes, output = stopped
    assert codes == [143, 143], output
    assert output[1] == ("", "")
    assert output[0][1] == (
        f"SIGTERM: the run has stopped; the same command with --workdir {folder} resumes it from its last checkpoint.\n"
    )
    result = saved(folder)
    assert len(result.about["history"]) == int(result.arrays["epoch"]) == rows_of(folder)
    assert not (folder / "metrics.json").exists()


@pytest.mark.parametrize("turn", [0, 1])
def test_where_a_process_is_killed_the_others_end_and_name_it(bereft, turn):
    gone, pids, codes, output, _ = bereft[1][turn]
    assert codes == [-9 if own == gone else processes.LOST for own in range(len(pids))], output
    for own in range(len(pids)):
        name = f"process {gone} (pid {pids[gone]} on "
        assert own == gone or (name in output[own][1] and f"so process {own} ends too." in output[own][1])


def test_a_run_that_was_stopped_and_lost_processes_goes_on_among_other_numbers(stopped, bereft, tmp_path):
    folder, ends = bereft
    first, second, third = rows_of(stopped[0]), *(end[-1] for end in ends)
    # Each number of processes has trained some of its epochs.
    assert 0 < first < second < third
    assert alone("--workdir", folder, "--save-every", 30, "--epochs", third + 2) == 0
    assert alone(*SLOW, "--epochs", third + 2, "--workdir", tmp_path / "whole") == 0
    check_same(folder, tmp_path / "whole", third + 2)


# What goes wrong


# Runs that are refused; each tells that it has ended.
REFUSED = """
import json
from contextlib import redirect_stderr
from rich.console import Console
from experiments.weather import experiment as weather
from jaxdl.runs.runner import multiprocess
flags, folder = json.loads(given[0]), Path(given[1])
with redirect_stderr(sys.stdout):
    for each in flags:
        config = weather.Config(**{"recipe": "plain", "data": "simulated:400", "workdir": folder, **each})
        try:
            weather.run(config, Console())
        except multiprocess.EndedError as error:
            print("ended with", error)
processes.shutdown()
"""


def refused(together, number, *flags, code=2):
    """What is said where all processes end with one message."""
    with together(number, *flags) as members:
        codes, output = ended(members)
    assert codes == [code] * number, output
    assert "Traceback" not in output[0][1] and output[0][1].count("\n") == 1, output
    assert all(texts == ("", "") for texts in output[1:]), output
    return output[0][1]


def test_what_process_0_alone_finds_bad_is_one_message_and_nobody_hangs(together, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "metrics.json").unlink()
    with lock_folder(folder):
        assert "is in use by process " in refused(together, 2, "--workdir", folder)


def test_what_all_find_bad_is_one_message_too_and_leaves_nothing(tmp_path):
    cases = {
        "error: --epochs must be at least 1, got 0.": {"epochs": 0},
        "error: no-such-file.csv": {"data": "no-such-file.csv"},
        "error: the axes of a mesh must use up its 2 devices, got data=3, which is 3.": {"mesh": ["data=3"]},
    }
    # One after the other in the same processes, which takes a start of each less.
    first, second = scripts(REFUSED, 2, json.dumps([*cases.values()]), tmp_path / "run")
    lines = first.splitlines()
    assert lines[1::2] == second.splitlines() == ["ended with 2"] * 3
    assert [line.startswith(text) for line, text in zip(lines[::2], cases, strict=True)] == [True] * 3, lines
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("own", [0, 1])
def test_a_folder_that_is_a_file_is_told_by_each_before_they_meet(own, tmp_path, capsys):
    path = tmp_path / "file"
    path.touch()
    where = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2, "--process-id", own)
    assert alone(*FLAGS, "--workdir", path, *where) == 2
    text = f"error: --workdir {path} must be a folder, got a file. Choose another name.\n"
    assert capsys.readouterr() == ("", text) and processes.count() == 1


def test_numbers_that_are_not_finite_are_one_message_and_what_was_before_is_saved(together, tmp_path):
    flags = (*FLAGS, "--learning-rate", "1e20", "--epochs", 3, "--workdir", tmp_path / "run")
    assert "error: epoch 1, step " in refused(together, 2, *flags, code=1)
    assert all(
        np.isfinite(array).all()
        for name, array in saved(tmp_path / "run").arrays.items()
        if name.startswith("train_state/variables")
    )


def different(cache, *flags, **environment):
    """What two processes say, each with flags of its own beside those of the run, which end with 2 both."""
    where = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2, "--process-id")
    calls = (["-m", "experiments.weather", *FLAGS, *own, *where, index] for index, own in enumerate(flags))
    with running(*calls, XDG_CACHE_HOME=cache, **environment) as members:
        codes, output = ended(members, 60)
    assert codes == [2, 2] and all(out == "" for out, _ in output), output
    return [error for _, error in output]


def test_processes_with_different_data_end_with_one_message_each(cache, tmp_path):
    shared = ("--epochs", 2, "--workdir", tmp_path / "run")
    one, other = different(cache, shared, (*shared, "--data", "simulated:400:7"))
    assert one == other and len(one.splitlines()) == 1
    assert one.startswith("error: all processes of a run must read the same data, got SHA-256 ")
    assert not (tmp_path / "run").exists()


def test_processes_with_different_flags_end_with_one_message_each_before_they_read(cache, tmp_path):
    shared = ("--epochs", 2, "--workdir", tmp_path / "run")
    one, other = different(cache, shared, (*shared, "--batch-size", 16))
    text = "all processes of a run must have the same --batch-size, got 32 in process 0 and 16 in process 1."
    assert one == other == f"error: {text} Start all of them with the same.\n"
    assert not (tmp_path / "run").exists()


# The parts


@pytest.fixture
def message(monkeypatch):
    """What process 0 tells, as another one hears it."""
    texts = []
    monkeypatch.setattr("jaxdl.distributed.processes.broadcast_text", lambda text: texts.pop(0))
    return texts


def test_bad_input_of_a_process_that_follows_is_its_own_only_where_process_0_goes_on(message):
    message.append(json.dumps({"code": 2}))
    with pytest.raises(multiprocess.EndedError, match="2"), multiprocess.preparing():
        raise InputError("met by all")
    message.append(json.dumps({"folder": "run"}))
    with pytest.raises(InputError, match="met here"), multiprocess.preparing():
        raise InputError("met here")
