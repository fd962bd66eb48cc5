"""One clear line for what goes wrong between here and an S3 server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
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
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "InvalidClientTokenId",
    "Unauthorized",
    "401",
)
_FORBIDDEN = ("AccessDenied", "AllAccessDisabled", "Forbidden", "403")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_ELSEWHERE = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "Redirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "307",
)
_REGION_HEADER = "x-amz-bucket-region"
_ACTIONS = {
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "HeadObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "DeleteObjects": "s3:DeleteObject",
}
"""What a policy must allow for an operation that has another name."""
_RENEW = "get new ones (aws sso login, or a new session token) and try again"
_LATER = "try again later"
_ASK = "see what the server's documentation says of it"
_SLOWER = "try again later, with fewer --workers"
_SPACE = "free some space on the server, or raise its quota, and try again"
_KEPT = ": what was uploaded is kept"
_REMEDIES = {
    "SlowDown": _SLOWER,
    "ServiceUnavailable": _SLOWER,
    "TooManyRequests": _SLOWER,
    "RequestLimitExceeded": _SLOWER,
    "QuotaExceeded": _SPACE,
    "XMinioStorageFull": _SPACE,
    "InvalidBucketName": "correct the bucket in the store's URL: s3://BUCKET/PREFIX",
}
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"


@contextlib.contextmanager
def clear_errors(
    bucket: str,
    *,
    endpoint: str = "",
    key: str = "",
    region_of: Callable[[], str] = str,
) -> Iterator[None]:
    """Turn what boto3 and obstore raise into `StoreError`s.

    `region_of` asks the server where the bucket is, for redirects whose answer does not say.
    """
    where = f"s3://{bucket}/{key}".rstrip("/")
    try:
        yield
    except ClientError as error:
        raise _from_server(error, where, bucket, endpoint) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StoreError("no AWS credentials", where=where, remedy=_CREDENTIALS) from error
    except (CredentialRetrievalError, SSOError, TokenRetrievalError) as error:
        reason = f"AWS credentials cannot be renewed: {_one_line(error)}"
        raise StoreError(reason, where=where, remedy=_RENEW) from error
    except ProfileNotFound as error:
        remedy = "correct profile=NAME in the store's URL, or AWS_PROFILE"
        raise StoreError(str(error), where=where, remedy=remedy) from error
    except (HTTPClientError, ConnectionError) as error:
        raise StoreError(
            f"no usable answer from {endpoint or 'AWS'}: {_one_line(error)}",
            where=where,
            remedy="check the endpoint and the network",
        ) from error
    except ResponseParserError as error:
        raise no_s3(endpoint, where, _one_line(error)) from error
    except BotoCoreError as error:
        remedy = "correct the store's URL, or the AWS configuration"
        raise StoreError(_one_line(error), where=where, remedy=remedy) from error
    except RecursionError as error:  # botocore asks again wherever it is sent, also back
        raise no_s3(endpoint, where, "it redirects in a circle") from error
    except (BaseError, FileNotFoundError) as error:
        raise _from_reader(error, where, bucket, endpoint, region_of) from error


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
    if not code or (code in _MISSING and error.operation_name == "ListObjectsV2"):
        return no_s3(endpoint, where, f"it answers HTTP {_status(error)}")
    if code in _MISSING:
        return ObjectMissing("there is no such object", where=where)
    if code in _CONFLICT:
        return VersionConflict("it was written in the meantime", where=where)
    if code in _ELSEWHERE:
        return _elsewhere(bucket, region_in(error), where)
    if code == "RequestTimeTooSkewed":
        reason = "the server refuses requests of this machine's time"
        return StoreError(reason, where=where, remedy="set the clock")
    if refusal := _refusal(code, error.operation_name, bucket, where):
        return refusal
    remedy = _REMEDIES.get(code, _LATER if _status(error) >= 500 else _ASK)
    remedy += _KEPT if _uploads(error.operation_name) and remedy != _ASK else ""
    reason = f"the server answers {code}: {message}".rstrip(": ")
    return StoreError(reason, where=where, remedy=remedy)


def no_s3(endpoint: str, where: str, found: str) -> StoreError:
    """Something answers at the endpoint, and not as S3 does."""
    return StoreError(
        f"no S3 server answers at {endpoint or 'AWS'}: {found}",
        where=where,
        remedy="check the endpoint's host, port and path",
    )


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _uploads(operation: str) -> bool:
    return _ACTIONS.get(operation, operation).endswith("PutObject")


def not_removed(bucket: str, key: str, code: str, message: str) -> StoreError:
    """What is said of an object that a request for many did not remove."""
    if refusal := _refusal(code, "DeleteObjects", bucket, f"s3://{bucket}/{key}"):
        return refusal
    return StoreError(
        f"could not be removed: {message or code}", where=f"s3://{bucket}/{key}", remedy=_LATER
    )


def _refusal(code: str, operation: str, bucket: str, where: str) -> StoreError | None:
    """Which credentials or rights are wanting, and what for; None where none are."""
    action = _ACTIONS.get(operation, f"s3:{operation}")
    on = f"{action} on bucket {bucket!r}"
    if code in _EXPIRED:
        reason = f"the credentials have expired ({code}, at {on})"
        remedy = _RENEW + (_KEPT if _uploads(operation) else "")
    elif code in _FORBIDDEN:
        reason = f"the server refuses {on} ({code})"
        remedy = f"allow {action} there, or use other credentials"
    elif code in _REFUSED:
        reason = f"the server refuses these credentials ({code}, at {on})"
        remedy = _CREDENTIALS
    else:
        return None
    return StoreError(reason, where=where, remedy=remedy)


def region_in(error: ClientError) -> str:
    """Where a server says that the bucket is; empty where it does not say."""
    answer: dict[str, Any] = dict(error.response)
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = answer.get("Error", {}).get("Region") or headers.get(_REGION_HEADER, "")
    return str(region)


def _elsewhere(bucket: str, region: str, where: str) -> StoreError:
    is_in = f"is in region {region}" if region else "is in another region"
    option = f"region={region or 'REGION'}"
    remedy = f"add {option} to the store's URL: s3://{bucket}/...?{option}"
    return StoreError(f"the bucket {bucket!r} {is_in}", where=where, remedy=remedy)


def _from_reader(
    error: Exception, where: str, bucket: str, endpoint: str, region_of: Callable[[], str]
) -> StoreError:
    if isinstance(error, NotFoundError | FileNotFoundError):
        return ObjectMissing("there is no such object", where=where)
    text = str(error)
    codes = (*_EXPIRED, _FORBIDDEN[0], *_REFUSED)
    found = next((code for code in codes if code in text), "")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or found in _EXPIRED:
        if refusal := _refusal(found, "GetObject", bucket, where):
            return refusal
        reason = f"the server refuses these credentials (at s3:GetObject on bucket {bucket!r})"
        return StoreError(reason, where=where, remedy=_CREDENTIALS)
    if "redirect" in text.lower() or "AuthorizationHeaderMalformed" in text:
        return _elsewhere(bucket, region_of(), where)
    return StoreError(
        f"no usable answer from {endpoint or 'AWS'}: {_one_line(error)}",
        where=where,
        remedy="check the endpoint and the network, and try again",
    )


def _one_line(error: Exception) -> str:
    """The gist: obstore adds a page of debugging details after a blank line."""
    text = str(error).split("\n\n")[0]
    return re.sub(r"\s+", " ", text)[:300]
