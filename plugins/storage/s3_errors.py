"""One clear line for what goes wrong between here and an S3 server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from shuntserve_core.interfaces.store import ObjectMissing, StoreError, VersionConflict

_MISSING = ("NoSuchKey", "404", "NotFound")
_CONFLICT = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_REFUSED = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "403",
)
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"


@contextlib.contextmanager
def clear_errors(bucket: str, *, endpoint: str = "", key: str = "") -> Iterator[None]:
    """Turn what boto3 and obstore raise into `StoreError`s."""
    where = f"s3://{bucket}/{key}".rstrip("/")
    try:
        yield
    except ClientError as error:
        raise _from_server(error, where, bucket, endpoint) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StoreError("no AWS credentials", where=where, remedy=_CREDENTIALS) from error
    except ProfileNotFound as error:
        raise StoreError(str(error), where=where) from error
    except (HTTPClientError, ConnectionError) as error:
        raise StoreError(
            f"no usable answer from {endpoint or 'AWS'}: {_one_line(error)}",
            where=where,
            remedy="check the endpoint and the network",
        ) from error
    except BotoCoreError as error:
        raise StoreError(_one_line(error), where=where) from error
    except (BaseError, FileNotFoundError) as error:
        raise _from_reader(error, where, endpoint) from error


def is_ignored_range(error: BaseError) -> bool:
    """Whether a read failed because the server sent the whole object in answer to a range."""
    text = str(error)
    return "Received non-partial response when range requested" in text or "NotPartial" in text


def _from_server(error: ClientError, where: str, bucket: str, endpoint: str) -> StoreError:
    details = error.response.get("Error", {})
    code, message = details.get("Code", ""), details.get("Message", "")
    if code == "NoSuchBucket":
        return StoreError(
            f"there is no bucket {bucket!r} at {endpoint or 'AWS'}",
            where=where,
            remedy="create it, or correct the store's URL",
        )
    if code in _MISSING:
        return ObjectMissing("there is no such object", where=where)
    if code in _CONFLICT:
        return VersionConflict("it was written in the meantime", where=where)
    if code in _REFUSED:
        return StoreError(
            f"the server refuses these credentials ({code})", where=where, remedy=_CREDENTIALS
        )
    return StoreError(f"the server answers {code}: {message}".rstrip(": "), where=where)


def _from_reader(error: Exception, where: str, endpoint: str) -> StoreError:
    if isinstance(error, NotFoundError | FileNotFoundError):
        return ObjectMissing("there is no such object", where=where)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return StoreError("the server refuses these credentials", where=where, remedy=_CREDENTIALS)
    return StoreError(
        f"no usable answer from {endpoint or 'AWS'}: {_one_line(error)}",
        where=where,
        remedy="check the endpoint and the network, and try again",
    )


def _one_line(error: Exception) -> str:
    """The gist: obstore adds a page of debugging details after a blank line."""
    text = str(error).split("\n\n")[0]
    return re.sub(r"\s+", " ", text)[:300]
