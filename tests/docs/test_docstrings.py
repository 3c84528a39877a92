"""The docstrings: their examples run, their first sentence is a line, and they name the error that is raised."""

import ast
import doctest
import importlib
import inspect
import pkgutil

import pytest

import experiments
import jaxdl
from tests.quick import quick_programs


def modules(package):
    result = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    # A __main__ runs when it is imported.
    return [package.__name__, *(module.name for module in result if not module.name.endswith("__main__"))]


def public_functions(module):
    """The functions that a module defines, by name; decorated ones and methods of its classes too."""
    tree = ast.parse(inspect.getsource(module))
    return {
        f"{module.__name__}.{node.name}": ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def examples_of(name):
    """Runs the examples of a module; how many failed, and how many of them were not tried."""
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    # doctest passes over what it does not take for a function of the module: none may be lost that way.
    written = sum(docstring.count(">>>") for docstring in public_functions(module).values())
    return failed, max(0, written - tried)


@pytest.mark.slow
@pytest.mark.parametrize("package", [jaxdl, experiments], ids=lambda package: package.__name__)
def test_examples_run(package):
    with quick_programs():
        result = {name: examples_of(name) for name in modules(package)}
    wrong = {name: counts for name, counts in result.items() if any(counts)}
    assert wrong == {}, "(failed, not tried) of each module; what failed stands above, in the captured output"


def raises_input_error(function):
    """Whether the body of a function raises InputError itself; functions inside of it do not count."""
    within = [node for node in ast.iter_child_nodes(function) if not isinstance(node, (ast.FunctionDef, ast.Lambda))]
    own = isinstance(function, ast.Raise) and function.exc is not None and "InputError" in ast.unparse(function.exc)
    return own or any(map(raises_input_error, within))


def test_what_raises_is_found_where_it_is_raised():
    raised = "raise InputError('a') from None"
    for code, result in ((f"if a:\n        {raised}", True), (f"def g():\n        {raised}", False)):
        assert raises_input_error(ast.parse(f"def f():\n    {code}").body[0]) is result


def test_docstrings_begin_with_one_line_and_name_the_error_that_is_raised():
    wrong = []
    for name in modules(jaxdl):
        for function in ast.parse(inspect.getsource(importlib.import_module(name))).body:
            if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
                docstring = ast.get_docstring(function) or ""
                if "\n" in docstring.partition("\n\n")[0]:
                    wrong.append(f"{name}.{function.name}: the first sentence takes more than a line")
                if raises_input_error(function) and "InputError" not in docstring:
                    wrong.append(f"{name}.{function.name} raises InputError, and its docstring does not say so")
    assert wrong == []


def begins_with_a_verb(docstring):
    """Return whether a docstring can begin with an imperative: no article, question word, pronoun or third person."""
    word = docstring.split()[0].strip(".,:`")
    other = {"A", "All", "An", "As", "Each", "How", "It", "Its", "Of", "One", "That", "The", "This", "Those", "What"}
    other |= {"Where", "Whether", "Who", "Why"}
    return word[0].isupper() and word not in other and (not word.endswith("s") or word.endswith("ss"))


def test_what_begins_with_a_verb_is_known():
    for docstring, verb in {"Return x.": True, "The x.": False, "Returns x.": False, "Compress x.": True}.items():
        assert begins_with_a_verb(docstring) is verb


def test_docstrings_of_functions_begin_with_a_verb():
    wrong = []
    for name in [*modules(jaxdl), *modules(experiments)]:
        for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(name)))):
            # A property is a value, and its docstring a noun.
            if isinstance(node, ast.FunctionDef) and "property" not in ast.unparse(node.decorator_list or [node.args]):
                docstring = ast.get_docstring(node)
                if docstring and not begins_with_a_verb(docstring):
                    wrong.append(f"{name}.{node.name}: {docstring.splitlines()[0]}")
    assert wrong == []
