"""The cost of a training step: against XLA's count, products by hand, and the sizes of what goes in."""

import io
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxdl import profiling
from jaxdl.data import DataSource, dataset
from jaxdl.losses import softmax_cross_entropy, squared_error
from jaxdl.metrics import accuracy, rmse
from jaxdl.nn import convnet, mlp
from jaxdl.profiling import StepCost, as_record, as_table, step_cost
from jaxdl.train import make_plan, start
from jaxdl.train.epoch import start_shapes
from jaxdl.types import Dataset, Model, Objective, Variables

KEY = jax.random.key(0)
OBJECTIVE = Objective(squared_error, (rmse,))
DRAWS = np.random.default_rng(0)
ROWS = dataset(DRAWS.normal(size=(150, 20)), DRAWS.normal(size=(150, 1)))


def cost_of(model, rows=ROWS, objective=OBJECTIVE, optimizer=None, **arguments):
    plan = make_plan(
        model, objective.loss, optimizer or optax.adam(1e-3), metrics=objective.metrics, batch_size=16, **arguments
    )
    return step_cost(plan, start_shapes(plan, rows, key=KEY), rows)


def test_a_step_is_the_products_forwards_and_two_of_each_backwards():
    # The first layer needs no gradient of its inputs.
    products = 2 * 16 * (2 * 20 * 100 + 3 * 100 * 50 + 3 * 50)
    cost = cost_of(mlp((100, 50)), optimizer=optax.sgd(0.1))
    # Beside them a few operations a parameter and an activation.
    assert products < cost.flops < products + 16 * 10 * 150 + 4 * 8000
    assert cost.batch_size == 16


def test_a_convolution_counts_its_products():
    images = dataset(DRAWS.integers(0, 256, (32, 16, 16, 3)).astype(np.uint8), DRAWS.integers(0, 10, 32))
    cost = cost_of(convnet((16, 18)), images, Objective(softmax_cross_entropy, (accuracy,)))
    # Both convolutions and the dense layer, forward and for both gradients, but for those of the images.
    first, second, dense = 14 * 14 * 9 * 3 * 16, 12 * 12 * 9 * 16 * 18, 12 * 12 * 18 * 10
    products = 2 * 16 * (2 * first + 3 * second + 3 * dense)
    assert products < cost.flops < 1.2 * products


def test_the_body_of_a_loop_counts_once():
    def init(key, inputs):
        return Variables({"kernel": jnp.eye(20)}, {})

    def looped(trips):
        def apply(variables, inputs, *, train, key=None, mask=None):
            def body(carry, _):
                return jnp.tanh(carry @ variables.params["kernel"]), None

            return jax.lax.scan(body, inputs, None, trips)[0][:, :1], variables.stats

        return Model(init, apply)

    few, many = cost_of(looped(10)), cost_of(looped(110))
    assert 3 * 2 * 16 * 20 * 20 < many.flops < 1.5 * few.flops


def test_memory_is_at_least_that_of_what_goes_in():
    model = mlp((100, 50))
    cost = cost_of(model)
    held = sum(4 * leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, KEY, ROWS.inputs)))
    batch = 16 * (20 + 1 + 1) * 4
    # Adam has two more numbers for each parameter.
    assert 3 * held + batch <= cost.arguments <= 3 * held + batch + 100
    # What comes out takes its place, but for the measures.
    assert cost.results < held / 10
    assert cost.peak_memory == cost.arguments + cost.temporaries + cost.results >= 3 * held + batch
    # All that comes in is read once at least.
    assert cost.bytes >= cost.arguments
    assert cost.intensity == cost.flops / cost.bytes


def test_a_larger_batch_takes_more_memory_for_what_is_kept_until_the_gradients():
    plans = [
        make_plan(mlp((100, 50)), squared_error, optax.sgd(0.1), metrics=[rmse], batch_size=size) for size in (10, 150)
    ]
    small, large = (step_cost(plan, start_shapes(plan, ROWS, key=KEY), ROWS) for plan in plans)
    # The activations of both layers wait for their gradients.
    assert large.temporaries - small.temporaries >= 140 * (100 + 50) * 4
    assert large.arguments - small.arguments == 140 * 22 * 4


def test_a_moving_average_of_the_variables_is_part_of_the_cost():
    plain, averaged = cost_of(mlp((100,))), cost_of(mlp((100,)), ema_decay=0.9)
    parameters = 20 * 100 + 100 + 101
    assert averaged.arguments - plain.arguments == pytest.approx(4 * parameters, abs=8)
    # Two products, a sum, a comparison and a selection for each of them, and little else.
    assert averaged.flops - plain.flops == pytest.approx(5 * parameters, abs=50)


def test_nothing_is_computed_and_what_was_given_is_kept():
    ran = []

    def apply(variables, inputs, **_):
        jax.debug.callback(lambda: ran.append(1))
        return inputs[:, :1] * variables.params, variables.stats

    plan = make_plan(
        Model(lambda key, inputs: Variables(jnp.ones((1, 1)), {}), apply), squared_error, optax.sgd(0.1), metrics=[rmse]
    )
    run_state = start(plan, ROWS, key=KEY)
    jax.effects_barrier()
    ran.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_cost(plan, run_state, ROWS)
    jax.effects_barrier()
    assert ran == []
    assert float(run_state.train_state.variables.params[0, 0]) == 1.0


def test_only_the_shapes_of_the_state_and_the_dataset_matter():
    plan = make_plan(mlp((5,)), squared_error, optax.adam(1e-3), metrics=[rmse], batch_size=16)
    run_state = start(plan, ROWS, key=KEY)
    source = DataSource(150, lambda rows: Dataset(*(leaf[rows] for leaf in ROWS)))
    shapes = jax.eval_shape(lambda: (run_state, ROWS))
    assert step_cost(plan, run_state, source) == step_cost(plan, run_state, ROWS) == step_cost(plan, *shapes)


def test_it_is_compiled_with_the_options_of_a_run(monkeypatch):
    # Here one that XLA refuses.
    monkeypatch.setattr("jaxdl.profiling.compiler_options", lambda **_: {"xla_cpu_no_such_option": True})
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError)):
        cost_of(mlp(()))


@pytest.mark.parametrize(
    ("analysis", "values"),
    [
        (None, (None, None)),
        ([], (None, None)),
        ([{"flops": 8.0, "bytes accessed": 4.0}], (8, 4)),
        ({"flops": -1.0, "bytes accessed": 4.0}, (None, 4)),
        ({}, (None, None)),
    ],
)
def test_values_that_a_platform_does_not_give_are_none(monkeypatch, analysis, values):
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda lowered: analysis)
    monkeypatch.setattr(jax.stages.Compiled, "cost_analysis", lambda compiled: analysis)
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda compiled: None)
    cost = cost_of(mlp(()))
    assert (cost.flops, cost.bytes) == values
    assert (cost.arguments, cost.temporaries, cost.results, cost.peak_memory) == (None,) * 4
    assert (cost.intensity is None) == (None in values)
    assert "unknown" in "".join(lines_of(as_table(cost)))


def lines_of(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return lines


COST = StepCost(32, 4_532_853, 2_181_764, 284_364, 193_344, 268)


def test_the_table_has_a_line_for_each_value():
    lines = [line.replace("│", " ").split() for line in lines_of(as_table(COST, "weather"))]
    text = [" ".join(line) for line in lines]
    assert text[0] == "weather"
    assert "FLOPs 4.53 M by XLA's count" in text
    assert "read and written 2.18 MB 2.08 FLOPs a byte" in text
    assert "memory at the peak 478 kB of which" in text
    assert "temporaries 193 kB activations and gradients" in text
    # No line is broken: six, three for the head, one for the end.
    assert len(lines_of(as_table(COST))) == 6 + 3 + 1


def test_the_record_is_json_and_holds_what_the_table_shows():
    record = json.loads(json.dumps(as_record(COST)))
    assert record["peak_memory"] == 284_364 + 193_344 + 268
    assert record["intensity"] == pytest.approx(4_532_853 / 2_181_764)
    assert {name: record[name] for name in COST._fields} == COST._asdict()


def test_the_cost_of_any_step_is_its_products_and_the_sizes_of_what_it_uses():
    kernel = jax.ShapeDtypeStruct((20, 1), jnp.float32)
    cost = profiling.cost_of(lambda kernel, rows: kernel - rows.inputs.T @ rows.targets, kernel, ROWS)
    assert (cost.batch_size, cost.flops) == (150, 2 * 150 * 20 + 20)
    # The weights of the rows are not used, and the new kernel takes the place of the old one.
    assert (cost.arguments, cost.results) == (4 * (20 + 150 * 20 + 150), 0)
