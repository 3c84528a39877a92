"""The suite itself: its modules compile nothing while they are imported, and its programs are kept."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

# What JAX compiles to make an array or a key.
MAKING_ARRAYS = {
    *("_threefry_seed", "_threefry_split", "scan", "stage"),
    *("broadcast_in_dim", "convert_element_type", "dynamic_slice", "squeeze"),
}


def test_no_module_of_tests_trains_or_runs_a_network_while_it_is_imported(compiled_by_imports):
    # Every worker imports every module: move such work into a fixture, or into a function with functools.cache.
    assert {name.removeprefix("jit(").removesuffix(")") for name in compiled_by_imports} - MAKING_ARRAYS == set()


def test_compilations_are_counted_although_programs_are_kept(compilations):
    def program_of_this_test(x):
        return x * 3 + 1

    counts = []
    for _ in range(2):
        with compilations() as names:
            np.testing.assert_array_equal(jax.jit(program_of_this_test)(np.arange(3)), [1, 4, 7])
        counts.append(names.count("program_of_this_test"))
        jax.clear_caches()
    # The second time the program comes from the folder.
    assert counts == [1, 1]


def test_processes_of_tests_share_the_kept_programs():
    code = "import jax; print(jax.config.jax_compilation_cache_dir)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
    jnp.zeros(3).block_until_ready()
    assert os.listdir(jax.config.jax_compilation_cache_dir)


def test_the_list_of_slow_tests_names_tests_that_there_are():
    folder = Path(__file__).parent
    lines = (folder / "slow.txt").read_text().split()
    assert lines == sorted(set(lines))
    for file, name in (line.split("::") for line in lines):
        assert f"def {name}(" in (folder / file).read_text(), f"{file} has no {name}"
