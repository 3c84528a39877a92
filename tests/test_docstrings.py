"""The examples in the docstrings: they run, and there is one wherever it helps."""

import ast
import doctest
import importlib
import inspect
import pkgutil

import pytest

import experiments
import jaxdl

# Functions for which an example would add nothing.
EXCEPTIONS = {
    # Their docstrings hold their meaning as a loop, which tests run beside them.
    "jaxdl.augment.augmented",
    "jaxdl.passes.scan_steps",
    "jaxdl.passes.sum_steps",
    "jaxdl.chunks.chunks",
    "jaxdl.chunks.epochs",
    "jaxdl.rate_ranges.rate_range",
    "jaxdl.ensembles.ensemble",
    # `sweep` shows them; the example of `populations` would only be repeated.
    "jaxdl.populations.compacted",
    "jaxdl.populations.ended",
    "jaxdl.populations.scores",
    "jaxdl.populations.trained",
    # The example of `save` loads what it has saved.
    "jaxdl.weights.load",
    # The example of `export` loads what it has exported, and predicts.
    "jaxdl.portable.load",
    "jaxdl.portable.main",
    "jaxdl.portable.pictures",
    "jaxdl.portable.predictions",
    "jaxdl.portable.write",
    "jaxdl.portable.written",
    # What they do is seen in a folder, in the settings of the process, or on this machine only.
    "jaxdl.events.picture",
    "jaxdl.events.written",
    "jaxdl.logs.tensorboard",
    "jaxdl.checkpoints.keeper",
    "jaxdl.checkpoints.latest",
    "jaxdl.saves.write",
    "jaxdl.saves.read",
    "jaxdl.shared_checkpoints.shared_keeper",
    "jaxdl.runs.keep_compilations",
    "jaxdl.runs.surroundings",
}


def modules(package):
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    # A __main__ runs when it is imported.
    return [package.__name__, *(module.name for module in found if not module.name.endswith("__main__"))]


def public_functions(module):
    """The functions that a module defines, by name; decorated ones and methods of its classes too."""
    tree = ast.parse(inspect.getsource(module))
    return {
        f"{module.__name__}.{node.name}": ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


@pytest.mark.parametrize("name", [*modules(jaxdl), *modules(experiments)])
def test_examples_run(name):
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
    # doctest passes over what it does not take for a function of the module: none may be lost that way.
    written = [docstring for docstring in public_functions(module).values() if ">>>" in docstring]
    assert tried >= sum(docstring.count(">>>") for docstring in written)


@pytest.mark.parametrize("name", modules(jaxdl))
def test_public_functions_have_an_example(name):
    functions = public_functions(importlib.import_module(name))
    missing = [function for function, docstring in functions.items() if ">>>" not in docstring]
    assert sorted(set(missing) - EXCEPTIONS) == []


def raises_input_error(function):
    """Whether the body of a function raises InputError itself; functions inside of it do not count."""
    within = [node for node in ast.iter_child_nodes(function) if not isinstance(node, (ast.FunctionDef, ast.Lambda))]
    own = isinstance(function, ast.Raise) and function.exc is not None and "InputError" in ast.unparse(function.exc)
    return own or any(map(raises_input_error, within))


def test_what_raises_is_found_where_it_is_raised():
    raised = "raise InputError('a') from None"
    for code, found in ((f"if a:\n        {raised}", True), (f"def g():\n        {raised}", False)):
        assert raises_input_error(ast.parse(f"def f():\n    {code}").body[0]) is found


@pytest.mark.parametrize("name", modules(jaxdl))
def test_docstrings_begin_with_one_line_and_name_the_error_that_is_raised(name):
    for function in ast.parse(inspect.getsource(importlib.import_module(name))).body:
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
            docstring = ast.get_docstring(function)
            first = docstring.partition("\n\n")[0]
            assert "\n" not in first, f"{name}.{function.name}: {first}"
            assert not raises_input_error(function) or "InputError" in docstring, f"{name}.{function.name}"


def test_the_exceptions_are_still_needed():
    functions = {}
    for name in modules(jaxdl):
        functions |= public_functions(importlib.import_module(name))
    assert {name for name in EXCEPTIONS if ">>>" in functions.get(name, ">>>")} == set()
