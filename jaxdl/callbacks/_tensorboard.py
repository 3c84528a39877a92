"""Callbacks that write TensorBoard files."""

from __future__ import annotations

import math
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxdl._files import atomic_write, exclusive
from jaxdl._jit import jit
from jaxdl._tree import flatten_named
from jaxdl.callbacks._csv_log import table_rows
from jaxdl.data import DataSource
from jaxdl.data.streaming import loader
from jaxdl.distributed.sharding import to_host
from jaxdl.errors import InputError
from jaxdl.train.history import WrittenRecords
from jaxdl.train.step import make_gradient
from jaxdl.types import Array, Callback, Dataset, History, Plan, PyTree, RunState, TrainState

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event


BINS = 50  # of a histogram; TensorBoard draws 30
_OPEN_FILES = 256
_Events = Iterable[tuple[str, "Event"]]  # each with the name of its run


@contextmanager
def tensorboard(
    folder: str | Path,
    *,
    every: float = 1.0,
    initial_epoch: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Callback]:
    """Write the metrics of every epoch; training and validation are two runs of TensorBoard, which share charts.

    Each of many runs has these two in its own folder: `member-0`, or `trial-0-seed-3` of a sweep.

    Epochs are written together after `every` seconds, and at the end, so that short epochs stay fast; a crash loses at
    most those seconds. initial_epoch: the last epoch that is in the folder already; by default all epochs of the
    history are written, in place of these and later epochs in the folder. Where the disk is full, `warn` is called once
    and the rest of the charts is left out. Raises InputError where another run writes there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tensorboard(folder) as callback:
    ...         callback(None, [{"epoch": 1, "loss": 0.5, "val_loss": 0.6}])
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['train', 'validation']
    """
    folder, prefixes = Path(folder), {"train": "", "validation": "val_"}
    pending: list[tuple[str, Event]] = []
    # The last epoch of each of TensorBoard's runs.
    last_epochs = dict.fromkeys(prefixes, initial_epoch) if initial_epoch is not None else {}
    written, first, last = WrittenRecords(), initial_epoch or 0, time.monotonic()

    def flush() -> None:
        write(pending)
        pending.clear()

    def on_epoch(run_state: Any, history: History) -> None:
        nonlocal first, last
        _, records = written.update(history)
        wall_time = time.time()
        for row in (
            row for record in records if np.max(record["epoch"]) > first for row in table_rows(run_state, record)
        ):
            step, subfolder = row.pop("epoch"), _pop_folder(row)
            for name, prefix in prefixes.items():
                tags = [tag for tag in row if tag.startswith("val_") == bool(prefix)]
                values = [{"tag": tag.removeprefix(prefix), "simple_value": row[tag]} for tag in tags]
                run = subfolder + name
                if values or not subfolder:
                    if step <= last_epochs.get(run, step):
                        pending.append((run, _purge(step)))
                    last_epochs[run] = step
                    pending.append((run, _event(step, wall_time, summary={"value": values})))
        first = 0
        if time.monotonic() - last >= every:
            flush()
            last = time.monotonic()

    with ExitStack() as stack:
        with suppress(OSError):  # the first write fails, too, and calls `warn`
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder))
        write = stack.enter_context(_event_files(folder, warn))
        # For a new run, too: a run that was killed before its first checkpoint may have written here.
        write((name, _purge(initial_epoch + 1)) for name in prefixes if initial_epoch is not None)
        try:
            yield Callback(on_epoch_end=on_epoch)
        finally:
            flush()


def _pop_folder(row: dict[str, Any]) -> str:
    """Remove the columns that name a run from a row, and return the run's folder."""
    run = {name: row.pop(name) for name in ("member", "trial", "seed") if name in row}
    return "-".join(f"{name}-{number}" for name, number in run.items()) + "/" * bool(run)


@contextmanager
def histograms(
    folder: str | Path,
    plan: Plan,
    dataset: Dataset | DataSource,
    start: RunState,
    *,
    every: int = 10,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Callback]:
    """Write histograms of each layer's parameters and gradients, as TensorBoard's runs `weights` and `gradients`.

    They are those of every `every`-th epoch and of epoch 0, the initial parameters. dataset: the training data; the
    gradients are those of the training loss on its first batch. start: the run state at the start of the run;
    TensorBoard forgets later epochs in the folder. Numbers that are not finite are left out.

    Histograms are written after the next epoch, and at the end, so that the device need not wait. Where the disk is
    full, or several processes hold parts of the parameters, `warn` is called once and the rest is left out. Raises
    InputError for `every` below 1, and for the state of many runs.

    >>> import optax, tempfile
    >>> from jaxdl import dataset, fit, losses, make_plan, mlp, start
    >>> model, loss, optimizer = mlp(()), losses.squared_error, optax.sgd(0.1)
    >>> train = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(model, loss, optimizer, batch_size=2)
    >>> state = start(plan, train, key=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with histograms(folder, plan, train, state, every=2) as callback:
    ...         _ = fit(model, loss, optimizer, train, epochs=2, batch_size=2, state=state, callbacks=[callback])
    ...     sorted(run.name for run in Path(folder).iterdir())
    ['gradients', 'weights']
    """
    if every < 1:
        raise InputError(f"every must be at least 1 epoch, got {every}. Use 10, for example.")
    if start.epoch.ndim:
        raise InputError("start must be the state of one run, got that of many. Use ensembles.member(start, 0).")
    folder = Path(folder)
    if not all(
        leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(start.train_state.variables)
    ):
        # To gather them, all processes would have to call the callback at the same time.
        warn(f"{folder} gets no histograms, because several processes hold parts of the parameters.")
        yield Callback()
        return
    first = jax.tree.map(lambda leaf: leaf[: plan.batch_size], loader(dataset, plan.batch_size).first)
    # On the host, because the parameters and the dataset may be on different devices.
    batch: Dataset = jax.tree.map(np.asarray, to_host(first))
    pending: list[tuple[int, float, dict[str, dict[str, Array]]]] = []  # epoch, time, arrays by run and name

    def compute(state: TrainState, epoch: int) -> None:
        if epoch % every == 0:
            # On one device, so that the first epoch and the others share one compiled function.
            local = jax.device_put(to_host(state._replace(opt_state=(), ema=())), jax.local_devices()[0])
            arrays = {
                "weights": flatten_named(local.variables.params),
                "gradients": flatten_named(_gradient(local, batch, plan=plan)),
            }
            pending.append((epoch, time.time(), arrays))

    def flush() -> None:
        write(
            (run, _event(epoch, wall_time, summary={"value": [v for item in named.items() for v in _histogram(*item)]}))
            for epoch, wall_time, arrays in pending
            for run, named in jax.device_get(arrays).items()
        )
        pending.clear()

    def on_epoch(run_state: RunState, history: History) -> None:
        flush()
        compute(run_state.train_state, int(history[-1]["epoch"]))

    # A run that resumes at the end of an epoch writes this epoch's histograms again, which may be lost.
    epoch, at_end = int(start.epoch), int(start.cursor) == 0
    with _event_files(folder, warn) as write:
        write((run, _purge(epoch + 1 - at_end)) for run in ("weights", "gradients"))
        if at_end:
            compute(start.train_state, epoch)
        try:
            yield Callback(on_epoch_end=on_epoch)
        finally:
            flush()


def _gradient_of(state: TrainState, batch: Dataset, *, plan: Plan) -> PyTree:
    return make_gradient(plan.model, plan.objective)(state, batch)


_gradient = jit(_gradient_of, static_argnames="plan")


def _histogram(name: str, array: np.ndarray) -> Iterable[Any]:
    """Count the finite numbers of an array in `BINS` bins of one width; return nothing where none is finite."""
    from tensorboardX.summary import histogram_raw

    numbers = np.asarray(array, np.float64).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return []
    low, high = numbers.min(), numbers.max()
    counts, limits = np.array([numbers.size]), np.array([high])
    # NumPy raises ValueError where the numbers are too close or too large for the edges of the bins.
    with suppress(ValueError), np.errstate(over="ignore", invalid="ignore"):
        if low < high:
            counts, edges = np.histogram(numbers, BINS, (low, high))
            limits = edges[1:]
    with np.errstate(over="ignore"):
        total, squares = numbers.sum(), (numbers**2).sum()
    return histogram_raw(name, low, high, numbers.size, total, squares, limits, counts).value


def description(
    folder: str | Path,
    *,
    text: Mapping[str, str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> None:
    """Write texts and hyperparameters of a run, in place of those of an earlier call.

    text: pages of markdown by name. hyperparameters: numbers, bools and strings; other values are written as strings.
    TensorBoard compares the hyperparameters of all runs in one table, with the `results` in the same folder. Raises
    InputError where the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     description(folder, text={"note": "**first**"}, hyperparameters={"widths": (100, 50), "seed": 7})
    ...     print(*[file.name for file in Path(folder).iterdir()])
    events.out.tfevents.1-description
    """
    from tensorboardX.summary import hparams
    from tensorboardX.summary import text as text_summary

    values = []
    for name, page in (text or {}).items():
        values.extend(text_summary(name, page).value)
        values[-1].tag = name  # without tensorboardX's "/text_summary"
        values[-1].tensor.tensor_shape.Clear()  # TensorBoard draws a frame around the entries of an array
    if hyperparameters:
        # Without tensorboardX's description of the columns: TensorBoard would use that of one run for all.
        _, start, _ = hparams({name: _hyperparameter(value) for name, value in hyperparameters.items()}, {})
        values.extend(start.value)
    _replace(Path(folder), "1-description", [_event(0, summary={"value": values})])


def _hyperparameter(value: Any) -> bool | float | str:
    if isinstance(value, bool):
        return value
    exact = isinstance(value, Real) and math.isfinite(value) and float(value) == value
    return float(value) if exact else str(value)


def results(folder: str | Path, metrics: Mapping[str, Any], *, step: int) -> None:
    """Write the metrics of a run that ended after the epoch `step`, in place of those of an earlier call.

    Metrics may be nested: {"test": {"rmse": 0.5}} is shown as test/rmse. Values other than numbers are left out. Raises
    InputError where the folder cannot be written.
    """
    from tensorboardX.summary import hparams

    _, _, end = hparams({}, {})
    values = [{"tag": name, "simple_value": value} for name, value in _numbers(metrics)]
    _replace(Path(folder), "2-results", [_event(step, summary={"value": [*values, *end.value]})])


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, Real) and not isinstance(value, bool):
            yield prefix + name, float(value)


def pictures(folder: str | Path, files: Sequence[str | Path], *, step: int) -> None:
    """Write PNG files, each under its name, as the pictures of the epoch `step`, in place of those of an earlier call.

    Raises InputError for a file that is not a PNG, and where the folder cannot be written.
    """
    from PIL import Image, UnidentifiedImageError

    values = {}
    # In order of the names: TensorBoard reads its files in that order and does not return to an earlier one.
    for path in sorted(map(Path, files), key=lambda path: path.stem):
        try:
            with Image.open(path, formats=["PNG"]) as image:
                width, height = image.size
        except UnidentifiedImageError:
            raise InputError(f"{path} must be a PNG file, got something else.") from None
        # Not tensorboardX's `image`, which would decode and compress the pictures again.
        content = {"height": height, "width": width, "colorspace": 4, "encoded_image_string": path.read_bytes()}
        values[path.stem] = {"tag": path.stem, "image": content}
    for name, value in values.items():
        _replace(Path(folder), f"{step:010}-{name}", [_event(step, summary={"value": [value]})])


def _event(step: int, wall_time: float | None = None, **content: Any) -> Event:
    # Scalars are dictionaries: tensorboardX's `scalar` renames tags and logs a warning for each nan.
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=time.time() if wall_time is None else wall_time, step=step, **content)


def _purge(step: int) -> Event:
    """Return the event that makes TensorBoard forget a run's epochs from `step` on."""
    return _event(step, session_log={"status": "START"})


@contextmanager
def _event_files(folder: Path, warn: Callable[[str], None]) -> Iterator[Callable[[_Events], None]]:
    """Yield a function that writes events to the disk before it returns.

    After an error of the disk `warn` is called once and the rest of the events is left out.
    """
    # Not SummaryWriter: after an error of the disk its queue blocks the run forever; its flush does not wait for the
    # queue, so that a kill loses flushed events; and it takes several times as long.
    from tensorboardX.event_file_writer import EventsWriter

    writers: dict[str, EventsWriter] = {}
    full = False

    def write(events: _Events) -> None:
        nonlocal full
        try:
            for run, event in events if not full else ():
                if run not in writers:
                    if len(writers) >= _OPEN_FILES:
                        writers.pop(next(iter(writers))).close()
                    (folder / run).mkdir(parents=True, exist_ok=True)
                    # tensorboardX's name has only seconds: a run that resumes within one would overwrite the file.
                    writers[run] = EventsWriter(str(folder / run / "events"), f".{time.time_ns()}")
                writers[run].write_event(event)
            for writer in writers.values():
                writer.flush()
        except OSError as error:
            if not full:
                warn(f"{folder} cannot be written ({error.strerror}); the rest of the charts is left out.")
            full = True

    try:
        yield write
    finally:
        for writer in writers.values():
            with suppress(OSError):
                writer.close()


def _replace(folder: Path, name: str, events: Iterable[Event]) -> None:
    """Write a file of a run atomically, in place of an earlier file of this name."""
    from tensorboardX.record_writer import masked_crc32c

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"events.out.tfevents.{name}") as file:  # TensorBoard looks for "tfevents"
            for event in (_event(0, file_version="brain.Event:2"), *events):
                data = event.SerializeToString()
                # The format of TFRecord: the length and the data, each followed by its checksum.
                for field in (struct.pack("<Q", len(data)), data):
                    file.write(field + struct.pack("<I", masked_crc32c(field)))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}). Free some space and start the same command again."
        ) from error
