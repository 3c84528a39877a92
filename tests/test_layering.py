"""The architecture, read from the source: which package imports which."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# The packages and the single files of jaxdl, from the ground up: each imports only from the lines above its own.
LEVELS = (
    ("types", "errors", "_format", "_environment", "_exports", "_startup", "_values"),
    ("_tree",),
    ("_checks", "_files", "stats", "distributed"),
    ("_jit",),
    ("data",),
    ("losses", "nn", "baselines", "datasets"),
    ("metrics",),
    ("train",),
    ("ensembles", "saving", "callbacks", "plots", "profiling"),
    ("runs",),
    ("__main__", "launch"),
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
# Files without effects: no files, clocks, printing, threads or environment variables. They import only each other.
PURE = (
    *("types", "errors", "_format", "_checks", "_tree", "_jit", "_values", "losses", "metrics", "stats", "baselines"),
    *("data/arrays", "data/batches", "nn/*", "distributed/sharding"),
    *("train/step", "train/epoch", "train/plan", "train/rules", "train/lr_finder"),
)
EFFECTS = {
    *("os", "pathlib", "io", "tempfile", "shutil", "glob", "pickle", "csv", "sqlite3", "urllib", "socket"),
    *("time", "datetime", "sys", "signal", "subprocess", "multiprocessing", "logging"),
}
# Which part of jaxdl may import a package of others.
KNOWN_BY = {
    "flax": ("nn",),
    "equinox": ("nn",),
    "haiku": ("nn",),
    "keras": ("nn",),
    "orbax": ("saving",),
    "matplotlib": ("plots", "runs", "__main__"),
    "tensorboardX": ("callbacks",),
    "tyro": ("runs", "__main__"),
    "filelock": ("_files", "runs"),
    "pooch": ("datasets",),
    "tensorflow_datasets": ("datasets",),
}
# They run in the environment of the peers, in which jaxdl is not installed.
WITHOUT_JAXDL = {
    "benchmarks/__init__.py",
    "benchmarks/tasks.py",
    *(f"benchmarks/contestants/{name}.py" for name in ("__init__", "start", "protocol", "loops", "installed")),
    *(f"benchmarks/contestants/{name}_loop.py" for name in ("flax", "nnx", "keras", "torch", "sklearn")),
    *(f"benchmarks/speedrun/{name}.py" for name in ("__init__", "torch_loop")),
    *(f"benchmarks/studies/{name}.py" for name in ("__init__", "keras_weather", "keras_cifar10")),
}
HEAVY = (
    *("pandas", "matplotlib", "orbax", "tensorflow", "tensorboardX", "sklearn", "keras", "flax.nnx", "tyro"),
    *("scipy.stats", "pooch", "safetensors", "tensorflow_datasets", "PIL", "beartype", "equinox", "haiku"),
)


class Import(NamedTuple):
    module: str  # dotted, absolute
    name: str  # "" where the module itself is imported
    when: str  # "top", "function" or "typing"


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(), str(path))


@functools.cache
def imports(path):
    """Return every import of a file, wherever it stands."""
    result = []

    def visit(node, when):
        if isinstance(node, ast.Import):
            result.extend(Import(alias.name, "", when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: write the import with the package's full name"
            result.extend(Import(node.module, alias.name, when) for alias in node.names)
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
    return result


def label(path):
    return str(path.relative_to(ROOT))


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in sources("jaxdl")}


def part_of(module):
    """Return the package or file of jaxdl that a module belongs to; "" for jaxdl itself."""
    return module.split(".")[1] if "." in module else ""


def targets(path):
    """Return the modules of jaxdl that a file imports, each with the imported name."""
    for module, name, _ in imports(path):
        if module.split(".")[0] == "jaxdl":
            inner = f"{module}.{name}"
            yield (inner, "") if inner in MODULES else (module, name)


def is_pure(module):
    inner = module.removeprefix("jaxdl.").replace(".", "/")
    return any(inner == name or (name.endswith("/*") and inner.startswith(name[:-1])) for name in PURE)


def test_imports_are_found_wherever_they_stand(tmp_path):
    # The tests below are worth what this reader sees.
    path = tmp_path / "module.py"
    path.write_text(
        "import os.path\n"
        "from jaxdl import callbacks\n"
        "from jaxdl.data import take as t\n"
        "if TYPE_CHECKING:\n    import pandas as pd\n"
        "try:\n    import rich\nexcept ImportError:\n    pass\n"
        "class A:\n    def f(self):\n        '''>>> import doctest'''\n        from flax import nnx\n"
        "def g():\n    if TYPE_CHECKING:\n        import optax\n"
    )
    assert imports(path) == [
        ("os.path", "", "top"),
        ("jaxdl", "callbacks", "top"),
        ("jaxdl.data", "take", "top"),
        ("pandas", "", "typing"),
        ("rich", "", "top"),
        ("flax", "nnx", "function"),
        ("optax", "", "typing"),
    ]


def test_every_package_has_a_level():
    assert {part_of(module) for module in MODULES} - {""} == set(LEVEL)


def test_packages_import_only_from_the_levels_above_them():
    wrong = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        for target, _ in targets(path)
        # The package itself holds no code: a name is imported from where it is defined.
        if part_of(module)
        and part_of(target) != part_of(module)
        and (not part_of(target) or LEVEL[part_of(target)] >= LEVEL[part_of(module)])
    ]
    assert wrong == []


def chain(package, imported):
    return 1 + max((chain(other, imported) for other in imported[package]), default=0)


def test_the_longest_chain_of_packages_is_short():
    imported = {name: set() for name in LEVEL}
    for module, path in MODULES.items():
        for target, _ in targets(path):
            if part_of(module) and part_of(target) not in ("", part_of(module)):
                imported[part_of(module)].add(part_of(target))
    packages = {
        name: {other for other in others if (ROOT / "jaxdl" / other).is_dir()} for name, others in imported.items()
    }
    assert max(chain(name, packages) for name in packages) <= 8


def test_no_modules_import_each_other_in_a_circle():
    # Imports for type checkers count too: they tell what a reader must know.
    graph = {module: {target for target, _ in targets(path) if target != module} for module, path in MODULES.items()}
    # A package's __init__ hands on what its files define, and its files may be imported through it.
    faces = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    graph = {module: others - faces for module, others in graph.items() if module not in faces}
    while leaves := {module for module, others in graph.items() if not others & set(graph)}:
        graph = {module: others for module, others in graph.items() if module not in leaves}
    assert graph == {}


def test_few_modules_serve_a_single_other_one():
    users = {module: set() for module in MODULES}
    for path in sources("jaxdl", "experiments"):
        for target, _ in targets(path):
            if target in users and target != dotted(path):
                users[target].add(dotted(path))
    single = [
        module
        for module, path in MODULES.items()
        if path.name != "__init__.py"
        and len(users[module]) == 1
        # What a package hands on has every user of the package.
        and not any(MODULES[user].name == "__init__.py" for user in users[module] if user in MODULES)
    ]
    assert len(single) <= 8, single


def test_no_package_takes_a_private_name_of_another():
    wrong = [
        f"{module} imports {target} {name}"
        for module, path in MODULES.items()
        for target, name in targets(path)
        if part_of(target) != part_of(module)
        and part_of(module)
        and any(piece.startswith("_") for piece in (*target.split(".")[2:], name))
    ]
    assert wrong == []


def test_pure_files_import_only_pure_files():
    wrong = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        if is_pure(module)
        for target, name in targets(path)
        if not is_pure(target) and MODULES[target].name != "__init__.py"
    ]
    assert wrong == []


@pytest.mark.parametrize("package", [path.parent.name for path in sources("jaxdl") if path.name == "__init__.py"])
def test_a_face_hands_on_names_and_nothing_else(package):
    path = ROOT / "jaxdl" / package / "__init__.py" if package != "jaxdl" else ROOT / "jaxdl" / "__init__.py"
    # After the docstring: imports, some for type checkers alone, and names that load on first use.
    *body, last = parsed(path).body[1:]
    assert [node for node in body if not isinstance(node, (ast.ImportFrom, ast.If, ast.Assign))] == []
    assert ast.unparse(last).startswith("_set_public_names(globals()")
    own = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    wrong = [
        alias.name
        for node in own
        for alias in node.names
        if alias.asname != ("_" if node.module == "jaxdl._exports" else "") + alias.name
    ]
    assert wrong == []


def test_errors_import_nothing_but_regular_expressions():
    assert {module for module, *_ in imports(ROOT / "jaxdl" / "errors.py")} == {"__future__", "re"}


def test_the_exported_script_imports_nothing_of_jaxdl():
    assert list(targets(ROOT / "jaxdl" / "saving" / "predict_script.py")) == []


def test_launch_imports_only_distributed():
    assert {part_of(target) for target, _ in targets(ROOT / "jaxdl" / "launch.py")} <= {"distributed"}


def test_the_library_imports_no_experiment_no_test_and_no_benchmark():
    result = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other, *_ in imports(path)
        if other.split(".")[0] in ("experiments", "tests", "benchmarks")
    ]
    assert result == []


def test_what_runs_beside_the_peers_imports_no_other_module_of_this_project():
    wrong = [
        f"{path} imports {module}.{name}"
        for path in WITHOUT_JAXDL
        for module, name, _ in imports(ROOT / path)
        if module.split(".")[0] in ("jaxdl", "experiments", "tests", "benchmarks")
        and not {f"{module.replace('.', '/')}{end}" for end in (".py", "/__init__.py")} & WITHOUT_JAXDL
    ]
    assert wrong == []


def test_what_all_contestants_import_needs_numpy_alone():
    shared = ("benchmarks/tasks.py", *(f"benchmarks/contestants/{name}.py" for name in ("protocol", "loops")))
    at_once = {module.split(".")[0] for path in shared for module, _, when in imports(ROOT / path) if when == "top"}
    assert at_once - sys.stdlib_module_names == {"numpy", "benchmarks"}


def test_tensorboardx_is_imported_where_it_is_used():
    # A run that writes nothing for TensorBoard does not wait for it.
    at_once = [
        module
        for module, path in MODULES.items()
        for other, _, when in imports(path)
        if other.split(".")[0] == "tensorboardX" and when == "top"
    ]
    assert at_once == []


@pytest.mark.parametrize("package", KNOWN_BY)
def test_a_package_of_others_is_known_where_it_belongs(package):
    result = {
        part_of(module)
        for module, path in MODULES.items()
        for other, _, when in imports(path)
        if other.split(".")[0] == package and when != "typing"
    }
    assert result <= set(KNOWN_BY[package])


def test_pure_files_have_no_files_no_printing_and_no_clocks():
    pure = {module: path for module, path in MODULES.items() if is_pure(module)}
    result = [
        f"{module} imports {other}"
        for module, path in pure.items()
        for other, *_ in imports(path)
        if other.split(".")[0] in EFFECTS
    ]
    effects = ("print", "open", "input", "breakpoint")
    result += [
        f"{module} line {node.lineno} calls {node.func.id}"
        for module, path in pure.items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in effects
    ]
    assert result == []


def undocumented(nodes, owner=""):
    """Return the public functions, classes and methods that have no docstring."""
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                yield owner + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{node.name}.")


def test_everything_public_has_a_docstring():
    missing = [module for module, path in MODULES.items() if ast.get_docstring(parsed(path)) is None]
    missing += [f"{module}: {name}" for module, path in MODULES.items() for name in undocumented(parsed(path).body)]
    assert missing == []


def loaded(program):
    """Return the heavy packages that a program loads."""
    code = f"{program}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_jaxdl_loads_nothing_heavier_than_flax_and_optax():
    flax = loaded("import flax, optax")
    assert loaded("import jaxdl") <= flax
    assert loaded("import jaxdl; dir(jaxdl), jaxdl.losses, jaxdl.data, jaxdl.nn, jaxdl.train") <= flax


def test_nothing_sets_flags_for_all_of_xla():
    # A flag that another version does not know ends the whole process.
    read = r'os\.environ\.get\("XLA_FLAGS", ""\)|"XLA_FLAGS": (?=os\.environ\.get)'
    paths = sources("jaxdl", "experiments", "benchmarks")
    assert [label(path) for path in paths if "XLA_FLAGS" in re.sub(read, "", path.read_text())] == []
