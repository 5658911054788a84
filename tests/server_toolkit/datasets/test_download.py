import functools
import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from server_toolkit.datasets import download, load_dataset
from server_toolkit.datasets.download import RemoteFile, download_dataset, fetch
from server_toolkit.errors import ConfigError
from tests.server_toolkit.datasets.test_catalogue import write_idx
from tests.server_toolkit.datasets.test_cifar import records


@pytest.fixture
def site(tmp_path):
    """A folder that a web server on loopback hands out, and the server's log of requests."""
    root = tmp_path / "site"
    root.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    make = functools.partial(Handler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def remote(base, path, **changes):
    data = path.read_bytes()
    fields = dict(
        url=f"{base}/{path.name}", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    return RemoteFile(**(fields | changes))


def test_a_published_set_is_fetched_once_and_then_read(site, tmp_path, monkeypatch):
    root, base, asked = site
    write_idx(root, 7, packed=True)
    files = tuple(remote(base, path) for path in sorted(root.iterdir()))
    monkeypatch.setattr(download, "PUBLISHED", {"mnist": files})
    data = tmp_path / "data"
    with pytest.raises(ConfigError, match="mnist is not there"):
        load_dataset("mnist", data)
    assert not asked
    for _ in range(2):
        download_dataset("mnist", data)
        assert len(asked) == 4
    assert load_dataset("mnist", data).train.pixels.max() == 7


def test_a_fetch_that_was_cut_off_goes_on(site, tmp_path, monkeypatch):
    root, base, asked = site
    write_idx(root, 7, packed=True)
    files = [remote(base, path) for path in sorted(root.iterdir())]
    monkeypatch.setattr(download, "PUBLISHED", {"mnist": files})
    fetch(files[2:], tmp_path / "mnist")
    download_dataset("mnist", tmp_path)
    assert len(asked) == 4
    assert len(load_dataset("mnist", tmp_path).train) == 4


def test_files_can_come_from_a_folder_as_well(site, tmp_path):
    root, _, _ = site
    (root / "a.bin").write_bytes(b"content")
    fetch([remote(root.as_uri(), root / "a.bin")], tmp_path / "data")
    assert (tmp_path / "data" / "a.bin").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "is not what was published"),
        ({"size_bytes": 6}, "gave more bytes, not 6"),
        ({"size_bytes": 8}, "gave 7 bytes, not 8"),
    ],
)
def test_what_is_not_the_published_file_leaves_nothing(site, tmp_path, changes, message):
    root, base, _ = site
    (root / "a.bin").write_bytes(b"content")
    with pytest.raises(ConfigError, match=message):
        fetch([remote(base, root / "a.bin", **changes)], tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_server_that_does_not_answer_is_named(site, tmp_path):
    root, base, _ = site
    (root / "a.bin").write_bytes(b"content")
    wanted = remote(base, root / "a.bin")
    (root / "a.bin").unlink()
    with pytest.raises(ConfigError, match=r"a\.bin cannot be fetched: .*404"):
        fetch([wanted], tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_an_archive_gives_its_batches_and_nothing_else(site, tmp_path, monkeypatch):
    root, base, _ = site
    archive = root / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in {
            "cifar-10-batches-bin/data_batch_1.bin": records([4]),
            "cifar-10-batches-bin/test_batch.bin": records([6]),
            "../evil.bin": b"x",
            "cifar-10-batches-bin/readme.html": b"x",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_2.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    monkeypatch.setattr(download, "PUBLISHED", {"cifar10": (remote(base, archive),)})
    download_dataset("cifar10", tmp_path / "data")
    found = sorted(p.name for p in (tmp_path / "data").rglob("*"))
    assert found == ["cifar10", "data_batch_1.bin", "test_batch.bin"]
    assert load_dataset("cifar10", tmp_path / "data").train.labels.tolist() == [4]


def test_a_part_of_cifar10_is_not_the_whole_and_is_not_overwritten(tmp_path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (folder / name).write_bytes(records([4]))
    with pytest.raises(ConfigError, match=r"holds data_batch_1\.bin, test_batch\.bin but not"):
        download_dataset("cifar10", tmp_path)
    assert (folder / "data_batch_1.bin").read_bytes() == records([4])


@pytest.mark.parametrize("name", ["digits", "folder:/somewhere"])
def test_what_is_not_published_as_files_cannot_be_fetched(tmp_path, name):
    with pytest.raises(ConfigError, match="nothing to fetch"):
        download_dataset(name, tmp_path)
