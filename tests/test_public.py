"""What is public: the names that packages show, and those that the documentation of the API lists."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdl
import jaxdl.runs

ROOT = Path(__file__).parent.parent
FACES = sorted(path.parent.name for path in ROOT.glob("jaxdl/*/__init__.py"))
FILES = ["baselines", "losses", "metrics", "profiling", "stats"]
NAMESPACES = sorted([*FACES, *FILES])


def documented():
    """Return the names that the pages of the API list for each module."""
    names = {}
    for page in ROOT.glob("docs/api/*.md"):
        for module, options in re.findall(r"^::: jaxdl\.(\S+)\n((?:[ ]+.*\n)*)", page.read_text(), re.MULTILINE):
            names[module] = set(re.findall(r"^ +- (\w+)$", options, re.MULTILINE))
    return names


def python(code):
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_namespace_shows_the_names_that_its_page_lists(name):
    namespace = importlib.import_module(f"jaxdl.{name}")
    assert dir(namespace) == sorted(namespace.__all__)
    assert set(namespace.__all__) == documented()[name]


def test_jaxdl_shows_its_namespaces_and_the_names_that_its_page_links():
    linked = set(re.findall(r"\[`(\w+)`\]\[jaxdl\.", (ROOT / "docs" / "api" / "index.md").read_text()))
    assert dir(jaxdl) == sorted(jaxdl.__all__)
    assert set(jaxdl.__all__) == linked | set(NAMESPACES)


@pytest.mark.parametrize("name", ["errors", "types"])
def test_types_and_errors_show_only_the_names_that_users_type(name):
    module = importlib.import_module(f"jaxdl.{name}")
    assert dir(module) == sorted(module.__all__)
    assert not {"annotations", "Any", "NamedTuple", "re"} & set(dir(module))


@pytest.mark.parametrize("name", ["", *NAMESPACES])
def test_every_public_name_is_there_and_is_documented(name):
    namespace = importlib.import_module(f"jaxdl.{name}".rstrip("."))
    for public in namespace.__all__:
        value = getattr(namespace, public)
        # A constant is described by a comment.
        assert inspect.getdoc(value) or isinstance(value, (str, tuple)), public


def test_nothing_is_loaded_before_it_is_used():
    assert python(
        "import sys, jaxdl\n"
        "lazy = ('jaxdl.plots', 'jaxdl.callbacks', 'jaxdl.runs', 'jaxdl.datasets')\n"
        "print(*[name for name in lazy if name in sys.modules], dir(jaxdl.runs) == jaxdl.runs.__all__)\n"
        "print(*[name for name in lazy if name in sys.modules])\n"
        "print(jaxdl.plots.history.__module__, jaxdl.plots is sys.modules['jaxdl.plots'])"
    ) == ["True", "jaxdl.runs", "jaxdl.plots._training", "True"]


def test_a_star_import_gives_the_public_names_alone():
    names = python("from jaxdl import *\nprint(*[name for name in globals() if name[:2] != '__'])")
    assert sorted(names) == dir(jaxdl)


@pytest.mark.parametrize("package", ["jaxdl", "jaxdl.runs"])
def test_an_unknown_name_is_an_attribute_error(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'fti'"):
        _ = module.fti
    assert not hasattr(module, "fti")


def test_names_that_load_on_first_use_are_imported_for_type_checkers():
    for package in (jaxdl, jaxdl.runs):
        lines = Path(package.__file__).read_text().partition("if TYPE_CHECKING:\n")[2].splitlines()
        imports = [line.split() for line in lines if line.startswith("    from ")]
        lazy = jaxdl._PACKAGES if package is jaxdl else jaxdl.runs._MODULES
        assert sorted(words[-1] for words in imports) == sorted(lazy)
        if package is jaxdl.runs:
            assert {words[-1]: words[1] for words in imports} == jaxdl.runs._MODULES


def test_type_checkers_are_told_that_the_package_has_types():
    assert (Path(jaxdl.__file__).parent / "py.typed").is_file()
