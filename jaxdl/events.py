"""Event files, which TensorBoard reads, and what may stand in them.

A folder of TensorBoard's is a run to it, and it reads the files of one in the order of their names.
"""

from __future__ import annotations

import struct
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdl.errors import InputError
from jaxdl.files import atomic_write

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

BINS = 50  # of a histogram; TensorBoard draws 30
PREFIX = "events.out.tfevents"  # by which TensorBoard knows its files
OPEN = 256  # files that are open at a time
Write = Callable[[Iterable[tuple[str, "Event"]]], None]


@contextmanager
def written(
    folder: str | Path, names: Sequence[str], *, begin: int | None = 0, tell: Callable[[str], None] = warnings.warn
) -> Iterator[Write]:
    """A function that takes events with the run of each and has them on the disk when it returns.

    names: runs that are there from the beginning; others are made as their first event comes.

    `begin`: the epochs that were done before; what the runs in the folder say of later ones is taken back. Where they
    cannot be written, because the disk is full, say, that is told once and the rest left out.
    """
    folder = Path(folder)
    writers: dict[str, EventsWriter] = {}
    full = False

    def write(events: Iterable[tuple[str, Event]]) -> None:
        nonlocal full
        try:
            for name, event in events if not full else ():
                if name not in writers:
                    if len(writers) >= OPEN:
                        writers.pop(next(iter(writers))).close()
                    writers[name] = _writer(folder / name, None)
                writers[name].write_event(event)
            for writer in writers.values():
                writer.flush()
        except OSError as error:
            if not full:
                tell(f"{folder} cannot be written ({error.strerror}); the rest of the charts is left out.")
            full = True

    try:
        writers.update((name, _writer(folder / name, begin)) for name in names)
    except OSError as error:
        full = True
        tell(f"{folder} cannot be written ({error.strerror}); there will be no charts.")

    try:
        yield write
    finally:
        for writer in writers.values():
            with suppress(OSError):
                writer.close()


def restart(step: int) -> Event:
    """An event by which TensorBoard forgets what a run has said of an epoch, `step`, and of later ones.

    >>> restart(3).step
    3
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    return Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))


def _writer(folder: Path, begin: int | None) -> EventsWriter:
    # Imported here and below: only runs that write for TensorBoard need it.
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(parents=True, exist_ok=True)
    # Not FileWriter: what that flushes may still stand in the queue of its thread.
    writer = EventsWriter(str(folder / "events"))
    # Of a run that begins anew too: one that was killed before its first checkpoint may have written here.
    if begin is not None:
        writer.write_event(restart(begin + 1))
    return writer


def replace(folder: str | Path, name: str, events: Iterable[Event]) -> None:
    """Writes one file of a run whole, in the place of the one that had this name.

    Raises InputError where it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace(Path(folder), "text", [event([], step=1)])
    ...     print(*[file.name for file in Path(folder).iterdir()])
    events.out.tfevents.text
    """
    folder = Path(folder)
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"{PREFIX}.{name}") as file:
            for each in (Event(wall_time=time.time(), file_version="brain.Event:2"), *events):
                data = each.SerializeToString()
                # The format of TFRecord: the length and the data, each followed by its checksum.
                for part in (struct.pack("<Q", len(data)), data):
                    file.write(part + struct.pack("<I", masked_crc32c(part)))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}). Free some space and start the same command again."
        ) from error


def event(values: Iterable[Summary.Value], *, step: int, moment: float | None = None) -> Event:
    """Values of an epoch, `step`; `moment` in seconds since 1970, by default now.

    >>> event([scalar("loss", 0.5)], step=3).step
    3
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    summary = Summary(value=values)
    return Event(wall_time=time.time() if moment is None else moment, step=step, summary=summary)


def scalar(name: str, value: float) -> Summary.Value:
    """A figure, kept as float32.

    >>> scalar("loss", 0.5).simple_value
    0.5
    """
    from tensorboardX.proto.summary_pb2 import Summary

    return Summary.Value(tag=name, simple_value=value)


def scalars(record: Mapping[str, float], prefix: str = "") -> list[Summary.Value]:
    """The figures of a record whose names begin with "val_", without that, or where that is no prefix all others.

    >>> record = {"epoch": 1, "loss": 0.5, "val_loss": 0.25}
    >>> [(value.tag, value.simple_value) for value in scalars(record, "val_")]
    [('loss', 0.25)]
    """
    names = [name for name in record if name != "epoch" and name.startswith("val_") == bool(prefix)]
    return [scalar(name.removeprefix(prefix), record[name]) for name in names]


def histogram(name: str, values: np.ndarray) -> Summary.Value | None:
    """How the finite numbers of an array are spread, in `BINS` bins of one width; None where none is finite.

    >>> list(histogram("kernel", np.array([0.0, 0.0, 1.0, np.nan])).histo.bucket)[:: BINS - 1]
    [2.0, 1.0]
    """
    from tensorboardX.proto.summary_pb2 import HistogramProto, Summary

    numbers = np.asarray(values, np.float64).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return None
    low, high = numbers.min(), numbers.max()
    counts, limits = np.array([numbers.size]), np.array([high])
    # Some bins do not fit between numbers that lie close together, or have edges beyond the largest number.
    with suppress(ValueError), np.errstate(over="ignore", invalid="ignore"):
        if low < high:
            counts, edges = np.histogram(numbers, BINS, (low, high))
            limits = edges[1:]
    with np.errstate(over="ignore"):
        total, squares = numbers.sum(), (numbers**2).sum()
    histo = HistogramProto(
        min=low, max=high, num=numbers.size, sum=total, sum_squares=squares, bucket_limit=limits, bucket=counts
    )
    return Summary.Value(tag=name, histo=histo)


def text(name: str, markdown: str) -> Summary.Value:
    """Words in markdown.

    >>> text("configuration", "**seed** 7").tensor.string_val
    [b'**seed** 7']
    """
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboardX.proto.tensor_pb2 import TensorProto
    from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

    plugin = SummaryMetadata.PluginData(plugin_name="text")
    # Of no dimensions: TensorBoard draws a frame around the entries of an array.
    tensor = TensorProto(dtype="DT_STRING", string_val=[markdown.encode()], tensor_shape=TensorShapeProto())
    return Summary.Value(tag=name, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)


def picture(file: Path) -> Summary.Value:
    """A PNG file under its name; InputError for one that is none."""
    from tensorboardX.proto.summary_pb2 import Summary

    content = file.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise InputError(f"{file} must be a PNG file, got something else.")
    # The header of a PNG file: width and height stand at bytes 16 to 24.
    width, height = struct.unpack(">II", content[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=content)
    return Summary.Value(tag=file.stem, image=image)
