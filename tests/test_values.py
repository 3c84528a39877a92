"""Functions compared by what they compute with: equal ones share a compiled program, different ones never do."""

import functools
import pickle
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdl
from jaxdl import losses, metrics
from jaxdl._values import as_value, key_of, read_values, with_rates
from jaxdl.nn import crop, flip, with_augmentation
from jaxdl.types import Plan

INPUTS = np.linspace(-1, 1, 96, dtype=np.float32).reshape(32, 3)
ROWS = jaxdl.dataset(INPUTS, INPUTS[:, :1])
SCALE = 1.0


def cell(text, **names):
    """Run a cell of a notebook in a module of its own, and return its names."""
    module = types.ModuleType("notebook")
    vars(module).update(jnp=jnp, nn=nn, jax=jax, np=np, functools=functools, **names)
    exec(text, vars(module))
    return types.SimpleNamespace(**vars(module))


EQUAL = {
    "a function": "value = lambda x: x * 2",
    "a default": "def value(x, by=2): return x * by",
    "a closure": "def make(by):\n    return lambda x: x * by\nvalue = make(3)",
    "a global": "BY = 2\ndef value(x): return x * BY",
    "a function that calls another": "def double(x): return 2 * x\ndef value(x): return double(x) + 1",
    "a function that calls itself": "def make():\n    def f(n): return n and f(n - 1)\n    return f\nvalue = make()",
    "a partial": "value = functools.partial(lambda x, by: x * by, by=2)",
    "an array": "BY = np.arange(3.0)\ndef value(x): return x * BY",
    "an array of JAX": "BY = jnp.arange(3.0)\ndef value(x): return x * BY",
    "a dictionary": "value = {'a': [1, 2], 'b': (3.0, None)}",
    "an object": "class Box:\n    def __init__(self): self.by = 2\nbox = Box()\ndef value(x): return x * box.by",
    "a method": "class Box:\n    by = 2\n    def f(self, x): return x * self.by\nvalue = Box().f",
    "a module of Flax": "class Net(nn.Module):\n    size: int = 3\n    @nn.compact\n    def __call__(self, x):"
    "\n        return nn.Dense(self.size)(x)\nvalue = Net(4)",
    "a function of jit": "value = jax.jit(lambda x: x + 1)",
    "a record": "from typing import NamedTuple\nclass Box(NamedTuple):\n    by: int = 2\nvalue = Box()",
    "an enumeration": "import enum\nclass Kind(enum.Enum):\n    A = 1\nvalue = Kind.A",
    "a namespace": "import types\nbox = types.SimpleNamespace(by=2)\ndef value(x): return x * box.by",
    "a slice": "value = slice(1, 3)",
    "a mesh": "value = jax.sharding.Mesh(np.array(jax.devices()), ('data',))",
    "a log": "import logging\nlog = logging.getLogger('notebook')\ndef value(x): log.debug('x'); return x",
    "a function with a derivative": "@jax.custom_jvp\ndef value(x): return x\n@value.defjvp\n"
    "def rule(x, t): return x[0], t[0]",
}


@pytest.mark.parametrize("name", EQUAL)
def test_the_same_cell_again_gives_equal_values(name):
    assert key_of(cell(EQUAL[name]).value) == key_of(cell(EQUAL[name]).value)


CHANGES = {
    "an operation": ("value = lambda x: x * 2", "value = lambda x: x + 2"),
    "a constant": ("value = lambda x: x * 2", "value = lambda x: x * 3"),
    "an int for a float": ("value = lambda x: x * 2", "value = lambda x: x * 2.0"),
    "a bool for an int": ("value = (1,)", "value = (True,)"),
    "the sign of zero": ("value = 0.0", "value = -0.0"),
    "a default": ("def value(x, by=2): return x * by", "def value(x, by=3): return x * by"),
    "a keyword": ("def value(x, *, by=2): return x * by", "def value(x, *, by=3): return x * by"),
    "a global": ("BY = 2\ndef value(x): return x * BY", "BY = 3\ndef value(x): return x * BY"),
    "a global of an inner function": (
        "BY = 2\ndef value(x): return (lambda y: y * BY)(x)",
        "BY = 3\ndef value(x): return (lambda y: y * BY)(x)",
    ),
    "a function that is called": (
        "def double(x): return 2 * x\ndef value(x): return double(x)",
        "def double(x): return 3 * x\ndef value(x): return double(x)",
    ),
    "an attribute": (
        "class Box: pass\nbox = Box(); box.by = 2\ndef value(x): return x * box.by",
        "class Box: pass\nbox = Box(); box.by = 3\ndef value(x): return x * box.by",
    ),
    "a slot": (
        "class Box: __slots__ = ('by',)\nbox = Box(); box.by = 2\ndef value(x): return x * box.by",
        "class Box: __slots__ = ('by',)\nbox = Box(); box.by = 3\ndef value(x): return x * box.by",
    ),
    "a method": (
        "class Box:\n    def f(self, x): return x\nvalue = Box().f",
        "class Box:\n    def f(self, x): return 2 * x\nvalue = Box().f",
    ),
    "the method of a base": (
        "class Base:\n    def g(self): return 1\nclass Box(Base):\n    def f(self): return self.g()\nvalue = Box().f",
        "class Base:\n    def g(self): return 2\nclass Box(Base):\n    def f(self): return self.g()\nvalue = Box().f",
    ),
    "an entry of an array": (
        "BY = np.zeros(3)\ndef value(x): return x * BY",
        "BY = np.zeros(3); BY[1] = 1\ndef value(x): return x * BY",
    ),
    "a dtype of an array": ("value = np.zeros(3, 'f')", "value = np.zeros(3, 'd')"),
    "a field of a module": (
        "class Net(nn.Module):\n    size: int = 3\nvalue = Net(4)",
        "class Net(nn.Module):\n    size: int = 3\nvalue = Net(5)",
    ),
    "a module of another name": (
        "class Net(nn.Module): pass\nvalue = Net()",
        "class Web(nn.Module): pass\nvalue = Web()",
    ),
    "the order of a dictionary": ("value = {'a': 1, 'b': 2}", "value = {'b': 2, 'a': 1}"),
    "a branch": (
        "def value(x):\n    try: return x\n    except ValueError: return 1",
        "def value(x):\n    try: return x\n    except KeyError: return 1",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_gives_another_value(name):
    one, other = (cell(text).value for text in CHANGES[name])
    assert key_of(one) != key_of(other)


MUTATIONS = {
    "a default factory": (
        "import collections\nbox = collections.defaultdict(lambda: 2)\ndef value(x): return x * box['a']",
        "box.default_factory = lambda: 3",
    ),
    "the mask of an array": (
        "BY = np.ma.array([1.0, 2.0], mask=[False, True])\ndef value(x): return x * BY.sum()",
        "BY.mask = [True, False]",
    ),
    "an attribute of an array": (
        "class Array(np.ndarray): pass\nBY = np.zeros(3).view(Array)\nBY.by = 2\ndef value(x): return x * BY.by",
        "BY.by = 3",
    ),
    "an attribute of a partial": ("value = functools.partial(max)\nvalue.by = 2", "value.by = 3"),
    "an attribute of a float": ("class Rate(float): pass\nvalue = Rate(1.0)\nvalue.by = 2", "value.by = 3"),
    "a private slot": (
        "class Box:\n    __slots__ = ('__by',)\n    def put(self, by): self.__by = by\nvalue = Box()\nvalue.put(2)",
        "value.put(3)",
    ),
    "an attribute named as Flax's": (
        "class Box: pass\nbox = Box(); box._state = box.scope = 2\ndef value(x): return x * box.scope",
        "box.scope = 3",
    ),
    "an entry of a list in an enumeration": (
        "import enum\nclass Kind(enum.Enum):\n    A = [1]\nvalue = Kind.A",
        "Kind.A.value.append(2)",
    ),
    "what a weak reference refers to": (
        "import weakref\nclass Box: by = 2\nbox = Box()\nvalue = weakref.ref(box)",
        "box.by = 3",
    ),
    "the object of a method of Python": ("value = (box := [1]).__len__", "box.append(2)"),
    "an item beside fields": ("class Pair(tuple): _fields = ('a',)\nvalue = Pair((1, 2))", "value = Pair((1, 3))"),
    "an int for a float in a frozen dictionary": (
        "import flax.core\nvalue = flax.core.FrozenDict(by=1)",
        "value = flax.core.FrozenDict(by=1.0)",
    ),
    "a global that a text names": ("BY = 2\ndef value(x): return x * globals()['BY']", "BY = 3"),
    "the function that a factory holds": ("value = metrics.mean('m', lambda *_: BY); BY = 2", "BY = 3"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_gives_another_value(name):
    text, change = MUTATIONS[name]
    module = types.ModuleType("notebook")
    vars(module).update(np=np, functools=functools, metrics=metrics)
    exec(text, vars(module))
    before = key_of(module.value)
    exec(change, vars(module))
    assert key_of(module.value) != before


MODULES = {
    "two functions": "def f(x): return x * settings.A\ndef value(x): return f(x) * settings.BY",
    "a closure": "def make():\n    import settings\n    return lambda x: x * settings.BY\nvalue = make()",
    "an import": "def value(x):\n    import settings as s\n    return x * s.BY",
    "an import of a name": "def value(x):\n    from settings import BY\n    return x * BY",
    "a default": "def value(x, s=settings): return x * s.BY",
    "an object": "class Box: pass\nbox = Box(); box.s = settings\ndef value(x): return x * box.s.BY",
    "a dictionary": "box = {'s': settings}\ndef value(x): return x * box['s'].BY",
    "a text": "def value(x): return x * getattr(settings, 'BY')",
}


@pytest.mark.parametrize("name", MODULES)
def test_a_constant_of_a_module_counts_however_it_is_reached(name, monkeypatch):
    settings = types.ModuleType("settings")
    settings.A, settings.BY = 1, 2
    monkeypatch.setitem(sys.modules, "settings", settings)
    before = key_of(cell(MODULES[name], settings=settings).value)
    assert before == key_of(cell(MODULES[name], settings=settings).value)
    settings.BY = 3
    assert before != key_of(cell(MODULES[name], settings=settings).value)


def test_objects_whose_methods_raise_equal_nothing():
    class Odd:
        def __getattr__(self, name):
            raise ValueError(name)

    deleted = jnp.ones(3)
    deleted.delete()
    for value in (Odd(), deleted):
        assert key_of(value) != key_of(value)


def test_a_constant_of_an_imported_module_counts():
    settings = types.ModuleType("settings")
    settings.deep = types.ModuleType("settings.deep")
    settings.deep.BY = 2
    text = "def value(x): return x * settings.deep.BY"
    before = key_of(cell(text, settings=settings).value)
    assert before == key_of(cell(text, settings=settings).value)
    settings.deep.BY = 3
    assert before != key_of(cell(text, settings=settings).value)


def test_what_cannot_be_read_equals_nothing(tmp_path):
    with open(tmp_path / "log", "w") as file:
        assert key_of(lambda: file.write("")) != key_of(lambda: file.write(""))
    generator = (number for number in range(3))
    assert key_of(generator) != key_of(generator)


OPTIMIZERS = {
    "sgd": (lambda rate: optax.sgd(rate), 1),
    "momentum": (lambda rate: optax.sgd(rate, momentum=rate), 2),
    "nesterov": (lambda rate: optax.sgd(rate, momentum=rate, nesterov=True), 2),
    "adam": (lambda rate: optax.adam(rate), 1),
    "adamw": (lambda rate: optax.adamw(rate, weight_decay=rate), 2),
    "lion": (lambda rate: optax.lion(rate, weight_decay=rate), 2),
    "rmsprop": (lambda rate: optax.rmsprop(rate), 1),
    "chain": (lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)), 1),
    "injected": (lambda rate: optax.inject_hyperparams(optax.adam)(learning_rate=rate), 1),
    "multi-transform": (
        lambda rate: optax.multi_transform({"a": optax.sgd(rate), "b": optax.adam(rate)}, {"w": "a", "v": "b"}),
        2,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_are_numbers_beside_the_key_and_give_the_bits_of_constants(name):
    make, least = OPTIMIZERS[name]
    one, other = make(0.1), make(0.3)
    values, different = read_values(one, rates=True), read_values(other, rates=True)
    assert values.key == different.key and key_of(one) != key_of(other)
    assert len(set(map(abs, different.numbers))) == 1 and abs(different.numbers[0]) == 0.3
    assert len(different.numbers) >= least
    params = {"w": jnp.linspace(-1, 1, 7), "v": jnp.linspace(0, 2, 7)}
    grads = jax.tree.map(jnp.sin, params)

    def train(optimizer):
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates)

    traced = jax.jit(lambda numbers: train(with_rates(one, values, numbers)))(different.numbers)
    expected = jax.jit(lambda: train(other))()
    assert all(map(np.array_equal, jax.tree.leaves(traced), jax.tree.leaves(expected)))


def test_numbers_of_which_one_is_taken_away_stay_constants():
    # 1 - b2 is computed by Python in float64; a traced b2 would give other bits.
    for make in (lambda b2: optax.adam(0.1, b2=b2), lambda b2: optax.rmsprop(0.1, decay=b2)):
        one, other = read_values(make(0.9), rates=True), read_values(make(0.99), rates=True)
        assert one.key != other.key


def fit(optimizer, model=None, loss=losses.squared_error, **options):
    model = jaxdl.mlp((4,)) if model is None else model
    return jaxdl.fit(model, loss, optimizer, ROWS, ROWS, batch_size=8, **{"epochs": 2, **options})


def test_the_same_call_made_anew_compiles_nothing(compilations):
    def again(rate, patience=9):
        stop = jaxdl.early_stopping(patience=patience)
        loss = losses.huber(2.0)
        return fit(optax.adam(rate), jaxdl.mlp((4,), dropout=0.1), loss, metrics=[metrics.rmse], early_stopping=stop)

    first = again(0.01)
    with compilations() as names:
        same, other = again(0.01), again(0.02)
    assert names == []
    assert same.records == first.records and other.records != first.records


def test_a_rate_gives_what_it_gives_in_a_process_of_its_own():
    jax.clear_caches()
    fit(optax.sgd(0.1))
    shared = fit(optax.sgd(0.2))
    state = jaxdl.start(
        plan := jaxdl.make_plan(jaxdl.mlp((4,)), losses.squared_error, optax.sgd(0.2), batch_size=8),
        ROWS,
        ROWS,
        key=jax.random.key(0),
    )
    inside = jax.jit(lambda state: jaxdl.run_epoch(state, ROWS, ROWS, plan=plan))
    for record in shared.records:
        state, expected = inside(state)
        assert record["loss"] == float(expected["loss"])


def test_a_rate_on_which_the_optimizer_decides_is_a_constant():
    def make(learning_rate):
        def update(grads, state, params=None):
            factor = learning_rate if learning_rate > 0.1 else 0.1
            return jax.tree.map(lambda grad: -factor * grad, grads), state

        return optax.GradientTransformation(lambda params: (), update)

    low, high, same = (fit(make(rate)).records for rate in (0.05, 0.3, 0.1))
    assert low == same and low != high


def test_numbers_of_the_users_optimizer_are_constants():
    # It may compute 1 - learning_rate, or ask for the type.
    def make(learning_rate):
        def update(grads, state, params=None):
            return jax.tree.map(lambda grad: -(1 - learning_rate) * grad, grads), state

        return optax.chain(optax.GradientTransformation(lambda params: (), update), optax.scale(learning_rate))

    values = read_values(make(0.1), rates=True)
    assert values.numbers == (0.1,) and values.key != read_values(make(0.2), rates=True).key


def test_a_rate_that_other_functions_share_with_the_optimizer_counts():
    def train(rate):
        optimizer = optax.sgd(rate)

        def moved(state, params):
            updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
            return optax.apply_updates(params, updates)

        return [record["val_loss"] for record in fit(optimizer, eval_params=moved).records]

    train(0.1)
    shared = train(0.3)
    jax.clear_caches()
    assert shared == train(0.3) and shared != train(0.1)

    text = "def update(grads, state, params=None): return base.update(grads, base.init(params), params)[0], state"

    def twice(rate):
        base = optax.sgd(rate)
        return optax.chain(base, optax.GradientTransformation(lambda params: (), cell(text, base=base).update))

    fit(twice(0.1))
    expected = fit(optax.chain(optax.scale(-0.3), optax.scale(-0.3))).records[-1]["loss"]
    assert fit(twice(0.3)).records[-1]["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_same_model_sees_a_global_that_changed_before_a_new_run():
    names = cell(
        "class Net(nn.Module):\n    @nn.compact\n    def __call__(self, x): return BOX['by'] * nn.Dense(1)(x)",
        BOX={"by": 1.0},
    )
    model = jaxdl.from_linen(names.Net())
    variables = fit(model=model, optimizer=optax.sgd(0.0)).best
    one, loss = jaxdl.predict(model, variables, INPUTS), fit(optax.sgd(0.0), model).records[0]["loss"]
    names.BOX["by"] = 2.0
    assert fit(optax.sgd(0.0), model).records[0]["loss"] != loss
    np.testing.assert_allclose(jaxdl.predict(model, variables, INPUTS), 2 * one, rtol=1e-6)


def test_functions_that_call_python_while_they_run_are_not_shared():
    def train(calls):
        def loss(outputs, targets):
            jax.debug.callback(lambda: calls.append(1))
            return losses.squared_error(outputs, targets)

        fit(optax.sgd(0.1), loss=loss)
        jax.effects_barrier()
        return len(calls)

    assert train([]) == train([]) > 0


def test_a_loss_that_reads_a_global_sees_its_change():
    text = "def loss(outputs, targets): return BY * ((outputs - targets) ** 2).mean(1)"
    one, double = (fit(optax.sgd(0.0), loss=cell(text, BY=by).loss).records[0]["loss"] for by in (1.0, 2.0))
    assert double == 2 * one


def test_what_falls_out_of_the_bounded_cache_is_compiled_again(monkeypatch, compilations):
    from jaxdl import _jit

    monkeypatch.setattr(_jit, "MOST_PROGRAMS", 2)
    power = _jit.jit(lambda x, n: x**n, static_argnames="n", name="power_of_cache")
    x = jnp.ones(3)
    with compilations() as names:
        for n in (1, 2, 1, 3, 2, 1):
            power(x, n=n)
    assert names.count("power_of_cache") == 5  # 1, 2, 3, and 2 and 1 again


VALUES = {
    "mlp": lambda: jaxdl.mlp((3,), dropout=0.1),
    "convnet": lambda: jaxdl.convnet((3,)),
    "residual_net": lambda: jaxdl.nn.residual_net(8),
    "from_linen": lambda: jaxdl.from_linen(jaxdl.MLP((3,))),
    "huber": lambda: losses.huber(2.0),
    "smoothed_cross_entropy": lambda: losses.smoothed_cross_entropy(0.1),
    "squared_error": lambda: losses.squared_error,
    "top_k": lambda: metrics.top_k(3),
    "r2": lambda: metrics.r2(),
    "f1": lambda: metrics.f1("macro"),
    "roc_auc": lambda: metrics.roc_auc(bins=64),
    "rmse": lambda: metrics.rmse,
    "mae": lambda: metrics.mae,
    "accuracy": lambda: metrics.accuracy,
    "binary_accuracy": lambda: metrics.binary_accuracy,
    "balanced_accuracy": lambda: metrics.balanced_accuracy,
    "early_stopping": lambda: jaxdl.early_stopping(patience=3),
    "reduce_on_plateau": lambda: jaxdl.reduce_on_plateau(factor=0.5),
    "with_augmentation": lambda: with_augmentation(jaxdl.convnet((3,)), flip, crop(2)),
    "with_flip_averaging": lambda: jaxdl.nn.with_flip_averaging(jaxdl.convnet((3,))),
}


@pytest.mark.parametrize("name", VALUES)
def test_models_losses_metrics_and_rules_are_values(name):
    one, other = VALUES[name](), VALUES[name]()
    assert one == other and hash(one) == hash(other)
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one and hash(copy) == hash(one)


def test_values_of_different_arguments_are_different():
    assert jaxdl.mlp((3,)) != jaxdl.mlp((4,))
    assert losses.huber(1.0) != losses.huber(2.0)
    assert jaxdl.early_stopping(patience=1) != jaxdl.early_stopping(patience=2)
    assert jaxdl.from_linen(nn.Dense(3)) == jaxdl.from_linen(nn.Dense(3)) != jaxdl.from_linen(nn.Dense(4))


def test_a_function_of_a_factory_says_what_made_it():
    assert repr(losses.huber(2.0)) == "huber(2.0)"
    assert repr(jaxdl.mlp((3,), dropout=0.1).apply) == "mlp((3,), dropout=0.1).apply"
    assert jaxdl.mlp((3,)).apply.__name__ == "apply"


def test_a_plan_that_was_pickled_trains_as_before():
    model = jaxdl.mlp((4,), input_norm=True)
    one, other = (fit(optax.sgd(0.1), each) for each in (model, pickle.loads(pickle.dumps(model))))
    assert one.records == other.records


def test_a_factory_may_be_decorated():
    @as_value
    def scaled(by, *, offset=0):
        return lambda x: by * x + offset

    assert scaled(2)(3) == 6 and scaled(2, offset=1)(3) == 7
    assert scaled(2) == scaled(2, offset=0) == scaled(by=2) != scaled(2, offset=1)
    with pytest.raises(TypeError):
        scaled()


def test_a_plan_holds_its_rates_in_the_optimizer_alone():
    plan = jaxdl.make_plan(jaxdl.mlp((4,), dropout=0.1), losses.huber(0.5), optax.sgd(0.25))
    values = read_values(plan, rates=True)
    assert values.numbers == (-0.25,)
    rebuilt = with_rates(plan, values, (-0.5,))
    assert isinstance(rebuilt, Plan) and rebuilt.model is plan.model and rebuilt.objective == plan.objective
    updates, _ = rebuilt.optimizer.update({"w": jnp.ones(2)}, rebuilt.optimizer.init({"w": jnp.ones(2)}))
    assert updates["w"].tolist() == [-0.5, -0.5]
