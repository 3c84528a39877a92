"""The command line of an experiment: flags, messages, exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from jaxdl import _files, _startup, distributed
from jaxdl.distributed import processes
from jaxdl.errors import InputError, printable
from jaxdl.runs import folders, multiprocess, runner
from jaxdl.runs.console import make_console, results_only
from jaxdl.runs.experiment import Experiment
from jaxdl.runs.flags import COMMAND_FLAGS, Output, RunFlags
from jaxdl.runs.resume import read_flags
from jaxdl.runs.signals import Signals, StoppedError, interrupts
from jaxdl.train.nonfinite import NonFiniteError

if TYPE_CHECKING:
    from rich.console import Console


ConfigT = TypeVar("ConfigT", bound=Output)


FAILED, BAD_INPUT, CLOSED, SIGNAL = 1, 2, 141, 128  # a signal's exit code is 128 and its number


def main(
    experiment: Experiment | Callable[[Any], Experiment],
    flags_class: type[RunFlags] = RunFlags,
    prog: str | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run the command line of an experiment; return the exit code, for `sys.exit`.

    experiment: or a function that takes the flags and returns the experiment. flags_class: `RunFlags`, or a subclass
    with the experiment's own flags; `--help` begins with its docstring. prog: the command as `--help` prints it.
    arguments: by default those of the process.

    Exit codes: 0, the run is finished; 1, a value is NaN or infinite; 2, bad input; 128 + the signal, such as 130 after
    Ctrl-C, where the run is saved and the same command with its `--workdir` resumes it; 141, the output was closed.
    """
    prog = f"python {Path(sys.argv[0]).name}" if prog is None else prog
    return command(flags_class, partial(runner.run, experiment), prog, arguments)


def command(
    config_type: type[ConfigT],
    run: Callable[[ConfigT, Console, Signals], Any],
    prog: str,
    arguments: Sequence[str] | None = None,
    *,
    as_data: Callable[[Any], Any] = lambda result: result,
) -> int:
    """Parse the flags and call `run`; return the exit code, see `main`. Errors become one message, no traceback.

    Flags that are left out have the values of the run in `--workdir`, where there is one. as_data: converts the result
    of `run` to what `--json` prints.
    """
    _startup.prepare_process()
    try:
        return _exit_code(partial(_run, config_type, run, prog, arguments, as_data))
    finally:
        _startup.end()


def _run(
    config_type: type[ConfigT],
    run: Callable[[ConfigT, Console, Signals], Any],
    prog: str,
    arguments: Sequence[str] | None,
    as_data: Callable[[Any], Any],
) -> None:
    # Imported here: code that only builds a setup, such as the benchmarks, needs no command line.
    import tyro

    with interrupts() as signals:
        config = tyro.cli(config_type, args=arguments, prog=prog)
        if flags := _flags_of_workdir(config):
            config = tyro.cli(config_type, args=arguments, prog=prog, default=replace(config, **flags))
        with results_only(config):
            result = run(config, make_console(config), signals)
    if config.json and distributed.is_main():
        print(_files.as_json(as_data(result)), end="", flush=True)


def _flags_of_workdir(config: Any) -> dict[str, Any]:
    """Return the flags of the run in `--workdir`; {} where there is none."""
    if config.workdir is None or config.fresh:
        return {}
    files = folders.read_run(config.workdir, getattr(config, "folder_kind", folders.RUN))
    if files is None:
        return {}
    types = get_type_hints(type(config))
    return read_flags(config.workdir, files, {name: types[name] for name in types if name not in COMMAND_FLAGS})


def _exit_code(run: Callable[[], None]) -> int:
    """Call `run`; print the message of an error and return its exit code."""
    code = 0
    try:
        run()
    except InputError as error:
        return _end_process(_print(f"error: {error}", BAD_INPUT))
    except multiprocess.EndedError as error:
        code = error.args[0]
    except NonFiniteError as error:
        text = (
            "The state before that step is saved. To continue from there, add --on-nan continue. To train with other "
            "flags, such as a smaller --learning-rate, choose another --workdir."
        )
        code = _print(f"error: {error}. {text}", FAILED)
    except StoppedError as error:
        number, folder = error.args
        text = f"the run has stopped; the same command with --workdir {folder} resumes it from its last checkpoint."
        code = _print(f"{signal.Signals(number).name}: {text}", SIGNAL + number)
    except BrokenPipeError:
        # Python flushes the output when it ends, which would print another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED
    except OSError as error:
        # Errors that have no message of their own: a file without rights, too many open files, a full disk.
        name = "a file or the output" if error.filename is None else error.filename
        text = f"{name} cannot be read or written ({error.strerror or error})."
        return _end_process(_print(f"error: {text} Correct this, and start the same command again.", BAD_INPUT))
    except KeyboardInterrupt:
        return _print("interrupted before the run began.", SIGNAL + signal.SIGINT)
    except Exception as error:
        if processes.count() == 1:
            raise
        peer_error = processes.peer_lost(error)
        print(peer_error or traceback.format_exc(), file=sys.stderr)
        return _end_process(processes.LOST if peer_error else FAILED)
    distributed.shutdown()
    return code


def _print(text: str, code: int) -> int:
    """Print a message to standard error; return the exit code."""
    # The main process prints what all processes see; bad input may be that of one process.
    if distributed.is_main() or code == BAD_INPUT:
        with suppress(OSError):  # A full disk.
            print(printable(text), file=sys.stderr)
    return code


def _end_process(code: int) -> int:
    """Return the exit code, or end this one of several processes, which would otherwise wait for the others."""
    if processes.count() > 1:
        processes.abort(code)
    return code
