"""jaxdl: a functional training toolkit on JAX and Flax."""

from jaxdl import _startup as _startup  # isort: skip
from typing import TYPE_CHECKING

from jaxdl._exports import set_public_names as _set_public_names

# Data, models and variables.
from jaxdl.data.arrays import dataset as dataset
from jaxdl.nn.adapters import from_linen as from_linen
from jaxdl.nn.adapters import from_nnx as from_nnx
from jaxdl.nn.equinox import from_equinox as from_equinox
from jaxdl.nn.equinox import to_equinox as to_equinox
from jaxdl.nn.haiku import from_haiku as from_haiku
from jaxdl.nn.keras import from_keras as from_keras
from jaxdl.nn.keras import to_keras as to_keras
from jaxdl.nn.models import MLP as MLP
from jaxdl.nn.models import convnet as convnet
from jaxdl.nn.models import mlp as mlp
from jaxdl.nn.models import residual_net as residual_net
from jaxdl.nn.summaries import summary as summary
from jaxdl.saving.weights import load as load
from jaxdl.saving.weights import save as save

# Training runs: one call for one run, or for many.
from jaxdl.ensembles.members import evaluate_members as evaluate_members
from jaxdl.ensembles.members import predict_mean as predict_mean
from jaxdl.ensembles.seeds import SeedsResult as SeedsResult
from jaxdl.ensembles.seeds import fit_seeds as fit_seeds
from jaxdl.ensembles.sweeps import grid as grid
from jaxdl.ensembles.sweeps import sweep as sweep
from jaxdl.train.evaluate import evaluate as evaluate
from jaxdl.train.evaluate import predict as predict
from jaxdl.train.fit import FitResult as FitResult
from jaxdl.train.fit import fit as fit
from jaxdl.train.rules import early_stopping as early_stopping
from jaxdl.train.rules import reduce_on_plateau as reduce_on_plateau

# The parts of `fit`, for a custom training loop.
from jaxdl.train.epoch import run_epoch as run_epoch
from jaxdl.train.epoch import start as start
from jaxdl.train.loop import epochs as epochs
from jaxdl.train.plan import make_plan as make_plan
from jaxdl.train.step import make_eval_step as make_eval_step
from jaxdl.train.step import make_train_step as make_train_step

# Types and the error for bad input.
from jaxdl.errors import InputError as InputError
from jaxdl.types import Dataset as Dataset
from jaxdl.types import Metric as Metric
from jaxdl.types import Model as Model
from jaxdl.types import Plan as Plan
from jaxdl.types import RunState as RunState
from jaxdl.types import Variables as Variables

if TYPE_CHECKING:
    from jaxdl import baselines as baselines
    from jaxdl import callbacks as callbacks
    from jaxdl import data as data
    from jaxdl import datasets as datasets
    from jaxdl import distributed as distributed
    from jaxdl import ensembles as ensembles
    from jaxdl import losses as losses
    from jaxdl import metrics as metrics
    from jaxdl import nn as nn
    from jaxdl import plots as plots
    from jaxdl import profiling as profiling
    from jaxdl import runs as runs
    from jaxdl import saving as saving
    from jaxdl import stats as stats
    from jaxdl import train as train

__version__ = "0.1.0"
# These load on first use, because Matplotlib and others take time to import.
_PACKAGES = (
    *("baselines", "callbacks", "data", "datasets", "distributed", "ensembles", "losses", "metrics", "nn", "plots"),
    *("profiling", "runs", "saving", "stats", "train"),
)
_set_public_names(globals(), dict.fromkeys(_PACKAGES, ""))
