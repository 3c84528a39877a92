"""A trained model as a folder that others can use without this project: program, weights, card, `predict.py`."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxdl import cards, files, folders, portable
from jaxdl.batches import batch_rows
from jaxdl.data import Scaling
from jaxdl.errors import InputError
from jaxdl.inference import inference
from jaxdl.leaves import named
from jaxdl.locks import exclusive
from jaxdl.networks import as_model, from_json
from jaxdl.runs import surroundings
from jaxdl.types import Model, PyTree, Weights
from jaxdl.weights import load

CARD, WEIGHTS, PREDICT = "README.md", "weights.safetensors", "predict.py"


class Outputs(NamedTuple):
    """What an exported model gives for a row."""

    names: Sequence[str] = ()  # of its numbers, or of its classes; numbered unless given
    link: Literal["none", "sigmoid", "softmax"] = "none"  # what makes them of the network's outputs
    unit: str = ""


def export(
    folder: str | Path,
    model: Model,
    weights: Weights,
    inputs: Any,
    *,
    columns: Sequence[str] | None = None,
    scaling: Scaling | None = None,
    outputs: Outputs = Outputs(),  # noqa: B008  a NamedTuple does not change
    card: str = "# A model\n",
    batch_size: int | None = None,
) -> Path:
    """Writes a model that takes `inputs` (rows, ...), such as the first ones, to a new folder, whole or not at all.

    The program in it takes raw inputs of any number of rows, on CPU, CUDA and TPU, and gives float32 (rows, numbers).

    columns: the names of the inputs in tables; x1, x2, ... unless given. scaling: taken off the inputs first, as
    `standardise` does. card: Markdown, which the model card begins with. batch_size: rows that `predict.py` takes at a
    time; fewer are filled up to them.
    Raises InputError where the folder exists or cannot be written, and for weights that are not finite or not the
    model's, names that do not fit, a batch_size below 1, and 64-bit numbers.

    >>> import tempfile
    >>> from jaxdl import mlp
    >>> model, rows = mlp((8,)), np.array([[1.0, 2.0]], np.float32)
    >>> weights = model.init(jax.random.key(0), rows)
    >>> with tempfile.TemporaryDirectory() as above:
    ...     folder = export(f"{above}/rain", model, weights, rows, columns=["wind", "sun"], outputs=Outputs(["rain"]))
    ...     sorted(path.name for path in folder.iterdir())
    ...     bool(np.allclose(portable.load(folder).predict(rows), model.apply(weights, rows, train=False)[0]))
    ['README.md', 'SHA256SUMS', 'model.json', 'model.stablehlo', 'predict.py', 'weights.safetensors']
    True
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1 row, got {batch_size}. Leave it out.")
    rows, kept = _row(np.asarray(inputs)), jax.tree.map(np.asarray, weights)
    _check_weights(model, kept, rows)
    program = inference(model, kept, rows, scaling=scaling, link=outputs.link)
    about = {
        "inputs": {"shape": rows.shape[1:], "dtype": str(rows.dtype), "columns": _columns(rows, columns)},
        "outputs": {**outputs._asdict(), "names": _names(outputs.names, program.out_avals[0].shape[1])},
        "batch_size": batch_size or batch_rows(rows),
        "platforms": program.platforms,
        **{name: entry for name, entry in surroundings().items() if name in ("versions", "commit")},
    }
    with _new(Path(folder).expanduser()) as draft:
        files.write_json(draft / portable.ABOUT, about)
        (draft / portable.PROGRAM).write_bytes(program.serialize())
        _write_weights(draft / WEIGHTS, kept)
        (draft / PREDICT).write_bytes(Path(portable.__file__).read_bytes())
        (draft / CARD).write_text(f"{card.rstrip()}\n\n{cards.usage(about)}", encoding="utf-8")
        (draft / portable.SUMS).write_text(files.checksum_lines(draft), encoding="utf-8")
    return Path(folder).expanduser()


def export_run(run: str | Path, folder: str | Path, *, kept: Literal["best", "final"] = "best") -> Path:
    """Writes the model of a finished run, the weights of its best epoch or its last, as `export` does.

    Raises InputError for a folder that is not that of a finished run, or of one whose config.json describes no
    network, and as `export` does.

    >>> export_run(Path("no", "such", "folder"), "out")
    Traceback (most recent call last):
    ...
    jaxdl.errors.InputError: no/such/folder holds no run: it has no config.json. Name the folder of a finished run.
    """
    run = Path(run)
    config, metrics = _finished(run)
    if kept == "best" and metrics.get("best_epoch") == 0:
        raise InputError(f"the run in {run} has no best epoch, because no loss was finite. Train it anew.")
    try:
        inputs, outputs = config["inputs"], Outputs(**config["outputs"])
        columns = inputs["columns"]
        for name, texts in (("outputs", [*outputs.names, outputs.link, outputs.unit]), ("columns", columns or [])):
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(name)
        rows = np.zeros((1, *inputs["shape"]), inputs["dtype"])
        model, card = as_model(from_json(config["network"])), cards.of_run(config, metrics, kept)
    except InputError:
        raise
    except (AttributeError, KeyError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{run / folders.CONFIG} and {folders.METRICS} must describe the model, but lack or garble {error}. "
            "Restore them from a copy, or train again."
        ) from error
    weights = load(run / "checkpoints" / kept)
    return export(folder, model, weights, rows, columns=columns, outputs=outputs, card=card)


def predict(folder: str | Path, source: str, target: str, batch_size: int | None = None) -> None:
    """Writes the predictions of an exported model for a file as CSV, by the code that `predict.py` is.

    source: a CSV file, "-" for one from the standard input, a `.npy` file, a picture, or a folder of pictures. target:
    a file, or "-" for the standard output. Raises InputError that names the row at fault; nothing is written then.

    >>> predict(Path("no", "such", "folder"), "data.csv", "predictions.csv")
    Traceback (most recent call last):
    ...
    jaxdl.errors.InputError: no/such/folder holds no exported model ...
    """
    folder = Path(folder)
    try:
        portable.write(folder, source, target, batch_size)
    except BrokenPipeError:
        raise  # Of the output's reader, who has had enough: nothing is wrong with the input.
    except (portable.DataError, OSError) as error:
        raise InputError(str(error)) from error


def _finished(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not (run / folders.CONFIG).is_file():
        raise InputError(f"{run} holds no run: it has no {folders.CONFIG}. Name the folder of a finished run.")
    if not (run / folders.METRICS).is_file():
        raise InputError(
            f"the run in {run} is not finished: it has no {folders.METRICS}. Let its command go on first, with "
            f"--workdir {run}."
        )
    return files.read_json(run / folders.CONFIG), files.read_json(run / folders.METRICS)


def _row(inputs: np.ndarray) -> Any:
    """One row of the shape and the dtype of the inputs."""
    if inputs.ndim == 0 or inputs.dtype.kind not in "fiu":
        raise InputError(f"inputs must be rows of numbers, got {inputs.dtype} of shape {inputs.shape}.")
    return np.zeros((1, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))


def _check_weights(model: Model, weights: Weights, row: np.ndarray) -> None:
    expected, given = _shapes(jax.eval_shape(model.init, jax.random.key(0), row)), _shapes(weights)
    for name in {**expected, **given}:
        holds, expects = given.get(name, "no such array"), expected.get(name, "no such array")
        if holds != expects:
            raise InputError(f"weights must be those of the model, got {holds} for {name}, which has {expects}.")
    leaves = jax.tree.leaves(weights)
    if any(leaf.dtype.itemsize > 4 for leaf in [row, *leaves]):
        raise InputError("inputs and weights must have 32 bits a number to be exported, got 64. Convert them first.")
    if not all(np.isfinite(leaf.astype(np.float32)).all() for leaf in leaves):
        raise InputError("weights must be finite, got nan or infinity. Export those of an epoch before it arose.")


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _columns(rows: np.ndarray, columns: Sequence[str] | None) -> list[str] | None:
    if rows.ndim != 2 or rows.dtype.kind != "f":
        if columns is not None:
            raise InputError(f"columns must be left out for inputs of {rows.dtype} of shape {rows.shape}.")
        return None
    found = [f"x{number + 1}" for number in range(rows.shape[1])] if columns is None else [*columns]
    if (
        len(found) != rows.shape[1]
        or len({*found}) != len(found)
        or not all(name and name == name.strip() for name in found)
    ):
        raise InputError(
            f"columns must be {rows.shape[1]} different names without space around them, got {found[:20]}."
        )
    return found


def _names(names: Sequence[str], count: int) -> list[str]:
    found = [*names] or ["prediction" if count == 1 else f"prediction_{number + 1}" for number in range(count)]
    if len(found) != count or len({*found}) != count:
        raise InputError(f"the names of outputs must be {count} different ones, as the model gives, got {found}.")
    return found


def _write_weights(path: Path, weights: Weights) -> None:
    # Imported here: it is needed only where a model is exported.
    from safetensors.numpy import save

    path.write_bytes(save({name: np.array(leaf, order="C") for name, leaf in named(weights).items()}))


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when all is in it."""
    if os.path.lexists(folder):
        raise InputError(f"export needs a new folder, got {folder}, which exists. Choose another name or remove it.")
    folder, draft = folder.absolute(), None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_killed(folder)
        draft = files.draft_name(folder)
        draft.mkdir()
        with exclusive(draft):
            yield draft
            files.sync_below(draft)
            draft.rename(folder)
        files.sync(folder.parent)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}). Make room, or choose another folder."
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _remove_killed(folder: Path) -> None:
    """Remove what exports to this folder that were killed have left beside it."""
    for path in folder.parent.glob(f".{glob.escape(folder.name[:100])}*.part"):
        if not files.is_draft(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(InputError, OSError), exclusive(path):  # An export that is under way holds its draft.
            shutil.rmtree(path)
