"""The workflow of a public host and the hooks before a commit say what the project says."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import jaxdl

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())


def commands(job):
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_workflow_checks_style_and_types_before_it_tests():
    assert set(WORKFLOW["jobs"]) == {"lint", "test", "versions"}
    text = "\n".join(commands("lint"))
    for command in ("ruff check .", "ruff format --check .", "mypy"):
        assert command in text
    assert all(WORKFLOW["jobs"][job]["needs"] == "lint" for job in ("test", "versions"))


def test_the_workflow_tests_every_python_that_the_project_allows():
    tested = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["project"]["requires-python"]).groups()
    assert {f"3.{minor}" for minor in range(int(low), int(high))} <= set(tested)
    # A Python that is not allowed yet may fail.
    assert WORKFLOW["jobs"]["test"]["continue-on-error"] == f"${{{{ matrix.python == '3.{high}' }}}}"


def test_the_workflow_may_only_read_and_has_a_time_limit():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["cancel-in-progress"]
    for job in WORKFLOW["jobs"].values():
        assert "permissions" not in job and job["timeout-minutes"] <= 90
        uses = [step["uses"] for step in job["steps"] if "uses" in step]
        assert {use.partition("@")[0] for use in uses} == {"actions/checkout", "actions/setup-python"}
        setup = next(step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
        assert setup["cache"] == "pip"


def test_the_workflow_tests_the_oldest_and_the_newest_versions_that_the_project_allows():
    job = WORKFLOW["jobs"]["versions"]
    tested = {each["resolution"]: each["python"] for each in job["strategy"]["matrix"]["include"]}
    assert set(tested) == {"lowest-direct", "highest"}
    assert f">={tested['lowest-direct']}," in PROJECT["project"]["requires-python"]
    assert any("--resolution ${{ matrix.resolution }}" in command for command in commands("versions"))
    # What has no lower bound has no oldest version.
    assert all(">=" in line for line in PROJECT["project"]["dependencies"])


def test_hooks_need_no_download_and_run_what_the_workflow_runs():
    assert [repo["repo"] for repo in HOOKS["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in HOOKS["repos"][0]["hooks"]}
    assert {hook["language"] for hook in hooks.values()} <= {"system", "pygrep"}
    text = "\n".join(commands("lint"))
    assert {hook["entry"] in text for hook in hooks.values() if hook["language"] == "system"} == {True}


@pytest.mark.parametrize(
    "text, wrong", [("a  \n", True), ("a\n", False), ("a\n\n", True), ("a", True), ("a\n\nb\n", False)]
)
def test_the_hook_finds_spaces_at_ends_of_lines_and_files_without_one_end(text, wrong):
    result = False
    for hook in HOOKS["repos"][0]["hooks"]:
        if hook["language"] == "pygrep":
            flags = re.MULTILINE if "--multiline" in hook.get("args", ()) else 0
            result |= bool(re.search(hook["entry"].encode(), text.encode(), flags))
    assert result is wrong


def test_every_file_of_text_passes_the_hooks_for_ends():
    hooks = [hook for hook in HOOKS["repos"][0]["hooks"] if hook["language"] == "pygrep"]
    kinds = {f".{kind}" for kind in hooks[0]["files"].strip("\\.($)").split("|")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [path for path in map(ROOT.joinpath, tracked.split("\n")) if path.suffix in kinds and path.exists()]
    wrong = [
        str(path.relative_to(ROOT))
        for path in paths
        for hook in hooks
        if re.search(hook["entry"].encode(), path.read_bytes(), re.MULTILINE)
    ]
    assert wrong == []


def test_the_version_stands_in_one_place():
    assert "version" not in PROJECT["project"] and "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "jaxdl.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxdl.__version__)
    assert PROJECT["tool"]["setuptools"]["package-data"] == {"jaxdl": ["py.typed"]}
