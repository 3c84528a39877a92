"""jaxdl: a functional training toolkit on JAX and Flax."""

from jaxdl import _startup as _startup  # isort: skip
from jaxdl.adapters import from_linen as from_linen
from jaxdl.adapters import from_nnx as from_nnx
from jaxdl.candidates import grid as grid
from jaxdl.chunks import epochs as epochs
from jaxdl.committees import evaluate_members as evaluate_members
from jaxdl.committees import predict_mean as predict_mean
from jaxdl.data import examples as examples
from jaxdl.errors import InputError as InputError
from jaxdl.fitting import Fit as Fit
from jaxdl.fitting import fit as fit
from jaxdl.models import MLP as MLP
from jaxdl.models import mlp as mlp
from jaxdl.passes import evaluate as evaluate
from jaxdl.passes import predict as predict
from jaxdl.plans import make_plan as make_plan
from jaxdl.seeds import Fits as Fits
from jaxdl.seeds import fit_seeds as fit_seeds
from jaxdl.steps import make_eval_step as make_eval_step
from jaxdl.steps import make_train_step as make_train_step
from jaxdl.stopping import early_stopping as early_stopping
from jaxdl.stopping import reduce_on_plateau as reduce_on_plateau
from jaxdl.summaries import summary as summary
from jaxdl.sweeps import sweep as sweep
from jaxdl.training import run_epoch as run_epoch
from jaxdl.training import start as start
from jaxdl.types import Examples as Examples
from jaxdl.types import Metric as Metric
from jaxdl.types import Model as Model
from jaxdl.types import Objective as Objective
from jaxdl.types import Weights as Weights
from jaxdl.weights import load as load
from jaxdl.weights import save as save
