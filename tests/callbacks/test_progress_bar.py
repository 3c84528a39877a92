"""The bar in a notebook and a terminal, the lines of a log, and silence."""

import io
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from jaxdl import callbacks
from jaxdl.callbacks import _progress_bar
from tests.callback_runs import EPOCHS, RECORDS, console, numbered, progress_at, replay, run

FIGURES = ("loss", "val_loss")


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when the test says so."""
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(_progress_bar, "time", SimpleNamespace(monotonic=lambda: time.now))
    return time


@pytest.fixture
def notebook(monkeypatch):
    """A notebook's display: the formats of what it was given, in order, each update of the same output."""
    outputs = []

    def display(formats, raw, display_id):
        assert raw and display_id
        outputs.append(formats)
        return SimpleNamespace(update=lambda formats, raw: outputs.append(formats))

    package, module = ModuleType("IPython"), ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return outputs


def run_state(epoch, best=1, cursor=0, done=False):
    return SimpleNamespace(epoch=epoch, cursor=cursor, stopping=SimpleNamespace(best_epoch=best, should_stop=done))


def history(epochs):
    return [{"epoch": n, "loss": 1 / n, "val_loss": 2 / n} for n in range(1, epochs + 1)]


def notebook_bar(epochs, **options):
    out = Console(file=io.StringIO(), force_jupyter=True)
    return callbacks.progress_bar(epochs, FIGURES, console=out, **options)


def value(formats):
    return float(re.search(r'value="([\d.]+)"', formats["text/html"]).group(1))


def test_a_notebook_gets_one_bar_that_fills(clock, notebook):
    with notebook_bar(4) as callback:
        for epoch in range(1, 5):
            clock.now += 2
            callback(run_state(epoch, epoch), history(epoch))
    # And once more where it ended.
    assert [value(formats) for formats in notebook] == [0, 1, 2, 3, 4, 4]
    assert all('max="4"' in formats["text/html"] for formats in notebook)
    assert "compiling" in notebook[0]["text/html"]
    # The first epoch compiles, so it says nothing about the others; two more at 2 s each are left after the second.
    assert "left" not in notebook[1]["text/plain"]
    assert notebook[2]["text/plain"] == "epoch 2/4 loss 0.5000 val_loss 1.0000 best 1.0000 (epoch 2), at most 4 s left"
    assert "left" not in notebook[-1]["text/plain"] and "best 0.5000 (epoch 4)" in notebook[-1]["text/html"]


def test_it_is_redrawn_five_times_a_second_at_most_and_at_the_end(clock, notebook):
    with notebook_bar(1000) as callback:
        for epoch in range(1, 1001):
            clock.now += 0.001
            callback(run_state(epoch), history(epoch))
    # The first epoch, then every 0.2 s of one second, the last, and where it ended.
    assert len(notebook) - 1 == 7 and value(notebook[-1]) == 1000


def test_it_moves_inside_of_an_epoch(clock, notebook):
    with notebook_bar(1, batches=8) as callback:
        callback(run_state(0, cursor=2), [])
    assert value(notebook[-1]) == 0.25 and "first epoch" in notebook[-1]["text/plain"]


def test_a_resumed_run_begins_at_its_epoch(clock, notebook):
    with notebook_bar(100, initial_epoch=90) as callback:
        for epoch in (91, 92):
            clock.now += 1
            callback(run_state(epoch, epoch), [{"epoch": n, "loss": 1.0} for n in range(91, epoch + 1)])
    assert [value(formats) for formats in notebook] == [90, 91, 92, 92]
    assert notebook[-2]["text/plain"].endswith("at most 8 s left")


def test_a_run_that_stops_early_has_no_time_left_in_a_notebook(clock, notebook):
    with notebook_bar(1000) as callback:
        for epoch in (1, 2):
            clock.now += 1
            callback(run_state(epoch, epoch), history(epoch))
    assert "left" in notebook[-2]["text/plain"]
    assert notebook[-1]["text/plain"] == "epoch 2/1000 loss 0.5000 val_loss 1.0000 best 1.0000 (epoch 2)"


def test_an_interrupted_run_does_not_show_compiling(clock, notebook):
    with pytest.raises(KeyboardInterrupt), notebook_bar(10):
        raise KeyboardInterrupt
    assert notebook[-1]["text/plain"] == "epoch 0/10 no epoch has ended"


def test_a_file_gets_plain_lines_of_the_first_and_the_last_epoch(clock):
    out = console()
    with callbacks.progress_bar(10, FIGURES, console=out) as callback:
        replay(callback, RECORDS)
    lines = out.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "3/10"]
    assert "loss 0.3333 val_loss 0.3000" in lines[0]
    assert "\x1b" not in out.file.getvalue()


def test_a_line_is_printed_once_a_second_at_most(clock):
    out = console()
    with callbacks.progress_bar(9, FIGURES, console=out) as callback:
        for epoch in range(1, 10):
            callback(progress_at(epoch, 1), numbered(RECORDS[:1] * epoch))
            clock.now += 0.4
    # Every 1.0 s at most, at 0.4 s an epoch: each third epoch, and the last.
    assert [line.split()[1] for line in out.file.getvalue().splitlines()] == ["1/9", "4/9", "7/9", "9/9"]


def test_the_last_epoch_is_not_printed_twice(clock):
    out = console()
    with callbacks.progress_bar(1, FIGURES, console=out) as callback:
        replay(callback, RECORDS[:1])
    assert len(out.file.getvalue().splitlines()) == 1


def test_a_line_shows_the_best_epoch_and_the_time_that_is_left(clock):
    out = console()
    with callbacks.progress_bar(9, FIGURES, console=out) as callback:
        for epoch in (1, 2, 3):
            clock.now += 2.0
            best_epoch = min(epoch, 2)
            callback(progress_at(epoch, best_epoch, RECORDS[best_epoch - 1]["val_loss"]), numbered(RECORDS[:epoch]))
    first, *_, last = out.file.getvalue().splitlines()
    # The first epoch compiles, so it says nothing about the others.
    assert "left" not in first
    # The best epoch is the second, at 2 / 3; six more epochs at 2 s each are left.
    assert "best 0.6667 (epoch 2)" in last
    assert "12 s" in last


def test_a_line_shows_that_no_epoch_was_finite_yet(clock):
    out = console()
    with callbacks.progress_bar(2, FIGURES, console=out) as callback:
        callback(progress_at(1, 0), numbered([{"loss": float("nan"), "val_loss": float("nan")}]))
    assert "loss nan val_loss nan best: none yet" in out.file.getvalue()


def test_metrics_that_a_run_does_not_compute_are_left_out(clock):
    # A run without validation, shown by a program that asks for validation figures too.
    out = console()
    with callbacks.progress_bar(2, FIGURES, console=out) as callback:
        replay(callback, [{"loss": 0.5}, {"loss": 0.25}])
    assert "loss 0.2500" in out.file.getvalue()
    assert "val_loss" not in out.file.getvalue()


def test_a_resumed_run_can_be_shown(clock):
    # The best epoch may lie before the history, which holds only the epochs since.
    first, out = run(epochs=3), console()
    assert first.best_epoch == 3
    with callbacks.progress_bar(EPOCHS, FIGURES, console=out) as callback:
        second = run(callback, state=first.state, variables=None)
    assert len(second.history) == 1
    assert f"epoch {EPOCHS}/{EPOCHS}" in out.file.getvalue()


@pytest.mark.parametrize("epochs", [EPOCHS, EPOCHS + 5], ids=["to the end", "stopped early"])
def test_a_terminal_gets_a_bar(epochs):
    out = console(force_terminal=True)
    with callbacks.progress_bar(epochs, FIGURES, console=out) as callback:
        history = run(callback).history
    text = out.file.getvalue()
    assert "━" in text and "\x1b[" in text
    assert f"1/{epochs}" in text and f"{EPOCHS}/{epochs}" in text
    assert f"val_loss {history['val_loss'].iloc[-1]:.4f}" in text


def test_a_quiet_console_shows_nothing():
    file = io.StringIO()
    with callbacks.progress_bar(2, FIGURES, console=Console(file=file, quiet=True, force_terminal=True)) as callback:
        callback(run_state(1), history(1))
    assert file.getvalue() == ""


def test_the_default_console_prints_to_the_standard_output(capsys):
    with callbacks.progress_bar(1) as callback:
        callback(run_state(1), history(1))
    # What pytest captures is no terminal.
    assert capsys.readouterr().out.startswith("epoch 1/1 loss 1.0000")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_that_stops_early_ends_with_no_time_left(clock, terminal):
    out = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with callbacks.progress_bar(40, FIGURES, console=out) as callback:
        for epoch in range(1, 8):
            clock.now += 2
            callback(run_state(epoch, min(epoch, 3), done=epoch == 7), history(epoch))
    last = re.split(r"[\r\n]", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", out.file.getvalue()).strip())[-1]
    if terminal:
        assert "7/40" in last and last.rstrip().endswith("best 0.6667 (epoch 3)")
    else:
        assert last == "ended after epoch 7 of 40"


def test_a_log_of_a_run_that_does_all_epochs_ends_with_the_last(clock):
    out = Console(file=io.StringIO(), force_terminal=False)
    with callbacks.progress_bar(2, FIGURES, console=out) as callback:
        for epoch in (1, 2):
            clock.now += 2
            callback(run_state(epoch, epoch), history(epoch))
    assert out.file.getvalue().splitlines()[-1].startswith("epoch 2/2 loss 0.5000")
