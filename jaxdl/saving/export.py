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
from jaxdl._tree import flatten_named
from jaxdl.data import StandardScaler
from jaxdl.data.arrays import as_trees
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

    Raises InputError for another link, for a scaling of other columns, and for a model that needs the batch size as a
    number, as `len` does.
    """
    if link not in LINKS:
        raise InputError(f"link must be one of {', '.join(LINKS)}, got {link!r}.")
    if scaling is not None:
        _check_scaling(inputs, scaling)

    def predictions(raw: Array) -> Array:
        # XLA would fold constants, and round otherwise than with arguments.
        constants = lax.optimization_barrier(variables)
        outputs, _ = model.apply(constants, raw if scaling is None else _standardized(raw, scaling), train=False)
        return LINKS[link](outputs.astype(jnp.float32)).reshape(outputs.shape[0], -1)

    return _exported(predictions, _any_batch(inputs))


def _check_scaling(inputs: np.ndarray, scaling: StandardScaler) -> None:
    if not (inputs.ndim == 2 and len(scaling.mean) == len(scaling.scale) == inputs.shape[1]):
        raise InputError(f"scaling must have a mean and a scale for each column of {inputs.shape}, got {scaling}.")


def array_inference(
    model: Model, variables: Variables, inputs: PyTree, *, scaling: StandardScaler | None = None
) -> jax_export.Exported:
    """Return a function, exported like that of `inference`, from the arrays of raw inputs to those of the outputs.

    The arguments are the arrays (B, ...) of the inputs, and the result is a list of the arrays (B, ...) of the outputs,
    both in the order of `jax.tree.leaves`; floats of the outputs are float32.

    scaling: standardizes inputs that are one array (B, columns).

    Raises InputError for outputs that are no numbers (B, ...), and for a model that needs the batch size as a number.
    """
    structure = jax.tree.structure(inputs)

    def predictions(*arrays: Array) -> list[Array]:
        constants, raw = lax.optimization_barrier(variables), jax.tree.unflatten(structure, arrays)
        outputs, _ = model.apply(constants, raw if scaling is None else _standardized(raw, scaling), train=False)
        leaves = map(jnp.asarray, jax.tree.leaves(outputs))
        return [leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf for leaf in leaves]

    rows = jax.tree.leaves(_any_batch(inputs))
    exported = _exported(predictions, *rows)
    for leaf in exported.out_avals:
        numbers = leaf.dtype.kind in "fiub" and leaf.dtype.itemsize <= 4
        if not (numbers and leaf.ndim and leaf.shape[0] == rows[0].shape[0]):
            raise InputError(f"outputs must be numbers of 32 bits of shape (rows, ...), got {leaf.dtype}{leaf.shape}.")
    return exported


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


def _exported(predictions: Callable[..., Any], *rows: jax.ShapeDtypeStruct) -> jax_export.Exported:
    """Export a function of rows. Raises InputError for a model that needs the batch size as a number."""
    try:
        return jax_export.export(jax.jit(predictions), platforms=PLATFORMS)(*rows)
    except InputError:
        raise
    except Exception as error:  # JAX raises many types for an operation on a symbolic batch size.
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise InputError(
            f"the model must compute with any batch size to be exported, got: {reason:.300}. Write x.shape[0] in place "
            "of len(x), and no condition on the batch size."
        ) from error


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
    float32 (B, outputs). A model of several inputs or outputs predicts from dicts and tuples of arrays, and the
    predictions are its outputs, in their containers and shapes.

    inputs: a batch (B, ...) for the shape and dtype, such as the first examples; or a dict, tuple or NamedTuple of
        arrays, also nested.
    columns: the names of the inputs in tables; x1, x2, ... unless given.
    scaling: standardizes the inputs first, as `standardize` does.
    card: the Markdown at the start of the model card.
    batch_size: of `predict.py`, which pads smaller batches.

    Raises InputError where the folder exists or cannot be written, and for variables that are not finite or of another
    model, names that do not fit, a batch_size below 1, and 64-bit numbers; and for columns and outputs of a model of
    several inputs or outputs, and a scaling of several inputs.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1 row, got {batch_size}. Leave it out.")
    row, variables = as_trees("inputs", inputs, convert=_row), jax.tree.map(np.asarray, variables)
    _check_variables(model, variables, row)
    results = jax.eval_shape(lambda: model.apply(variables, row, train=False)[0])
    if isinstance(row, np.ndarray) and isinstance(results, jax.ShapeDtypeStruct):
        exported = inference(model, variables, row, scaling=scaling, link=outputs.link)
        arrays: dict[str, Any] = {
            "inputs": {"shape": row.shape[1:], "dtype": str(row.dtype), "columns": _columns(row, columns)},
            "outputs": {**outputs._asdict(), "names": _names(outputs.names, exported.out_avals[0].shape[1])},
        }
    else:
        _check_options(row, columns, scaling, outputs)
        names = {"inputs": _array_names("inputs", row), "outputs": _array_names("outputs", results)}
        structure = _as_json(jax.tree.unflatten(jax.tree.structure(results), names["outputs"]))
        exported = array_inference(model, variables, row, scaling=scaling)
        arrays = {
            "inputs": _array_specs(names["inputs"], exported.in_avals),
            "outputs": _array_specs(names["outputs"], exported.out_avals),
            "structure": structure,
        }
    about = {
        **arrays,
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

    source: a CSV file, "-" for standard input, a `.npy` file, a picture, or a folder of pictures; a `.npz` file for a
        model of several arrays.
    target: a file, or "-" for standard output; a `.npz` file for a model of several arrays.

    Raises InputError that names the row at fault, and writes nothing then.
    """
    folder = Path(folder)
    try:
        predict_script.write(folder, source, target, batch_size)
    except BrokenPipeError:
        raise  # The reader of the output has closed it: the input has no error.
    except (predict_script.DataError, OSError) as error:
        raise InputError(str(error)) from error


def _check_options(
    row: PyTree, columns: Sequence[str] | None, scaling: StandardScaler | None, outputs: OutputSpec
) -> None:
    """Raise InputError for options that describe one array, for a model of several."""
    several = "the model has several inputs or outputs"
    if columns is not None:
        raise InputError(f"columns must be left out: {several}, which have the names of their containers.")
    if outputs != OutputSpec():
        raise InputError(
            f"outputs must be left out: {several}, and predicts them as they are, got {outputs}. Apply a sigmoid or "
            "softmax in the model."
        )
    if scaling is None:
        return
    if not isinstance(row, np.ndarray):
        raise InputError(f"scaling must be left out: {several}. Standardize them in the model, or in advance.")
    _check_scaling(row, scaling)


def _array_names(name: str, tree: PyTree) -> list[str]:
    """Return the names of the arrays of a tree, such as image and pair/0, in the order of `jax.tree.leaves`."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    names = [predict_script.array_name(path, name) for path in paths]
    keys = [key.key for path in paths for key in path if isinstance(key, jax.tree_util.DictKey)]
    if not names or len({*names}) < len(names) or not all(isinstance(key, str) and key for key in keys):
        raise InputError(
            f"{name} must be an array, or dicts of strings and tuples of arrays with different names, got "
            f"{', '.join(names) or 'no array'}."
        )
    return names


def _array_specs(names: Sequence[str], arrays: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": array.shape[1:], "dtype": str(array.dtype)}
        for name, array in zip(names, arrays, strict=True)
    ]


def _as_json(tree: PyTree) -> Any:
    """Return the containers of names as objects and lists; NamedTuples as objects."""
    if tree is None or isinstance(tree, str):
        return tree
    tree = tree._asdict() if hasattr(tree, "_asdict") else tree
    if isinstance(tree, Mapping):
        return {key: _as_json(part) for key, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        return [_as_json(part) for part in tree]
    raise InputError(f"outputs must be arrays in dicts, tuples and NamedTuples, got a {type(tree).__name__}.")


def _row(name: str, values: Any, _: Any = None) -> Any:
    """Return a row of zeros of the shape and the dtype of the inputs."""
    inputs = np.asarray(values)
    if inputs.ndim == 0 or inputs.dtype.kind not in ("fiu" if name == "inputs" else "fiub"):
        raise InputError(f"{name} must be rows of numbers, got {inputs.dtype} of shape {inputs.shape}.")
    return np.zeros((1, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))


def _check_variables(model: Model, variables: Variables, row: PyTree) -> None:
    expected, actual = _shapes(jax.eval_shape(model.init, jax.random.key(0), row)), _shapes(variables)
    for name in {**expected, **actual}:
        holds, expects = actual.get(name, "no such array"), expected.get(name, "no such array")
        if holds != expects:
            raise InputError(f"variables must be those of the model, got {holds} for {name}, which has {expects}.")
    leaves = jax.tree.leaves(variables)
    if any(leaf.dtype.itemsize > 4 for leaf in [*jax.tree.leaves(row), *leaves]):
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
    if isinstance(inputs, list):
        return _usage_of_arrays(about)
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
        _about_files(about),
    ]
    return escape_html("\n\n".join(parts) + "\n")


def _usage_of_arrays(about: Mapping[str, Any]) -> str:
    lines = {
        side: "\n".join(
            f"- `{spec['name']}`: {spec['dtype']} of shape ({', '.join(['rows', *map(str, spec['shape'])])})"
            for spec in about[side]
        )
        for side in ("inputs", "outputs")
    }
    parts = [
        "## Usage",
        "```text\npip install jax flatbuffers\npython predict.py data.npz -o predictions.npz\n```",
        "`predict.py` needs nothing else. `data.npz` has the inputs under their names, as `numpy.savez` writes them. "
        "In Python, `predict.load(folder).predict(inputs)` takes a dict of the names, or the dicts and tuples of the "
        "model, and returns the outputs in theirs.",
        f"In, raw:\n\n{lines['inputs']}",
        f"Out:\n\n{lines['outputs']}",
        _about_files(about),
    ]
    return escape_html("\n\n".join(parts) + "\n")


def _about_files(about: Mapping[str, Any]) -> str:
    return (
        f"`model.stablehlo` is the exported function for {', '.join(about['platforms'])}, with preprocessing and "
        f"variables, written by `jax.export` of jax {about['versions'].get('jax')}; later versions of jax read it for "
        "at least half a year. `weights.safetensors` contains the variables alone, for other programs. `model.json` "
        "describes inputs and outputs. `sha256sum -c SHA256SUMS` verifies the files."
    )
