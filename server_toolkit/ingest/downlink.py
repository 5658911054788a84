"""What devices may pull from the server: the program, the open round's base, the release."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.chunks import encode_chunk
from edge_sdk.protocol.messages import BlobRef, Need
from edge_sdk.protocol.sender import read_chunks
from server_toolkit.ledger import Ledger

log = logging.getLogger(__name__)


class Downlink:
    """Answers requests for published blobs; updates of other devices are never among them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def published(self) -> dict[str, BlobRef]:
        """Return the blobs on offer by their sha256."""
        blobs = [self._ledger.program]
        current = self._ledger.open_round()
        if current is not None:
            blobs.append(BlobRef(sha256=current.base_sha256, size=current.base_size))
        release = self._ledger.latest_release()
        if release is not None:
            blobs += [BlobRef(**fields) for fields in release.files]
        return {blob.sha256: blob for blob in blobs}

    def answer(self, need: Need) -> Iterator[bytes]:
        """Yield the chunk messages asked for, at most one window of them.

        Raises `ProtocolError` for a blob that is not published, or not whole any more.
        """
        blob = self.published().get(need.sha256)
        if blob is None:
            raise ProtocolError(f"{need.sha256[:12]} is not published")
        path = self._ledger.blobs.path(blob.sha256)
        if not path.exists() or path.stat().st_size != blob.size:
            log.error("%s is missing or damaged, devices wait for it; restore it", path)
            raise ProtocolError(f"{need.sha256[:12]} is missing or damaged on the server")
        for chunk in read_chunks(path, blob, need):
            yield encode_chunk(chunk)
