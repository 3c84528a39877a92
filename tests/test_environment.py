"""Around a run: versions, devices and commit, the clock of the compiler, the cache of compiled functions."""

import json
import platform
import subprocess
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import pytest
from jax._src import compilation_cache
from jax.experimental.compilation_cache import compilation_cache as public

from jaxdl import _environment

COMPILE = "/jax/core/compile/backend_compile_duration"


# The clock of the compiler


@pytest.fixture
def clock(monkeypatch):
    """`clock(event, start, end)` reports a span to JAX at its end, as JAX does."""
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr(_environment, "time", SimpleNamespace(perf_counter=lambda: now.time))

    def report(event, start, end):
        now.time = end
        jax.monitoring.record_event_duration_secs(event, end - start)

    return report


@pytest.mark.parametrize(
    ("spans", "covered"),
    [
        ([(0, 1), (2, 4)], 3),
        # Inner ones end first.
        ([(1, 2), (0, 3)], 3),
        ([(1, 2), (2, 3), (4, 5), (0, 6)], 6),
        ([(1, 2), (0.5, 2.5), (0, 3), (4, 5)], 4),
        # Clocks are read one after the other, so that spans may overlap by a little.
        ([(0, 2), (1.5, 3)], 3),
        ([], 0),
    ],
)
def test_nested_compilations_are_counted_once(clock, spans, covered):
    with _environment.compile_clock() as seconds:
        for start_, end in spans:
            clock(COMPILE, start_, end)
        assert seconds() == pytest.approx(covered)


def test_the_compile_clock_counts_its_block_and_compilation_only(clock):
    clock(COMPILE, 0, 1)
    with _environment.compile_clock() as seconds:
        clock("/jax/core/compile/jaxpr_trace_duration", 1, 2)
        clock("/jax/checkpoint/write_duration", 2, 10)
        assert seconds() == 1
    clock(COMPILE, 10, 20)
    assert seconds() == 1


def test_the_compile_clock_stops_listening_when_the_block_fails(clock):
    with pytest.raises(KeyboardInterrupt), _environment.compile_clock() as seconds:
        raise KeyboardInterrupt
    clock(COMPILE, 0, 1)
    assert seconds() == 0


def test_a_real_compilation_takes_time_and_a_second_call_none():
    function = jax.jit(lambda values: jnp.sin(values).sum())
    with _environment.compile_clock() as seconds:
        function(np.ones(3, np.float32))
        first = seconds()
        function(np.ones(3, np.float32))
        assert 0 < first == seconds()


# Versions, devices and commit; the cache of compiled functions


def test_the_environment_is_that_of_this_process():
    result = _environment.environment()
    assert json.loads(json.dumps(result)) == result
    assert result["versions"]["python"] == platform.python_version()
    assert result["versions"]["jax"] == jax.__version__ == metadata.version("jax")
    assert set(result["versions"]) >= {"jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas"}
    assert len(result["devices"]) == jax.device_count()


def git(folder, *arguments):
    call = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_code_wherever_it_is_called_from(tmp_path, monkeypatch):
    git(tmp_path, "init")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "runs.py").write_text("")
    monkeypatch.setattr(_environment, "__file__", str(tmp_path / "code" / "runs.py"))
    monkeypatch.chdir("/")
    git(tmp_path, "commit", "--allow-empty", "-m", "one")
    # A copy that is not tracked is installed in somebody else's repository.
    assert _environment.environment()["commit"] is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "two")
    assert _environment.environment()["commit"] == git(tmp_path, "rev-parse", "HEAD")


@pytest.mark.parametrize("case", ["no repository", "no git"])
def test_code_without_a_commit_has_none(tmp_path, monkeypatch, case):
    monkeypatch.setattr(_environment, "__file__", str(tmp_path / "runs.py"))
    # So that git does not look for a repository above the test's folder.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if case == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert _environment.environment()["commit"] is None


@pytest.fixture
def restored_settings():
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_folder_for_compilations_that_was_chosen_before_stays(tmp_path, restored_settings):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    _environment.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_compilations_are_kept_in_the_users_cache(tmp_path, monkeypatch, restored_settings):
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    jax.config.update("jax_compilation_cache_dir", None)
    _environment.enable_compilation_cache()
    assert Path(jax.config.jax_compilation_cache_dir).is_relative_to(tmp_path / "jaxdl")
    # However short a compilation.
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_program_that_was_damaged_in_the_cache_is_compiled_anew(tmp_path, monkeypatch, restored_settings):
    # As where zstandard is installed, with which JAX keeps no checksum.
    monkeypatch.setattr(compilation_cache, "zstandard", SimpleNamespace(), raising=False)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    public.reset_cache()
    _environment.enable_compilation_cache()
    rows = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 30)

    def compiled():
        jax.clear_caches()
        with warnings.catch_warnings(record=True) as message:
            warnings.simplefilter("always")
            return np.asarray(jax.jit(lambda x: jnp.tanh(x @ x.T) * 3)(rows)).tobytes(), len(message)

    expected, _ = compiled()
    (path,) = tmp_path.glob("*lambda*-cache")
    content, draws = path.read_bytes(), np.random.default_rng(0)
    assert compiled() == (expected, 0)
    for place in draws.integers(0, len(content), 20):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draws.integers(8)]) + content[place + 1 :])
        result, message = compiled()
        assert result == expected and message
    public.reset_cache()


def test_no_folder_is_made_where_none_can_be_written_or_the_cache_is_off(tmp_path, monkeypatch, restored_settings):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "file" / name))
    jax.config.update("jax_compilation_cache_dir", None)
    _environment.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        _environment.enable_compilation_cache()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None and not (tmp_path / "jaxdl").exists()
