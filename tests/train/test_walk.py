"""The walk of one batch: how many functions and files lie between `fit` and the optimizer, and where it turns back."""

import inspect
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jaxdl
from jaxdl import losses
from jaxdl.runs.runner import drive

ROOT = str(Path(jaxdl.__file__).parent)
INPUTS = np.linspace(-1, 1, 64, dtype=np.float32).reshape(32, 2)
ROWS = jaxdl.dataset(INPUTS, INPUTS[:, :1])
# A batch is in the hands of these: the compiled function while JAX traces it, and the loop that calls it.
DOORS = {("train/epoch.py", "run_steps"), ("train/loop.py", "run_loop")}


def place(code):
    """Return the file below jaxdl and the function of some code; None for code of others."""
    if not code.co_filename.startswith(ROOT):
        return None
    return code.co_filename[len(ROOT) + 1 :], code.co_name


def fit(optimizer):
    jaxdl.fit(jaxdl.mlp((3,)), losses.squared_error, optimizer, ROWS, ROWS, epochs=1, batch_size=8)


def fit_seeds(optimizer):
    options = {"epochs": 1, "batch_size": 8, "seeds": (0, 1)}
    jaxdl.fit_seeds(jaxdl.mlp((3,)), losses.squared_error, optimizer, ROWS, ROWS, **options)


def run(optimizer):
    plan = jaxdl.make_plan(jaxdl.mlp((3,)), losses.squared_error, optimizer, batch_size=8)
    drive(plan, jaxdl.start(plan, ROWS, ROWS, key=jax.random.key(0)), ROWS, ROWS, epochs=1)


def stacks(train):
    """Return the frames of jaxdl, outermost first, at each call of `optimizer.update`; wrappers are frames too."""
    result = []

    def update(updates, state, params=None):
        places = (place(each.frame.f_code) for each in inspect.stack(0))
        result.append([each for each in places if each][::-1])
        return jax.tree.map(lambda leaf: -0.1 * leaf, updates), state

    update.unique = object()  # so that it is traced, although the last one was equal
    train(optax.GradientTransformation(lambda params: (), update))
    return result


def turns(train):
    """Return the calls that turn back, of a run of one epoch: from a function to one of a file that has called it.

    A file has called it where it is on the stack already, with another file of jaxdl in between. Looked at are all
    calls between functions of jaxdl on the walk of a batch: below `DOORS`. Each pair of functions counts once.
    """
    stack, result = [], set()

    def profile(frame, event, _):
        called = place(frame.f_code)
        if called is None:
            return
        if event == "call":
            files = [file for file, _ in stack]
            walks = DOORS & {called, *stack}
            if walks and stack and called[0] != files[-1] and called[0] in files:
                result.add((stack[-1], called))
            stack.append(called)
        elif event == "return":
            stack.pop()

    sys.setprofile(profile)
    try:
        train(optax.sgd(0.1))
    finally:
        sys.setprofile(None)
    assert not stack
    return sorted(result)


# Of `fit_seeds`, five are the map over the members; of a run in a folder, two are `jit` and `check_finite`.
@pytest.mark.parametrize(("train", "functions", "files"), [(fit, 6, 4), (fit_seeds, 15, 7), (run, 9, 6)])
def test_from_the_call_to_the_optimizer_are_few_functions_in_few_files(train, functions, files):
    result = stacks(train)
    assert result
    for chain in result:
        names = [name for _, name in chain]
        chain = chain[names.index(train.__name__) if train.__name__ in names else 0 :]  # not what checks the call
        text = " -> ".join(f"{file}:{name}" for file, name in chain)
        assert ("train/loop.py", "run_loop") in chain or ("train/fit.py", "fit") in chain, text
        assert len(chain) <= functions and len({file for file, _ in chain}) <= files, text


# A run in a folder is called back for the clock, for signals and to save.
@pytest.mark.parametrize(("train", "most"), [(fit, 4), (fit_seeds, 4), (run, 7)])
def test_the_walk_of_a_batch_turns_back_a_few_times_at_most(train, most):
    result = turns(train)
    assert len(result) <= most, "\n".join(f"{caller} -> {called}" for caller, called in result)
