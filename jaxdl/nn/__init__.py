"""Layers, networks, adapters of models of other libraries, augmentation, and the summary of a model."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.nn.adapters import from_linen as from_linen
from jaxdl.nn.adapters import from_nnx as from_nnx
from jaxdl.nn.augment import crop as crop
from jaxdl.nn.augment import cutout as cutout
from jaxdl.nn.augment import flip as flip
from jaxdl.nn.augment import with_augmentation as with_augmentation
from jaxdl.nn.augment import with_flip_averaging as with_flip_averaging
from jaxdl.nn.equinox import from_equinox as from_equinox
from jaxdl.nn.equinox import to_equinox as to_equinox
from jaxdl.nn.haiku import from_haiku as from_haiku
from jaxdl.nn.keras import from_keras as from_keras
from jaxdl.nn.keras import to_keras as to_keras
from jaxdl.nn.layers import BatchNorm as BatchNorm
from jaxdl.nn.layers import Conv as Conv
from jaxdl.nn.layers import Dropout as Dropout
from jaxdl.nn.layers import Flatten as Flatten
from jaxdl.nn.layers import MaxPool as MaxPool
from jaxdl.nn.layers import dropout as dropout
from jaxdl.nn.layers import max_pool as max_pool
from jaxdl.nn.models import MLP as MLP
from jaxdl.nn.models import ConvNet as ConvNet
from jaxdl.nn.models import ModelSpec as ModelSpec
from jaxdl.nn.models import ResidualNet as ResidualNet
from jaxdl.nn.models import build_model as build_model
from jaxdl.nn.models import convnet as convnet
from jaxdl.nn.models import mlp as mlp
from jaxdl.nn.models import residual_net as residual_net
from jaxdl.nn.summaries import summary as summary

_set_public_names(globals())
