"""The step, the epoch, the loop, and the rules that end it."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.train.epoch import run_epoch as run_epoch
from jaxdl.train.epoch import start as start
from jaxdl.train.loop import chunks as chunks
from jaxdl.train.loop import epochs as epochs
from jaxdl.train.lr_finder import find_learning_rate as find_learning_rate
from jaxdl.train.plan import make_plan as make_plan
from jaxdl.train.rules import early_stopping as early_stopping
from jaxdl.train.rules import reduce_on_plateau as reduce_on_plateau
from jaxdl.train.step import make_eval_step as make_eval_step
from jaxdl.train.step import make_train_state as make_train_state
from jaxdl.train.step import make_train_step as make_train_step

_set_public_names(globals())
