"""Ensemble members: many runs as one program, and the mean of their predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdl._checks import check_examples, check_model, check_objective, check_variables, explain_calls
from jaxdl._jit import is_traced, jit
from jaxdl.data.arrays import as_rows, precision
from jaxdl.data.batches import evaluation_rows
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.train import start
from jaxdl.train.epoch import advance, rows_at_once
from jaxdl.train.evaluate import evaluate_prepared, predict
from jaxdl.train.plan import Family
from jaxdl.train.step import eval_variables
from jaxdl.types import Array, Dataset, EvalParams, Loss, Metric, Model, Objective, Plan, PyTree, RunState, Variables

Method = Literal["vmap", "map"]
AXIS = "member"
BLOCK = 8  # members whose weights and optimizer state stay in the caches of a CPU, for small networks
EMPTY: Mapping[str, Array] = {}


def members(keys: Array, init: Callable[..., RunState], **own: Any) -> RunState:
    """The progress of many runs: `init(key)` for each of the keys (M,), as one RunState of leaves (M, ...).

    Only the `cursor` stays a scalar, because all members are at the same batch. `own`: arrays (M, ...), of which each
    member's part is given to its `init` by name.
    """
    # Not `vmap`: one after the other, each of them has the bits of its solo run.
    many = lax.map(lambda of_one: init(of_one[0], **of_one[1]), (keys, own))
    return many._replace(cursor=many.cursor[0])


@partial(jit, static_argnames="plan")
def start_members(
    keys: Array,
    train: Dataset,
    validation: Dataset | None = None,
    numbers: Mapping[str, Array] = EMPTY,
    *,
    plan: Plan | Family,
) -> RunState:
    """The progress of many runs before their first epoch, `start` for each of the keys (M,), as one program.

    With a Family for a plan, `numbers`, arrays (M,), make each member's own.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp
    >>> rows = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> start_members(jax.random.split(jax.random.key(0), 3), rows, plan=plan).epoch.shape
    (3,)
    """

    def one(key: Array, **mine: Array) -> RunState:
        return start(_own(plan, mine), train, validation, key=key)

    return members(keys, one, **numbers)


def member(many: RunState, index: int) -> RunState:
    """The progress of one member, with which it goes on alone.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp, start
    >>> rows = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> many = members(jax.random.split(jax.random.key(0), 3), lambda key: start(plan, rows, key=key))
    >>> member(many, 2).epoch.shape
    ()
    """
    one: RunState = jax.tree.map(lambda leaf: leaf[index], _apart(many))
    # A member that has stopped closed its last epoch, wherever the others are in theirs.
    return one._replace(cursor=jnp.where(one.stopping.should_stop, 0, many.cursor))


def eval_variables_of_members(many: RunState, eval_params: EvalParams | None = None) -> Variables:
    """Return the weights of many runs that are measured and kept, leaves (M, ...): `eval_variables` of each."""
    if eval_params is None:
        return eval_variables(many.train_state)
    return jax.vmap(lambda state: eval_variables(state, eval_params))(many.train_state)


def ensemble(
    epoch: Callable[..., tuple[RunState, PyTree]], method: Method = "vmap", *, mesh: Mesh | None = None
) -> Callable[..., tuple[RunState, PyTree]]:
    """An epoch, or a part of one, of many runs: `(progress, ...) -> (progress, figures)`; they share other arguments.

    Of arguments by name, arrays (M, ...), each has its own. A member that has stopped stands still; its figures are
    nan. It means

        for index, run_state in enumerate(progresses):
            if not run_state.stopping.should_stop:
                mine = {name: values[index] for name, values in own.items()}
                progresses[index], figures[index] = epoch(run_state, *arguments, **mine)

    method: "vmap" runs the members in batches, which is fast, and rounds differently than solo runs do; "map" runs them
    one after the other, with the bits of solo runs. mesh: of the devices over which `spread` has spread the members.

    Raises InputError for another `method`.
    """
    if method not in ("vmap", "map"):
        raise InputError(f'how must be "vmap" or "map", got "{method}".')

    def on_device(many: Any, cursor: Array, arguments: Any, own: Any) -> tuple[Any, Array, PyTree]:
        def one(of_one: Any) -> tuple[Any, Array, PyTree]:
            run_state, mine = of_one
            after, figures = epoch(run_state._replace(cursor=cursor), *arguments, **mine)
            over = run_state.stopping.should_stop
            kept = jax.tree.map(partial(jnp.where, over), run_state, _apart(after))
            return kept, after.cursor, jax.tree.map(partial(jnp.where, over, jnp.nan), figures)

        size = _block(many.epoch.shape[0]) if method == "vmap" else None
        after, cursors, figures = lax.map(one, (many, own), batch_size=size)
        return after, cursors[0], figures

    def together(many: RunState, *arguments: Any, **own: Any) -> tuple[RunState, PyTree]:
        run = on_device
        if mesh is not None:
            apart, alike = PartitionSpec(AXIS), PartitionSpec()
            # Each device goes through its own members; left to itself, XLA would gather them for the loop.
            run = jax.shard_map(
                on_device,
                mesh=mesh,
                axis_names={AXIS},  # other axes stay XLA's
                in_specs=(apart, alike, alike, apart),
                out_specs=(apart, alike, apart),
                check_vma=False,
            )
        after, cursor, figures = run(_apart(many), many.cursor, arguments, own)
        return after._replace(cursor=cursor), figures

    return together


def _block(count: int) -> int:
    """How many of so many members make a batch: on a CPU no more than stay in its caches, elsewhere all."""
    if jax.default_backend() != "cpu":
        return count
    return max(size for size in range(1, BLOCK + 1) if count % size == 0)


def run_members(
    many: RunState,
    train: Dataset,
    validation: Dataset | None,
    steps: Any,
    *,
    plan: Plan | Family,
    method: Method = "vmap",
    numbers: Mapping[str, Array] = EMPTY,
) -> tuple[RunState, Array]:
    """The next batches of many runs, to be given to `chunks` and `epochs` as `run`.

    A record then holds arrays (M,), with nan for members that have stopped; the loop ends when all have. With a Family
    for a plan, `numbers`, arrays (M,), make each member's own.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp, start
    >>> from jaxdl.train import epochs
    >>> rows = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> many = members(jax.random.split(jax.random.key(0), 3), lambda key: start(plan, rows, key=key))
    >>> [record["loss"].shape for _, record in epochs(plan, many, rows, last=2, run=run_members)]
    [(3,), (3,)]
    """
    place = many.epoch.sharding if not isinstance(many.epoch, jax.core.Tracer) else None
    mesh = place.mesh if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh) else None
    return _run(many, train, validation, steps, dict(numbers), plan=plan, method=method, mesh=mesh)


@partial(jit, static_argnames=("plan", "method", "mesh"))
def _run(
    many: RunState,
    train: Dataset,
    validation: Dataset | None,
    steps: Any,
    numbers: dict[str, Array],
    *,
    plan: Plan | Family,
    method: Method,
    mesh: Mesh | None,
) -> tuple[RunState, Array]:
    def one(run_state: RunState, *arguments: Any, **mine: Array) -> tuple[RunState, Array]:
        return advance(run_state, *arguments, plan=_own(plan, mine))

    left = jnp.where(many.stopping.should_stop.all(), 0, steps)
    return ensemble(one, method, mesh=mesh)(many, train, validation, left, **numbers)


def shard_members(many: RunState, *dataset: Dataset | None, devices: Any = None) -> tuple[Any, ...]:
    """The members spread evenly over devices (all, by default), and data copied to each of them.

    The program stays the same. What the devices tell each other, once a chunk, is whether all members have stopped.
    XLA compiles it anew for several devices, and then rounds BatchNorm's moments otherwise than on one.
    Raises InputError where the devices cannot share the members evenly.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp, start
    >>> rows = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> many = members(jax.random.split(jax.random.key(0), 4), lambda key: start(plan, rows, key=key))
    >>> many, train = shard_members(many, rows, devices=jax.devices()[:1])
    >>> len(many.epoch.sharding.device_set)
    1
    """
    chosen = jax.devices() if devices is None else devices
    count = many.epoch.shape[0]
    if count % len(chosen):
        raise InputError(f"{count} members cannot be spread evenly over {len(chosen)} devices. Use a multiple.")
    if len(chosen) == 1:
        return jax.device_put((many, *dataset), chosen[0])
    mesh = Mesh(np.asarray(chosen), (AXIS,))
    apart, alike = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put(_apart(many), apart)._replace(cursor=jax.device_put(many.cursor, alike))
    return placed, *(jax.device_put(rows, alike) for rows in dataset)


def gather(tree: PyTree) -> PyTree:
    """Arrays that are spread over devices, on the default device again.

    >>> gather({"a": jnp.ones(2)})["a"].shape
    (2,)
    """
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def best_and_final(
    many: RunState, best_epochs: np.ndarray, eval_params: EvalParams | None = None
) -> tuple[Variables, Variables]:
    """Return the best and the final variables of many runs, of leaves (M, ...), on the default device.

    Of a run without a best epoch, 0 in `best_epochs` (M,), the final variables are the best too.
    """
    best, final = gather((many.best, eval_variables_of_members(many, eval_params)))
    without = best_epochs == 0
    if without.any():
        best = jax.tree.map(
            lambda new, old: jnp.where(without.reshape(-1, *[1] * (old.ndim - 1)), new, old), final, best
        )
    return best, final


def most_devices(count: int) -> list[Any]:
    """The most of this process's devices that share so many members evenly."""
    devices = jax.local_devices()
    return devices[: max(size for size in range(1, len(devices) + 1) if count % size == 0)]


def _own(plan: Plan | Family, numbers: Mapping[str, Array]) -> Plan:
    return plan(numbers) if isinstance(plan, Family) else plan


def _apart(run_state: Any) -> Any:
    """What each member has of its own."""
    return run_state._replace(cursor=())


class Mean(NamedTuple):
    """What the members of an ensemble predict together."""

    mean: Array  # (N, ...)
    spread: Array  # (N, ...), the standard deviation over members, which divides by their number


@explain_calls
def predict_mean(model: Model, variables: Variables, inputs: Any, *, batch_size: int | None = None) -> Mean:
    """Mean and spread of the outputs of many networks for (N, ...) inputs; the leaves of the weights are (M, ...).

    The members are taken one after the other, so there are never more than two members' outputs in memory. Raises
    InputError for the weights of a single network.

    >>> from jaxdl import mlp
    >>> model, inputs = mlp((), outputs=2), jnp.ones((5, 3))
    >>> variables = jax.vmap(lambda key: model.init(key, inputs))(jax.random.split(jax.random.key(0), 4))
    >>> predict_mean(model, variables, inputs).spread.shape
    (5, 2)
    """
    inputs = inputs if isinstance(inputs, jax.Array) else as_rows("inputs", inputs)
    _check_many("predict_mean", "predict", model, variables, inputs[:1])
    count = jax.tree.leaves(variables)[0].shape[0]
    mean: Any = jnp.float32(0)
    squares: Any = jnp.float32(0)
    # Welford's update (Technometrics 4, 1962), which does not cancel where the spread is small.
    for index in range(count):
        one: Variables = jax.tree.map(lambda leaf, index=index: leaf[index], variables)
        outputs = predict(model, one, inputs, batch_size=batch_size)
        outputs = outputs.astype(precision(outputs.dtype))
        off = outputs - mean
        mean = mean + off / (index + 1)
        squares = squares + off * (outputs - mean)
    return Mean(mean, jnp.sqrt(squares / count))


@explain_calls
def evaluate_members(
    model: Model,
    variables: Variables,
    dataset: Dataset,
    loss: Loss,
    *,
    metrics: Sequence[Metric] = (),
    batch_size: int | None = None,
) -> dict[str, Array]:
    """Return `loss` and each metric of a dataset for each of many networks, (M,); leaves of `variables` are (M, ...).

    Each is what `evaluate` gives for the member alone, bit for bit but for convolutions, which XLA may round otherwise
    within a loop. Raises InputError for the weights of a single network.

    >>> from jaxdl import dataset, losses, mlp
    >>> model, rows = mlp(()), dataset([[1.0], [2.0]], [[0.0], [0.0]])
    >>> variables = jax.vmap(lambda key: model.init(key, rows.inputs))(jax.random.split(jax.random.key(0), 4))
    >>> evaluate_members(model, variables, rows, losses.squared_error)["loss"].shape
    (4,)
    """
    objective = check_objective(loss, metrics)
    check_examples("dataset", dataset)
    _check_many("evaluate_members", "evaluate", model, variables, dataset.inputs[:1])
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
    size = rows_at_once(dataset.inputs, batch_size)

    def of_one(one: Variables) -> dict[str, Array]:
        return evaluate_prepared(model, objective, one, dataset, size=size, prepared=prepared)

    return lax.map(of_one, variables)


def _check_many(name: str, of_one: str, model: Model, variables: Variables, inputs: Any) -> None:
    check_model(model)
    check_variables(variables)
    alone = jax.eval_shape(model.init, jax.random.key(0), inputs)
    if [jnp.ndim(leaf) for leaf in jax.tree.leaves(variables)] == [leaf.ndim for leaf in jax.tree.leaves(alone)]:
        raise InputError(
            f"{name} needs the weights of many networks, leaves (members, ...), got those of a single one. "
            f"Use jaxdl.{of_one} for it."
        )
