"""A model as a graph of operations by layer, which TensorBoard draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal

from jaxdl.nonfinite import called
from jaxdl.types import Model

if TYPE_CHECKING:
    from tensorboardX.proto.graph_pb2 import GraphDef

# What stands for the number of the platform on which a program will run.
_ANY_PLATFORM = object()


class Node(NamedTuple):
    """One operation of a model, or an array that it is given."""

    name: str  # after the layers around it: "Dense_0/dot_general"
    kind: str  # the operation; "Placeholder" for the rows, "Const" for a parameter, "Identity" for the outputs
    inputs: tuple[str, ...]  # the nodes that give them, with ":1" for the second output of one
    outputs: tuple[Any, ...]  # with shape and dtype


class _Found(NamedTuple):
    nodes: dict[str, Node]
    paths: dict[Any, tuple[str, ...]]  # of the variables that are given and have no node yet
    placed: dict[Any, str]  # the nodes of those that have one


def nodes(model: Model, inputs: Any) -> list[Node]:
    """The operations of a model that predicts from `inputs` (B, ...), in the order of their calls; nothing is computed.

    Functions that a model calls are shown by what they do, and an operation that has a form of its own on some
    platforms by its form on the others. A parameter stands beside the first operation that uses it. What all layers are
    in, the network, is not named.

    >>> import jax.numpy as jnp
    >>> from jaxdl import mlp
    >>> [node.name for node in nodes(mlp(()), jnp.ones((1, 4)))][:3]
    ['inputs', 'Dense_0/kernel', 'Dense_0/dot_general']
    """
    weights = jax.eval_shape(model.init, jax.random.key(0), inputs)
    jaxpr = jax.make_jaxpr(lambda weights, rows: model.apply(weights, rows, train=False)[0])(weights, inputs).jaxpr
    paths = [
        tuple(str(getattr(part, "key", getattr(part, "idx", part))) for part in path[1:])
        for path, _ in jax.tree_util.tree_leaves_with_path(weights)
    ]
    *parameters, rows = jaxpr.invars
    found = _Found({}, dict(zip(parameters, paths, strict=True)), {rows: "inputs"})
    found.nodes["inputs"] = Node("inputs", "Placeholder", (), (rows.aval,))
    known = {variable: variable for variable in jaxpr.invars}
    results = _walk(found, jaxpr, known, "", "")
    outputs = tuple(_source(found, value, "") for value in results if value is not None)
    _add(found, "outputs", "Identity", outputs, tuple(variable.aval for variable in jaxpr.outvars))
    return _without_network(_used(list(found.nodes.values())))


def _used(found: list[Node]) -> list[Node]:
    """Without operations of which nothing becomes an output, such as keys of random numbers that are not drawn."""
    wanted = {"inputs", "outputs"}
    for node in reversed(found):
        if node.name in wanted:
            wanted.update(each.partition(":")[0] for each in node.inputs)
    return [node for node in found if node.name in wanted]


def _without_network(found: list[Node]) -> list[Node]:
    """Without the scope that all nodes share, as everywhere else: layers are then what is seen first."""
    inside = [node.name for node in found if node.name not in ("inputs", "outputs")]
    network = inside[0].split("/")[0] + "/" if inside else ""
    if not all(name.startswith(network) for name in inside):
        return found
    return [
        node._replace(
            name=node.name.removeprefix(network), inputs=tuple(each.removeprefix(network) for each in node.inputs)
        )
        for node in found
    ]


def _walk(found: _Found, jaxpr: Jaxpr, known: dict[Any, Any], scope: str, name: str) -> list[Any]:
    """Adds the nodes of some equations; gives what stands for their results: a node, a given variable or None.

    `name`: what they are together, which one alone is then called.
    """
    found.paths.update(dict.fromkeys(jaxpr.constvars, ("constant",)))
    known |= {variable: variable for variable in jaxpr.constvars} | {None: None}

    def read(variable: Any) -> Any:
        return None if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        kind, values = str(equation.primitive), [read(variable) for variable in equation.invars]
        around = _joined(scope, *str(equation.source_info.name_stack).split("/"))
        inner = called(equation)
        if values and values[0] is _ANY_PLATFORM:
            inner, values = equation.params["branches"][-1], values[1:]
        if kind == "platform_index":
            results: list[Any] = [_ANY_PLATFORM]
        elif inner is not None:
            own = str(equation.params.get("name", name))
            results = _walk(found, inner.jaxpr, dict(zip(inner.jaxpr.invars, values, strict=True)), around, own)
        else:
            sources = tuple(_source(found, value, around) for value in values if value is not None)
            called_so = _joined(around, name if name and len(jaxpr.eqns) == 1 else kind)
            node = _add(found, called_so, kind, sources, tuple(variable.aval for variable in equation.outvars))
            results = [node, *(f"{node}:{number}" for number in range(1, len(equation.outvars)))]
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _source(found: _Found, value: Any, scope: str) -> str:
    """The node that gives a value; one that is given gets its node where it is first used."""
    if isinstance(value, str):
        return value
    if value not in found.placed:
        *owner, name = found.paths[value]
        # In the layer that owns it and uses it: its name is not said twice. Statistics begin with their collection.
        inside = next((part for part in (owner, owner[1:]) if _ends_with(scope, part)), None)
        where = _joined(*owner, name) if inside is None else _joined(scope, name)
        found.placed[value] = _add(found, where, "Const", (), (value.aval,))
    return found.placed[value]


def _ends_with(scope: str, owner: list[str]) -> bool:
    return scope.split("/")[-len(owner) :] == owner if owner else bool(scope)


def _add(found: _Found, name: str, kind: str, inputs: tuple[str, ...], outputs: tuple[Any, ...]) -> str:
    unique, number = name, 0
    while unique in found.nodes:
        number += 1
        unique = f"{name}_{number}"
    found.nodes[unique] = Node(unique, kind, inputs, outputs)
    return unique


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def graph(model: Model, inputs: Any) -> GraphDef:
    """The `nodes` of a model as TensorBoard reads them, with the shapes of what flows between them.

    >>> import jax.numpy as jnp
    >>> from jaxdl import mlp
    >>> drawn = graph(mlp(()), jnp.ones((1, 4)))
    >>> drawn.node[0].name, [side.size for side in drawn.node[0].attr["_output_shapes"].list.shape[0].dim]
    ('inputs', [1, 4])
    """
    # Imported here: only runs that write for TensorBoard need it.
    from tensorboardX.proto.attr_value_pb2 import AttrValue
    from tensorboardX.proto.graph_pb2 import GraphDef
    from tensorboardX.proto.node_def_pb2 import NodeDef
    from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboardX.proto.versions_pb2 import VersionDef

    def drawn(node: Node) -> NodeDef:
        shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in out.shape]) for out in node.outputs]
        dtypes = ", ".join(str(out.dtype) for out in node.outputs)
        attributes = {
            "_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes)),
            "dtype": AttrValue(s=dtypes.encode()),
        }
        return NodeDef(name=node.name, op=node.kind, input=node.inputs, attr=attributes)

    # The version from which on TensorBoard reads shapes as they are written here.
    return GraphDef(node=map(drawn, nodes(model, inputs)), versions=VersionDef(producer=22))
