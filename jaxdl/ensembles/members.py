"""Ensemble members: many runs as one compiled function, and the mean of their predictions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdl._checks import (
    check_examples,
    check_has_targets,
    check_model,
    check_objective,
    check_variables,
    explain_calls,
)
from jaxdl._jit import is_traced, jit
from jaxdl.data.arrays import as_rows, as_trees, precision
from jaxdl.data.batches import evaluation_rows
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.train import start
from jaxdl.train.epoch import eval_batch_size, run_steps
from jaxdl.train.evaluate import evaluate_prepared, predict
from jaxdl.train.plan import PlanFamily
from jaxdl.train.step import eval_variables
from jaxdl.types import (
    Array,
    Dataset,
    EvalParams,
    Loss,
    Metric,
    Model,
    ModelLoss,
    Objective,
    Plan,
    PyTree,
    RunState,
    Variables,
)

Method = Literal["vmap", "map"]
AXIS = "member"
CPU_BATCH = 8  # members whose variables and optimizer state stay in the caches of a CPU, for small networks
EMPTY: Mapping[str, Array] = {}


def map_keys(keys: Array, init: Callable[..., RunState], **arguments: Any) -> RunState:
    """Return `init(key)` for each of the keys (M,), as one RunState of leaves (M, ...).

    The `cursor` stays a scalar, because all members are at the same batch. arguments: arrays (M, ...), one entry for
    each member, passed to its `init` by name.
    """
    # Not `vmap`: one after the other, each member is bit-identical to its solo run.
    many = lax.map(lambda one: init(one[0], **one[1]), (keys, arguments))
    return many._replace(cursor=many.cursor[0])


@partial(jit, static_argnames="plan")
def start_members(
    keys: Array,
    train: Dataset,
    validation: Dataset | None = None,
    numbers: Mapping[str, Array] = EMPTY,
    *,
    plan: Plan | PlanFamily,
) -> RunState:
    """Return the state of many runs before their first epoch: `start` for each of the keys (M,), compiled once.

    With a PlanFamily for a plan, `numbers`, arrays (M,), give each member its plan.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp
    >>> data = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> start_members(jax.random.split(jax.random.key(0), 3), data, plan=plan).epoch.shape
    (3,)
    """

    def start_one(key: Array, **values: Array) -> RunState:
        return start(_plan_of(plan, values), train, validation, key=key)

    return map_keys(keys, start_one, **numbers)


def member(many: RunState, index: int) -> RunState:
    """Return the state of one member, to resume it alone.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp
    >>> data = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> many = start_members(jax.random.split(jax.random.key(0), 3), data, plan=plan)
    >>> member(many, 2).epoch.shape
    ()
    """
    one: RunState = jax.tree.map(lambda leaf: leaf[index], _without_cursor(many))
    # A member that has stopped is at the end of an epoch, wherever the others are.
    return one._replace(cursor=jnp.where(one.stopping.should_stop, 0, many.cursor))


def eval_variables_of_members(many: RunState, eval_params: EvalParams | None = None) -> Variables:
    """Return `eval_variables` of each of many runs, leaves (M, ...)."""
    if eval_params is None:
        return eval_variables(many.train_state)
    return jax.vmap(lambda state: eval_variables(state, eval_params))(many.train_state)


def map_members(
    epoch: Callable[..., tuple[RunState, PyTree]], method: Method = "vmap", *, mesh: Mesh | None = None
) -> Callable[..., tuple[RunState, PyTree]]:
    """Return a function `(state, ...) -> (state, values)` that runs an epoch, or a part of one, of many runs.

    Positional arguments are shared; of arguments by name, arrays (M, ...), each member has its entry. A member that
    should stop is left unchanged, with NaN for its values. It means

        for index, run_state in enumerate(states):
            if not run_state.stopping.should_stop:
                entries = {name: array[index] for name, array in named.items()}
                states[index], values[index] = epoch(run_state, *arguments, **entries)

    method: "vmap" runs the members in batches, which is fast, and rounds differently than solo runs do; "map" runs them
    one after the other, bit-identical to solo runs. mesh: of the devices over which `shard_members` has sharded them.

    Raises InputError for another `method`.
    """
    if method not in ("vmap", "map"):
        raise InputError(f'method must be "vmap" or "map", got "{method}".')

    def on_device(many: Any, cursor: Array, arguments: Any, named: Any) -> tuple[Any, Array, PyTree]:
        def run_one(one: Any) -> tuple[Any, Array, PyTree]:
            run_state, entries = one
            after, values = epoch(run_state._replace(cursor=cursor), *arguments, **entries)
            should_stop = run_state.stopping.should_stop
            chosen = jax.tree.map(partial(jnp.where, should_stop), run_state, _without_cursor(after))
            return chosen, after.cursor, jax.tree.map(partial(jnp.where, should_stop, jnp.nan), values)

        size = _member_batch_size(many.epoch.shape[0]) if method == "vmap" else None
        after, cursors, values = lax.map(run_one, (many, named), batch_size=size)
        return after, cursors[0], values

    def run_all(many: RunState, *arguments: Any, **named: Any) -> tuple[RunState, PyTree]:
        run = on_device
        if mesh is not None:
            sharded, replicated = PartitionSpec(AXIS), PartitionSpec()
            # Each device loops over its own members; without shard_map, XLA would gather them for the loop.
            run = jax.shard_map(
                on_device,
                mesh=mesh,
                axis_names={AXIS},  # other axes stay XLA's
                in_specs=(sharded, replicated, replicated, sharded),
                out_specs=(sharded, replicated, sharded),
                check_vma=False,
            )
        after, cursor, values = run(_without_cursor(many), many.cursor, arguments, named)
        return after._replace(cursor=cursor), values

    return run_all


def _member_batch_size(count: int) -> int:
    """Return the members of a batch, a divisor of `count`: on a CPU as many as its caches hold, elsewhere all."""
    if jax.default_backend() != "cpu":
        return count
    return max(size for size in range(1, CPU_BATCH + 1) if count % size == 0)


def run_members(
    many: RunState,
    train: Dataset,
    validation: Dataset | None,
    steps: Any,
    *,
    plan: Plan | PlanFamily,
    method: Method = "vmap",
    numbers: Mapping[str, Array] = EMPTY,
    validate: Any = True,
) -> tuple[RunState, Array]:
    """Run the next batches of many runs: the `run` of `chunks` and `epochs`.

    A record then holds arrays (M,), with NaN for members that have stopped; the loop ends when all have. With a
    PlanFamily for a plan, `numbers`, arrays (M,), give each member its plan.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp
    >>> from jaxdl.train import epochs
    >>> data = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> many = start_members(jax.random.split(jax.random.key(0), 3), data, plan=plan)
    >>> [record["loss"].shape for _, record in epochs(plan, many, data, last=2, run=run_members)]
    [(3,), (3,)]
    """
    sharding = many.epoch.sharding if not isinstance(many.epoch, jax.core.Tracer) else None
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None
    return _run(many, train, validation, steps, np.bool_(validate), dict(numbers), plan=plan, method=method, mesh=mesh)


@partial(jit, static_argnames=("plan", "method", "mesh"))
def _run(
    many: RunState,
    train: Dataset,
    validation: Dataset | None,
    steps: Any,
    validate: Any,
    numbers: dict[str, Array],
    *,
    plan: Plan | PlanFamily,
    method: Method,
    mesh: Mesh | None,
) -> tuple[RunState, Array]:
    def run_one(run_state: RunState, *arguments: Any, **values: Array) -> tuple[RunState, Array]:
        *data, validate = arguments
        return run_steps(run_state, *data, plan=_plan_of(plan, values), validate=validate)

    steps = jnp.where(many.stopping.should_stop.all(), 0, steps)
    return map_members(run_one, method, mesh=mesh)(many, train, validation, steps, validate, **numbers)


def shard_members(many: RunState, *dataset: Dataset | None, devices: Any = None) -> tuple[Any, ...]:
    """Return the members sharded evenly over devices (all, by default), and datasets replicated on each of them.

    The devices communicate once a chunk: whether all members have stopped. XLA compiles a function of its own for
    several devices, which rounds BatchNorm's moments otherwise than on one. Raises InputError where the number of
    members is no multiple of the number of devices.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp
    >>> data = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> many = start_members(jax.random.split(jax.random.key(0), 4), data, plan=plan)
    >>> many, train = shard_members(many, data, devices=jax.devices()[:1])
    >>> len(many.epoch.sharding.device_set)
    1
    """
    devices = jax.devices() if devices is None else devices
    count = many.epoch.shape[0]
    if count % len(devices):
        raise InputError(f"{count} members cannot be sharded evenly over {len(devices)} devices. Use a multiple.")
    if len(devices) == 1:
        return jax.device_put((many, *dataset), devices[0])
    mesh = Mesh(np.asarray(devices), (AXIS,))
    sharded, replicated = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    many = jax.device_put(_without_cursor(many), sharded)._replace(cursor=jax.device_put(many.cursor, replicated))
    return many, *(jax.device_put(each, replicated) for each in dataset)


def gather(tree: PyTree) -> PyTree:
    """Return sharded arrays on the default device.

    >>> gather({"a": jnp.ones(2)})["a"].shape
    (2,)
    """
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def best_and_final(
    many: RunState, best_epochs: np.ndarray, eval_params: EvalParams | None = None
) -> tuple[Variables, Variables]:
    """Return the best and the final variables of many runs, of leaves (M, ...), on the default device.

    For a run without a best epoch, 0 in `best_epochs` (M,), the best are the final variables.
    """
    best, final = gather((many.best, eval_variables_of_members(many, eval_params)))
    without = best_epochs == 0
    if without.any():
        best = jax.tree.map(
            lambda new, old: jnp.where(without.reshape(-1, *[1] * (old.ndim - 1)), new, old), final, best
        )
    return best, final


def most_devices(count: int) -> list[Any]:
    """Return as many of this process's devices as divide the number of members evenly."""
    devices = jax.local_devices()
    return devices[: max(size for size in range(1, len(devices) + 1) if count % size == 0)]


def _plan_of(plan: Plan | PlanFamily, numbers: Mapping[str, Array]) -> Plan:
    return plan(numbers) if isinstance(plan, PlanFamily) else plan


def _without_cursor(run_state: Any) -> Any:
    """Return the state without the cursor, which all members share."""
    return run_state._replace(cursor=())


class EnsemblePrediction(NamedTuple):
    """The mean and the standard deviation of the predictions of ensemble members."""

    mean: PyTree  # (N, ...), in the containers of the model's outputs
    std: PyTree  # (N, ...), over the members; it divides by their number


@explain_calls
def predict_mean(
    model: Model, variables: Variables, inputs: Any, *, batch_size: int | None = None
) -> EnsemblePrediction:
    """Return mean and standard deviation of the outputs of many networks for (N, ...) inputs.

    The leaves of `variables` are (M, ...). The members run one after the other, so that the outputs of two members at
    most are in memory. Raises InputError for the variables of a single network.

    >>> from jaxdl import mlp
    >>> model, inputs = mlp((), outputs=2), jnp.ones((5, 3))
    >>> variables = jax.vmap(lambda key: model.init(key, inputs))(jax.random.split(jax.random.key(0), 4))
    >>> predict_mean(model, variables, inputs).std.shape
    (5, 2)
    """
    inputs = as_trees("inputs", inputs, convert=_as_array)
    _check_many("predict_mean", "predict", model, variables, inputs)
    count = jax.tree.leaves(variables)[0].shape[0]
    mean: Any = None
    squares: Any = None
    # Welford's update (Technometrics 4, 1962), which does not cancel where the deviation is small.
    for index in range(count):
        one: Variables = jax.tree.map(lambda leaf, index=index: leaf[index], variables)
        outputs = predict(model, one, inputs, batch_size=batch_size)
        outputs = jax.tree.map(lambda leaf: leaf.astype(precision(leaf.dtype)), outputs)
        if mean is None:
            mean = squares = jax.tree.map(lambda leaf: jnp.zeros((), jnp.float32), outputs)
        residual = jax.tree.map(operator.sub, outputs, mean)
        mean = jax.tree.map(lambda leaf, part, index=index: leaf + part / (index + 1), mean, residual)
        squares = jax.tree.map(
            lambda total, part, leaf, center: total + part * (leaf - center), squares, residual, outputs, mean
        )
    return EnsemblePrediction(mean, jax.tree.map(lambda total: jnp.sqrt(total / count), squares))


def _as_array(name: str, values: Any, counted: Any = None) -> Any:
    return values if isinstance(values, jax.Array) else as_rows(name, values)


@explain_calls
def evaluate_members(
    model: Model,
    variables: Variables,
    dataset: Dataset,
    loss: Loss | ModelLoss,
    *,
    metrics: Sequence[Metric] = (),
    batch_size: int | None = None,
) -> dict[str, Array]:
    """Return `loss` and each metric of a dataset for each of many networks, (M,); leaves of `variables` are (M, ...).

    The values are bit-identical to those of `evaluate` for each member, except for convolutions, which XLA may round
    otherwise within a loop. Raises InputError for the variables of a single network.

    >>> from jaxdl import dataset, losses, mlp
    >>> model, data = mlp(()), dataset([[1.0], [2.0]], [[0.0], [0.0]])
    >>> variables = jax.vmap(lambda key: model.init(key, data.inputs))(jax.random.split(jax.random.key(0), 4))
    >>> evaluate_members(model, variables, data, losses.squared_error)["loss"].shape
    (4,)
    """
    objective = check_objective(loss, metrics)
    check_examples("dataset", dataset)
    check_has_targets("dataset", objective, dataset)
    _check_many("evaluate_members", "evaluate", model, variables, dataset.inputs)
    check_labels(model, loss, dataset)
    rows, prepared = evaluation_rows(dataset), not is_traced(dataset.sample_weight)
    return _evaluate_members(model, objective, variables, rows, batch_size=batch_size, prepared=prepared)


@partial(jit, static_argnames=("model", "objective", "batch_size", "prepared"))
def _evaluate_members(
    model: Model,
    objective: Objective,
    variables: Variables,
    dataset: Dataset,
    *,
    batch_size: int | None,
    prepared: bool,
) -> dict[str, Array]:
    size = eval_batch_size(dataset.inputs, batch_size)
    return lax.map(
        lambda one: evaluate_prepared(model, objective, one, dataset, size=size, prepared=prepared), variables
    )


def _check_many(name: str, single: str, model: Model, variables: Variables, inputs: Any) -> None:
    check_model(model)
    check_variables(variables)
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
    alone = jax.eval_shape(model.init, jax.random.key(0), example)
    if [jnp.ndim(leaf) for leaf in jax.tree.leaves(variables)] == [leaf.ndim for leaf in jax.tree.leaves(alone)]:
        raise InputError(
            f"{name} needs the variables of many networks, leaves (members, ...), got those of a single network. "
            f"Use jaxdl.{single} for it."
        )
