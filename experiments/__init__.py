"""The experiments: each has flags, a function that builds its setup, and reports."""

import jaxdl as jaxdl  # before the slow imports: it lets Ctrl-C end in one line
