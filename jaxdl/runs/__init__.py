"""A run of a script: its folder, its flags, its signals, and the list of finished runs."""

from typing import TYPE_CHECKING

from jaxdl._faces import set_public_names as _set_public_names

if TYPE_CHECKING:
    from jaxdl.runs.catalog import Row as Row
    from jaxdl.runs.catalog import listing as listing
    from jaxdl.runs.experiment import Built as Built
    from jaxdl.runs.experiment import Experiment as Experiment
    from jaxdl.runs.export import export_run as export_run
    from jaxdl.runs.flags import Output as Output
    from jaxdl.runs.flags import Placement as Placement
    from jaxdl.runs.flags import Watching as Watching

# These load on first use: a command of few words does not wait for what an experiment needs.
_MODULES = {
    **dict.fromkeys(("Row", "listing"), "jaxdl.runs.catalog"),
    **dict.fromkeys(("Built", "Experiment"), "jaxdl.runs.experiment"),
    "export_run": "jaxdl.runs.export",
    **dict.fromkeys(("Output", "Placement", "Watching"), "jaxdl.runs.flags"),
}
_set_public_names(globals(), _MODULES)
