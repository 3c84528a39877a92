"""Every optimizer of optax trains, is given what it asks for, and is evaluated where it should be."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib as contrib
import pytest

from jaxdl import Model, Variables, dataset, evaluate, fit, fit_seeds, losses, make_plan, sweep
from jaxdl.errors import InputError
from jaxdl.train import make_train_state, make_train_step
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]]) + 0.3 + RANDOM.normal(size=(64, 1)) / 9).astype(np.float32)
ROWS = dataset(X, Y)
SQUARED = Objective(losses.squared_error)


def _apply(weights, inputs, *, train, key=None, mask=None):
    return inputs @ weights.params["w"] + weights.params["b"][None, :], weights.stats


MODEL = Model(lambda key, inputs: Variables({"w": jnp.zeros((3, 1)), "b": jnp.zeros(1)}, {}), _apply)

PLAIN = "adabelief adadelta adagrad adafactor adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam"
PLAIN += " nadamw noisy_sgd novograd optimistic_gradient_descent optimistic_adam_v2 radam rmsprop sgd sign_sgd sm3 yogi"
# None asks for the loss as a function of its parameters, so one program trains a network of each.
SIDE_BY_SIDE = {name: getattr(optax, name)(1e-2) for name in PLAIN.split() if hasattr(optax, name)} | {
    "rprop": optax.rprop(1e-2),
    "prodigy": contrib.prodigy(),
    "dadapt_adamw": contrib.dadapt_adamw(),
    "dog": contrib.dog(1e-2),
    "ademamix": contrib.ademamix(1e-2),
    "cocob": contrib.cocob(),
    "accumulated plateau": optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau(accumulation_size=2)),
    "apply_if_finite": optax.apply_if_finite(optax.adam(1e-2), 3),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "mechanize": contrib.mechanize(optax.sgd(1e-2)),
    "momo_adam": contrib.momo_adam(),
}
OPTIMIZERS = {
    "sgd": SIDE_BY_SIDE["sgd"],
    "lbfgs": optax.lbfgs(),
    "polyak_sgd": optax.polyak_sgd(max_learning_rate=1.0),
    "momo": contrib.momo(),
    "sophia": contrib.sophia(1e-2),
    "reduce_on_plateau": optax.chain(optax.sgd(1e-2), contrib.reduce_on_plateau(patience=2)),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "masked": optax.masked(optax.adam(1e-2), {"w": True, "b": False}),
    "sam, opaque": contrib.sam(optax.sgd(0.01), optax.chain(contrib.normalize(), optax.sgd(0.05)), opaque_mode=True),
    "sam in a chain": optax.chain(
        optax.clip(1.0), contrib.sam(optax.sgd(0.01), optax.sgd(0.05), opaque_mode=False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:between two steps")
def test_every_optimizer_trains_and_compiles_once(name, compilations):
    run = fit(MODEL, losses.squared_error, OPTIMIZERS[name], ROWS, epochs=1, batch_size=64)
    assert run.reason == "epochs" and np.isfinite(run.records[0]["loss"])
    with compilations() as names:
        fit(MODEL, losses.squared_error, OPTIMIZERS[name], ROWS, epochs=3, batch_size=64, state=run)
    assert "chunk_program" not in names


def test_optimizers_side_by_side_train_and_compile_once(compilations):
    def predict(weights, inputs, **how):
        outputs = [_apply(Variables(each, {}), inputs, **how)[0] for each in weights.params.values()]
        return jnp.concatenate(outputs, 1), weights.stats

    begun = {name: MODEL.init(jax.random.key(0), X).params for name in SIDE_BY_SIDE}
    model = Model(lambda key, inputs: Variables(begun, {}), predict)
    rows = dataset(X, np.repeat(Y, len(begun), 1))
    optimizer = optax.partition(SIDE_BY_SIDE, {name: {"w": name, "b": name} for name in begun})
    first = fit(model, losses.squared_error, optimizer, rows, epochs=1, batch_size=64)
    assert first.reason == "epochs" and np.isfinite(first.records[0]["loss"])
    with compilations() as names:
        second = fit(model, losses.squared_error, optimizer, rows, epochs=3, batch_size=64, state=first)
    assert "chunk_program" not in names
    for name in SIDE_BY_SIDE:
        trained = [np.concatenate([*map(np.ravel, run.final.params[name].values())]) for run in (first, second)]
        assert np.isfinite(trained).all() and (trained[0] != trained[1]).any(), name


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_a_step_of_every_optimizer_keeps_the_form_of_its_state(name):
    """A state of another shape or dtype, or one of weak type, would compile a second program."""

    def form(tree):
        leaves, structure = jax.tree.flatten(tree)
        return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]

    optimizer = SIDE_BY_SIDE[name]
    key = jax.random.key(0)
    begun = jax.eval_shape(lambda: make_train_state(MODEL.init(key, X), optimizer, key))
    after, _ = jax.eval_shape(make_train_step(MODEL, losses.squared_error, optimizer), begun, ROWS)
    assert form(after) == form(begun)


def test_lbfgs_finds_the_least_squares():
    run = fit(MODEL, losses.squared_error, OPTIMIZERS["lbfgs"], ROWS, epochs=12, batch_size=64)
    wanted = np.linalg.lstsq(np.c_[X, np.ones(64)].astype(np.float64), Y.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(run.final.params["w"], wanted[:3], atol=1e-4)


def test_polyak_steps_are_those_of_the_formula():
    # The step is (loss - lowest loss) / |gradient|**2 times the gradient.
    w, b, x, y = np.zeros((3, 1)), np.zeros(1), np.float64(X), np.float64(Y)
    for _ in range(3):
        error = x @ w + b - y
        gradients = 2 * x.T @ error / 64, 2 * error.mean(0)
        rate = min((error**2).mean() / sum((each**2).sum() for each in gradients), 1.0)
        w, b = w - rate * gradients[0], b - rate * gradients[1]
    run = fit(MODEL, losses.squared_error, OPTIMIZERS["polyak_sgd"], ROWS, epochs=3, batch_size=64)
    np.testing.assert_allclose(run.final.params["w"], w, rtol=1e-4)
    np.testing.assert_allclose(run.final.params["b"], b, rtol=1e-4)


def test_the_loss_of_many_runs_reaches_each_of_them():
    both = fit_seeds(MODEL, losses.squared_error, optax.polyak_sgd(), ROWS, seeds=(3, 4), epochs=2)
    for place, seed in enumerate((3, 4)):
        alone = fit(MODEL, losses.squared_error, optax.polyak_sgd(), ROWS, seed=seed, epochs=2)
        np.testing.assert_allclose(both.final.params["w"][place], alone.final.params["w"], rtol=1e-4, atol=1e-6)


def strict(init):
    return optax.GradientTransformationExtraArgs(init, lambda updates, state, params=None, *, moon: (updates, state))


def test_what_cannot_be_given_is_named():
    with pytest.raises(InputError, match=r"'moon'.* It is given value, grad, value_fn, obj_fn and grad_fn"):
        fit(MODEL, losses.squared_error, strict(lambda params: ()), ROWS, epochs=1)


def test_a_state_that_changes_its_form_is_refused():
    grows = optax.GradientTransformation(lambda params: (), lambda updates, state, params=None: (updates, (0.0,)))
    with pytest.raises(InputError, match="a state of the structure that its init returned"):
        fit(MODEL, losses.squared_error, grows, ROWS, epochs=1)
    widens = optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32), lambda updates, state, params=None: (updates, state + 0.5)
    )
    with pytest.raises(InputError, match=r"got \(\) of float32 after \(\) of int32"):
        fit(MODEL, losses.squared_error, widens, ROWS, epochs=1)


FREE = contrib.schedule_free_sgd(0.1)
SAM = contrib.sam(optax.sgd(0.05), optax.chain(contrib.normalize(), optax.sgd(0.5)), sync_period=2)


def of_sam(opt_state, params):
    return opt_state.cache


@pytest.mark.parametrize(
    ("optimizer", "eval_params"), [(FREE, contrib.schedule_free_eval_params), (SAM, of_sam)], ids=["free", "SAM"]
)
def test_what_is_measured_and_kept_are_the_parameters_to_evaluate(optimizer, eval_params):
    run = fit(MODEL, losses.squared_error, optimizer, ROWS, ROWS, epochs=3, batch_size=64, eval_params=eval_params)
    # The same by hand, a step an epoch.
    state = make_train_state(MODEL.init(jax.random.key(0), X), optimizer, jax.random.key(0))
    step = jax.jit(make_train_step(MODEL, losses.squared_error, optimizer))
    for record in run.records:
        state, _ = step(state, ROWS)
        wanted = Variables(eval_params(state.opt_state, state.variables.params), {})
        np.testing.assert_allclose(
            record["val_loss"], evaluate(MODEL, wanted, ROWS, losses.squared_error)["loss"], rtol=1e-5
        )
    np.testing.assert_allclose(run.final.params["w"], wanted.params["w"], rtol=1e-5)
    best = min(run.records, key=lambda record: record["val_loss"])
    np.testing.assert_allclose(
        evaluate(MODEL, run.best, ROWS, losses.squared_error)["loss"], best["val_loss"], rtol=1e-5
    )


def test_many_runs_are_measured_at_the_parameters_to_evaluate():
    both = fit_seeds(
        MODEL,
        losses.squared_error,
        FREE,
        ROWS,
        ROWS,
        seeds=(0, 1),
        epochs=2,
        eval_params=contrib.schedule_free_eval_params,
    )
    alone = fit(
        MODEL, losses.squared_error, FREE, ROWS, ROWS, seed=1, epochs=2, eval_params=contrib.schedule_free_eval_params
    )
    np.testing.assert_allclose(both.final.params["w"][1], alone.final.params["w"], rtol=1e-4)
    last = both.history[both.history["member"] == 1]["val_loss"].iloc[-1]
    np.testing.assert_allclose(last, alone.records[-1]["val_loss"], rtol=1e-4)


class WarnedError(Exception):
    pass


def warned_of(call, monkeypatch):
    """The text of the first warning of a call and the file it points at; the call ends there, before it trains."""

    def end(message, category, filename, *_):
        assert category is UserWarning
        raise WarnedError(str(message), filename)

    with warnings.catch_warnings(), pytest.raises(WarnedError) as raised:
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", end)
        call()
    return raised.value.args


def free_plan(learning_rate):
    return make_plan(MODEL, losses.squared_error, contrib.schedule_free_sgd(learning_rate))


@pytest.mark.parametrize(
    "call",
    [
        lambda: fit(MODEL, losses.squared_error, FREE, ROWS, epochs=1),
        lambda: fit(MODEL, losses.squared_error, optax.chain(optax.clip(1.0), FREE), ROWS, epochs=1),
        lambda: fit_seeds(MODEL, losses.squared_error, FREE, ROWS, seeds=(0, 1), epochs=1),
        lambda: sweep(free_plan, [{"learning_rate": 0.1}], ROWS, seeds=(0, 1), epochs=1),
    ],
    ids=["fit", "chain", "fit_seeds", "sweep"],
)
def test_a_known_optimizer_without_its_parameters_to_evaluate_is_warned_of(call, monkeypatch):
    message, filename = warned_of(call, monkeypatch)
    assert "Give eval_params=" in message
    assert "optax.contrib.schedule_free_eval_params" in message
    assert filename == __file__


def test_sam_is_warned_of(monkeypatch):
    message, _ = warned_of(lambda: fit(MODEL, losses.squared_error, SAM, ROWS, epochs=1), monkeypatch)
    assert "the parameters are perturbed" in message


def test_eval_params_that_cannot_be_meant_are_refused():
    with pytest.raises(InputError, match="ema_decay and eval_params each choose the variables to evaluate"):
        make_plan(MODEL, losses.squared_error, FREE, ema_decay=0.9, eval_params=of_sam)
    with pytest.raises(InputError, match="eval_params must be a function"):
        make_plan(MODEL, losses.squared_error, FREE, eval_params="free")
    with pytest.raises(InputError, match="eval_params must return parameters like those of the model"):
        fit(MODEL, losses.squared_error, FREE, ROWS, epochs=1, eval_params=lambda opt_state, params: params["w"])


CHAINED = optax.chain(optax.clip(1.0), FREE)


@pytest.mark.parametrize("optimizer", [CHAINED, optax.adam(0.1)], ids=["chain", "adam"])
def test_eval_params_that_do_not_fit_the_state_are_refused_with_what_a_chain_needs(optimizer):
    with pytest.raises(InputError, match=r"schedule_free_eval_params\(opt_state\[-1\], params\)"):
        fit(MODEL, losses.squared_error, optimizer, ROWS, epochs=1, eval_params=contrib.schedule_free_eval_params)


def test_eval_params_of_a_part_of_a_chain_are_measured():
    def of_part(state, params):
        return contrib.schedule_free_eval_params(state[-1], params)

    run = fit(MODEL, losses.squared_error, CHAINED, ROWS, ROWS, epochs=1, eval_params=of_part)
    wanted = Variables(of_part(run.state.train_state.opt_state, run.state.train_state.variables.params), {})
    assert run.records[-1]["val_loss"] == pytest.approx(
        float(evaluate(MODEL, wanted, ROWS, losses.squared_error)["loss"])
    )


def test_an_optimizer_that_wants_parameters_of_its_own_kind_is_refused():
    with pytest.raises(InputError, match=r"the optimizer cannot make an update: .*fast"):
        fit(MODEL, losses.squared_error, optax.lookahead(optax.sgd(0.1), 5, 0.5), ROWS, epochs=1)


def test_the_warning_names_the_place_of_the_state_in_a_chain(monkeypatch):
    message, _ = warned_of(lambda: fit(MODEL, losses.squared_error, CHAINED, ROWS, epochs=1), monkeypatch)
    assert "lambda opt_state, params: optax.contrib.schedule_free_eval_params(opt_state[1], params)" in message
    message, _ = warned_of(
        lambda: fit(MODEL, losses.squared_error, optax.chain(optax.clip(1.0), SAM), ROWS, epochs=1), monkeypatch
    )
    assert "lambda opt_state, params: opt_state[1].cache" in message
