"""A weight store in S3, or in anything that speaks its protocol.

Reading is obstore's (the fastest of what was measured), everything else boto3's, which also finds
the credentials: docs/explanation/weights.md has the figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import boto3
import cattrs
import obstore
from attrs import field, fields, frozen
from attrs.validators import ge, gt, in_, le
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import S3Store as ObjectStore

from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.interfaces.store import (
    ObjectInfo,
    ObjectMissing,
    Pieces,
    StoreError,
    VersionConflict,
)
from shuntserve_core.weights.checksum import PREFIX
from shuntserve_core.weights.pieces import total_bytes
from shuntserve_plugins.storage.s3_errors import (
    clear_errors,
    is_ignored_range,
    no_s3,
    not_removed,
    region_in,
)
from shuntserve_plugins.storage.s3_upload import Target, put_parts, unfinished_uploads

CONNECTIONS = 32
CONNECT_TIMEOUT = timedelta(seconds=5)
REQUEST_TIMEOUT = timedelta(seconds=120)
ATTEMPTS = 6

_METADATA = "xxh3-128"
_CREDENTIALS_LIVE = timedelta(minutes=5)
_DELETE_AT_ONCE = 1000  # the protocol's limit


@frozen
class S3Options:
    """What a URL `s3://bucket/prefix?option=value&...` says."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    """URL of the server; empty for AWS, or what the AWS configuration says."""
    region: str = ""
    addressing: str = field(default="", validator=in_(("", "path", "virtual")))
    """`path` or `virtual`; empty for `path` with an endpoint and `virtual` without."""
    profile: str = ""
    """Profile of the AWS configuration files."""
    stall_seconds: float = field(default=10.0, validator=gt(0))
    """How long a connection may be silent before the request is made again."""
    part_mib: int = field(default=16, validator=[ge(5), le(5120)])
    """What one request sends, in MiB, and so what an interruption of an upload loses at most."""


@frozen
class S3Store:
    """Objects under a prefix of one bucket."""

    options: S3Options
    _client: Any = field(repr=False)
    _reader: ObjectStore = field(repr=False)

    @classmethod
    def from_url(cls, url: str) -> S3Store:
        """Open `s3://bucket/prefix`; credentials come from AWS's standard chain."""
        options = _parse(url)
        with clear_errors(options.bucket), _clear_address(url):
            session = boto3.Session(
                profile_name=options.profile or None, region_name=options.region or None
            )
            client = session.client(
                "s3",
                endpoint_url=options.endpoint or None,
                region_name=session.region_name or "us-east-1",
                config=_client_config(options),
            )
            _refuse_endpoint(client.meta.endpoint_url, url)
            return cls(options, client, _reader(options, session, client))

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`, with the endpoint where one is given."""
        options = self.options
        text = f"s3://{options.bucket}/{options.prefix}".rstrip("/")
        return f"{text}?endpoint={options.endpoint}" if options.endpoint else text

    def check(self) -> None:
        """List one object: tells a wrong endpoint, bucket and credentials apart."""
        with self._clear():
            answer = self._client.list_objects_v2(
                Bucket=self.options.bucket, Prefix=self._path(""), MaxKeys=1
            )
        self._known(answer, "Name", "IsTruncated", "KeyCount")

    def read_into(self, key: str, buffers: Pieces, offset: int = 0) -> None:
        """One range request; where the server ignores ranges, the object up to where it matters."""
        size = total_bytes(buffers)
        if not size:
            return
        with self._clear(key):
            try:
                data = obstore.get_range(self._reader, self._path(key), start=offset, length=size)
            except BaseError as error:
                if not is_ignored_range(error):
                    raise
                self._read_without_range(key, buffers, offset)
            else:
                _fill(buffers, [memoryview(data)], 0, key)

    def _read_without_range(self, key: str, buffers: Pieces, offset: int) -> None:
        stream = obstore.get(self._reader, self._path(key)).stream(min_chunk_size=1 << 20)
        _fill(buffers, map(memoryview, stream), offset, key)

    def get(self, key: str) -> tuple[bytes, str]:
        """The object's bytes; its ETag is the version."""
        with self._clear(key):
            answer = self._client.get_object(**self._at(key))
            self._known(answer, "ETag", key=key)
            return answer["Body"].read(), answer["ETag"]

    def put(
        self, key: str, pieces: Pieces, checksum: str, on_sent: Callable[[int], None] | None = None
    ) -> None:
        """One request for a small object, a resumable multipart upload for a large one."""
        metadata = {_METADATA: checksum.removeprefix(PREFIX)}
        part_bytes = self.options.part_mib << 20
        target = Target(self._client, self.options.bucket, self._path(key), metadata, part_bytes)
        with self._clear(key):
            resumed = put_parts(target, pieces, on_sent)
            if resumed:
                info = self.stat(key)
                if info is None or info.checksum != checksum:
                    # Left behind by a push of other bytes: begun under their checksum.
                    put_parts(target, pieces, on_sent)

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        """A conditional write (`If-None-Match`, `If-Match`)."""
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            with self._clear(key):
                answer = self._client.put_object(**self._at(key), Body=data, **condition)
                self._known(answer, "ETag", key=key)
                return str(answer["ETag"])
        except (VersionConflict, ObjectMissing) as error:
            # A retry after a lost answer finds what the first try has written.
            written = self._written(key)
            if written is not None and written[0] == data:
                return written[1]
            raise VersionConflict("it was written in the meantime", where=key) from error

    def _written(self, key: str) -> tuple[bytes, str] | None:
        try:
            return self.get(key)
        except ObjectMissing:
            return None

    def stat(self, key: str) -> ObjectInfo | None:
        """Size, and the checksum from the object's metadata."""
        try:
            with self._clear(key):
                answer = self._client.head_object(**self._at(key))
                self._known(answer, "ETag", "ContentLength", key=key)
        except ObjectMissing:
            return None
        recorded = answer["Metadata"].get(_METADATA)
        return ObjectInfo(key, answer["ContentLength"], PREFIX + recorded if recorded else None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below, a page at a time; unfinished uploads are no objects."""
        start = len(self._path(""))
        with self._clear():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.options.bucket, Prefix=self._path(prefix)
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield ObjectInfo(item["Key"][start:], item["Size"])

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, a thousand a request."""
        paths = [{"Key": self._path(key)} for key in keys]
        for start in range(0, len(paths), _DELETE_AT_ONCE):
            batch = paths[start : start + _DELETE_AT_ONCE]
            with self._clear():
                answer = self._client.delete_objects(
                    Bucket=self.options.bucket, Delete={"Objects": batch, "Quiet": True}
                )
            for failure in answer.get("Errors", ()):
                said = (str(failure.get(part, "")) for part in ("Key", "Code", "Message"))
                raise not_removed(self.options.bucket, *said)

    def discard_unfinished(self, prefix: str) -> int:
        """Abort multipart uploads."""
        with self._clear():
            uploads = list(
                unfinished_uploads(self._client, self.options.bucket, self._path(prefix))
            )
            for key, upload in uploads:
                self._client.abort_multipart_upload(
                    Bucket=self.options.bucket, Key=key, UploadId=upload
                )
        return len(uploads)

    def close(self) -> None:
        """Close boto3's connections; obstore's go with the object."""
        self._client.close()

    def _path(self, key: str) -> str:
        return f"{self.options.prefix}/{key}" if self.options.prefix else key

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.options.bucket, "Key": self._path(key)}

    def _clear(self, key: str = "") -> Any:
        endpoint = self._client.meta.endpoint_url
        path = self._path(key)
        return clear_errors(
            self.options.bucket, endpoint=endpoint, key=path, region_of=self._region
        )

    def _known(self, answer: Mapping[str, Any], *parts: str, key: str = "") -> None:
        """Raise `StoreError` for an answer without any of what S3 always says."""
        if not answer.keys() & set(parts):
            where = f"s3://{self.options.bucket}/{self._path(key)}".rstrip("/")
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 200)
            found = f"it answers HTTP {status} with something else"
            raise no_s3(self._client.meta.endpoint_url, where, found)

    def _region(self) -> str:
        """Where the server says that the bucket is; empty where it does not."""
        try:
            answer = self._client.head_bucket(Bucket=self.options.bucket)
        except ClientError as error:
            return region_in(error)
        except (BotoCoreError, RecursionError):
            return ""
        return str(answer.get("BucketRegion", ""))


@contextlib.contextmanager
def _clear_address(url: str) -> Iterator[None]:
    """What boto3 says of endpoints in the environment and of names of regions."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            str(error), where=url, remedy="endpoints begin with http:// or https://"
        ) from error


def _parse(url: str) -> S3Options:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise UserError(f"{url!r} names no bucket", remedy="write s3://BUCKET/PREFIX")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = {attribute.name for attribute in fields(S3Options)} - {"bucket", "prefix"}
    for name in options.keys() - known:
        raise UserError(f"unknown option {name!r}", where=url, remedy=did_you_mean(name, known))
    endpoint = options.get("endpoint", "")
    if endpoint:
        _refuse_endpoint(endpoint, url)
    address = {"bucket": parts.netloc, "prefix": parts.path.strip("/")}
    try:
        return cattrs.structure({**options, **address}, S3Options)
    except cattrs.BaseValidationError as error:
        reasons = cattrs.transform_error(error, path="options")
        raise UserError(
            "; ".join(reasons), where=url, remedy="correct the option in the store's URL"
        ) from error


def _refuse_endpoint(endpoint: str, url: str) -> None:
    if "://" not in endpoint:
        raise UserError(
            f"the endpoint {endpoint!r} has no scheme",
            where=url,
            remedy=f"write endpoint=https://{endpoint}, or http:// where it has no TLS",
        )
    try:
        parts = urlsplit(endpoint)
        parts.port  # noqa: B018 - raises for what is none
        sound = parts.scheme in ("http", "https") and parts.hostname and " " not in endpoint
    except ValueError:
        sound = ""
    if not sound:
        raise UserError(
            f"the endpoint {endpoint!r} is no address of a server",
            where=url,
            remedy="write http://HOST:PORT or https://HOST",
        )


def _client_config(options: S3Options) -> Config:
    addressing = options.addressing or ("path" if options.endpoint else "auto")
    return Config(
        connect_timeout=CONNECT_TIMEOUT.total_seconds(),
        read_timeout=options.stall_seconds * 3,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": addressing},
    )


def _reader(options: S3Options, session: boto3.Session, client: Any) -> ObjectStore:
    """A reader of the same bucket at the same address with the same credentials."""
    virtual = options.addressing == "virtual" or not (options.addressing or options.endpoint)
    endpoint = client.meta.endpoint_url
    if session.get_credentials() is None:
        raise NoCredentialsError
    if virtual:
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{options.bucket}.{host}"
    return ObjectStore(
        options.bucket,
        endpoint=endpoint,
        region=client.meta.region_name,
        virtual_hosted_style_request=virtual,
        credential_provider=Boto3CredentialProvider(session, ttl=_CREDENTIALS_LIVE),
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": timedelta(seconds=options.stall_seconds),
            "timeout": REQUEST_TIMEOUT,
        },
        retry_config={
            "max_retries": ATTEMPTS - 1,
            "retry_timeout": REQUEST_TIMEOUT,
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    )


def _fill(buffers: Pieces, chunks: Iterable[memoryview], skip: int, key: str) -> None:
    """Copy the run of chunks, less its first `skip` bytes, into the run of buffers."""
    rest = [buffer.cast("B") for buffer in buffers if buffer.nbytes]
    for chunk in chunks:
        chunk = chunk.cast("B")
        dropped = min(skip, len(chunk))
        skip -= dropped
        chunk = chunk[dropped:]
        while len(chunk) and rest:
            count = min(len(chunk), len(rest[0]))
            rest[0][:count] = chunk[:count]
            chunk, rest[0] = chunk[count:], rest[0][count:]
            if not len(rest[0]):
                rest.pop(0)
        if not rest:
            return
    if rest:
        raise StoreError(
            f"the object ends {total_bytes(rest)} bytes early", where=key, remedy="push again"
        )
