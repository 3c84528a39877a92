"""Callbacks of a run: CSV, TensorBoard, a progress bar, the profiler."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.callbacks._csv_log import csv_log as csv_log
from jaxdl.callbacks._profiler import profiler as profiler
from jaxdl.callbacks._progress_bar import progress_bar as progress_bar
from jaxdl.callbacks._tensorboard import description as description
from jaxdl.callbacks._tensorboard import histograms as histograms
from jaxdl.callbacks._tensorboard import pictures as pictures
from jaxdl.callbacks._tensorboard import results as results
from jaxdl.callbacks._tensorboard import tensorboard as tensorboard
from jaxdl.types import Callback as Callback
from jaxdl.types import Stop as Stop

_set_public_names(globals())
