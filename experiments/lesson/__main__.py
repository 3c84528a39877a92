"""The command `python -m experiments.lesson`: every exercise of the workshop."""

import sys

from experiments.lesson.lesson import Config, run, use_all_cores
from experiments.lesson.rows import as_records
from jaxdl.runs.command import command

if __name__ == "__main__":
    use_all_cores()
    sys.exit(command(Config, run, "python -m experiments.lesson", as_data=as_records))
