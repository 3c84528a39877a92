"""What the experiments' command lines have in common."""

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
from jaxdl.runs.console import alone, make_console
from jaxdl.runs.experiment import Experiment
from jaxdl.runs.flags import OWN, Output, RunFlags
from jaxdl.runs.resume import flags_of
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

    experiment: or a function that gives the one that the flags ask for. flags_class: `RunFlags`, or a subclass of it
    with the experiment's own flags; its docstring is what `--help` begins with. prog: how the command is called.
    arguments: those of the process unless given.

    0: the run is finished. 2: bad input, in one message. 1: nan or infinity. 128 + a signal, such as 130 after Ctrl-C:
    the run is saved, and the same command with its `--workdir` resumes it. 141: the output was closed.
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
    """Parses the flags and runs; the exit code. Whatever ends the run is one message and no traceback.

    Bad input is 2, nan or infinity 1, a closed output 141, SIGTERM 143, Ctrl-C 130. Flags that are left out are those
    of the run in `--workdir`, where there is one. `as_data`: what `--json` prints of the result.
    """
    _startup.begin()
    try:
        return _ended(config_type, run, prog, arguments, as_data)
    finally:
        _startup.end()


def _ended(
    config_type: type[ConfigT],
    run: Callable[[ConfigT, Console, Signals], Any],
    prog: str,
    arguments: Sequence[str] | None,
    as_data: Callable[[Any], Any],
) -> int:
    code = 0
    try:
        _go(config_type, run, prog, arguments, as_data)
    except InputError as error:
        return _alone(_said(f"error: {error}", BAD_INPUT))
    except multiprocess.EndedError as error:
        code = error.args[0]
    except NonFiniteError as error:
        text = "What was reached before that step is saved: --on-nan continue goes on from there, another configuration"
        code = _said(f"error: {error}. {text} (a smaller --learning-rate, say) needs another --workdir.", FAILED)
    except StoppedError as error:
        number, folder = error.args
        text = f"the run has stopped; the same command with --workdir {folder} goes on from its last checkpoint."
        code = _said(f"{signal.Signals(number).name}: {text}", SIGNAL + number)
    except BrokenPipeError:
        # Or Python would try once more, and complain, when it closes the output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED
    except OSError as error:
        # What no other message names: a file without rights, too many open files, a full disk.
        what = "a file or the output" if error.filename is None else error.filename
        text = f"error: {what} cannot be read or written ({error.strerror or error}). Mend that, and start the same"
        return _alone(_said(f"{text} command again.", BAD_INPUT))
    except KeyboardInterrupt:
        return _said("interrupted before the run began.", SIGNAL + signal.SIGINT)
    except Exception as error:
        if processes.count() == 1:
            raise
        gone = processes.peer_lost(error)
        print(gone or traceback.format_exc(), file=sys.stderr)
        return _alone(processes.LOST if gone else FAILED)
    distributed.shutdown()
    return code


def _go(
    config_type: type[ConfigT],
    run: Callable[[ConfigT, Console, Signals], Any],
    prog: str,
    arguments: Sequence[str] | None,
    as_data: Any,
) -> None:
    # Imported here: who only builds what an experiment trains, as the benchmarks do, needs no command line.
    import tyro

    with interrupts() as signals:
        config = tyro.cli(config_type, args=arguments, prog=prog)
        earlier = _earlier(config)
        if earlier:
            default = replace(config, **earlier)
            config = tyro.cli(config_type, args=arguments, prog=prog, default=default)
        with alone(config):
            result = run(config, make_console(config), signals)
    if config.json and distributed.is_main():
        print(_files.as_json(as_data(result)), end="", flush=True)


def _said(text: str, code: int) -> int:
    # Of what all processes have met one tells; bad input may be that of one alone.
    if distributed.is_main() or code == BAD_INPUT:
        with suppress(OSError):  # A full disk.
            print(printable(text), file=sys.stderr)
    return code


def _alone(code: int) -> int:
    """Ends with a code of which the other processes know nothing: as usual would be to wait for them."""
    if processes.count() > 1:
        processes.abort(code)
    return code


def _earlier(config: Any) -> dict[str, Any]:
    """The flags of the run in a configuration's folder."""
    if config.workdir is None or config.fresh:
        return {}
    earlier = folders.earlier(config.workdir, getattr(config, "folder_kind", folders.RUN))
    if earlier is None:
        return {}
    kinds = get_type_hints(type(config))
    return flags_of(config.workdir, earlier, {name: kind for name, kind in kinds.items() if name not in OWN})
