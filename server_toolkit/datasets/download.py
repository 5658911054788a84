"""Fetching published data sets, on request alone, checked against their known sha256."""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from edge_sdk.protocol.part_file import fsync_directory, write_durably
from server_toolkit.datasets.catalogue import FOLDER, has_files
from server_toolkit.datasets.cifar import MAX_BATCH_BYTES, TEST_BATCH, TRAIN_BATCHES
from server_toolkit.errors import ConfigError

log = logging.getLogger(__name__)

TIMEOUT_S = 30
PIECE_BYTES = 1 << 20
BATCHES = (*TRAIN_BATCHES, TEST_BATCH)


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: where it is, and the size in bytes and sha256 that it must have."""

    url: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_MNIST = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/"
)
CIFAR10 = "https://www.cs.toronto.edu/~kriz/"

PUBLISHED: Mapping[str, tuple[RemoteFile, ...]] = {
    "mnist": (
        RemoteFile(
            f"{MNIST}train-images-idx3-ubyte.gz", 9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        RemoteFile(
            f"{MNIST}train-labels-idx1-ubyte.gz", 28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        RemoteFile(
            f"{MNIST}t10k-images-idx3-ubyte.gz", 1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        RemoteFile(
            f"{MNIST}t10k-labels-idx1-ubyte.gz", 4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion_mnist": (
        RemoteFile(
            f"{FASHION_MNIST}train-images-idx3-ubyte.gz", 26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        RemoteFile(
            f"{FASHION_MNIST}train-labels-idx1-ubyte.gz", 29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        RemoteFile(
            f"{FASHION_MNIST}t10k-images-idx3-ubyte.gz", 4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        RemoteFile(
            f"{FASHION_MNIST}t10k-labels-idx1-ubyte.gz", 5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "cifar10": (
        RemoteFile(
            f"{CIFAR10}cifar-10-binary.tar.gz", 170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
}  # fmt: skip


def download_dataset(name: str, directory: Path) -> None:
    """Fetch a published data set into `directory`/`name`, unless its files are there already.

    Raises `ConfigError` for a name that is not published as files, for a file that cannot be
    fetched and for one that is not what was published; then nothing of it is left.
    """
    if name not in PUBLISHED:
        reason = "is your own" if name.startswith(FOLDER) else "comes with scikit-learn"
        raise ConfigError(f"--download: {name} {reason}; there is nothing to fetch")
    if has_files(name, directory):
        log.info("%s is in %s already", name, directory)
        return
    fetch(PUBLISHED[name], directory / name)


def fetch(files: Sequence[RemoteFile], directory: Path) -> None:
    """Fetch `files` into `directory`, those that are not there; archives are unpacked."""
    directory.mkdir(parents=True, exist_ok=True)
    for remote in files:
        if (directory / remote.name).exists():
            continue
        if remote.name.endswith(".tar.gz"):
            _refuse_to_overwrite(directory)
        with _checked(remote, directory) as path:
            if remote.name.endswith(".tar.gz"):
                _unpack_batches(path, directory)
            else:
                path.rename(directory / remote.name)
        fsync_directory(directory)


@contextmanager
def _checked(remote: RemoteFile, directory: Path) -> Iterator[Path]:
    """Give the path of the whole, checked file under another name, which is deleted after."""
    descriptor, name = tempfile.mkstemp(dir=directory, prefix=".fetch-")
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            log.info("fetching %s, %.1f MB", remote.url, remote.size_bytes / 1e6)
            digest = _copy(remote, file)
            file.flush()
            os.fsync(file.fileno())
        if digest != remote.sha256:
            raise ConfigError(
                f"{remote.url} is not what was published: its sha256 is {digest}, "
                f"not {remote.sha256}"
            )
        yield path
    finally:
        path.unlink(missing_ok=True)


def _copy(remote: RemoteFile, file: BinaryIO) -> str:
    """Copy the address's bytes, no more than it should have; return their sha256."""
    digest, copied = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT_S) as source:  # noqa: S310
            while piece := source.read(PIECE_BYTES):
                copied += len(piece)
                if copied > remote.size_bytes:
                    break
                file.write(piece)
                digest.update(piece)
    except (OSError, HTTPException) as error:
        raise ConfigError(f"{remote.url} cannot be fetched: {error}") from error
    if copied != remote.size_bytes:
        relation = "more" if copied > remote.size_bytes else f"{copied}"
        raise ConfigError(f"{remote.url} gave {relation} bytes, not {remote.size_bytes}")
    return digest.hexdigest()


def _refuse_to_overwrite(directory: Path) -> None:
    there = [name for name in BATCHES if (directory / name).exists()]
    if there:
        raise ConfigError(
            f"{directory} holds {', '.join(there)} but not the other batches; they may be your "
            "own, so nothing is fetched over them. Move them away or choose another --data"
        )


def _unpack_batches(archive: Path, directory: Path) -> None:
    """Write CIFAR's batches out of the archive; nothing else in it, nowhere else.

    They get their names when all are there, so that half an archive is never taken for a whole one.
    """
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as draft:
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    name = Path(member.name).name
                    if name not in BATCHES or not member.isreg() or member.size > MAX_BATCH_BYTES:
                        continue
                    source = tar.extractfile(member)
                    assert source is not None  # of a regular file
                    write_durably(Path(draft) / name, source.read())
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{archive.name} is no archive that can be read: {error}") from error
        for name in BATCHES:
            if (path := Path(draft) / name).exists():
                path.rename(directory / name)
