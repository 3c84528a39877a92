"""Prepare and read the CIFAR-10 of tensorflow-datasets without TensorFlow.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdl.datasets import _download
from jaxdl.datasets._cifar10_files import CLASSES, SHAPE, Arrays
from jaxdl.errors import InputError

VERSION = "3.0.2"
FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
ROW = 1 + 3 * 32 * 32  # bytes of an image: its label, the red plane, the green and the blue
DESCRIPTION = "Color photographs of 32 by 32 pixels, of ten classes: 50,000 to train on and 10,000 to test with."
HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CITATION = """@techreport{krizhevsky2009,
  author = {Krizhevsky, Alex},
  title = {Learning Multiple Layers of Features from Tiny Images},
  institution = {University of Toronto},
  year = {2009}
}"""


class Archive(NamedTuple):
    """A published archive in the binary format."""

    url: str
    size: int  # bytes
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file, such as cifar-10-binary.tar.gz."""
        return self.url.rpartition("/")[2]


PUBLISHED = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


def read(
    data_dir: Path | None = None,
    *,
    manual_dir: Path | None = None,
    archive: Archive = PUBLISHED,
    within: float = _download.REACHED_WITHIN,
) -> tuple[Arrays, str]:
    """Return the images and labels of the data set `cifar10`, in the published order, and "tfds:cifar10/3.0.2".

    data_dir: the folder of tensorflow-datasets, in which the data set is prepared on first use; None for its default,
        or TFDS_DATA_DIR.
    manual_dir: a folder with the archive, which is then not downloaded; None for a download to `downloads/manual` in
        `data_dir`.

    Raises UnreachableError where the server does not answer within `within` seconds, and InputError where the archive
    is another one, the prepared data set is damaged or needs TensorFlow, or a folder cannot be written.
    """
    data_dir = data_dir and Path(data_dir).expanduser()
    with _quiet():
        with _name_data(f"cifar10/{VERSION} in {data_dir or 'the default folder of tensorflow-datasets'}"):
            made = builder(data_dir, archive=archive)
            prepared = made.data_path.exists()
        if not prepared:
            folder = Path(manual_dir or made.data_dir_root / "downloads" / "manual").expanduser()
            path = folder / archive.name
            if manual_dir is None and not path.exists():
                _download.fetch(archive.url, f"sha256:{archive.sha256}", path, time.monotonic() + within)
            _prepare(made, path)
        return _read(made.data_dir), f"tfds:cifar10/{VERSION}"


def builder(data_dir: Path | None = None, *, archive: Archive = PUBLISHED) -> Any:
    """Return a builder of tensorflow-datasets for the data set `cifar10` in array_record, without TensorFlow.

    Its `download_and_prepare` writes the name, version, splits, features and ids that the package defines, so
    `tfds.data_source("cifar10", data_dir=...)` reads the data set. Raises the errors of the package.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """CIFAR-10."""

        VERSION = tfds.core.Version(VERSION)
        url_infos = {archive.url: UrlInfo(archive.size, archive.sha256, archive.name)}  # noqa: RUF012

        def _info(self) -> Any:
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=SHAPE),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=DESCRIPTION,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage=HOMEPAGE,
                citation=CITATION,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            files = _extract(Path(dl_manager.download(archive.url)))
            return {split: self._generate_examples(split, files) for split in FILES}

        def _generate_examples(self, split: str, files: dict[str, bytes]) -> Any:
            return _examples(split, b"".join(files[name] for name in FILES[split]))

    made = Cifar10(data_dir=data_dir)
    if not made.is_prepared():
        made.info.set_file_format("array_record", override=True)
    return made


def _extract(path: Path) -> dict[str, bytes]:
    """Return the files of images in an archive, by name."""
    with tarfile.open(path) as archive:
        # In the order of the archive: a seek backwards would unpack it again.
        files = {Path(entry.name).name: _content(archive, entry) for entry in archive if entry.name.endswith(".bin")}
    for name in (name for names in FILES.values() for name in names):
        size = len(files.get(name, b""))
        if size == 0 or size % ROW:
            raise InputError(f"{path} must hold {name} with {ROW} bytes an image, got {size} bytes. Download it again.")
    return files


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(entry)
    return file.read() if file else b""


def _examples(split: str, rows: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the examples for tensorflow-datasets: a key, by which it shuffles, and the features."""
    from PIL import Image

    for key, row in enumerate(np.frombuffer(rows, np.uint8).reshape(-1, ROW)):
        image = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
        # Not an array: only TensorFlow would encode it.
        yield key, {"id": f"{split}_{key:05d}", "image": Image.fromarray(image), "label": int(row[0])}


def _prepare(made: Any, path: Path) -> None:
    """Prepare the data set from the archive at `path`."""
    from tensorflow_datasets.core.download.download_manager import DownloadConfig, NonMatchingChecksumError

    if not path.exists():
        # The package would download it, without a deadline.
        raise InputError(
            f"manual_dir must hold {path.name}, got {path.parent} without it. Put it there, or leave out manual_dir."
        )
    try:
        made.download_and_prepare(download_config=DownloadConfig(manual_dir=path.parent, try_download_gcs=False))
    except (InputError, ImportError):
        raise
    except NonMatchingChecksumError as error:
        raise InputError(
            f"{path} must be the archive that was published, got another checksum. Remove it and try again."
        ) from error
    except Exception as error:
        # Another process may have prepared it meanwhile.
        if not made.data_path.exists():
            raise InputError(
                f"{made.data_dir} cannot be prepared ({_line(error)}). Nothing of it is kept; try again."
            ) from error


def _read(folder: str) -> Arrays:
    import tensorflow_datasets as tfds

    with _name_data(folder):
        stored = tfds.builder_from_directory(folder)
        try:
            train, test = stored.as_data_source("train"), stored.as_data_source("test")
        except NotImplementedError as error:  # Raised for a format that only TensorFlow reads.
            raise InputError(
                f"{folder} must be in array_record, which is read without TensorFlow, got "
                f"{stored.info.file_format.value}. Use another data_dir, or remove it to have it prepared again."
            ) from error
        return Arrays(*_rows(train), *_rows(test))


def _rows(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels in the order of their ids; they are stored in a shuffled order."""
    images, labels = np.empty((len(source), *SHAPE), np.uint8), np.empty(len(source), np.int32)
    ids = []
    for row, example in enumerate(source):
        images[row], labels[row] = example["image"], example["label"]
        ids.append(example["id"])
    order = np.argsort(ids)
    return images[order], labels[order]


@contextlib.contextmanager
def _name_data(data: str) -> Iterator[None]:
    """Raise InputError that names the data for any error but a missing package."""
    try:
        yield
    except (InputError, ImportError):
        raise
    except Exception as error:
        raise InputError(f"{data} cannot be read ({_line(error)}). Remove it to have it prepared again.") from error


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the progress bars, the output and the warnings of tensorflow-datasets."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    logger = logging.getLogger("absl")
    level, bars = logger.level, tqdm_utils._active
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.display_progress_bar(bars)
