"""A file of a Zenodo record, downloaded once and checked against the checksum that the record itself states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxdl.datasets import downloads
from jaxdl.datasets.downloads import CHECKSUM, REACHED_WITHIN, cached
from jaxdl.datasets.downloads import UnreachableError as UnreachableError
from jaxdl.errors import InputError

if TYPE_CHECKING:
    import requests

SERVER = "https://zenodo.org"


def fetch(doi: str, name: str, cache: Path, *, server: str = SERVER, within: float = REACHED_WITHIN) -> Path:
    """The path of the file `name` of the record `doi` in the folder `cache`, which is downloaded if it is not there.

    A file comes into being whole and checked or not at all, and its checksum stays beside it. Raises UnreachableError
    where the server has not answered within `within` seconds, InputError where it refuses, the record has no such file,
    the download breaks off, the checksum is wrong, or the folder cannot be written. Source: the REST API of Zenodo.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.csv").write_text("1")
    ...     _ = (Path(folder) / "a.csv.checksum").write_text("md5:c4ca4238a0b923820dcc509a6f75849b")
    ...     fetch("10.5281/zenodo.1", "a.csv", Path(folder)).name
    'a.csv'
    """
    path = cached(name, cache)
    if path is not None:
        return path
    deadline = downloads.starting_now(within)
    url, checksum = _entry(_get(doi, server, deadline), doi, name)
    return downloads.fetch(url, checksum, cache / name, deadline)


def _get(doi: str, server: str, deadline: downloads.Deadline) -> requests.Response:
    return downloads.get(f"{server}/api/records/{doi.rpartition('.')[2]}", deadline)


def _entry(record: requests.Response, doi: str, name: str) -> tuple[str, str]:
    """The address and the checksum of a file, out of its record."""
    try:
        files = {file["key"]: (file["links"]["self"], file["checksum"]) for file in json.loads(record.content)["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record.url} must be a Zenodo record that lists files, got something else.") from error
    if name not in files:
        raise InputError(f"the record {doi} must hold {name}, got {', '.join(sorted(files)) or 'no file'}.")
    url, checksum = files[name]
    if not CHECKSUM.fullmatch(str(checksum)):
        raise InputError(f"the record {doi} must state a checksum of {name}, got {checksum!r}. Download it by hand.")
    return url, checksum
