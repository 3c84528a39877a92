"""Runs of experiments: the command line, the folder of a run, the list of runs."""

from typing import TYPE_CHECKING

from jaxdl._exports import set_public_names as _set_public_names

if TYPE_CHECKING:
    from jaxdl.runs.catalog import RunInfo as RunInfo
    from jaxdl.runs.catalog import list_runs as list_runs
    from jaxdl.runs.command import main as main
    from jaxdl.runs.experiment import Experiment as Experiment
    from jaxdl.runs.experiment import Setup as Setup
    from jaxdl.runs.export import export_run as export_run
    from jaxdl.runs.flags import Output as Output
    from jaxdl.runs.flags import Placement as Placement
    from jaxdl.runs.flags import RunFlags as RunFlags
    from jaxdl.runs.flags import Training as Training
    from jaxdl.runs.flags import Watching as Watching

# These load on first use: a short command does not wait for the imports of an experiment.
_MODULES = {
    **dict.fromkeys(("RunInfo", "list_runs"), "jaxdl.runs.catalog"),
    "main": "jaxdl.runs.command",
    **dict.fromkeys(("Setup", "Experiment"), "jaxdl.runs.experiment"),
    "export_run": "jaxdl.runs.export",
    **dict.fromkeys(("Output", "Placement", "RunFlags", "Training", "Watching"), "jaxdl.runs.flags"),
}
_set_public_names(globals(), _MODULES)
