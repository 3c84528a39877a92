"""Predictions of an exported model: needs jax, flatbuffers, numpy and the files beside it; for pictures pillow too.

    python predict.py data.csv -o predictions.csv

In a program: `load(folder).predict(inputs)`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import re
import secrets
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.export
import numpy as np

ABOUT, PROGRAM, SUMS = "model.json", "model.stablehlo", "SHA256SUMS"
PICTURES = (".png", ".jpg", ".jpeg")
BEYOND = 2.0**128 - 2.0**103  # the least number that becomes infinity in float32
MOST = 2**31  # bytes of a program, as of any flatbuffer, and of the rows that it takes at a time
# Custom calls that jax.export itself may write, none of which takes an address.
HARMLESS = re.compile(
    r"Sharding|SPMDFullToShardShape|SPMDShardToFullShape|shape_assertion|annotate_device_placement|"
    r"(mhlo|chlo|stablehlo)\.\w+|cu_threefry2x32(_ffi)?|(lapack|cusolver|cublas|hipsolver|hipblas)_\w+_ffi|"
    r"(Eigh|Qr|ProductOfElementaryHouseholderReflectors|LuDecomposition|ApproxTopK|TopK)"
)


class DataError(ValueError):
    """Raised for a model or data that cannot be used: says where, and what is wrong."""


class Portable(NamedTuple):
    """An exported model, loaded."""

    about: dict[str, Any]  # what model.json says
    call: Callable[[np.ndarray], Any]
    batch_size: int  # rows of the one program that is compiled: fewer are filled up, more are cut

    def predict(self, inputs: Any, name: str = "inputs", first: int = 0) -> np.ndarray:
        """Predictions (rows, numbers) float32 for raw inputs (rows, ...); `first` is the number of the first row."""
        if np.ma.is_masked(inputs):
            raise DataError(f"{name} must hold a number everywhere, got masked values. Fill them or drop such rows.")
        wanted, rows, size = self.about["inputs"], np.asarray(inputs), self.batch_size
        dtype, shape = np.dtype(wanted["dtype"]), ("rows", *wanted["shape"])
        kinds = "fiub" if dtype.kind == "f" else "iu"
        if rows.ndim == 0 or rows.shape[1:] != shape[1:] or rows.dtype.kind not in kinds:
            raise DataError(f"{name} must be {dtype} of shape {shape}, got {rows.dtype} of shape {rows.shape}.")
        with np.errstate(over="ignore"):
            cast = rows.astype(dtype, copy=False)
        wrong = np.argwhere(~np.isfinite(cast) if dtype.kind == "f" else cast != rows)
        if len(wrong):
            row, got = first + int(wrong[0][0]), rows[tuple(wrong[0])]
            raise DataError(f"{name}, row {row}: must hold numbers that {dtype} can hold, got {got}.")
        found = [np.zeros((0, len(self.about["outputs"]["names"])), np.float32)]
        for start in range(0, len(cast), size):
            some = cast[start : start + size]
            filled = some[np.minimum(np.arange(size), len(some) - 1)]
            try:
                found.append(np.asarray(self.call(filled))[: len(some)])
            except Exception as error:  # Whatever a program for other devices, or one that is none, makes jax raise.
                why = next(iter(str(error).splitlines()), type(error).__name__)
                raise DataError(f"the model cannot be run here ({why:.500}).") from None
            lost = np.flatnonzero(~np.isfinite(found[-1]).all(1))
            if len(lost):
                raise DataError(f"{name}, row {first + start + int(lost[0])}: lies too far from what was trained on.")
        return np.concatenate(found)


def load(folder: str | Path, batch_size: int | None = None) -> Portable:
    """The model in a folder, whose checksums are looked at."""
    content = {}
    try:
        sums = {line[66:]: line[:64] for line in _read(Path(folder, SUMS)).decode("utf-8", "replace").splitlines()}
        for name in (ABOUT, PROGRAM):
            content[name] = _read(Path(folder, name))
            if hashlib.sha256(content[name]).hexdigest() != sums.get(name):
                raise DataError(f"{Path(folder, name)} is damaged: its SHA-256 is not that in {SUMS}.")
    except OSError as error:
        raise DataError(f"{folder} holds no exported model ({error}). Name the folder that export made.") from None
    try:
        about, exported = json.loads(content[ABOUT]), jax.export.deserialize(bytearray(content[PROGRAM]))
        program = exported.mlir_module()
    except Exception as error:  # Whatever a program of another version, or none at all, makes jax raise.
        raise DataError(f"{folder} cannot be read by jax {jax.__version__}: {error!r:.500}. Try a later one.") from None
    _check_calls(folder, program)
    if not _describes(about, exported):
        raise DataError(f"{Path(folder, ABOUT)} does not describe the program beside it. Export the model anew.")
    if batch_size is not None and batch_size < 1:
        raise DataError(f"--batch-size must be at least 1 row, got {batch_size}. Leave it out.")
    return Portable(about, jax.jit(exported.call), batch_size or about["batch_size"])


def _read(path: Path) -> bytes:
    """What a file holds; OSError for a pipe or a device, which may never end, and for more than a program can have."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > MOST:
            raise OSError(f"{path} is no file of at most {MOST:,} bytes")
        return file.read()


def _describes(about: Any, exported: Any) -> bool:
    """Whether model.json, which anybody can write, says of a program what is true, as far as it is used here."""
    try:
        inputs, outputs, size = about["inputs"], about["outputs"], about["batch_size"]
        (row,), (found,), columns, names = exported.in_avals, exported.out_avals, inputs["columns"], outputs["names"]
        numbers = all(type(length) is int for length in inputs["shape"])
        return (
            numbers
            and (tuple(inputs["shape"]), inputs["dtype"]) == (row.shape[1:], str(row.dtype))
            and row.dtype.kind in "fiu"
            and (columns is None or (_texts(columns) and [len(columns)] == inputs["shape"]))
            and (exported.in_tree, exported.out_tree) == (jax.tree.structure(((0,), {})), jax.tree.structure(0))
            and (found.dtype, found.shape[1:]) == (np.float32, (len(names),))
            and _texts(names)
            and outputs["link"] in ("none", "sigmoid", "softmax")
            and type(size) is int
            and 0 < size * max(1, math.prod(row.shape[1:])) * row.dtype.itemsize <= MOST
        )
    except (KeyError, TypeError, ValueError):
        return False


def _texts(entries: Any) -> bool:
    """Whether this is a list of texts, each another one."""
    return isinstance(entries, list) and all(type(each) is str for each in entries) and len({*entries}) == len(entries)


def _check_calls(folder: str | Path, program: str) -> None:
    """Raises DataError for a program that calls what is not known to be harmless.

    Some of XLA's custom calls take an address from the program and go there.
    """
    found = re.findall(r'custom_call\s*@"?([\w.$-]*)|custom_call"|call_target_name\s*=\s*"([^"]*)"', program)
    for name in {first or second for first, second in found}:
        if not HARMLESS.fullmatch(name):
            raise DataError(
                f"{folder} calls {name or 'something without a name'}, which is not known to be harmless. Run it where "
                "nothing can be lost, with jax.export, if you trust whom it comes from."
            )


def table(lines: Iterable[str], columns: list[str], name: str, size: int) -> Iterator[np.ndarray]:
    """The rows of a CSV file, `size` at a time: the columns of these names, in this order.

    >>> [rows.tolist() for rows in table(["b,DATE,a", "1,20000101,2"], ["a", "b"], "t.csv", 100)]
    [[[2.0, 1.0]]]
    """
    reader, rows = csv.reader(lines, strict=True), []
    try:
        header = [cell.strip() for cell in next(reader, [])]
        counts = Counter(header)
        for count, text in ((0, "lacks"), (2, "has more than once")):
            wrong = [column for column in columns if min(counts[column], 2) == count]
            if wrong:
                more = f" and {len(wrong) - 9} more" if len(wrong) > 9 else ""
                raise DataError(f"{name} {text} {len(wrong)} of {len(columns)} columns: {', '.join(wrong[:9])}{more}.")
        order = {column: place for place, column in enumerate(header)}
        places = [order[column] for column in columns]
        for cells in reader:
            where = f"{name}, line {reader.line_num}"
            if not cells and not any(reader):
                break  # Only empty lines were left.
            if len(cells) != len(header):
                raise DataError(f"{where}: must have {len(header)} cells as the header has, got {len(cells)}.")
            rows.append(_numbers([cells[place] for place in places], columns, where))
            if len(rows) == size:
                yield np.array(rows, np.float32)
                rows = []
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{name}, line {reader.line_num}: must be CSV in UTF-8 ({error}).") from None
    if rows:
        yield np.array(rows, np.float32)


def _numbers(cells: list[str], columns: list[str], where: str) -> list[float]:
    """The numbers in the cells of a row."""
    with suppress(ValueError):
        found = [*map(float, cells)]
        # The sum tells of nan and infinity; and Python takes 1_000 for a number.
        if sum(map(abs, found)) < BEYOND and "_" not in "".join(cells):
            return found
    for column, cell in zip(columns, cells, strict=True):
        with suppress(ValueError):
            if abs(float(cell.replace("_", "?"))) < BEYOND:
                continue
        raise DataError(f"{where}, column {column}: must be a number that float32 can hold, got {cell!r}.")
    return found


def _of_pictures(path: Path) -> bool:
    """Whether a path is that of a picture, or of a folder of them."""
    return path.is_dir() or path.suffix.lower() in PICTURES


def pictures(paths: list[Path], shape: list[int]) -> np.ndarray:
    """Picture files as (rows, height, width, channels) uint8: turned as their EXIF says, on white where transparent."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataError("pictures need pillow (pip install pillow); .npy files do not.") from None
    rows = []
    for path in paths:
        try:
            with Image.open(path) as file:
                # A camera stores the pixels as its sensor saw them, and beside them how to turn them.
                picture = ImageOps.exif_transpose(file)
                if [picture.height, picture.width] != shape[:2] or picture.mode[0] in "IF":
                    got = f"{picture.height} x {picture.width} of mode {picture.mode}"
                    raise DataError(f"{path} must be {shape[0]} x {shape[1]} pixels of 8 bits a color, got {got}.")
                if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
                    seen = picture.convert("RGBA")
                    picture = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
                rows.append(np.asarray(picture.convert("L" if shape[2] == 1 else "RGB")).reshape(shape))
        except DataError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} must be a picture ({error}).") from None
    return np.stack(rows)


def predictions(model: Portable, source: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """Predictions of a file, of a folder or of "-", a batch at a time; those of pictures with their files' names."""
    wanted, size, path = model.about["inputs"], model.batch_size, Path(source)
    if source != "-" and not path.exists():
        raise DataError(f"{source} must be a file or a folder, got nothing of that name.")
    if _of_pictures(path):
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in PICTURES) if path.is_dir() else [path]
        if wanted["dtype"] != "uint8" or len(wanted["shape"]) != 3 or not files:
            takes = f"the model takes {wanted['dtype']} of shape {wanted['shape']}"
            raise DataError(f"{path} holds {len(files)} pictures ({', '.join(PICTURES)}); {takes}.")
        for start in range(0, len(files), size):
            some = files[start : start + size]
            yield [file.name for file in some], model.predict(pictures(some, wanted["shape"]))
    elif path.suffix == ".npy":
        try:
            array = np.atleast_1d(np.load(path, mmap_mode="r"))
        except (ValueError, EOFError) as error:
            raise DataError(f"{path} must be an array of numbers as numpy.save writes it ({error}).") from None
        for start in range(0, len(array), size):
            yield [], model.predict(array[start : start + size], source, start)
    elif wanted["columns"] is None:
        raise DataError(f"{path} is no .npy file; the model takes {wanted['dtype']} of shape {wanted['shape']}.")
    else:
        file_or_number, closed = (sys.stdin.fileno(), False) if source == "-" else (path, True)
        with open(file_or_number, encoding="utf-8-sig", errors="surrogateescape", newline="", closefd=closed) as file:
            for number, rows in enumerate(table(file, wanted["columns"], source, size)):
                yield [], model.predict(rows, source, number * size)


@contextmanager
def written(target: str) -> Iterator[TextIO]:
    """A file to write that is there whole or not at all; "-" and devices are written as they are."""
    path = Path(os.path.realpath(target))
    if target == "-":
        yield sys.stdout
    elif path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    else:
        # A name that nobody can foresee and that did not exist: no link is followed, and no file written over.
        draft = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.part")
        try:
            file = draft.open("x", encoding="utf-8", newline="")
        except OSError as error:
            raise DataError(f"{target} cannot be written: {error.strerror}.") from None
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def shown(text: str) -> str:
    """A text from elsewhere, with what a terminal would obey, or UTF-8 cannot say, as its escape.

    >>> print(shown("cat\x1b[2J"))
    cat\\x1b[2J
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def write(folder: str | Path, source: str, target: str = "-", batch_size: int | None = None) -> None:
    """Writes the predictions of a source as CSV: a header, and a line a row."""
    model = load(folder, batch_size)
    paths = [Path(os.path.realpath(each)) for each in (target, source, folder)]
    if target != "-" and paths[0].is_file() and (paths[0] == paths[1] or paths[2] in paths[0].parents):
        raise DataError(f"{target} must not be what is read, or a part of the model. Choose another file.")
    names = [shown(name) for name in model.about["outputs"]["names"]]
    classes = model.about["outputs"]["link"] == "softmax"
    with written(target) as file:
        lines = csv.writer(file, lineterminator="\n")
        waiting = [["file"] * _of_pictures(Path(source)) + ["class", "probability"] * classes + names]
        for files, found in predictions(model, source):
            lines.writerows(waiting)
            waiting, best = [], found.argmax(1)
            for place, row in enumerate(found.astype(str).tolist()):
                file_name = map(shown, files[place : place + 1])
                lines.writerow([*file_name, *([names[best[place]], row[best[place]]] * classes), *row])
        lines.writerows(waiting)


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code is 2 for bad input, 130 after Ctrl-C, 141 where the output's reader is gone."""
    parser = argparse.ArgumentParser(description="Writes a model's predictions as CSV: a header, and a line a row.")
    what = "a CSV file with a header (- for the standard input), a .npy file, a picture, or a folder of pictures"
    parser.add_argument("data", help=what)
    parser.add_argument("-o", "--out", default="-", help="the file to write; by default the standard output")
    parser.add_argument("--batch-size", type=int, help="rows at a time; by default the model's")
    given = parser.parse_args(arguments)
    try:
        write(Path(__file__).parent, given.data, given.out, given.batch_size)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has had enough, as `head` does; Python would try once more, and complain, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (DataError, OSError) as error:
        # Names from elsewhere must not command the terminal.
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
