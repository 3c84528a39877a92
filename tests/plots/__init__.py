"""Tests of `jaxdl.plots`."""
