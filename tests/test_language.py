"""The words of names: those of the field, one for each concept."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import jaxdl

ROOT = Path(__file__).parent.parent
NAMESPACES = sorted(
    {path.parent.name for path in ROOT.glob("jaxdl/*/__init__.py")}
    | {"losses", "metrics", "stats", "baselines", "profiling"}
)
# Words that readers from Keras, Flax, optax, PyTorch and scikit-learn do not know in this meaning.
FOREIGN = {
    *("observer", "observers", "watcher", "watchers", "looking", "rows_of", "Examples", "Weights", "Sums", "Progress"),
    *("optimiser", "standardise", "colour", "colours", "objectives", "statistics", "advance", "paced", "pace", "piece"),
    *("stale", "over", "keep", "keeper", "latest", "spread", "apart", "alike", "committee", "population"),
    *("how", "join", "leave", "told", "gathered", "lost", "windows", "fetching", "streams", "order", "draws"),
    *("tell", "say", "room", "surroundings", "account", "listing", "differences", "settle", "divide", "Built", "usage"),
    *("conclude", "misses", "hits", "share", "right", "trouble", "arose", "guarded", "replay", "program"),
    *("average", "shown_weights", "begin", "finish"),
}

# The same words, where they have a meaning of the field: the order of columns, random streams, windows of examples,
# the right side of a picture, Flax's running average, random draws, a file's `tell`.
KNOWN = {"order", "right", "streams", "windows", "average", "draws", "keep", "tell", "latest", "finish"}
# scikit-learn's argument for the mean over classes.
AVERAGE = {"precision", "recall", "f1", "roc_auc", "average_precision", "exact_roc_auc", "exact_average_precision"}
ACCEPTED = {(f"jaxdl.metrics.{name}", "average") for name in AVERAGE}
# Past participles and pronouns, which say nothing about the value that they name.
VAGUE = {"of", "found", "told", "own", "kept", "shown", "given", "done", "seen", "asked", "held", "placed", "ended"}


def defined_names(source):
    """Return the names of the functions, classes, arguments and variables of a source, without underscores around."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return {name.strip("_") for name in names}


def public_names():
    """Return the public names, with the arguments of functions and the fields of records."""
    names = set()
    for namespace in ["", *NAMESPACES]:
        module = importlib.import_module(f"jaxdl.{namespace}".rstrip("."))
        for name in module.__all__:
            value, place = getattr(module, name), f"{module.__name__}.{name}"
            names.add((place, name))
            names |= {(place, field) for field in getattr(value, "_fields", getattr(value, "__dataclass_fields__", ()))}
            if inspect.isfunction(value):
                names |= {(place, argument) for argument in inspect.signature(value).parameters}
    return names


def test_public_names_use_the_words_of_the_field():
    names = public_names()
    assert names >= ACCEPTED
    assert sorted(f"{place}: {name}" for place, name in names - ACCEPTED if name in FOREIGN) == []


def test_private_names_and_variables_use_the_words_of_the_field():
    assert defined_names("def told(of):\n    _kept = 1") == {"told", "of", "kept"}
    sources = [path for folder in ("jaxdl", "experiments") for path in ROOT.glob(f"{folder}/**/*.py")]
    assert len(sources) > 90
    foreign = {str(path): defined_names(path.read_text()) & ((FOREIGN - KNOWN) | VAGUE) for path in sources}
    assert {path: names for path, names in foreign.items() if names} == {}


def test_what_is_public_is_looked_at():
    names = {name for _, name in public_names()}
    assert {"fit", "optimizer", "early_stopping", "sample_weight", "callbacks"} <= names
    assert jaxdl.fit.__name__ == "fit" and re.fullmatch(r"\d+\.\d+\.\d+", jaxdl.__version__)
