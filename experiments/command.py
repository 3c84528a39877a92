"""What the experiments' command lines have in common."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from experiments import output, sharing
from experiments.output import Output
from experiments.resuming import flags_of
from experiments.watching import OWN
from jaxdl import _startup, files, folders, processes
from jaxdl.errors import InputError, printable
from jaxdl.interrupts import Interrupts, interrupts
from jaxdl.locks import locked
from jaxdl.replays import NotFiniteError

if TYPE_CHECKING:
    from rich.console import Console

ConfigT = TypeVar("ConfigT", bound=Output)


class StoppedError(Exception):
    """A signal ended the run, which is saved; the arguments are the signal and the folder."""


FAILED, BAD_INPUT, CLOSED, SIGNAL = 1, 2, 141, 128  # a signal's exit code is 128 and its number


def command(
    config_type: type[ConfigT],
    run: Callable[[ConfigT, Console, Interrupts], Any],
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
    run: Callable[[ConfigT, Console, Interrupts], Any],
    prog: str,
    arguments: Sequence[str] | None,
    as_data: Callable[[Any], Any],
) -> int:
    code = 0
    try:
        _go(config_type, run, prog, arguments, as_data)
    except InputError as error:
        return _alone(_said(f"error: {error}", BAD_INPUT))
    except sharing.EndedError as error:
        code = error.args[0]
    except NotFiniteError as error:
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
        gone = processes.lost(error)
        print(gone or traceback.format_exc(), file=sys.stderr)
        return _alone(processes.LOST if gone else FAILED)
    processes.leave()
    return code


def _go(
    config_type: type[ConfigT],
    run: Callable[[ConfigT, Console, Interrupts], Any],
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
        with output.alone(config):
            result = run(config, output.console(config), signals)
    if config.json and processes.is_first():
        print(files.as_json(as_data(result)), end="", flush=True)


def _said(text: str, code: int) -> int:
    # Of what all processes have met one tells; bad input may be that of one alone.
    if processes.is_first() or code == BAD_INPUT:
        with suppress(OSError):  # A full disk.
            print(printable(text), file=sys.stderr)
    return code


def _alone(code: int) -> int:
    """Ends with a code of which the other processes know nothing: as usual would be to wait for them."""
    if processes.count() > 1:
        processes.end(code)
    return code


def _earlier(config: Any) -> dict[str, Any]:
    """The flags of the run in a configuration's folder."""
    if config.workdir is None or config.fresh:
        return {}
    earlier = folders.earlier(config.workdir)
    if earlier is None:
        return {}
    kinds = get_type_hints(type(config))
    return flags_of(config.workdir, earlier, {name: kind for name, kind in kinds.items() if name not in OWN})


def workdir(given: Path | None, fresh: bool, name: str, console: Console) -> Path:
    """The folder of a run, made where it is not there: the given one, or a new one in runs, named by the time.

    fresh: what is in it is kept under another name, which is told. Raises InputError for a folder of other files.
    """
    if given is None:
        return _new(name)
    if fresh and given.exists():
        with locked(given):
            folders.earlier(given)  # Raises for a folder of other files.
        aside = folders.set_aside(given)
        console.print(f"What was in {given} is now {aside}.", markup=False, soft_wrap=True)
    folders.earlier(given)
    folders.make(given)
    return given


def _new(recipe: str) -> Path:
    """It exists already, so that no other run can take it."""
    stem = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{recipe}"
    folder, number = Path("runs", stem), 2
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            folder, number = Path("runs", f"{stem}-{number}"), number + 1
        except OSError as error:
            raise InputError(f"the folder runs cannot be written ({error.strerror}). Give a --workdir.") from None
