"""jaxdl: a functional training toolkit on JAX and Flax."""

from jaxdl import _startup as _startup  # isort: skip
from jaxdl.data.arrays import examples as examples
from jaxdl.ensembles.members import evaluate_members as evaluate_members
from jaxdl.ensembles.members import predict_mean as predict_mean
from jaxdl.ensembles.seeds import Fits as Fits
from jaxdl.ensembles.seeds import fit_seeds as fit_seeds
from jaxdl.ensembles.sweeps import grid as grid
from jaxdl.ensembles.sweeps import sweep as sweep
from jaxdl.errors import InputError as InputError
from jaxdl.nn.adapters import from_linen as from_linen
from jaxdl.nn.adapters import from_nnx as from_nnx
from jaxdl.nn.models import MLP as MLP
from jaxdl.nn.models import mlp as mlp
from jaxdl.nn.summaries import summary as summary
from jaxdl.saving.weights import load as load
from jaxdl.saving.weights import save as save
from jaxdl.train.epoch import run_epoch as run_epoch
from jaxdl.train.epoch import start as start
from jaxdl.train.evaluate import evaluate as evaluate
from jaxdl.train.evaluate import predict as predict
from jaxdl.train.fit import Fit as Fit
from jaxdl.train.fit import fit as fit
from jaxdl.train.loop import epochs as epochs
from jaxdl.train.plan import make_plan as make_plan
from jaxdl.train.rules import early_stopping as early_stopping
from jaxdl.train.rules import reduce_on_plateau as reduce_on_plateau
from jaxdl.train.step import make_eval_step as make_eval_step
from jaxdl.train.step import make_train_step as make_train_step
from jaxdl.types import Examples as Examples
from jaxdl.types import Metric as Metric
from jaxdl.types import Model as Model
from jaxdl.types import Objective as Objective
from jaxdl.types import Weights as Weights
