"""The words of public names: those of the field, one for each concept."""

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
    assert sorted(f"{place}: {name}" for place, name in public_names() if name in FOREIGN) == []


def test_what_is_public_is_looked_at():
    names = {name for _, name in public_names()}
    assert {"fit", "optimizer", "early_stopping", "sample_weight", "callbacks"} <= names
    assert jaxdl.fit.__name__ == "fit" and re.fullmatch(r"\d+\.\d+\.\d+", jaxdl.__version__)
