"""Save variables, checkpoints of a run and exported models."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.saving.checkpoints import checkpointer as checkpointer
from jaxdl.saving.checkpoints import restore_latest as restore_latest
from jaxdl.saving.export import OutputSpec as OutputSpec
from jaxdl.saving.weights import load as load
from jaxdl.saving.weights import save as save

_set_public_names(globals())
