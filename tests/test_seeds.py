"""`fit_seeds`: each of many runs is the run that `fit` makes of its seed."""

from functools import partial

import jax
import numpy as np
import optax
import pandas as pd
import pytest

from jaxdl import objectives as o
from jaxdl import seeds as module
from jaxdl.data import examples
from jaxdl.errors import InputError
from jaxdl.fitting import fit
from jaxdl.leaves import named
from jaxdl.models import mlp
from jaxdl.seeds import fit_seeds
from jaxdl.stopping import early_stopping
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(45, 5)).astype(np.float32)
TARGETS = INPUTS[:, :1] ** 2
DATA = examples(INPUTS[:30], TARGETS[:30]), examples(INPUTS[30:], TARGETS[30:])
MODEL, OBJECTIVE, OPTIMISER = mlp((8,)), Objective(o.squared_error, (o.rmse,)), optax.adam(0.05)
FLAGS = {"epochs": 30, "batch_size": 8, "stop": early_stopping(patience=2)}
SEEDS = (3, 0, 7)
solo = partial(fit, MODEL, OBJECTIVE, OPTIMISER, *DATA, **FLAGS)
many = partial(fit_seeds, MODEL, OBJECTIVE, OPTIMISER, *DATA, **{**FLAGS, "seeds": SEEDS})


def bits(tree):
    return {name: np.asarray(leaf).tobytes() for name, leaf in named(tree).items()}


def of(runs, index):
    return jax.tree.map(lambda leaf: leaf[index], (runs.best, runs.final))


@pytest.fixture(scope="module")
def alone():
    return [solo(seed=seed) for seed in SEEDS]


def test_mapped_runs_are_those_of_fit(alone):
    runs = many(how="map")
    assert len({len(run.history) for run in alone}) > 1
    for index, run in enumerate(alone):
        assert bits(of(runs, index)) == bits((run.best, run.final))
        history = runs.history[runs.history["member"] == index].drop(columns="member").set_index("epoch")
        pd.testing.assert_frame_equal(history.astype(float), run.history, check_exact=True, check_dtype=False)
        assert (runs.reasons[index], runs.best_epochs[index]) == (run.reason, run.best_epoch)


def test_batched_runs_are_those_of_fit_up_to_rounding(alone):
    runs = many()
    ends = runs.history.groupby("member")["epoch"].max()
    best = runs.history.groupby("member")["val_loss"].min()
    for index, run in enumerate(alone):
        assert ends[index] == len(run.history)
        np.testing.assert_allclose(best[index], run.history["val_loss"].min(), rtol=0.01)


def test_runs_that_are_interrupted_go_on_bit_for_bit(monkeypatch):
    whole, paced = many(), module.paced

    def interrupted(*arguments, **options):
        for number, chunk in enumerate(paced(*arguments, **options)):
            yield chunk
            if number == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "paced", interrupted)
    runs = many()
    monkeypatch.undo()
    assert "interrupted" in runs.reasons and len(runs.history) < len(whole.history)
    rest = many(progress=runs.progress)
    assert bits(rest.progress) == bits(whole.progress) and rest.reasons == whole.reasons
    together = pd.concat([runs.history, rest.history]).sort_values(["member", "epoch"], ignore_index=True)
    pd.testing.assert_frame_equal(together, whole.history, check_exact=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": ()}, r"seeds must be a row of at least one whole number, got \(\)"),
        ({"seeds": 5}, "seeds must be a row of at least one whole number, got 5"),
        ({"seeds": (1.5,)}, "seeds must be a row of at least one whole number"),
        ({"how": "pmap"}, 'how must be "vmap" or "map", got "pmap"'),
        ({"batch_size": 99}, "batch_size=99 leaves no full batch"),
        ({"seeds": (-1,)}, "seed must be from 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_told(options, said):
    with pytest.raises(InputError, match=said):
        many(**options)


def test_a_progress_of_other_seeds_is_refused():
    progress = many(epochs=1).progress
    with pytest.raises(InputError, match=r"progress must be that of 2 seeds, got one of shape \(3,\)"):
        many(seeds=(1, 2), progress=progress)
