"""Many runs as one program: seeds and sweeps."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.ensembles.members import evaluate_members as evaluate_members
from jaxdl.ensembles.members import gather as gather
from jaxdl.ensembles.members import member as member
from jaxdl.ensembles.members import predict_mean as predict_mean
from jaxdl.ensembles.members import run_members as run_members
from jaxdl.ensembles.members import shard_members as shard_members
from jaxdl.ensembles.members import start_members as start_members
from jaxdl.ensembles.seeds import SeedsResult as SeedsResult
from jaxdl.ensembles.seeds import fit_seeds as fit_seeds
from jaxdl.ensembles.sweeps import SweepResult as SweepResult
from jaxdl.ensembles.sweeps import choice as choice
from jaxdl.ensembles.sweeps import grid as grid
from jaxdl.ensembles.sweeps import log_uniform as log_uniform
from jaxdl.ensembles.sweeps import sample as sample
from jaxdl.ensembles.sweeps import summarize as summarize
from jaxdl.ensembles.sweeps import sweep as sweep
from jaxdl.ensembles.sweeps import trial_values as trial_values
from jaxdl.ensembles.sweeps import uniform as uniform

_set_public_names(globals())
