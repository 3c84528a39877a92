"""Tests of `jaxdl.saving`."""
