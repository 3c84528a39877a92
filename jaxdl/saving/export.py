"""Export a model: a folder that predicts without jaxdl."""

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
from jaxdl._tree import flatten_named, named_leaves
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
    """Return a function, exported for CPU, CUDA and TPU, from raw inputs (B, ...) to float32 predictions (B, outputs).

    The batch size is symbolic. The variables are constants of the function.

    scaling: standardizes float inputs (B, columns) first, as `standardize` does.
    link: none, sigmoid or softmax, the last operation on the outputs of the model.

    Raises InputError for another link, and for a scaling of other columns.
    """
    if link not in LINKS:
        raise InputError(f"link must be one of {', '.join(LINKS)}, got {link!r}.")
    if scaling is not None and not (inputs.ndim == 2 and len(scaling.mean) == len(scaling.scale) == inputs.shape[1]):
        raise InputError(f"scaling must have a mean and a scale for each column of {inputs.shape}, got {scaling}.")

    def predictions(raw: Array) -> Array:
        # XLA would fold constants, and round otherwise than with arguments.
        constants = lax.optimization_barrier(variables)
        outputs, _ = model.apply(constants, raw if scaling is None else _standardized(raw, scaling), train=False)
        return LINKS[link](outputs.astype(jnp.float32)).reshape(outputs.shape[0], -1)

    return jax_export.export(jax.jit(predictions), platforms=PLATFORMS)(_any_batch(inputs))


def save_model(path: Path, model: Model, variables: Variables, inputs: PyTree) -> None:
    """Export the outputs of a model for all platforms and batch sizes, so that `load_model` needs none of its code.

    The variables are arguments of the exported function.
    """
    structure = jax.tree.structure(variables)

    def outputs(leaves: list[Array], rows: PyTree) -> PyTree:
        return model.apply(jax.tree.unflatten(structure, leaves), rows, train=False)[0]

    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(variables)]
    exported = jax_export.export(jax.jit(outputs), platforms=PLATFORMS)(shapes, _any_batch(inputs))
    path.write_bytes(exported.serialize())


def load_model(path: Path, variables: Variables) -> Model:
    """Return the model that `save_model` wrote, for predictions alone. Raises InputError for another file."""
    try:
        exported = jax_export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # Flatbuffers raises many types.
        raise InputError(f"{path} must hold a model, got {error!r:.200}. Restore it from a copy.") from error

    def apply(variables: Variables, inputs: Array, **_: Any) -> tuple[Array, PyTree]:
        return exported.call(jax.tree.leaves(variables), inputs), variables.stats

    return Model(lambda key, inputs: jax.tree.map(jnp.zeros_like, variables), apply)


def _any_batch(inputs: Any) -> Any:
    """Return the shapes and dtypes of inputs with one symbolic batch size."""
    scope = jax_export.SymbolicScope()

    def any_rows(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = jax_export.symbolic_shape(", ".join(["rows", *map(str, leaf.shape[1:])]), scope=scope)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.map(any_rows, inputs)


def _standardized(raw: Array, scaling: StandardScaler) -> Array:
    """Standardize in float32, with the mean in two parts: the last digits of a large mean would be lost."""
    high = np.asarray(scaling.mean, np.float32)
    low = (scaling.mean - high.astype(np.float64)).astype(np.float32)
    # The barrier keeps XLA from adding the two parts first.
    rest = lax.optimization_barrier(raw.astype(jnp.float32) - high[None])
    return (rest - low[None]) / np.asarray(scaling.scale, np.float32)[None]


CARD, WEIGHTS, PREDICT = "README.md", "weights.safetensors", "predict.py"


class OutputSpec(NamedTuple):
    """The predictions of an exported model for an example."""

    names: Sequence[str] = ()  # of the predictions, or of the classes; numbered unless given
    link: Literal["none", "sigmoid", "softmax"] = "none"  # from the outputs of the network to predictions
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
    """Export a model to a new folder, whole or not at all, and return the folder.

    The folder predicts for raw inputs of any batch size, on CPU, CUDA and TPU, without jaxdl; the predictions are
    float32 (B, outputs).

    inputs: a batch (B, ...) for the shape and dtype, such as the first examples.
    columns: the names of the inputs in tables; x1, x2, ... unless given.
    scaling: standardizes the inputs first, as `standardize` does.
    card: the Markdown at the start of the model card.
    batch_size: of `predict.py`, which pads smaller batches.

    Raises InputError where the folder exists or cannot be written, and for variables that are not finite or of another
    model, names that do not fit, a batch_size below 1, 64-bit numbers, and several inputs or outputs: `save` keeps the
    variables of such a model.
    """
    _check_one_array("inputs", inputs)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1 row, got {batch_size}. Leave it out.")
    row, variables = _row(np.asarray(inputs)), jax.tree.map(np.asarray, variables)
    _check_variables(model, variables, row)
    _check_one_array("outputs", jax.eval_shape(lambda: model.apply(variables, row, train=False)[0]))
    exported = inference(model, variables, row, scaling=scaling, link=outputs.link)
    about = {
        "inputs": {"shape": row.shape[1:], "dtype": str(row.dtype), "columns": _columns(row, columns)},
        "outputs": {**outputs._asdict(), "names": _names(outputs.names, exported.out_avals[0].shape[1])},
        "batch_size": batch_size or default_batch_size(row),
        "platforms": exported.platforms,
        **{name: entry for name, entry in environment().items() if name in ("versions", "commit")},
    }
    with _new_folder(Path(folder).expanduser()) as draft:
        _files.write_json(draft / predict_script.ABOUT, about)
        (draft / predict_script.PROGRAM).write_bytes(exported.serialize())
        _write_variables(draft / WEIGHTS, variables)
        (draft / PREDICT).write_bytes(Path(predict_script.__file__).read_bytes())
        (draft / CARD).write_text(f"{card.rstrip()}\n\n{usage_section(about)}", encoding="utf-8")
        (draft / predict_script.SUMS).write_text(_files.checksum_lines(draft), encoding="utf-8")
    return Path(folder).expanduser()


def predict(folder: str | Path, source: str, target: str, batch_size: int | None = None) -> None:
    """Write the predictions of an exported model for a file as CSV, by the code of its `predict.py`.

    source: a CSV file, "-" for standard input, a `.npy` file, a picture, or a folder of pictures.
    target: a file, or "-" for standard output.

    Raises InputError that names the row at fault, and writes nothing then.
    """
    folder = Path(folder)
    try:
        predict_script.write(folder, source, target, batch_size)
    except BrokenPipeError:
        raise  # The reader of the output has closed it: the input has no error.
    except (predict_script.DataError, OSError) as error:
        raise InputError(str(error)) from error


def _check_one_array(name: str, tree: PyTree) -> None:
    if isinstance(tree, (Mapping, tuple)):
        names = ", ".join(leaf_name for leaf_name, _ in named_leaves(name, tree))
        raise InputError(
            f"export takes a model of one array of {name}, got {names}. Use jaxdl.save(path, variables), or wrap the "
            f"model in a Model whose {name} are one array."
        )


def _row(inputs: np.ndarray) -> Any:
    """Return a row of zeros of the shape and the dtype of the inputs."""
    if inputs.ndim == 0 or inputs.dtype.kind not in "fiu":
        raise InputError(f"inputs must be rows of numbers, got {inputs.dtype} of shape {inputs.shape}.")
    return np.zeros((1, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))


def _check_variables(model: Model, variables: Variables, row: np.ndarray) -> None:
    expected, actual = _shapes(jax.eval_shape(model.init, jax.random.key(0), row)), _shapes(variables)
    for name in {**expected, **actual}:
        holds, expects = actual.get(name, "no such array"), expected.get(name, "no such array")
        if holds != expects:
            raise InputError(f"variables must be those of the model, got {holds} for {name}, which has {expects}.")
    leaves = jax.tree.leaves(variables)
    if any(leaf.dtype.itemsize > 4 for leaf in [row, *leaves]):
        raise InputError("inputs and variables must have 32 bits a number to be exported, got 64. Convert them first.")
    if not all(np.isfinite(leaf.astype(np.float32)).all() for leaf in leaves):
        raise InputError("variables must be finite, got nan or infinity. Export the variables of an earlier epoch.")


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _columns(row: np.ndarray, columns: Sequence[str] | None) -> list[str] | None:
    if row.ndim != 2 or row.dtype.kind != "f":
        if columns is not None:
            raise InputError(f"columns must be left out for inputs of {row.dtype} of shape {row.shape}.")
        return None
    count = row.shape[1]
    names = [f"x{number + 1}" for number in range(count)] if columns is None else [*columns]
    if not len(names) == len({*names}) == count or not all(name and name == name.strip() for name in names):
        raise InputError(f"columns must be {count} different names without space around them, got {names[:20]}.")
    return names


def _names(names: Sequence[str], count: int) -> list[str]:
    names = [*names] or ["prediction" if count == 1 else f"prediction_{number + 1}" for number in range(count)]
    if not len(names) == len({*names}) == count:
        raise InputError(f"outputs must have {count} different names, one for each output of the model, got {names}.")
    return names


def _write_variables(path: Path, variables: Variables) -> None:
    # Imported here: only an export needs it.
    from safetensors.numpy import save

    path.write_bytes(save({name: np.array(leaf, order="C") for name, leaf in flatten_named(variables).items()}))


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft of a new folder, which is renamed to `folder` when the block ends."""
    if os.path.lexists(folder):
        raise InputError(f"export needs a new folder, got {folder}, which exists. Choose another name or remove it.")
    folder, draft = folder.absolute(), None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_drafts(folder)
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


def _remove_drafts(folder: Path) -> None:
    """Remove the drafts of killed exports to this folder."""
    for path in folder.parent.glob(f".{glob.escape(folder.name[:100])}*.part"):
        if not _files.is_draft(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(InputError, OSError), exclusive(path):  # An export that still runs holds its draft.
            shutil.rmtree(path)


LINK_WORDS = {"none": "", "sigmoid": "independent probabilities", "softmax": "probabilities, which add up to 1"}
MAX_COLUMNS = 20  # in the text of a card


def escape_html(text: str) -> str:
    """Return Markdown with its HTML escaped: a web page would render the HTML of a name from elsewhere."""
    return printable(text.replace("<", "&lt;").replace(">", "&gt;"))


def usage_section(about: Mapping[str, Any]) -> str:
    """Return the section of a model card about inputs, outputs and files, from the content of model.json."""
    inputs, outputs = about["inputs"], about["outputs"]
    shape = inputs["shape"]
    rows = f"{inputs['dtype']} of shape {('rows', *shape)}".replace("'", "")
    columns = [f"`{column}`" for column in inputs["columns"] or []]
    listed = ", ".join(columns[:MAX_COLUMNS]) + (
        ", and so on (`model.json` has all of them)" * (len(columns) > MAX_COLUMNS)
    )
    table = f" A table needs the {len(columns)} columns {listed}, in any order; others are ignored." if columns else ""
    data = "data.csv" if columns else "pictures/" if inputs["dtype"] == "uint8" and len(shape) == 3 else "data.npy"
    numbers = " ".join(part for part in (LINK_WORDS[outputs["link"]], outputs.get("unit")) if part)
    parts = [
        "## Usage",
        f"```text\npip install jax flatbuffers\npython predict.py {data} -o predictions.csv\n```",
        "`predict.py` needs nothing else. It reads large files in batches, and also takes arrays in `.npy` files and, "
        "with pillow and a model of pictures, PNG and JPEG files. In Python: `predict.load(folder).predict(inputs)`.",
        f"In: {rows}, raw: the exported function includes all preprocessing.{table}",
        f"Out: {', '.join(f'`{name}`' for name in outputs['names'])}{f' ({numbers})' if numbers else ''}.",
        f"`model.stablehlo` is the exported function for {', '.join(about['platforms'])}, with preprocessing and "
        f"variables, written by `jax.export` of jax {about['versions'].get('jax')}; later versions of jax read it for "
        "at least half a year. `weights.safetensors` contains the variables alone, for other programs. `model.json` "
        "describes inputs and outputs. `sha256sum -c SHA256SUMS` verifies the files.",
    ]
    return escape_html("\n\n".join(parts) + "\n")
