"""Read and check the published files of CIFAR-10."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickletools
import struct
import tarfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.types import Dataset

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (32, 32, 3)


class Arrays(NamedTuple):
    """Images and labels of the published training and test set."""

    train_images: np.ndarray  # (N, 32, 32, 3) uint8, channels red, green, blue
    train_labels: np.ndarray  # (N,) int32, numbers of classes from 0
    test_images: np.ndarray  # (M, 32, 32, 3) uint8
    test_labels: np.ndarray  # (M,) int32


class ImageData(NamedTuple):
    """A training and a test set of labelled images, and their origin."""

    train: Dataset  # inputs (N, 32, 32, 3) uint8, targets (N,) int32, sample_weight (N,) float32 ones; NumPy arrays
    test: Dataset
    classes: tuple[str, ...]  # names, by label
    name: str
    source: str  # such as "file:/home/me/cifar-10-batches-py", "tfds:cifar10/3.0.2", "simulated:7200:seed=0"
    sha256: str  # of the images and labels
    note: str | None = None  # a warning for the user


def image_data(arrays: Arrays, name: str, source: str, note: str | None = None) -> ImageData:
    """Return the two sets as datasets, with their checksum.

    Raises InputError for an empty set, images of another shape or dtype, and labels that are too few or name no class.
    """
    train = _checked_dataset(f"{source}: training", arrays.train_images, arrays.train_labels)
    test = _checked_dataset(f"{source}: test", arrays.test_images, arrays.test_labels)
    digest = hashlib.sha256()
    for rows in (train, test):
        digest.update(np.asarray(rows.inputs).data)
        digest.update(np.asarray(rows.targets, "<i4").tobytes())
    return ImageData(train, test, CLASSES, name, source, digest.hexdigest(), note)


def _checked_dataset(name: str, images: np.ndarray, labels: np.ndarray) -> Dataset:
    if images.dtype != np.uint8 or images.shape[1:] != SHAPE or len(images) == 0:
        raise InputError(
            f"{name} images must be uint8 of shape (rows, 32, 32, 3) with at least one row, got {images.dtype} of "
            f"shape {images.shape}. Use the files as they were published."
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"{name} labels must be one whole number for each of the {len(images)} images, got {labels.dtype} of shape "
            f"{labels.shape}. Use the files as they were published."
        )
    wrong = labels[(labels < 0) | (labels >= len(CLASSES))]
    if len(wrong):
        raise InputError(f"{name} labels must be from 0 to {len(CLASSES) - 1}, got {wrong[0]}. The file is damaged.")
    return dataset(np.ascontiguousarray(images), labels.astype(np.int32))


PIXELS = 3 * 32 * 32  # bytes of an image: the red plane, the green, the blue, each row by row
LARGEST = 1 << 28  # bytes of a file; a published one has some 31 million
HEADER = 1 << 20  # bytes of the header of a file in an archive
UNPACKED = 1 << 29  # bytes of an unpacked archive; a published one has some 186 million
ENTRIES = 10_000  # of an archive
INSTRUCTIONS = 300_000  # of a pickled file; a published one has some 30,000
ADVICE = "Get it again."
DISTRUST = f"Do not trust this copy. {ADVICE}"
# The allowed instructions of a pickled file, as pickletools names them. First the instructions that take values from
# the stack, with the number of values; None for all above the last mark.
TAKE = {
    **dict.fromkeys(("TUPLE", "APPENDS", "SETITEMS"), None),
    **dict.fromkeys(("TUPLE1", "APPEND", "BUILD"), 1),
    **dict.fromkeys(("TUPLE2", "SETITEM", "STACK_GLOBAL", "REDUCE"), 2),
    "TUPLE3": 3,
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
OTHERS = {
    *("PROTO", "FRAME", "MARK", "STOP", "GLOBAL", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("BINUNICODE", "SHORT_BINUNICODE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"),
}
OPCODES = {
    opcode.code.encode("latin-1"): opcode
    for opcode in pickletools.opcodes
    if opcode.name in {*TAKE, *CONSTANTS, *OTHERS}
}
# The functions in a pickled array, by NumPy's old and new names, and in bytes that Python 3 pickles in protocol 2.
NAMES = {
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode"),
}


class Batch(NamedTuple):
    """The images and labels of one file."""

    planes: NDArray[np.uint8]  # (N, 3, 32, 32)
    labels: NDArray[np.int32]  # (N,)


class Format(NamedTuple):
    """The names of the files of one format, and the functions that read them."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    classes: str  # the file with their names
    batch: Callable[[str, bytes], Batch]
    names: Callable[[str, bytes], Sequence[Any]]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files."""
        return (*self.train, self.test, self.classes)


def find(path: Path) -> Path:
    """Return the folder or the archive with the files: `path`, or the one in it under its published name.

    Raises InputError where there is none, or `path` cannot be read.
    """
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist. Name a folder or an archive with the files of CIFAR-10.")
        if path.is_file():
            return path
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Make it readable or name another.") from error
    if _format_of(names):
        return path
    known = [form.folder for form in FORMATS] + [form.archive for form in FORMATS]
    for name in known:
        if name in names:
            return path / name
    raise InputError(
        f"{path} must hold data_batch_1 and test_batch, itself or in {', '.join(known)}, got none of these."
    )


def read(path: Path) -> Arrays:
    """Return the images and labels of a folder or an archive, in the order of the files, of any length.

    A folder may lack the last of the training files. No file of an archive is extracted to the disk, and no function in
    a pickled file is called. Raises InputError with the name of a file that is missing, damaged or of another content.
    """
    form, files = _read_archive(path) if path.is_file() else _read_folder(path)
    present = [name for name in form.train if name in files]
    # Up to the last file in the folder, and at least the first.
    train = form.train[: max([1, *(form.train.index(name) + 1 for name in present)])]
    for name in (*train, form.test):
        if name not in files:
            got = ", ".join(sorted(files))
            raise InputError(f"{path} must hold {name}, got {got} without it. {ADVICE}")
    if form.classes in files and tuple(form.names(form.classes, files[form.classes])) != CLASSES:
        raise InputError(f"{form.classes} in {path} must name the classes {', '.join(CLASSES)}, got others. {ADVICE}")
    batches = [form.batch(f"{name} in {path}", files[name]) for name in (*train, form.test)]
    return Arrays(*_concatenate(batches[:-1]), *_concatenate(batches[-1:]))


@dataclass(eq=False)
class Named:
    """An object that a pickled file names, or makes by a call."""

    name: str
    arguments: Any = None
    state: Any = None


def unpickle(name: str, content: bytes) -> dict[str, Any]:
    """Return a pickled dict with strings as keys, without importing or calling what it names; name: for messages.

    An array is a `Named`, for `byte_table`. Raises InputError for an instruction or a name that no file of CIFAR-10
    contains, for damaged content, and for another type.
    """
    try:
        value = _interpret(name, content)
    except InputError:
        raise
    except (struct.error, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{name} must be a pickled file of CIFAR-10, got one cut short or damaged. {DISTRUST}"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{name} must hold a pickled dict, got a {type(value).__name__}. {DISTRUST}")
    return {key.decode(errors="replace") if isinstance(key, bytes) else key: item for key, item in value.items()}


def byte_table(name: str, value: object) -> NDArray[np.uint8]:
    """Return a `Named` of `unpickle` as an array of bytes (rows, columns). Raises InputError for any other value."""
    match value:
        case Named(
            name="_reconstruct",
            state=(_, (int(rows), int(columns)), Named(name="dtype", arguments=(kind, *_)), False, bytes(cells)),
        ):
            # Python 3 pickles the name of the dtype as str, Python 2 as bytes.
            if kind in ("u1", b"u1") and rows >= 0 and columns >= 0 and rows * columns == len(cells):
                return np.frombuffer(cells, np.uint8).reshape(rows, columns)
    raise InputError(f"{name} must be an array of bytes in rows and columns, got something else. {DISTRUST}")


def _interpret(name: str, content: bytes) -> Any:
    """Return the value in a pickled file of protocols 2 to 4; only its strings and bytes are hashed."""
    stream, encoded = io.BytesIO(content), 0
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def refusal(got: str) -> InputError:
        return InputError(f"{name} must hold images and labels only, got {got[:100]}. {DISTRUST}")

    for _ in range(INSTRUCTIONS):
        code = stream.read(1)
        if not code:
            raise EOFError
        if code not in OPCODES:
            raise refusal(f"the instruction {code!r}")
        opcode = OPCODES[code]
        if opcode.name == "GLOBAL":  # pickletools would decode escapes
            argument: Any = [_line(stream), _line(stream)]
        else:
            argument = opcode.arg.reader(stream) if opcode.arg else None
        count = TAKE.get(opcode.name, 0)
        start = marks.pop() if count is None else len(stack) - count
        if start < 0:
            raise IndexError
        values, stack[start:] = stack[start:], []
        match opcode.name:
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(values))
            case "APPEND" | "APPENDS":
                stack[-1].extend(values)
            case "SETITEM" | "SETITEMS":
                if not all(isinstance(key, (bytes, str)) for key in values[::2]):
                    raise TypeError
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
            case "BUILD":
                stack[-1].state = values[0]
            case "GLOBAL" | "STACK_GLOBAL":
                if (path := ".".join(argument or values)) not in NAMES:
                    raise refusal(path)
                stack.append(Named(path.rpartition(".")[2]))
            case "REDUCE" if values[0].name == "encode":
                text, _ = values[1]
                # Each string is encoded once: a small file cannot make many large ones.
                encoded += len(text)
                if encoded > len(content):
                    raise ValueError
                stack.append(text.encode("latin-1"))
            case "REDUCE":
                stack.append(Named(values[0].name, values[1]))
            case "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument.encode("latin-1"))
            case _:
                stack.append(CONSTANTS.get(opcode.name, argument))
    raise refusal(f"more than {INSTRUCTIONS} instructions")


def _line(stream: io.BytesIO) -> str:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return line[:-1].decode()


def _format_of(names: Collection[str]) -> Format | None:
    return next((form for form in FORMATS if any(name in names for name in (*form.train, form.test))), None)


def _read_folder(folder: Path) -> tuple[Format, dict[str, bytes]]:
    """Return the format of a folder, and the content of its files by name."""
    try:
        entries = {entry.name: entry for entry in folder.iterdir()}
        form = _format_of(entries)
        if form is None:
            raise InputError(f"{folder} must hold data_batch_1 and test_batch, got neither. {ADVICE}")
        files = {}
        for name in form.files:
            if (path := entries.get(name)) is not None:
                _check_size(path, path.is_file(), path.stat().st_size)
                files[name] = path.read_bytes()
    except OSError as error:
        place = error.filename or folder
        raise InputError(f"{place} cannot be read ({error.strerror}). Make it readable or name another.") from error
    return form, files


def _read_archive(path: Path) -> tuple[Format, dict[str, bytes]]:
    """Return the format of an archive, and the content of its files by name; other entries are ignored."""
    files: dict[str, dict[str, bytes]] = {form.folder: {} for form in FORMATS}
    known = {f"{form.folder}/{name}" for form in FORMATS for name in form.files}
    try:
        with gzip.open(path) as unpacked:
            content = _Bounded(unpacked)
            archive = tarfile.open(fileobj=content, mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
            # In the order of the archive: a seek backwards would unpack it again.
            for number, entry in enumerate(archive):
                if number == ENTRIES:
                    raise ValueError(f"more than {ENTRIES:,} entries")
                folder, _, name = entry.name.removeprefix("./").partition("/")
                if f"{folder}/{name}" in known:
                    _check_size(Path(entry.name), entry.isfile(), entry.size)
                    file, content.most = archive.extractfile(entry), LARGEST
                    files[folder][name] = file.read() if file else b""
                    content.most = HEADER
            # To the end, where gzip checks its checksum.
            while content.read(1 << 20):
                pass
    except InputError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RecursionError) as error:
        got = getattr(error, "strerror", None) or error
        raise InputError(f"{path} must be an undamaged archive of CIFAR-10, got {got}. {ADVICE}") from error
    for form in FORMATS:
        if _format_of(files[form.folder]) is form:
            return form, files[form.folder]
    raise InputError(f"{path} must hold the files of CIFAR-10, in one of {', '.join(files)}, got none. {ADVICE}")


class _Bounded:
    """A file that limits the size of a read and of the whole.

    The sizes in an archive may be false, and a few compressed bytes can unpack to any number.
    """

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file, self.most = file, HEADER

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.most:
            raise ValueError(f"a part that is larger than {self.most:,} bytes")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        self._check(place)
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, place: int) -> None:
        if place > UNPACKED:
            raise ValueError(f"more than {UNPACKED:,} bytes when it is unpacked")


def _check_size(path: Path, plain: bool, size: int) -> None:
    if not plain or size > LARGEST:
        got = f"{size} bytes" if plain else "something else"
        raise InputError(f"{path} must be a file of at most {LARGEST} bytes, got {got}. {ADVICE}")


def _rows(name: str, content: bytes) -> Batch:
    if len(content) % (1 + PIXELS):
        raise InputError(
            f"{name} must have {1 + PIXELS} bytes for each image, got {len(content)} bytes: "
            f"{len(content) // (1 + PIXELS)} images and a part of one. {ADVICE}"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return _batch(name, rows[:, 1:], rows[:, 0].tolist())


def _pickled(name: str, content: bytes) -> Batch:
    batch = unpickle(name, content)
    return _batch(name, byte_table(f"data of {name}", batch.get("data")), batch.get("labels"))


def _batch(name: str, pixels: NDArray[np.uint8], labels: object) -> Batch:
    if pixels.shape[1] != PIXELS or len(pixels) == 0:
        shape = " x ".join(map(str, pixels.shape))
        raise InputError(f"data of {name} must be rows of {PIXELS} bytes, at least one, got {shape}. {ADVICE}")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        got = f"{len(labels)}" if isinstance(labels, list) else "none"
        raise InputError(f"labels of {name} must be as many as the images, {len(pixels)}, got {got}. {ADVICE}")
    for label in labels:
        if type(label) is not int or not 0 <= label < len(CLASSES):
            got = str(label) if type(label) is int else f"a {type(label).__name__}"
            raise InputError(f"labels of {name} must be whole numbers from 0 to 9, got {got}. {ADVICE}")
    return Batch(pixels.reshape(-1, 3, *SHAPE[:2]), np.array(labels, np.int32))


def _concatenate(batches: Sequence[Batch]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return images (N, 32, 32, 3) and labels (N,)."""
    images = np.empty((sum(len(batch.labels) for batch in batches), *SHAPE), np.uint8)
    start = 0
    for batch in batches:
        rows = slice(start, start + len(batch.labels))
        # Channel by channel is three times as fast as one transposed copy.
        for channel in range(3):
            images[rows, ..., channel] = batch.planes[:, channel]
        start = rows.stop
    return images, np.concatenate([batch.labels for batch in batches])


def _lines(name: str, content: bytes) -> Sequence[Any]:
    return content.decode("ascii", "replace").split()


def _label_names(name: str, content: bytes) -> Sequence[Any]:
    names = unpickle(name, content).get("label_names")
    names = names if isinstance(names, list) else []
    return [name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in names]


TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
PYTHON = Format(
    *("cifar-10-batches-py", "cifar-10-python.tar.gz", TRAIN, "test_batch", "batches.meta"), _pickled, _label_names
)
BINARY = Format(
    *("cifar-10-batches-bin", "cifar-10-binary.tar.gz", tuple(f"{name}.bin" for name in TRAIN), "test_batch.bin"),
    *("batches.meta.txt", _rows, _lines),
)
FORMATS = (PYTHON, BINARY)
