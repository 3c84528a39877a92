"""Shard arrays over devices, and train one run with several processes."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.distributed.processes import initialize as initialize
from jaxdl.distributed.processes import is_main as is_main
from jaxdl.distributed.processes import shutdown as shutdown
from jaxdl.distributed.sharding import make_mesh as make_mesh
from jaxdl.distributed.sharding import shard_dataset as shard_dataset
from jaxdl.distributed.sharding import shard_state as shard_state

_set_public_names(globals())
