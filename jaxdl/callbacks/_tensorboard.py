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
from jaxdl.callbacks._csv_log import rows_of
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
_Events = Iterable[tuple[str, "Event"]]  # each with the run that it belongs to


@contextmanager
def tensorboard(
    folder: str | Path,
    *,
    every: float = 1.0,
    initial_epoch: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Callback]:
    """Write all metrics of every epoch; training and validation are two of TensorBoard's runs, which share charts.

    Of many runs, each has these two in a folder of its own: `member-0`, or `trial-0-seed-3` of a sweep.

    Epochs are written together after `every` seconds, and at the end, so that short ones are not slowed down: a crash
    loses no more than those seconds. `initial_epoch`: the epochs that are in the folder already; by default all that
    the history holds are written, and TensorBoard purges what the folder holds of these and later epochs. Where the
    disk is full, `warn` is called once and the rest of the charts left out. Raises InputError where another run is
    writing there.
    """
    folder, prefixes = Path(folder), {"train": "", "validation": "val_"}
    waiting: list[tuple[str, Event]] = []
    latest = (
        dict.fromkeys(prefixes, initial_epoch) if initial_epoch is not None else {}
    )  # the last epoch of each of TensorBoard's runs
    written, first, last = WrittenRecords(), initial_epoch or 0, time.monotonic()

    def flush() -> None:
        write(waiting)
        waiting.clear()

    def observe(run_state: Any, history: History) -> None:
        nonlocal first, last
        _, new = written.update(history)
        moment = time.time()
        for row in (row for record in new if np.max(record["epoch"]) > first for row in rows_of(run_state, record)):
            step, where = row.pop("epoch"), _folder_of(row)
            for name, prefix in prefixes.items():
                tags = [tag for tag in row if tag.startswith("val_") == bool(prefix)]
                values = [{"tag": tag.removeprefix(prefix), "simple_value": row[tag]} for tag in tags]
                run = where + name
                if values or not where:
                    if step <= latest.get(run, step):
                        waiting.append((run, _purge(step)))
                    latest[run] = step
                    waiting.append((run, _event(step, moment, summary={"value": values})))
        first = 0
        if time.monotonic() - last >= every:
            flush()
            last = time.monotonic()

    with ExitStack() as stack:
        with suppress(OSError):  # of which `warn` is told at the first write
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder))
        write = stack.enter_context(_event_files(folder, warn))
        # Also for a new run: one that was killed before its first checkpoint may have written here.
        write((name, _purge(initial_epoch + 1)) for name in prefixes if initial_epoch is not None)
        try:
            yield observe
        finally:
            flush()


def _folder_of(row: dict[str, Any]) -> str:
    """Take the columns that name a run from a row, and return the run's folder."""
    own = {name: row.pop(name) for name in ("member", "trial", "seed") if name in row}
    return "-".join(f"{name}-{number}" for name, number in own.items()) + "/" * bool(own)


@contextmanager
def histograms(
    folder: str | Path,
    plan: Plan,
    rows: Dataset | DataSource,
    start: RunState,
    *,
    every: int = 10,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Callback]:
    """Write histograms of each layer's weights and gradients, as two of TensorBoard's runs with these names.

    Of the epochs that `every` divides, 0 among them: the initial weights. `start` is the progress with which the run
    begins; TensorBoard purges what the folder holds of later epochs. The gradients are those of the training loss, on
    the first batch of `rows`, at the weights of that moment. Numbers that are not finite are left out.

    Histograms are written when the next epoch has ended, and at the end, so that the device need not wait. Where the
    disk is full, or several processes hold parts of the weights, `warn` is called once and the rest left out.
    Raises InputError for `every` below 1.

    >>> import optax, tempfile
    >>> from jaxdl import dataset, fit, losses, make_plan, mlp, start
    >>> rows, plan_of = dataset([[1.0], [2.0]], [[1.0], [2.0]]), (mlp(()), losses.squared_error)
    >>> plan = make_plan(*plan_of, optax.sgd(0.1), batch_size=2)
    >>> begin = start(plan, rows, key=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with histograms(Path(folder), plan, rows, begin, every=2) as observe:
    ...         _ = fit(*plan_of, plan.optimizer, rows, epochs=2, batch_size=2, state=begin, callbacks=[observe])
    ...     sorted(run.name for run in Path(folder).iterdir())
    ['gradients', 'weights']
    """
    if every < 1:
        raise InputError(f"every must be at least 1 epoch, got {every}. Use 10, say.")
    if start.epoch.ndim:
        raise InputError(
            "start must be the state of one run, got that of many. Use ensembles.member(progress, 0), say."
        )
    folder = Path(folder)
    if not all(
        leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(start.train_state.variables)
    ):
        # To put them together, all processes would have to call this, at the same moment.
        warn(f"{folder} gets no histograms, because several processes hold parts of the weights.")
        yield lambda run_state, history: None
        return
    first = jax.tree.map(lambda leaf: leaf[: plan.batch_size], loader(rows, plan.batch_size).first)
    # On the host, because the weights' device is not always that of the rows.
    batch: Dataset = jax.tree.map(np.asarray, to_host(first))
    waiting: list[tuple[int, float, dict[str, dict[str, Array]]]] = []  # epoch, time, arrays by run and name

    def take(state: TrainState, epoch: int) -> None:
        if epoch % every == 0:
            # Bound to one device always: else the first epoch and the others would be two programs.
            bound = jax.device_put(to_host(state._replace(opt_state=(), ema=())), jax.local_devices()[0])
            arrays = {
                "weights": flatten_named(bound.variables.params),
                "gradients": flatten_named(_gradient(bound, batch, plan=plan)),
            }
            waiting.append((epoch, time.time(), arrays))

    def flush() -> None:
        write(
            (run, _event(epoch, moment, summary={"value": [v for item in each.items() for v in _histogram(*item)]}))
            for epoch, moment, arrays in waiting
            for run, each in jax.device_get(arrays).items()
        )
        waiting.clear()

    def observe(run_state: RunState, history: History) -> None:
        flush()
        take(run_state.train_state, int(history[-1]["epoch"]))

    # At an epoch's end, that epoch's histograms are written again in case they were lost.
    epoch, between = int(start.epoch), int(start.cursor) == 0
    with _event_files(folder, warn) as write:
        write((run, _purge(epoch + 1 - between)) for run in ("weights", "gradients"))
        if between:
            take(start.train_state, epoch)
        try:
            yield observe
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
    # Some bins do not fit between numbers that lie close together, or have edges beyond the largest number.
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
    """Write what a run is, in the place of what an earlier call wrote into the folder.

    text: pages of markdown by name; hyperparameters: numbers, bools and texts, all else as text.
    TensorBoard compares hyperparameters of all runs in one table, with the `results` that the same folder holds.
    Raises InputError where the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     description(Path(folder), text={"note": "**first**"}, hyperparameters={"hidden": (100, 50), "seed": 7})
    ...     print(*[file.name for file in Path(folder).iterdir()])
    events.out.tfevents.1-description
    """
    from tensorboardX.summary import hparams
    from tensorboardX.summary import text as text_of

    values = []
    for name, page in (text or {}).items():
        values.extend(text_of(name, page).value)
        values[-1].tag = name  # without tensorboardX's "/text_summary"
        values[-1].tensor.tensor_shape.Clear()  # TensorBoard draws a frame around the entries of an array
    if hyperparameters:
        # Without tensorboardX's description of the columns: TensorBoard would take one run's for those of all.
        _, start, _ = hparams({name: _hyperparameter(value) for name, value in hyperparameters.items()}, {})
        values.extend(start.value)
    _replace(Path(folder), "1-description", [_event(0, summary={"value": values})])


def _hyperparameter(value: Any) -> bool | float | str:
    if isinstance(value, bool):
        return value
    exact = isinstance(value, Real) and math.isfinite(value) and float(value) == value
    return float(value) if exact else str(value)


def results(folder: str | Path, metrics: Mapping[str, Any], *, step: int) -> None:
    """Write the metrics of a run that ended after the epoch `step`, in the place of what an earlier call wrote.

    Metrics may be nested: {"test": {"rmse": 0.5}} is shown as test/rmse. What is no number is left out. Raises
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
    """Write PNG files, each under its name, as the pictures of an epoch, in the place of those of an earlier call.

    Raises InputError for a file that is no PNG, and where the folder cannot be written.
    """
    from PIL import Image, UnidentifiedImageError

    values = {}
    # In the order in which TensorBoard, which does not go back to an earlier file, reads them.
    for path in sorted(map(Path, files), key=lambda path: path.stem):
        try:
            with Image.open(path, formats=["PNG"]) as image:
                width, height = image.size
        except UnidentifiedImageError:
            raise InputError(f"{path} must be a PNG file, got something else.") from None
        # Not tensorboardX's `image`, which takes arrays and would compress them anew.
        content = {"height": height, "width": width, "colorspace": 4, "encoded_image_string": path.read_bytes()}
        values[path.stem] = {"tag": path.stem, "image": content}
    for name, value in values.items():
        _replace(Path(folder), f"{step:010}-{name}", [_event(step, summary={"value": [value]})])


def _event(step: int, moment: float | None = None, **content: Any) -> Event:
    # Scalars come as dictionaries: tensorboardX's `scalar` renames tags and logs a warning for each nan.
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=time.time() if moment is None else moment, step=step, **content)


def _purge(step: int) -> Event:
    """Return the event by which TensorBoard forgets what a run has written of an epoch, `step`, and of later ones."""
    return _event(step, session_log={"status": "START"})


@contextmanager
def _event_files(folder: Path, warn: Callable[[str], None]) -> Iterator[Callable[[_Events], None]]:
    """Give a function that takes events and has them on the disk when it returns.

    Where they cannot be written, because the disk is full, say, `warn` is called once and the rest is left out.
    """
    # Not SummaryWriter: after an error of the disk its queue blocks the run for good, its flush does not wait for the
    # queue, so that a kill loses what was flushed, and it takes several times as long.
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
                    # The name holds the second alone; a run that is resumed in that second would overwrite the file.
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
    """Write one file of a run whole, in the place of the one that had this name."""
    from tensorboardX.record_writer import masked_crc32c

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"events.out.tfevents.{name}") as file:  # TensorBoard knows its files by "tfevents"
            for event in (_event(0, file_version="brain.Event:2"), *events):
                data = event.SerializeToString()
                # The format of TFRecord: the length and the data, each followed by its checksum.
                for part in (struct.pack("<Q", len(data)), data):
                    file.write(part + struct.pack("<I", masked_crc32c(part)))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}). Free some space and start the same command again."
        ) from error
