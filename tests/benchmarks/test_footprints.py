"""Footprints: the metrics of a run are those stored, the comparison finds what differs, and the counters count."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import footprints
from benchmarks.flops import flops
from benchmarks.footprints import CASES, Footprints, Traffic, as_table, compare, compilations, read, traffic, write

ROOT = Path(__file__).parents[2]
STORED = Footprints("1.0", "cpu", {"temporaries": 0.1}, {"plain": {"dispatches": 3, "FLOPs": 1000, "temporaries": 200}})


def now(**changed):
    """The stored metrics with others for some."""
    return STORED._replace(cases={"plain": {**STORED.cases["plain"], **changed}})


@pytest.fixture
def triple():
    """A compiled program, and a number on the device to give to it."""
    program, number = jax.jit(lambda x: 3 * x), jnp.float32(1)
    jax.block_until_ready(program(number))
    return lambda x=number: program(x)


@pytest.mark.slow
def test_the_footprints_are_the_stored_ones():
    # In a process of its own: many seeds spread over devices, of which the tests have eight.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.footprints"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert all(name in done.stdout for name in CASES)


def test_an_epoch_is_one_dispatch_and_one_fetch_and_a_second_fit_compiles_nothing():
    stored = read()
    assert set(stored.cases) == set(CASES)
    for metrics in stored.cases.values():
        assert metrics["dispatches an epoch"] == metrics["fetches an epoch"] == 1
        assert metrics["compilations of a second fit"] == 0


def test_the_stored_flops_of_a_step_are_three_products_for_each_layer():
    # 32 rows of 89 columns through layers of 100 and 50, without the gradient of the columns; the rest is little.
    products = 2 * 32 * (2 * 89 * 100 + 3 * 100 * 50 + 3 * 50)
    one, four = (read().cases[name]["FLOPs of a step"] for name in ("weather plain", "weather plain, 4 seeds"))
    assert products < one < 1.2 * products
    assert four == pytest.approx(4 * one, rel=1e-3)


def test_flops_are_the_products_of_used_results():
    def product(left, right):
        jnp.exp(left)
        return jnp.tanh(left @ right)

    arguments = jnp.ones((7, 5)), jnp.ones((5, 3))
    assert flops(product, *arguments) == 2 * 7 * 5 * 3 + 7 * 3
    assert flops(jax.jit(jax.vmap(product)), jnp.ones((6, 7, 5)), jnp.ones((6, 5, 3))) == 6 * (2 * 7 * 5 * 3 + 7 * 3)
    assert flops(jnp.sum, arguments[0]) == 35 and flops(lambda a: jnp.sort(a.T), arguments[0]) == 0


@pytest.mark.parametrize("padding, places", [("VALID", 7 * 7 * 9), ("SAME", 25 * 25)])
def test_flops_of_a_convolution_and_of_its_gradients_skip_padding(padding, places):
    def loss(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=numbers).sum()

    arguments = jnp.ones((2, 9, 9, 16)), jnp.ones((3, 3, 16, 18))
    once = 2 * 2 * places * 16 * 18
    assert once <= flops(loss, *arguments) < 1.02 * once
    # The gradients do not need the sum itself.
    assert 2 * once <= flops(jax.grad(loss, (0, 1)), *arguments) < 2.02 * once


def test_a_loop_counts_every_iteration_and_a_branch_the_most_expensive_one():
    matrix = jnp.ones((4, 4))
    assert flops(lambda a: jax.lax.scan(lambda c, _: (c @ c, None), a, None, 7)[0], matrix) == 7 * 2 * 4**3
    assert flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a + 1, a), matrix) == 2 * 4**3 + 1
    assert flops(lambda a: jax.lax.platform_dependent(a, cpu=jnp.sin, default=lambda a: a @ a), matrix) == 2 * 4**3


def test_equal_footprints_have_no_differences():
    assert compare(STORED, now()) == []


def test_a_worse_metric_fails_and_is_reported_with_both_values():
    (result,) = compare(STORED, now(dispatches=5))
    assert result.fails
    for word in ("plain", "dispatches", "stored 3", "got 5", "worse", "benchmarks.footprints --write"):
        assert word in str(result)


def test_a_better_exact_metric_fails_too():
    (result,) = compare(STORED, now(FLOPs=999))
    assert result.fails and "stored 1,000, got 999" in str(result) and "better" in str(result)


@pytest.mark.parametrize("got, fails", [(220, None), (221, True), (180, None), (179, False)])
def test_a_metric_with_a_tolerance_may_grow_within_it_and_shrink_beyond_it(got, fails):
    assert [each.fails for each in compare(STORED, now(temporaries=got))] == ([] if fails is None else [fails])


@pytest.mark.parametrize("changed", [{"jax": "2.0"}, {"platform": "gpu"}])
def test_other_platforms_skip_metrics_with_a_tolerance(changed):
    other = now(temporaries=900, dispatches=5)._replace(**changed)
    assert [each.metric for each in compare(STORED, other)] == ["dispatches"]


@pytest.mark.parametrize("metric", ["dispatches", "temporaries"])
def test_a_metric_that_is_missing_fails(metric):
    (result,) = compare(STORED, now(**{metric: None}))
    assert result.fails and "got nothing" in str(result)


def test_new_and_missing_cases_fail():
    moved = STORED._replace(cases={"other": STORED.cases["plain"]})
    result = compare(STORED, moved)
    assert {each.case for each in result} == {"plain", "other"} and all(each.fails for each in result)


def test_footprints_are_written_sorted_and_read_again(tmp_path):
    path = tmp_path / "footprints.json"
    write(STORED, path)
    assert read(path) == STORED
    assert path.read_text().index("FLOPs") < path.read_text().index("dispatches")


def test_the_table_marks_failures():
    marks = list(as_table(STORED, now(dispatches=5, temporaries=100)).columns[-1].cells)
    assert marks == ["fails", "", "better"]


def test_three_calls_and_two_reads_are_counted(triple):
    def work():
        last = triple(triple(triple()))
        return float(last), np.asarray(last)

    assert traffic(work) == Traffic(dispatches=3, fetches=2)


@pytest.mark.parametrize(
    "read_it",
    [
        *(lambda x: np.asarray(x), lambda x: np.array(x), jax.device_get, int, float, bool),
        *(lambda x: x.item(), lambda x: x.tolist()),
    ],
    ids=["asarray", "array", "device_get", "int", "float", "bool", "item", "tolist"],
)
def test_every_way_to_read_an_array_is_one_fetch(triple, read_it):
    assert traffic(lambda: read_it(triple())).fetches == 1


def test_a_call_on_all_devices_is_one_dispatch(triple):
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    rows = jax.device_put(np.ones(16, np.float32), NamedSharding(mesh, PartitionSpec("rows")))
    jax.block_until_ready(triple(rows))
    assert traffic(lambda: np.asarray(triple(rows))) == Traffic(1, 1)


def test_numpy_is_restored_after_counting(triple):
    before = np.asarray, np.array
    traffic(lambda: triple())
    assert (np.asarray, np.array) == before


def test_each_new_shape_is_a_compilation(triple):
    rows = [jnp.ones(size) for size in (2, 3, 3)]
    assert compilations(lambda: len([triple(each) for each in rows])) == (2, 3)


def test_a_trace_without_calls_is_an_error(triple, monkeypatch):
    with pytest.raises(RuntimeError, match="must name compiled functions, got none"):
        traffic(lambda: None)
    monkeypatch.setattr(footprints, "DISPATCHED", footprints.re.compile("renamed"))
    with pytest.raises(RuntimeError, match=f"a trace of jax {jax.__version__}"):
        traffic(lambda: triple())
