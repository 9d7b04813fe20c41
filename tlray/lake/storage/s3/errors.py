"""What boto3 says, in tlray's words: no exception of botocore leaves the storage modules."""

import contextlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import urllib3
from botocore import exceptions as boto

from tlray.errors import (
    GO_ON,
    AccessError,
    CredentialsError,
    ObjectChangedError,
    ObjectNotFoundError,
    SourceError,
    StorageError,
    TlrayError,
)
from tlray.lake.storage.uri import split_s3

NOT_FOUND = {"NoSuchKey", "NoSuchUpload", "NotFound", "404", "KeyTooLongError"}
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_NO_ACCESS = {"AccessDenied", "AllAccessDisabled", "AccountProblem"}
_BAD_CREDENTIALS = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch",
    "TokenRefreshRequired", "UnrecognizedClientException",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_UNEXPLAINED = {"400", "401", "403"}
_BUSY = {
    "BandwidthLimitExceeded", "RequestLimitExceeded", "RequestThrottled", "SlowDown", "Throttling", "ThrottlingException",
    "TooManyRequestsException",
}  # fmt: skip
_FULL = {"QuotaExceeded", "StorageFull", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
"""What Ceph and MinIO say; AWS has no such limit."""

MOST_SKEW_SECONDS = 900.0
"""S3 takes no signature that is further off (https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html)."""

_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.NoAuthTokenError,
    boto.SSOError,
    boto.ProfileNotFound,
)
BROKEN_BODY = (boto.BotoCoreError, urllib3.exceptions.HTTPError, OSError)
"""What reading a body raises when the connection ends before it."""

LOG_IN = "check the AWS credentials (environment, profile, SSO login or instance role)"

_STALE = (
    f"What gives them out (credential_process, a role, an instance's metadata) gives old ones, or the clock of "
    f"{socket.gethostname()} is wrong; mend that, then {GO_ON}"
)


class AgainError(StorageError):
    """S3 is away, busy or (409) between two conditional writes: the same request may work in a moment."""


class ThrottledError(AgainError):
    """S3 says that it is asked too often."""


class UnsupportedRequestError(StorageError):
    """S3 (501) does not know such a request; it never will."""


class UnexplainedError(AccessError):
    """S3 refuses a HEAD, whose answer has no body to say why: credentials that expired, or no permission."""


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Raise what boto3 raises as one of tlray's errors.

    Args:
        uri: what the request was about.

    Raises:
        CredentialsError: none, or S3 does not take them (any more), or not at this time.
        AccessError: S3 takes them, and does not allow this.
        SourceError: there is no such bucket, or none can be of that name.
        ObjectNotFoundError: there is no such object.
        ObjectChangedError: a condition of the request does not hold.
        AgainError: the same request may work in a moment.
        StorageError: all else.
    """
    try:
        yield
    except boto.ClientError as error:
        raise _translated(uri, error) from error
    except _NO_CREDENTIALS as error:
        raise CredentialsError(f"{uri}: {error}; {LOG_IN}") from error
    except RuntimeError as error:
        if "refreshed credentials are still expired" not in str(error):  # which botocore says in this way alone
            raise
        raise CredentialsError(f"{uri}: {error} {_STALE}") from error
    except boto.ParamValidationError as error:
        raise SourceError(f"{uri} is not a URI that S3 can have: {error}") from error
    except boto.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise AccessError(f"{uri}: {error}; name the file of the store's own certificates in AWS_CA_BUNDLE") from error
        raise AgainError(f"{uri}: {error}") from error
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        raise AgainError(f"{uri}: {error}") from error
    except (boto.BotoCoreError, ValueError) as error:
        raise StorageError(f"{uri}: {error}") from error


def _translated(uri: str, error: boto.ClientError) -> TlrayError:
    answer = error.response["Error"]
    code, said = answer.get("Code", ""), f"{answer.get('Code')} {answer.get('Message')}"
    status = error.response["ResponseMetadata"].get("HTTPStatusCode")
    if code in _NO_BUCKET:
        return SourceError(f"{uri}: there is no bucket {split_s3(uri)[0]!r} ({code}); check the name and the endpoint")
    if code in NOT_FOUND:
        return ObjectNotFoundError(f"{uri} does not exist")
    refusal = _refusal(code)
    if code in _CLOCK or (refusal is UnexplainedError and _is_clock_wrong(error)):
        return CredentialsError(
            f"{uri}: S3 refuses ({said}): the clock of {socket.gethostname()} is wrong; set it (chrony, systemd-timesyncd), "
            f"then {GO_ON}"
        )
    if refusal is UnexplainedError:
        return refusal(f"{uri}: S3 refuses ({said}): the session has expired, or this is not allowed; {LOG_IN}, then {GO_ON}")
    if refusal is not None:
        if code in _EXPIRED:
            return refusal(f"{uri}: S3 refuses ({said}): the session has expired; {LOG_IN}, log in anew, then {GO_ON}")
        return refusal(f"{uri}: S3 refuses ({said}); {LOG_IN}, and that they allow this")
    if status == 412:
        return ObjectChangedError(f"{uri} has another etag than expected: it changed since it was listed")
    if status == 501 or code == "NotImplemented":
        return UnsupportedRequestError(f"{uri}: the store does not know such a request ({said})")
    if code in _FULL or status == 507:
        return StorageError(f"{uri}: the object store is full ({said}); make room there, then {GO_ON}")
    return _passing(code, status)(f"{uri}: {said} (HTTP {status})")


def _is_clock_wrong(error: boto.ClientError) -> bool:
    """Whether the answer was made at another time than it came here, as far as it says."""
    try:
        made = parsedate_to_datetime(error.response["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return False
    return abs((datetime.now(UTC) - made).total_seconds()) > MOST_SKEW_SECONDS


def _refusal(code: str) -> type[AccessError] | None:
    if code in _BAD_CREDENTIALS:
        return CredentialsError
    if code in _UNEXPLAINED:
        return UnexplainedError
    return AccessError if code in _NO_ACCESS else None


def _passing(code: str, status: int | None) -> type[StorageError]:
    """Whether the same request may work later."""
    if code in _BUSY or status in (429, 503):
        return ThrottledError
    return AgainError if status is None or status >= 500 or status == 409 else StorageError
