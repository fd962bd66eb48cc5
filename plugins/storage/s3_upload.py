"""Uploads that go on where an interrupted one stopped.

A server tells of an unfinished multipart upload which parts it has, each with its ETag.  Where
that is the MD5 of the part that we would send (as it is unless the bucket encrypts with KMS), the
part need not be sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen

from shuntserve_core.interfaces.store import Pieces
from shuntserve_core.weights.pieces import cut_pieces, total_bytes

_MAX_PARTS = 10_000  # the protocol's limit
_MEBIBYTE = 1 << 20


@frozen
class Target:
    """The object to be written."""

    client: Any
    bucket: str
    path: str
    metadata: Mapping[str, str]
    part_bytes: int
    """What one request sends, unless that made more parts than the protocol allows."""

    @property
    def address(self) -> dict[str, str]:
        """Bucket and key, as boto3's arguments."""
        return {"Bucket": self.bucket, "Key": self.path}


def put_parts(target: Target, pieces: Pieces, on_sent: Callable[[int], None] | None) -> bool:
    """Write the object; whether an earlier upload was gone on with."""
    size = total_bytes(pieces)
    if size <= target.part_bytes:
        target.client.put_object(
            **target.address, Body=b"".join(pieces), Metadata=dict(target.metadata)
        )
        _tell(on_sent, size)
        return False
    parts = _parts(pieces, size, target.part_bytes)
    upload, there = _resume(target, parts)
    resumed = upload is not None
    if upload is None:
        answer = target.client.create_multipart_upload(
            **target.address, Metadata=dict(target.metadata)
        )
        upload = answer["UploadId"]
    for number, part in enumerate(parts, start=1):
        if number not in there:
            there[number] = _send_part(target, upload, number, part)
            _tell(on_sent, total_bytes(part))
    _complete(target, upload, there)
    return resumed


def unfinished_uploads(client: Any, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Key and id of every unfinished upload below a prefix."""
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    for page in pages:
        for upload in page.get("Uploads", ()):
            yield upload["Key"], upload["UploadId"]


def _parts(pieces: Pieces, size: int, part_bytes: int) -> list[list[memoryview]]:
    """The same cut every time, or an upload could not be gone on with."""
    least = -(-size // _MAX_PARTS)
    part_bytes = max(part_bytes, -(-least // _MEBIBYTE) * _MEBIBYTE)
    return [cut_pieces(pieces, start, start + part_bytes) for start in range(0, size, part_bytes)]


def _resume(target: Target, parts: list[list[memoryview]]) -> tuple[str | None, dict[int, str]]:
    """The unfinished upload with the most right parts, and their ETags; the others are aborted."""
    best: tuple[str | None, dict[int, str]] = (None, {})
    for key, upload in unfinished_uploads(target.client, target.bucket, target.path):
        if key != target.path:
            continue
        there = _right_parts(target, upload, parts)
        if len(there) > len(best[1]):
            best, upload_to_abort = (upload, there), best[0]
        else:
            upload_to_abort = upload
        if upload_to_abort is not None:
            target.client.abort_multipart_upload(**target.address, UploadId=upload_to_abort)
    return best


def _right_parts(target: Target, upload: str, parts: list[list[memoryview]]) -> dict[int, str]:
    """ETags of the parts that are there; none if any of them is not ours."""
    pages = target.client.get_paginator("list_parts").paginate(**target.address, UploadId=upload)
    there: dict[int, str] = {}
    for page in pages:
        for part in page.get("Parts", ()):
            number, etag = part["PartNumber"], part["ETag"]
            if number > len(parts) or etag.strip('"') != _md5(parts[number - 1]):
                return {}
            there[number] = etag
    return there


def _send_part(target: Target, upload: str, number: int, part: Pieces) -> str:
    answer = target.client.upload_part(
        **target.address, UploadId=upload, PartNumber=number, Body=b"".join(part)
    )
    return str(answer["ETag"])


def _complete(target: Target, upload: str, etags: Mapping[int, str]) -> None:
    parts = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
    target.client.complete_multipart_upload(
        **target.address, UploadId=upload, MultipartUpload={"Parts": parts}
    )


def _md5(part: Pieces) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for piece in part:
        digest.update(piece)
    return digest.hexdigest()


def _tell(on_sent: Callable[[int], None] | None, size: int) -> None:
    if on_sent:
        on_sent(size)
