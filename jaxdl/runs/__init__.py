"""A run of a script: its folder, its flags, its signals, and the list of finished runs."""

from jaxdl.runs.catalog import RunInfo as RunInfo
from jaxdl.runs.catalog import list_runs as list_runs
from jaxdl.runs.command import main as main
from jaxdl.runs.experiment import Experiment as Experiment
from jaxdl.runs.experiment import Setup as Setup
from jaxdl.runs.export import export_run as export_run
from jaxdl.runs.flags import RunFlags as RunFlags
