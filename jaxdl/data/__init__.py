"""Datasets in memory and streaming datasets: conversion, split, standardization."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.data.arrays import StandardScaler as StandardScaler
from jaxdl.data.arrays import dataset as dataset
from jaxdl.data.arrays import fit_scaler as fit_scaler
from jaxdl.data.arrays import split as split
from jaxdl.data.arrays import standardize as standardize
from jaxdl.data.arrays import take as take
from jaxdl.data.streaming import DataSource as DataSource
from jaxdl.data.streaming import from_random_access as from_random_access
from jaxdl.data.streaming import memory_mapped as memory_mapped

_set_public_names(globals())
