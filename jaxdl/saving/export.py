"""Export a model: one file that predicts without jaxdl."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.export as jax_export
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdl import _files
from jaxdl._environment import environment
from jaxdl._files import exclusive
from jaxdl._tree import flatten_named
from jaxdl.data import StandardScaler
from jaxdl.data.batches import default_batch_size
from jaxdl.errors import InputError, printable
from jaxdl.saving import predict_script
from jaxdl.types import Array, Model, PyTree, Variables

PLATFORMS = ("cpu", "cuda", "tpu")
LINKS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda outputs: outputs,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}


def inference(
    model: Model, variables: Variables, inputs: np.ndarray, *, scaling: StandardScaler | None = None, link: str = "none"
) -> jax_export.Exported:
    """The program from raw inputs like these (rows, ...) to float32 (rows, numbers), for any number of rows.

    It runs on CPU, CUDA and TPU: what a layer does otherwise on one of them is in it for each. The weights are part of
    it. link: none, sigmoid or softmax, taken of the model's outputs. scaling: taken off float inputs (rows, columns)
    first, as `standardize` does. Raises InputError for another link, and a scaling of other columns.
    """
    if link not in LINKS:
        raise InputError(f"link must be one of {', '.join(LINKS)}, got {link!r}.")
    if scaling is not None and not (inputs.ndim == 2 and len(scaling.mean) == len(scaling.scale) == inputs.shape[1]):
        raise InputError(f"scaling must have a mean and a spread for each column of {inputs.shape}, got {scaling}.")

    def predictions(raw: Array) -> Array:
        # Else XLA computes with them beforehand, and rounds otherwise than where they are arguments.
        held = lax.optimization_barrier(variables)
        outputs, _ = model.apply(held, raw if scaling is None else _standardized(raw, scaling), train=False)
        return LINKS[link](outputs.astype(jnp.float32)).reshape(outputs.shape[0], -1)

    rows = jax.ShapeDtypeStruct(_any_rows(inputs), inputs.dtype)
    return jax_export.export(jax.jit(predictions), platforms=PLATFORMS)(rows)


def save_program(path: Path, model: Model, variables: Variables, inputs: Any) -> None:
    """Write what a model computes of weights and of any number of rows like these, for all platforms, without its code.

    The weights are arguments of the program, and no part of it.
    """
    structure = jax.tree.structure(variables)

    def outputs(leaves: list[Array], rows: Array) -> Array:
        return model.apply(jax.tree.unflatten(structure, leaves), rows, train=False)[0]

    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(variables)]
    rows = jax.ShapeDtypeStruct(_any_rows(inputs), inputs.dtype)
    program = jax_export.export(jax.jit(outputs), platforms=PLATFORMS)(shapes, rows)
    path.write_bytes(program.serialize())


def load_program(path: Path, variables: Variables) -> Model:
    """Return the model that `save_program` wrote, for predictions alone. weights: some of that model.

    Raises InputError where the file does not hold one.
    """
    try:
        program = jax_export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers raises whatever the bytes lead to
        raise InputError(f"{path} must hold a model, got {error!r:.200}. Restore it from a copy.") from error

    def apply(variables: Variables, inputs: Array, **_: Any) -> tuple[Array, PyTree]:
        return program.call(jax.tree.leaves(variables), inputs), variables.stats

    return Model(lambda key, inputs: jax.tree.map(jnp.zeros_like, variables), apply)


def _any_rows(inputs: Any) -> Any:
    return jax_export.symbolic_shape(", ".join(["rows", *map(str, inputs.shape[1:])]))


def _standardized(raw: Array, scaling: StandardScaler) -> Array:
    """`standardize` in float32: the mean in two parts, else the last digits of a large one would be lost."""
    high = np.asarray(scaling.mean, np.float32)
    low = (scaling.mean - high.astype(np.float64)).astype(np.float32)
    # The barrier keeps XLA from adding up the two parts beforehand.
    rest = lax.optimization_barrier(raw.astype(jnp.float32) - high[None])
    return (rest - low[None]) / np.asarray(scaling.scale, np.float32)[None]


CARD, WEIGHTS, PREDICT = "README.md", "weights.safetensors", "predict.py"


class OutputSpec(NamedTuple):
    """What an exported model gives for a row."""

    names: Sequence[str] = ()  # of its numbers, or of its classes; numbered unless given
    link: Literal["none", "sigmoid", "softmax"] = "none"  # what makes them of the network's outputs
    unit: str = ""


def export_model(
    folder: str | Path,
    model: Model,
    variables: Variables,
    inputs: Any,
    *,
    columns: Sequence[str] | None = None,
    scaling: StandardScaler | None = None,
    outputs: OutputSpec = OutputSpec(),  # noqa: B008  a NamedTuple does not change
    card: str = "# A model\n",
    batch_size: int | None = None,
) -> Path:
    """Writes a model that takes `inputs` (rows, ...), such as the first ones, to a new folder, whole or not at all.

    The program in it takes raw inputs of any number of rows, on CPU, CUDA and TPU, and gives float32 (rows, numbers).

    columns: the names of the inputs in tables; x1, x2, ... unless given. scaling: taken off the inputs first, as
    `standardize` does. card: Markdown, which the model card begins with. batch_size: rows that `predict.py` takes at a
    time; fewer are filled up to them.
    Raises InputError where the folder exists or cannot be written, and for weights that are not finite or not the
    model's, names that do not fit, a batch_size below 1, and 64-bit numbers.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1 row, got {batch_size}. Leave it out.")
    rows, kept = _row(np.asarray(inputs)), jax.tree.map(np.asarray, variables)
    _check_weights(model, kept, rows)
    program = inference(model, kept, rows, scaling=scaling, link=outputs.link)
    about = {
        "inputs": {"shape": rows.shape[1:], "dtype": str(rows.dtype), "columns": _columns(rows, columns)},
        "outputs": {**outputs._asdict(), "names": _names(outputs.names, program.out_avals[0].shape[1])},
        "batch_size": batch_size or default_batch_size(rows),
        "platforms": program.platforms,
        **{name: entry for name, entry in environment().items() if name in ("versions", "commit")},
    }
    with _new(Path(folder).expanduser()) as draft:
        _files.write_json(draft / predict_script.ABOUT, about)
        (draft / predict_script.PROGRAM).write_bytes(program.serialize())
        _write_weights(draft / WEIGHTS, kept)
        (draft / PREDICT).write_bytes(Path(predict_script.__file__).read_bytes())
        (draft / CARD).write_text(f"{card.rstrip()}\n\n{usage(about)}", encoding="utf-8")
        (draft / predict_script.SUMS).write_text(_files.checksum_lines(draft), encoding="utf-8")
    return Path(folder).expanduser()


def predict(folder: str | Path, source: str, target: str, batch_size: int | None = None) -> None:
    """Writes the predictions of an exported model for a file as CSV, by the code that `predict.py` is.

    source: a CSV file, "-" for one from the standard input, a `.npy` file, a picture, or a folder of pictures. target:
    a file, or "-" for the standard output. Raises InputError that names the row at fault; nothing is written then.
    """
    folder = Path(folder)
    try:
        predict_script.write(folder, source, target, batch_size)
    except BrokenPipeError:
        raise  # Of the output's reader, who has had enough: nothing is wrong with the input.
    except (predict_script.DataError, OSError) as error:
        raise InputError(str(error)) from error


def _row(inputs: np.ndarray) -> Any:
    """One row of the shape and the dtype of the inputs."""
    if inputs.ndim == 0 or inputs.dtype.kind not in "fiu":
        raise InputError(f"inputs must be rows of numbers, got {inputs.dtype} of shape {inputs.shape}.")
    return np.zeros((1, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))


def _check_weights(model: Model, variables: Variables, row: np.ndarray) -> None:
    expected, given = _shapes(jax.eval_shape(model.init, jax.random.key(0), row)), _shapes(variables)
    for name in {**expected, **given}:
        holds, expects = given.get(name, "no such array"), expected.get(name, "no such array")
        if holds != expects:
            raise InputError(f"weights must be those of the model, got {holds} for {name}, which has {expects}.")
    leaves = jax.tree.leaves(variables)
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


def _write_weights(path: Path, variables: Variables) -> None:
    # Imported here: it is needed only where a model is exported.
    from safetensors.numpy import save

    path.write_bytes(save({name: np.array(leaf, order="C") for name, leaf in flatten_named(variables).items()}))


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when all is in it."""
    if os.path.lexists(folder):
        raise InputError(f"export needs a new folder, got {folder}, which exists. Choose another name or remove it.")
    folder, draft = folder.absolute(), None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_killed(folder)
        draft = _files.draft_name(folder)
        draft.mkdir()
        with exclusive(draft):
            yield draft
            _files.sync_below(draft)
            draft.rename(folder)
        _files.sync(folder.parent)
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
        if not _files.is_draft(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(InputError, OSError), exclusive(path):  # An export that is under way holds its draft.
            shutil.rmtree(path)


LINK_WORDS = {"none": "", "sigmoid": "probabilities, each of its own", "softmax": "probabilities, which add up to 1"}
MOST = 20  # columns that a card lists


def escaped_html(text: str) -> str:
    """A card without HTML: names and sources may come from elsewhere, and pages show a card's HTML as such."""
    return printable(text.replace("<", "&lt;").replace(">", "&gt;"))


def usage(about: Mapping[str, Any]) -> str:
    """How a model is used, from what its model.json says: what goes in, what comes out, and the files."""
    inputs, outputs = about["inputs"], about["outputs"]
    shape = inputs["shape"]
    rows = f"{inputs['dtype']} of shape {('rows', *shape)}".replace("'", "")
    columns = [f"`{column}`" for column in inputs["columns"] or []]
    listed = ", ".join(columns[:MOST]) + (", and so on (`model.json` has all of them)" * (len(columns) > MOST))
    table = f" A table needs the {len(columns)} columns {listed}, in any order; others are ignored." if columns else ""
    data = "data.csv" if columns else "pictures/" if inputs["dtype"] == "uint8" and len(shape) == 3 else "data.npy"
    numbers = " ".join(part for part in (LINK_WORDS[outputs["link"]], outputs.get("unit")) if part)
    parts = [
        "## How it is used",
        f"```text\npip install jax flatbuffers\npython predict.py {data} -o predictions.csv\n```",
        "`predict.py` needs nothing else. It reads files that are larger than the memory piece by piece, and takes "
        "arrays in `.npy` files too, and PNG and JPEG pictures where the model takes pictures and pillow is installed. "
        "In a program: `predict.load(folder).predict(inputs)`.",
        f"In: {rows}, as they are, because all preprocessing is in the program.{table}",
        f"Out: {', '.join(f'`{name}`' for name in outputs['names'])}{f' ({numbers})' if numbers else ''}.",
        f"`model.stablehlo` holds the whole program for {', '.join(about['platforms'])}, preprocessing and weights "
        f"included, as `jax.export` of jax {about['versions'].get('jax')} wrote it; later versions of jax read it for "
        "at least half a year. `weights.safetensors` holds the weights alone, for anything else. `model.json` says "
        "what goes in and out. `sha256sum -c SHA256SUMS` tells whether all is as it was written.",
    ]
    return escaped_html("\n\n".join(parts) + "\n")
