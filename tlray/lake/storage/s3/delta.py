"""What delta-rs has to be told to reach S3 as boto3 does: it has a client of its own, which reads none of AWS's files."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tlray.lake.storage.retry import LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS
from tlray.lake.storage.s3.client import CONNECT_SECONDS, READ_SECONDS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

RETRIES = {
    "max_retries": "20",
    "retry_timeout": f"{PATIENCE_SECONDS:.0f}s",
    "backoff_config.max_backoff": f"{LONGEST_PAUSE_SECONDS:.0f}s",
    "connect_timeout": f"{CONNECT_SECONDS}s",
    "timeout": f"{READ_SECONDS}s",
}
"""delta-rs's client repeats by itself, with pauses that grow and are drawn at random as well; these are
`tlray.lake.storage.retry`'s."""

_AWS_ITSELF = re.compile(r"(.*\.)?s3\.([a-z0-9-]+\.)?amazonaws\.com")
_certificates = threading.Lock()


def address_options(client: "S3Client", bucket: str, region: str) -> dict[str, str]:
    """Where a bucket's requests go: boto3 is asked where it would send one, whatever it was told and by which file.

    Args:
        client: that has credentials.
        bucket: name.
        region: of the bucket; AWS's own hosts of another region are exchanged for its own.
    """
    parts = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "x"}))
    host = parts.netloc
    is_virtual = host.startswith(f"{bucket}.")
    if _AWS_ITSELF.fullmatch(host):
        host, is_virtual = f"s3.{region}.amazonaws.com", False  # the same objects, and no bucket name is too odd for it
    elif host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        host = host.replace(f".{client.meta.region_name}.", f".{region}.")
    endpoint = f"{parts.scheme}://{host}"
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,  # which delta-rs would otherwise take from the environment
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": str(is_virtual).lower(),
        "AWS_ALLOW_HTTP": str(parts.scheme == "http").lower(),
    }


@contextmanager
def trusting(ca_bundle: str | None) -> Iterator[None]:
    """While delta-rs makes a client, have it trust the certificates that boto3 trusts.

    It takes them from SSL_CERT_FILE alone, when a client is made.

    Args:
        ca_bundle: path of a PEM file; None leaves it to the system.
    """
    if ca_bundle is None:
        yield
        return
    with _certificates:
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = ca_bundle
        try:
            yield
        finally:
            if before is None:
                del os.environ["SSL_CERT_FILE"]
            else:
                os.environ["SSL_CERT_FILE"] = before
