"""Tests of `jaxdl.ensembles`."""
