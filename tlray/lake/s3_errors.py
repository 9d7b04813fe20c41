"""What boto3 says, in tlray's words: no exception of botocore leaves the storage modules."""

import contextlib
from collections.abc import Iterator

import urllib3
from botocore import exceptions as boto

from tlray.errors import AccessError, ObjectChangedError, ObjectNotFoundError, SourceError, StorageError, TlrayError
from tlray.lake.storage import split_s3

NOT_FOUND = {"NoSuchKey", "NotFound", "404", "KeyTooLongError"}
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_NO_ACCESS = {
    "401", "403", "AccessDenied", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken",
    "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired", "UnrecognizedClientException",
}  # fmt: skip
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


class AgainError(StorageError):
    """S3 is away, busy or (409) between two conditional writes: the same request may work in a moment."""


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Raise what boto3 raises as one of tlray's errors.

    Args:
        uri: what the request was about.

    Raises:
        AccessError: no credentials, or S3 refuses them.
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
        raise AccessError(f"{uri}: {error}; {LOG_IN}") from error
    except boto.ParamValidationError as error:
        raise SourceError(f"{uri} is not a URI that S3 can have: {error}") from error
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
    if code in _NO_ACCESS:
        return AccessError(f"{uri}: S3 refuses ({said}); {LOG_IN}, and that they allow this")
    if status == 412:
        return ObjectChangedError(f"{uri} has another etag than expected: it changed since it was listed")
    is_passing = status is None or status >= 500 or status in (409, 429)
    return (AgainError if is_passing else StorageError)(f"{uri}: {said} (HTTP {status})")
