"""Predict with an exported model. It needs the files beside it, jax, flatbuffers, numpy and, for pictures, pillow.

    python predict.py data.csv -o predictions.csv

In Python: `load(folder).predict(inputs)`. A model of several arrays reads and writes `.npz` files:

    python predict.py data.npz -o predictions.npz
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
import zipfile
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
OVERFLOW = 2.0**128 - 2.0**103  # the smallest number that becomes infinity in float32
MAX_BYTES = 2**31  # of an exported function, as of any flatbuffer, and of a batch
# The custom calls that jax.export itself writes, none of which takes an address.
HARMLESS = re.compile(
    r"Sharding|SPMDFullToShardShape|SPMDShardToFullShape|shape_assertion|annotate_device_placement|"
    r"(mhlo|chlo|stablehlo)\.\w+|cu_threefry2x32(_ffi)?|(lapack|cusolver|cublas|hipsolver|hipblas)_\w+_ffi|"
    r"(Eigh|Qr|ProductOfElementaryHouseholderReflectors|LuDecomposition|ApproxTopK|TopK)"
)


class DataError(ValueError):
    """Raised for a damaged model and for invalid data."""


class Portable(NamedTuple):
    """A loaded model."""

    about: dict[str, Any]  # the content of model.json
    call: Callable[[np.ndarray], Any]
    batch_size: int  # of the one compiled function: smaller batches are padded, larger ones split

    def predict(self, inputs: Any, name: str = "inputs", first: int = 0) -> Any:
        """Return float32 predictions (B, outputs) for raw inputs (B, ...).

        A model of several arrays takes the dict, tuple or NamedTuple that it was exported with, or a dict of the names
        in model.json, such as "image" or "pair/0", and returns its outputs in their dicts and tuples, NamedTuples as
        dicts.

        name, first: the name of the inputs and the number of their first row, in messages.

        Raises DataError for another shape or dtype, numbers that are not finite, and predictions that are not; and for
        missing and superfluous arrays, and arrays of different numbers of rows.
        """
        specs = self.about["inputs"]
        if isinstance(specs, dict):
            (predictions,) = self._batches([_cast(inputs, specs, name, first)], name, first)
            return predictions
        arrays = named_arrays(inputs, "inputs")
        names = [spec["name"] for spec in specs]
        missing = [each for each in names if each not in arrays]
        superfluous = [each for each in arrays if each not in names]
        if missing or superfluous:
            takes = ", ".join(f"{spec['name']} ({spec['dtype']} of shape {('rows', *spec['shape'])})" for spec in specs)
            wrong = [f"no {each}" for each in missing] + [f"{each}, which is not one of them" for each in superfluous]
            raise DataError(f"{name} must hold exactly {takes}, got {' and '.join(wrong)}.")
        rows = [_cast(arrays[spec["name"]], spec, f"{name}[{spec['name']!r}]", first) for spec in specs]
        for each, array in zip(names, rows, strict=True):
            if len(array) != len(rows[0]):
                raise DataError(
                    f"{name}[{each!r}] must have {len(rows[0])} rows as {names[0]!r} has, got {len(array)}."
                )
        results = self._batches(rows, name, first)
        outputs = [spec["name"] for spec in self.about["outputs"]]
        return _fill(self.about["structure"], dict(zip(outputs, results, strict=True)))

    def _batches(self, arrays: list[np.ndarray], name: str, first: int) -> list[np.ndarray]:
        """Return the outputs of the exported function for arrays of equally many rows, batch by batch."""
        spec, size = self.about["outputs"], self.batch_size
        if isinstance(spec, dict):
            spec = [{"name": "", "shape": [len(spec["names"])], "dtype": "float32"}]
        batches = [[np.zeros((0, *each["shape"]), each["dtype"])] for each in spec]
        for start in range(0, len(arrays[0]), size):
            count = min(size, len(arrays[0]) - start)
            padded = [array[start + np.minimum(np.arange(size), count - 1)] for array in arrays]
            try:
                results = [np.asarray(each)[:count] for each in jax.tree.leaves(self.call(*padded))]
            except Exception as error:  # JAX raises many types, as for a function of other devices.
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise DataError(f"the model cannot be run here ({reason:.500}).") from None
            for each, result, parts in zip(spec, results, batches, strict=True):
                infinite = np.argwhere(~np.isfinite(result))
                if len(infinite):
                    row, what = first + start + int(infinite[0][0]), f"the prediction {each['name']}".rstrip()
                    raise DataError(f"{name}, row {row}: {what} is not finite. Check the units of the inputs.")
                parts.append(result)
        return [np.concatenate(parts) for parts in batches]


def _cast(values: Any, spec: dict[str, Any], name: str, first: int) -> np.ndarray:
    """Return raw inputs in their dtype. Raises DataError as `Portable.predict` does."""
    if np.ma.is_masked(values):
        raise DataError(f"{name} must hold a number everywhere, got masked values. Fill them or drop such rows.")
    rows, dtype, shape = np.asarray(values), np.dtype(spec["dtype"]), ("rows", *spec["shape"])
    kinds = {"f": "fiub", "b": "biu"}.get(dtype.kind, "iu")
    if rows.ndim == 0 or rows.shape[1:] != shape[1:] or rows.dtype.kind not in kinds:
        raise DataError(f"{name} must be {dtype} of shape {shape}, got {rows.dtype} of shape {rows.shape}.")
    with np.errstate(over="ignore"):
        cast = rows.astype(dtype, copy=False)
    wrong = np.argwhere(~np.isfinite(cast) if dtype.kind == "f" else cast != rows)
    if len(wrong):
        row, got = first + int(wrong[0][0]), rows[tuple(wrong[0])]
        raise DataError(f"{name}, row {row}: must hold numbers that {dtype} can hold, got {got}.")
    return cast


def array_name(path: tuple[Any, ...], name: str) -> str:
    """Return the name of an array from JAX's path of it, such as "image" or "pair/0"; for an empty path `name`."""
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in path) or name


def named_arrays(tree: Any, name: str) -> dict[str, Any]:
    """Return the arrays in dicts, tuples and NamedTuples by name. name: of one array without a container.

    Raises DataError for two arrays of one name.
    """
    try:
        # A list is one array of rows.
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, list))
    except ValueError as error:
        raise DataError(f"{name} must have names that are strings ({error}).") from None
    names = [array_name(path, name) for path, _ in leaves]
    if len({*names}) < len(names):
        raise DataError(f"{name} must have different names, got {', '.join(names)}.")
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _fill(structure: Any, arrays: dict[str, Any]) -> Any:
    """Return dicts and tuples of arrays, from the structure in model.json, which holds their names."""
    if isinstance(structure, dict):
        return {key: _fill(part, arrays) for key, part in structure.items()}
    if isinstance(structure, list):
        return tuple(_fill(part, arrays) for part in structure)
    return None if structure is None else arrays[structure]


def load(folder: str | Path, batch_size: int | None = None) -> Portable:
    """Return the model in a folder. Raises DataError where a file is missing or damaged."""
    content = {}
    try:
        sums = {line[66:]: line[:64] for line in _read(Path(folder, SUMS)).decode("utf-8", "replace").splitlines()}
        for name in (ABOUT, PROGRAM):
            content[name] = _read(Path(folder, name))
            if hashlib.sha256(content[name]).hexdigest() != sums.get(name):
                raise DataError(f"{Path(folder, name)} is damaged: its SHA-256 is not that in {SUMS}.")
    except OSError as error:
        raise DataError(f"{folder} holds no exported model ({error}). Name the folder of an export.") from None
    try:
        about, exported = json.loads(content[ABOUT]), jax.export.deserialize(bytearray(content[PROGRAM]))
        module = exported.mlir_module()
    except Exception as error:  # JAX raises many types, as for an export of another version.
        raise DataError(f"{folder} cannot be read by jax {jax.__version__}: {error!r:.500}. Try a later one.") from None
    _check_calls(folder, module)
    if not _describes(about, exported):
        raise DataError(f"{Path(folder, ABOUT)} does not describe the {PROGRAM} beside it. Export the model again.")
    if batch_size is not None and batch_size < 1:
        raise DataError(f"--batch-size must be at least 1 row, got {batch_size}. Leave it out.")
    return Portable(about, jax.jit(exported.call), batch_size or about["batch_size"])


def _read(path: Path) -> bytes:
    """Return the content of a file. Raises OSError for a pipe, a device and more than `MAX_BYTES`."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_BYTES:
            raise OSError(f"{path} is no file of at most {MAX_BYTES:,} bytes")
        return file.read()


def _describes(about: Any, exported: Any) -> bool:
    """Return whether model.json, which anybody can edit, describes the exported function."""
    if isinstance(about, dict) and isinstance(about.get("inputs"), list):
        return _describes_arrays(about, exported)
    try:
        inputs, outputs, size = about["inputs"], about["outputs"], about["batch_size"]
        (row,), (prediction,), columns, names = (
            exported.in_avals,
            exported.out_avals,
            inputs["columns"],
            outputs["names"],
        )
        numbers = all(type(length) is int for length in inputs["shape"])
        return (
            numbers
            and (tuple(inputs["shape"]), inputs["dtype"]) == (row.shape[1:], str(row.dtype))
            and row.dtype.kind in "fiu"
            and (columns is None or (_are_distinct(columns) and [len(columns)] == inputs["shape"]))
            and (exported.in_tree, exported.out_tree) == (jax.tree.structure(((0,), {})), jax.tree.structure(0))
            and (prediction.dtype, prediction.shape[1:]) == (np.float32, (len(names),))
            and _are_distinct(names)
            and outputs["link"] in ("none", "sigmoid", "softmax")
            and type(size) is int
            and 0 < size * max(1, math.prod(row.shape[1:])) * row.dtype.itemsize <= MAX_BYTES
        )
    except (KeyError, TypeError, ValueError):
        return False


def _describes_arrays(about: dict[str, Any], exported: Any) -> bool:
    """Return whether the model.json of a model of several arrays describes the exported function."""
    try:
        inputs, outputs, size = about["inputs"], about["outputs"], about["batch_size"]
        for specs, shapes in ((inputs, exported.in_avals), (outputs, exported.out_avals)):
            if not (specs and _are_distinct([spec["name"] for spec in specs]) and len(specs) == len(shapes)):
                return False
            for spec, aval in zip(specs, shapes, strict=True):
                numbers = all(type(length) is int for length in spec["shape"]) and aval.dtype.kind in "fiub"
                if not numbers or (tuple(spec["shape"]), spec["dtype"]) != (aval.shape[1:], str(aval.dtype)):
                    return False
        names = {spec["name"]: spec["name"] for spec in outputs}
        row_bytes = sum(math.prod(aval.shape[1:]) * aval.dtype.itemsize for aval in exported.in_avals)
        return (
            named_arrays(_fill(about["structure"], names), "outputs") == names
            and exported.in_tree == jax.tree.structure(((0,) * len(inputs), {}))
            and exported.out_tree == jax.tree.structure([0] * len(outputs))
            and type(size) is int
            and 0 < size * max(1, row_bytes) <= MAX_BYTES
        )
    except (KeyError, RecursionError, TypeError, ValueError):
        return False


def _are_distinct(entries: Any) -> bool:
    """Return whether a value is a list of distinct strings."""
    return isinstance(entries, list) and all(type(each) is str for each in entries) and len({*entries}) == len(entries)


def _check_calls(folder: str | Path, module: str) -> None:
    """Raise DataError for a custom call that is not known to be harmless: some jump to an address in the module."""
    names = re.findall(r'custom_call\s*@"?([\w.$-]*)|custom_call"|call_target_name\s*=\s*"([^"]*)"', module)
    for name in {first or second for first, second in names}:
        if not HARMLESS.fullmatch(name):
            raise DataError(
                f"{folder} calls {name or 'a function without a name'}, which is not known to be harmless. If you "
                "trust its author, run it with jax.export, on a machine without data that matters."
            )


def read_table(lines: Iterable[str], columns: list[str], name: str, size: int) -> Iterator[np.ndarray]:
    """Yield batches of `size` rows of a CSV file, with the named columns in this order; name: of the file."""
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
                break  # Only empty lines follow.
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
    """Return the numbers in the cells of a row."""
    with suppress(ValueError):
        numbers = [*map(float, cells)]
        # The sum is not finite if a number is not. Python also reads 1_000 as a number.
        if sum(map(abs, numbers)) < OVERFLOW and "_" not in "".join(cells):
            return numbers
    for column, cell in zip(columns, cells, strict=True):
        with suppress(ValueError):
            if abs(float(cell.replace("_", "?"))) < OVERFLOW:
                continue
        raise DataError(f"{where}, column {column}: must be a number that float32 can hold, got {cell!r}.")
    return numbers


def _is_pictures(path: Path) -> bool:
    """Return whether a path is a picture or a folder."""
    return path.is_dir() or path.suffix.lower() in PICTURES


def read_pictures(paths: list[Path], shape: list[int]) -> np.ndarray:
    """Return picture files as (B, height, width, channels) uint8, rotated by their EXIF, on white where transparent."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataError("pictures need pillow (pip install pillow); .npy files do not.") from None
    rows = []
    for path in paths:
        try:
            with Image.open(path) as file:
                # A camera stores the pixels of its sensor, and the rotation in EXIF.
                picture = ImageOps.exif_transpose(file)
                if [picture.height, picture.width] != shape[:2] or picture.mode[0] in "IF":
                    got = f"{picture.height} x {picture.width} of mode {picture.mode}"
                    raise DataError(f"{path} must be {shape[0]} x {shape[1]} pixels of 8 bits a color, got {got}.")
                if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
                    layer = picture.convert("RGBA")
                    picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
                rows.append(np.asarray(picture.convert("L" if shape[2] == 1 else "RGB")).reshape(shape))
        except DataError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} must be a picture ({error}).") from None
    return np.stack(rows)


def predict_source(model: Portable, source: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield the predictions for a file, a folder or "-" in batches, with the names of picture files."""
    spec, size, path = model.about["inputs"], model.batch_size, Path(source)
    if source != "-" and not path.exists():
        raise DataError(f"{source} must be a file or a folder, got nothing of that name.")
    if _is_pictures(path):
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in PICTURES) if path.is_dir() else [path]
        if spec["dtype"] != "uint8" or len(spec["shape"]) != 3 or not files:
            takes = f"the model takes {spec['dtype']} of shape {spec['shape']}"
            raise DataError(f"{path} holds {len(files)} pictures ({', '.join(PICTURES)}); {takes}.")
        for start in range(0, len(files), size):
            some = files[start : start + size]
            yield [file.name for file in some], model.predict(read_pictures(some, spec["shape"]))
    elif path.suffix == ".npy":
        try:
            array = np.atleast_1d(np.load(path, mmap_mode="r"))
        except (ValueError, EOFError) as error:
            raise DataError(f"{path} must be an array of numbers as numpy.save writes it ({error}).") from None
        for start in range(0, len(array), size):
            yield [], model.predict(array[start : start + size], source, start)
    elif spec["columns"] is None:
        raise DataError(f"{path} is no .npy file; the model takes {spec['dtype']} of shape {spec['shape']}.")
    else:
        file_or_number, closed = (sys.stdin.fileno(), False) if source == "-" else (path, True)
        with open(file_or_number, encoding="utf-8-sig", errors="surrogateescape", newline="", closefd=closed) as file:
            for number, rows in enumerate(read_table(file, spec["columns"], source, size)):
                yield [], model.predict(rows, source, number * size)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file by name."""
    if not path.is_file():
        raise DataError(f"{path} must be a .npz file, got no file of that name.")
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # Zip files fail with many types.
        raise DataError(f"{path} must be arrays of numbers as numpy.savez writes them ({error!r:.200}).") from None


def write_arrays(model: Portable, source: str, target: str) -> None:
    """Write the predictions of a model of several arrays for a .npz file, as a .npz file with the outputs' names."""
    for path, option in ((source, "data.npz"), (target, "-o predictions.npz")):
        if Path(path).suffix != ".npz":
            names = [
                ", ".join(spec["name"] for spec in specs) for specs in (model.about["inputs"], model.about["outputs"])
            ]
            raise DataError(
                f"{path} must be a .npz file for a model from {names[0]} to {names[1]}. Type {option}; numpy.savez "
                "writes such a file, with the names of the arrays."
            )
    results = named_arrays(model.predict(read_arrays(Path(source)), source), "outputs")
    with open_target(target) as file, zipfile.ZipFile(file.buffer, "w") as archive:
        for name, array in results.items():
            # Unlike numpy.savez, this takes every name, and the file holds no date.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@contextmanager
def open_target(target: str) -> Iterator[TextIO]:
    """Open a file that is written whole or not at all; "-" and devices are written directly."""
    path = Path(os.path.realpath(target))
    if target == "-":
        yield sys.stdout
    elif path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    else:
        # A random new name: no link is followed, and no file is overwritten.
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


def printable(text: str) -> str:
    """Return a text from elsewhere with its control characters, and what UTF-8 cannot encode, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def write(folder: str | Path, source: str, target: str = "-", batch_size: int | None = None) -> None:
    """Write the predictions for a source as CSV: a header, and a line for each row. Several arrays: .npz files."""
    model = load(folder, batch_size)
    paths = [Path(os.path.realpath(each)) for each in (target, source, folder)]
    if target != "-" and paths[0].is_file() and (paths[0] == paths[1] or paths[2] in paths[0].parents):
        raise DataError(f"{target} must be neither the input nor a file of the model. Choose another file.")
    if isinstance(model.about["inputs"], list):
        write_arrays(model, source, target)
        return
    names = [printable(name) for name in model.about["outputs"]["names"]]
    classes = model.about["outputs"]["link"] == "softmax"
    with open_target(target) as file:
        lines = csv.writer(file, lineterminator="\n")
        header = [["file"] * _is_pictures(Path(source)) + ["class", "probability"] * classes + names]
        for files, batch in predict_source(model, source):
            # Only now: a source that cannot be read leaves standard output empty.
            lines.writerows(header)
            header, best = [], batch.argmax(1)
            for place, row in enumerate(batch.astype(str).tolist()):
                file_name = map(printable, files[place : place + 1])
                lines.writerow([*file_name, *([names[best[place]], row[best[place]]] * classes), *row])
        lines.writerows(header)


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit code: 2 for bad input, 130 after Ctrl-C, 141 for a closed output."""
    parser = argparse.ArgumentParser(
        description="Write the predictions of a model as CSV: a header, and a line for each row."
    )
    data = (
        "a CSV file with a header (- for standard input), a .npy file, a picture, or a folder of pictures; a .npz file "
        "for a model of several arrays"
    )
    parser.add_argument("data", help=data)
    parser.add_argument("-o", "--out", default="-", help="the file to write; by default standard output")
    parser.add_argument("--batch-size", type=int, help="rows in a batch; by default the model's")
    options = parser.parse_args(arguments)
    try:
        write(Path(__file__).parent, options.data, options.out, options.batch_size)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe, like `head`; Python would write again, and print an error, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (DataError, OSError) as error:
        # A name from elsewhere must not control the terminal.
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
