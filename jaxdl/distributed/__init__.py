"""Arrays over devices, and several processes."""

from jaxdl._faces import set_public_names as _set_public_names
from jaxdl.distributed.processes import is_first as is_first
from jaxdl.distributed.processes import join as join
from jaxdl.distributed.processes import leave as leave
from jaxdl.distributed.sharding import make_mesh as make_mesh
from jaxdl.distributed.sharding import place_progress as place_progress
from jaxdl.distributed.sharding import place_rows as place_rows

_set_public_names(globals())
