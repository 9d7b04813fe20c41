"""What pyarrow has to be told to reach S3 as boto3 does: it has a client of its own, too, which Ray Train writes with."""

from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pyarrow.fs import S3FileSystem


def filesystem_of(options: Mapping[str, str], bucket: str, ca_bundle: str | None) -> S3FileSystem:
    """A file system for a bucket.

    Args:
        options: what delta-rs is told of it (`tlray.lake.storage.open.delta_options`).
        bucket: name.
        ca_bundle: file of the certificates to trust; None leaves it to the system.
    """
    url = urlsplit(options["AWS_ENDPOINT_URL"])
    is_virtual = options["AWS_VIRTUAL_HOSTED_STYLE_REQUEST"] == "true"
    more = {} if ca_bundle is None else {"tls_ca_file_path": ca_bundle}
    # As boto3 finds one; AWS's own client for C++ looks for none.
    proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
    return S3FileSystem(
        access_key=options["AWS_ACCESS_KEY_ID"],
        secret_key=options["AWS_SECRET_ACCESS_KEY"],
        session_token=options.get("AWS_SESSION_TOKEN"),
        region=options["AWS_REGION"],
        scheme=url.scheme,
        endpoint_override=url.netloc.removeprefix(f"{bucket}.") if is_virtual else url.netloc,
        force_virtual_addressing=is_virtual,
        proxy_options=proxy,
        **more,
    )
