"""What the documentation names is there, and what it shows runs."""

import json
import pydoc
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from types import ModuleType

import jax
import numpy as np
import optax
import pytest
import yaml
from starlette.testclient import TestClient

import jaxdl
from experiments.cifar10.experiment import Config
from jaxdl.datasets import _download, simulated_weather
from jaxdl.saving import export, predict_script
from jaxdl.train.fit import fit
from tests.documents import PAGES, ROOT, blocks, name_of
from tests.quick import quick_programs

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
# Pages with tests of their own, here and in docs/test_readme.py, docs/test_keras.py, docs/test_callbacks.py and
# docs/test_own_experiment.py.
OWN = {
    "README.md",
    "docs/keras.md",
    "docs/callbacks.md",
    *(f"docs/{name}.md" for name in ("how-it-works", "many-runs", "growing", "sharing", "own-experiment")),
    "docs/bring-your-model.md",
}
# What is quick to compile instead of what a page says, and how often it says it: here it is the calls that are tried.
SMALL = {
    "docs/index.md": {"mlp((100, 50), ": ("mlp((8,), ", 1)},
    "docs/watching.md": {
        "mlp((100, 50), ": ("mlp((), ", 1),
        "optax.adam(1e-2)": ("optax.sgd(1e-3)", 2),
        "inject_hyperparams(optax.adam)": ("inject_hyperparams(optax.sgd)", 1),
    },
    "docs/many-runs.md": {
        "mlp((20, 10), ": ("mlp((), ", 1),
        "optax.adam(1e-2)": ("optax.sgd(1e-3)", 3),
        "optax.adam(learning_rate)": ("optax.sgd(learning_rate / 10)", 1),
        "grid(hidden=((20, 10), (5, 5)), ": ("grid(hidden=((5,),), ", 1),
    },
    "docs/growing.md": {"mlp((100, 50), ": ("mlp((100,), ", 1), "optax.adam(1e-3)": ("optax.sgd(1e-3)", 3)},
}
FAULTS = (ROOT / "docs" / "faults.md").read_text().partition("\n## ")[0]
ROWS = [line for line in FAULTS.splitlines() if line.startswith("| ")][1:]


def named_in(row):
    """The tests in the last column, with the file of the one before where a name begins with ::."""
    names, file = [], None
    for name in re.findall(r"`(\S*::\w+)`", row.rsplit("|", 2)[1]):
        file = name.partition("::")[0] or file
        names.append((file, name.partition("::")[2]))
    return names


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:40] for row in ROWS])
def test_every_fault_in_the_table_has_a_test(row):
    cells = row.split(" | ")
    assert len(cells) == 5
    assert named_in(row) or cells[-1].strip(" |") == "the same"
    for file, name in named_in(row):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_programs():
        yield


def run_blocks(page, names):
    """Runs the blocks of a page one after the other, in which each sees the names of those before; some made small."""
    small, codes = SMALL.get(name_of(page), {}), [block.code for block in blocks(page, "python")]
    for large, (less, times) in small.items():
        assert sum(code.count(large) for code in codes) == times, f"{name_of(page)} must say {large!r} {times} times"
        codes = [code.replace(large, less) for code in codes]
    for code in codes:
        exec(code, names)
    return names


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """Where a page that names no data finds a weather table, and what it writes lies in a folder of the test."""
    simulated_weather(1200).to_csv(tmp_path / "weather.csv", index=False)
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_every_page_with_python_is_run_by_one_of_the_tests():
    # Those with a test of their own say what must come out of them.
    assert {name_of(page) for page in WITH_PYTHON} >= {"docs/index.md", "docs/watching.md", *OWN}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if name_of(page) not in OWN], ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(page, data_folder, capsys):
    run_blocks(page, {})


@pytest.mark.slow
def test_the_walk_by_hand_is_what_fit_does(capsys):
    names = run_blocks(ROOT / "docs" / "how-it-works.md", {})
    lines = capsys.readouterr().out.splitlines()
    plan = names["plan"]
    run = fit(
        plan.model,
        plan.objective.loss,
        optax.adam(1e-3),
        names["train"],
        names["validation"],
        metrics=plan.objective.metrics,
        epochs=3,
    )
    for line, (epoch, record) in zip(lines[:3], run.history.iterrows(), strict=True):
        assert line == f"{epoch} { {name: round(value, 2) for name, value in record.items()} }"
    # The step's loss is that of NumPy before the update.
    outputs, _ = plan.model.apply(names["run_state"].train_state.variables, names["batch"].inputs, train=True, key=None)
    expected = np.mean((np.asarray(outputs) - names["batch"].targets) ** 2)
    assert float(lines[3]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_blocks_of_the_page_on_other_libraries_run_and_train(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # which Keras's own layers need
        names = run_blocks(ROOT / "docs" / "bring-your-model.md", {})
    assert names["accuracy"] > 0.9
    assert (tmp_path / "network.keras").is_file() and (tmp_path / "whole.keras").is_file()


@pytest.mark.slow
def test_the_blocks_of_the_guide_to_many_runs_run_one_after_the_other(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "docs" / "many-runs.md", {})
    output = capsys.readouterr().out
    assert "4 seeds" in output and "rung 1/2 trials 6/6 epoch 1/18 loss " in output and "2 of 6 trials, best " in output
    assert len(names["study"].results) == 24 and names["saved"] is None
    assert names["rmse"].shape == (8,) and names["choice"] in names["table"].index


@pytest.mark.slow
def test_the_blocks_of_the_guide_to_growing_run_and_say_what_it_says(capsys):
    names = run_blocks(ROOT / "docs" / "growing.md", {})
    assert names["mesh"].size == 8  # as many as the tests have
    assert names["run"].final.params["Dense_0"]["kernel"].sharding.mesh == names["mesh"]
    output = capsys.readouterr().out.split("\n")
    assert output[0] == "{'all-reduce'}"
    # What the guide says is sent for each step, of the network that it trains.
    sent, parameters = map(int, output[1].split())
    assert parameters <= sent < 1.1 * parameters
    # The stream is of the rows that were placed, on one device.
    assert names["streamed"].history["loss"].tolist() == pytest.approx(names["run"].history["loss"].tolist(), rel=1e-5)
    assert float(output[2]) > 0
    assert [float(names["rate"](step)) for step in (0, names["warm_up"])] == pytest.approx([0.1, 0.8])


def test_the_guide_to_growing_names_what_is_there():
    text = (ROOT / "docs" / "growing.md").read_text()
    for name in re.findall(r"`(?:python -m )?((?:benchmarks|experiments|jaxdl)(?:\.\w+)+)`", text):
        assert pydoc.locate(name) is not None, name
    known = {field.name.replace("_", "-") for field in fields(Config)}
    for command in re.findall(r"-m experiments\.cifar10(.*)", text):
        assert set(re.findall(r" --([a-z-]+)", command)) <= known, command


API = {page: re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE) for page in sorted(ROOT.glob("docs/api/*.md"))}


def test_every_public_part_is_on_one_page_of_the_api():
    public = {path.parent.name for path in ROOT.glob("jaxdl/*/__init__.py")}
    public |= {path.stem for path in ROOT.glob("jaxdl/*.py") if not path.name.startswith("_")}
    pages = {
        part: {page for page, names in API.items() for name in names if name.split(".")[1] == part} for part in public
    }
    assert {part: len(result) for part, result in pages.items()} == dict.fromkeys(public, 1)


def test_the_api_begins_with_what_the_package_gives():
    given = {name for name in jaxdl.__all__ if not isinstance(getattr(jaxdl, name), ModuleType)}
    linked = re.findall(r"\[`(\w+)`\]\[([\w.]+)\]", (ROOT / "docs" / "api" / "index.md").read_text())
    assert {name for name, _ in linked} == given and all(path.endswith(f".{name}") for name, path in linked)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_references_lead_to_names_that_the_api_shows(page):
    # The site shows a reference to any other name as text in brackets.
    rendered = set()
    for text in (path.read_text() for path in API):
        for module, members in re.findall(r"^::: (\S+)\n((?:    .*\n|\n)*)", text, re.MULTILINE):
            rendered |= {f"{module}.{name}" for name in re.findall(r"^ +- (\w+)$", members, re.MULTILINE)} | {module}
    for path in re.findall(r"\[(jaxdl[\w.]+)\]\[\]|\]\[(jaxdl[\w.]+)\]", page.read_text()):
        name = "".join(path)
        assert name in rendered or name.startswith(("jaxdl.types.", "jaxdl.errors.")), name


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r"^ *- (?:[^#\n]*: )?(\S+\.md)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {name_of(page).removeprefix("docs/") for page in (*ROOT.glob("docs/**/*.md"),)} <= set(listed)
    assert {name_of(page) for page in ROOT.glob("benchmarks/**/*.md")} <= set(listed)


@pytest.mark.parametrize("page", [*PAGES, *API], ids=name_of)
def test_links_lead_to_files(page):
    # Those of the site are checked again where it is built.
    for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_citation_is_read_and_names_the_data_that_the_code_reads():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["title"], citation["version"]) == (project["name"], jaxdl.__version__)
    cited = {reference["doi"] for reference in citation["references"] if "doi" in reference}
    assert cited == {published.doi for published in (_download.LIGHT, _download.FULL, _download.LABELS)}
    assert cited <= set(re.findall(r"10\.5281/zenodo\.\d+", (ROOT / "docs" / "data.md").read_text()))
    for page in ("README.md", "docs/index.md"):
        assert "data.md)" in (ROOT / page).read_text()


@pytest.mark.slow
def test_the_blocks_of_the_guide_to_sharing_run_and_serve_what_they_predict(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "predict", raising=False)
    names = {}
    *two, server = [block.code for block in blocks(ROOT / "docs" / "sharing.md", "python")]
    for code in two:
        exec(code, names)
    # The server stands alone, in a file beside a folder that the commands above it have made.
    shutil.copytree("simulated-sunshine", "sunshine")
    (tmp_path / "server.py").write_text(server)
    subprocess.run([sys.executable, "-c", "import server"], check=True, cwd=tmp_path)
    exec(server, names)
    sys.modules.pop("predict")
    columns, inputs = names["columns"], np.asarray(names["held_out"].inputs[:20])
    rows = [dict(zip(columns, row, strict=True)) for row in inputs.tolist()]
    client = TestClient(names["app"])
    assert client.get("/health").json()["status"] == "ok"
    answer = client.post("/predict", json={"rows": [dict(reversed(row.items())) for row in rows]})
    assert answer.status_code == 200 and answer.json()["names"] == ["sunshine_hours"]
    np.testing.assert_allclose(answer.json()["predictions"], names["wanted"][:20], rtol=1e-6, atol=1e-6)
    missing = {column: number for column, number in rows[0].items() if column != "BASEL_sunshine"}
    for wrong in (
        *([], "rows", {"rows": []}, {"rows": [missing]}, {"rows": [{**missing, "BASEL_sunshine": "nan"}]}),
        *({"rows": [{**missing, "BASEL_sunshine": None}]}, {"rows": rows[:1] * 1001}, {"rows": 3}),
    ):
        assert client.post("/predict", json=wrong).status_code in (413, 422), wrong
    assert client.post("/predict", content="{").status_code == 422
    huge = json.dumps({"rows": [{**rows[0], "BASEL_sunshine": 10**400}]})
    assert client.post("/predict", content=huge).status_code == 422
    assert client.post("/predict", content="[" * 10**5).status_code == 422
    assert client.post("/predict", content=" " * (2**20 + 1)).status_code == 413
    assert client.get("/predict").status_code == 405
    assert "BASEL_sunshine" in client.post("/predict", json={"rows": [missing]}).text


def test_the_guide_to_sharing_names_the_files_that_are_written():
    text = (ROOT / "docs" / "sharing.md").read_text()
    listed = re.findall(r"^\| `(\S+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(
        [
            predict_script.ABOUT,
            predict_script.PROGRAM,
            predict_script.SUMS,
            *(export.CARD, export.WEIGHTS, export.PREDICT),
        ]
    )
