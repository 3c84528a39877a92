"""The architecture, read from the source: who imports whom."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

# A module may import only what stands before it. New modules enter here, at the place where they belong.
CORE = (
    *("types", "errors", "arguments", "sharding", "programs", "orders", "data", "batches"),
    *("augment", "convolutions", "layers", "adapters", "models", "networks"),
    *("objectives", "binary", "rates", "steps", "passes", "stopping", "plans", "training"),
    *("pieces", "chunks", "rate_ranges", "ensembles", "committees", "nonfinite", "leaves", "inference"),
)
RING = (
    *(
        "baselines",
        "comparisons",
        "calibration",
        "margins",
        "files",
        "datasets",
        "sources",
        "windows",
        "streams",
        "evaluations",
        "paces",
        "beginnings",
        "replays",
        "_startup",
        "saves",
        "fitting",
        "seeds",
        "candidates",
        "populations",
        "sweeps",
        "links",
        "meetings",
        "places",
        "processes",
        "launch",
        "weights",
        "locks",
        "checkpoints",
        "shared_checkpoints",
        "interrupts",
    ),
    *("logs", "tensorboard"),
    *("bars", "curves", "canvas", "plots", "ensemble_plots", "interval_plots", "residual_plots", "rate_plots"),
    *("units", "summaries", "costs", "profiles"),
    *("terminals", "folders", "runs", "listings", "differences", "accounts", "run_tables"),
    *("cards", "portable", "exports", "__main__"),
)
ORDER = CORE + RING
# Narrower than the order: all that these may import of jaxdl.
ONLY = {
    "types": set(),
    "errors": set(),
    "baselines": {"data", "errors"},
    "comparisons": {"errors"},
    "calibration": {"errors"},
    "margins": {"errors"},
    "files": {"errors"},
    "datasets": {*CORE, "files", "datasets"},
    **{name: {*CORE, *RING[1 : RING.index(name)]} for name in RING[RING.index("datasets") + 1 :]},
    # Copied into what is exported, which knows nothing of jaxdl.
    "portable": set(),
}
# Packages outside of the standard library that the core may import at the top of a file.
CORE_PACKAGES = {"jax", "numpy", "optax"}
KNOW_FLAX = ("adapters", "layers", "models")
# Files, printing, clocks, the process: not for the core.
EFFECTS = {
    *("os", "pathlib", "io", "tempfile", "shutil", "glob", "pickle", "csv", "sqlite3", "urllib", "socket"),
    *("time", "datetime", "sys", "signal", "subprocess", "threading", "multiprocessing", "logging", "warnings"),
}
HEAVY = ("pandas", "matplotlib", "orbax", "tensorflow", "tensorboardX", "sklearn", "keras", "flax.nnx")


class Import(NamedTuple):
    name: str  # dotted, absolute
    when: str  # "top", "function" or "typing"


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(), str(path))


@functools.cache
def imports(path):
    """Every import of a file; `from a import b` counts as a.b, where b may be a module."""
    found = []

    def visit(node, when):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: write the import with the package's full name"
            found.extend(Import(f"{node.module}.{alias.name}", when) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                visit(child, "typing")
            for child in node.orelse:
                visit(child, when)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, "function" if inside else when)

    visit(parsed(path), "top")
    return found


def module_of(path):
    """The module of jaxdl that a file is or belongs to: datasets are one."""
    return path.relative_to(ROOT / "jaxdl").parts[0].removesuffix(".py")


def of_jaxdl(name):
    """The module of jaxdl that an import names; "" for the package itself, None for anything else."""
    parts = name.split(".")
    if parts[0] != "jaxdl":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else ""


def label(path):
    return str(path.relative_to(ROOT))


MODULES = [path for path in sources("jaxdl") if module_of(path) != "__init__"]
CORE_FILES = [ROOT / "jaxdl" / f"{name}.py" for name in CORE]


def offenders(paths, wrong, packages=None):
    """ "file: import" of each import that `wrong(module, import)` finds, a line each."""
    return [
        f"{label(path)} imports {found.name}"
        for path in paths
        for found in imports(path)
        if (packages is None or found.name.split(".")[0] in packages) and wrong(module_of(path), found)
    ]


def test_imports_are_found_wherever_they_stand(tmp_path):
    # The tests below are worth what this reader sees.
    path = tmp_path / "module.py"
    path.write_text(
        "import os.path\n"
        "from jaxdl import logs\n"
        "from jaxdl.data import take as t\n"
        "if TYPE_CHECKING:\n    import pandas as pd\n"
        "try:\n    import rich\nexcept ImportError:\n    pass\n"
        "class A:\n    def f(self):\n        '''>>> import doctest'''\n        from flax import nnx\n"
        "def g():\n    if TYPE_CHECKING:\n        import optax\n"
    )
    assert imports(path) == [
        ("os.path", "top"),
        ("jaxdl.logs", "top"),
        ("jaxdl.data.take", "top"),
        ("pandas", "typing"),
        ("rich", "top"),
        ("flax.nnx", "function"),
        ("optax", "typing"),
    ]


def test_every_module_has_a_place_in_the_order():
    assert {module_of(path) for path in sources("jaxdl")} == {*ORDER, "__init__"}


def test_modules_import_only_what_stands_above_them():
    def wrong(module, found):
        allowed = ONLY.get(module, set(ORDER[: ORDER.index(module)]))
        # A name from the package itself is imported from its module instead.
        return of_jaxdl(found.name) not in {None, *allowed}

    assert offenders(MODULES, wrong) == []


def test_errors_import_nothing_but_regular_expressions():
    assert [name for name, _ in imports(ROOT / "jaxdl" / "errors.py")] == ["__future__.annotations", "re"]


def test_experiments_are_imported_by_no_module():
    assert offenders(MODULES, lambda *_: True, ("experiments", "tests", "benchmarks")) == []


def test_only_adapters_layers_and_models_know_flax():
    assert offenders(MODULES, lambda module, _: module not in KNOW_FLAX, ("flax",)) == []


def test_only_saves_and_weights_know_orbax():
    assert offenders(MODULES, lambda module, _: module not in ("saves", "weights"), ("orbax",)) == []


def test_only_tensorboard_and_graphs_know_tensorboardx_and_not_before_it_is_used():
    def wrong(module, found):
        return module not in ("tensorboard", "graphs") or found.when == "top"

    assert offenders(MODULES, wrong, ("tensorboardX",)) == []


def test_the_core_loads_no_package_but_jax_numpy_optax_and_flax():
    def wrong(module, found):
        package = found.name.split(".")[0]
        allowed = CORE_PACKAGES | ({"flax"} if module in KNOW_FLAX else set())
        # NNX is not part of what `import jaxdl` promises to load.
        nnx_at_once = found.name.startswith("flax.nnx") and found.when == "top"
        return package not in {"jaxdl", *sys.stdlib_module_names, *allowed} or nnx_at_once

    assert offenders(CORE_FILES, wrong) == []


def test_the_core_has_no_files_no_printing_and_no_clocks():
    assert offenders(CORE_FILES, lambda *_: True, EFFECTS) == []
    effects = ("print", "open", "input", "breakpoint")
    calls = [
        f"{label(path)} line {node.lineno} calls {node.func.id}"
        for path in CORE_FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in effects
    ]
    assert calls == []


# They run in the environment of the peers, in which jaxdl is not installed.
WITHOUT_JAXDL = {
    "benchmarks/__init__.py",
    "benchmarks/tasks.py",
    *(f"benchmarks/contestants/{name}.py" for name in ("__init__", "start", "protocol", "loops", "installed")),
    *(f"benchmarks/contestants/{name}_loop.py" for name in ("flax", "nnx", "keras", "torch", "sklearn")),
    *(f"benchmarks/speedrun/{name}.py" for name in ("__init__", "torch_loop")),
    *(f"benchmarks/studies/{name}.py" for name in ("__init__", "keras_weather", "keras_cifar10")),
}


def test_what_runs_beside_the_peers_imports_no_other_module_of_this_project():
    names = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in WITHOUT_JAXDL}
    wrong = [
        f"{path} imports {found.name}"
        for path in WITHOUT_JAXDL
        for found in imports(ROOT / path)
        if found.name.split(".")[0] in ("jaxdl", "experiments", "tests", "benchmarks")
        and found.name.rpartition(".")[0] not in names
    ]
    assert wrong == []


def test_what_all_contestants_import_needs_numpy_alone():
    shared = ("benchmarks/tasks.py", *(f"benchmarks/contestants/{name}.py" for name in ("protocol", "loops")))
    at_once = {found.name.split(".")[0] for path in shared for found in imports(ROOT / path) if found.when == "top"}
    assert at_once - sys.stdlib_module_names == {"numpy", "benchmarks"}


def undocumented(nodes, owner=""):
    """The public functions, classes and methods that have no docstring."""
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                yield owner + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{node.name}.")


def test_everything_public_has_a_docstring():
    trees = {label(path): parsed(path) for path in sources("jaxdl")}
    # An empty __init__.py only marks a folder.
    missing = [path for path, tree in trees.items() if tree.body and ast.get_docstring(tree) is None]
    missing += [f"{path}: {name}" for path, tree in trees.items() for name in undocumented(tree.body)]
    assert missing == []


def loaded(program):
    """Which of the heavy packages a program loads."""
    code = f"{program}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_jaxdl_loads_nothing_heavier_than_flax_and_optax():
    assert loaded("import jaxdl") <= loaded("import flax, optax")


def test_nothing_sets_flags_for_all_of_xla():
    # A flag that another version does not know ends the whole process.
    read = r'os\.environ\.get\("XLA_FLAGS", ""\)|"XLA_FLAGS": (?=os\.environ\.get)'
    paths = sources("jaxdl", "experiments", "benchmarks")
    assert [label(path) for path in paths if "XLA_FLAGS" in re.sub(read, "", path.read_text())] == []
