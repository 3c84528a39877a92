"""Tests of `jaxdl.datasets`."""
