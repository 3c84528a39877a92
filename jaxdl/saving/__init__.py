"""Weights, checkpoints and exported models on disk."""

from jaxdl._faces import set_public_names as _set_public_names
from jaxdl.saving.checkpoints import keeper as keeper
from jaxdl.saving.checkpoints import latest as latest
from jaxdl.saving.export import Outputs as Outputs
from jaxdl.saving.weights import load as load
from jaxdl.saving.weights import save as save

_set_public_names(globals())
