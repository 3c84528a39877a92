"""Plots of training, of predictions and of many runs."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.plots._results import confusion as confusion
from jaxdl.plots._results import coverage as coverage
from jaxdl.plots._results import images as images
from jaxdl.plots._results import intervals as intervals
from jaxdl.plots._results import kernels as kernels
from jaxdl.plots._results import precision_recall as precision_recall
from jaxdl.plots._results import predictions as predictions
from jaxdl.plots._results import residuals as residuals
from jaxdl.plots._results import roc as roc
from jaxdl.plots._style import save as save
from jaxdl.plots._training import histories as histories
from jaxdl.plots._training import history as history
from jaxdl.plots._training import learning_rate as learning_rate
from jaxdl.plots._training import lr_finder as lr_finder
from jaxdl.plots._training import model_size as model_size
from jaxdl.plots._training import seeds as seeds

_set_public_names(globals())
