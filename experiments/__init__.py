"""The experiments: each a configuration, a pure function that builds from it, and its reports."""

import jaxdl as jaxdl  # first of what takes time: from here on Ctrl-C ends in one line
