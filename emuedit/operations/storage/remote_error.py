"""Failures of an object store, each with a text that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHECK = "`emuedit remote check` tests each part"
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile"
_BY_CODE = {
    "InvalidAccessKeyId": f"the store does not know the access key; correct {KEYS}",
    "SignatureDoesNotMatch": f"the secret does not belong to the access key; correct {KEYS}",
    "ExpiredToken": "the credentials have expired; log in again, and set AWS_SESSION_TOKEN too",
    "InvalidToken": "the session token does not belong to the access key; set AWS_SESSION_TOKEN again, or unset it",
    "AccessDenied": "the credentials are valid, but not allowed to do this; ask the owner of the bucket for the permission",
    "NoSuchBucket": "there is no such bucket; correct the name, or create it with `emuedit remote init`",
    "NoSuchKey": "there is no such object; run `uv run dvc push` where the data is, or `emuedit remote publish`",
    "BucketAlreadyExists": "the bucket belongs to somebody else; choose another name",
    "InvalidBucketName": "want a bucket name of 3 to 63 lower-case letters, digits, dots and hyphens; choose another",
    "QuotaExceeded": "the quota of the store is used up; raise it, or free space with `emuedit remote gc`",
    "StorageFull": "the store is full; add disks, or free space with `emuedit remote gc`",
    "RequestTimeTooSkewed": "the clock differs from the store's by over 15 minutes; run `timedatectl set-ntp true`, or set it",
    "PermanentRedirect": "the bucket is in another region; set it with `emuedit remote init --region`",
    "SlowDown": "the store limits the rate of requests; wait, and use fewer jobs: `uv run dvc push --jobs 4`",
    "ServiceUnavailable": "not available (503): the store, or the server behind its load balancer, is down or overloaded; "
    "check its log, and try again later",
    "NotImplemented": "the store does not have this function",
}
_SAME_AS = {
    "403": "AccessDenied", "Forbidden": "AccessDenied", "AllAccessDisabled": "AccessDenied",
    "404": "NoSuchKey", "NotFound": "NoSuchKey", "301": "PermanentRedirect",
    "ExpiredTokenException": "ExpiredToken", "TokenRefreshRequired": "ExpiredToken", "RequestExpired": "ExpiredToken",
    "InvalidClientTokenId": "InvalidAccessKeyId", "AuthFailure": "InvalidAccessKeyId",
    "InvalidSecurity": "SignatureDoesNotMatch",
    "AuthorizationHeaderMalformed": "PermanentRedirect", "IllegalLocationConstraintException": "PermanentRedirect",
    "InvalidLocationConstraint": "PermanentRedirect",
    "QuotaExceededException": "QuotaExceeded", "XMinioAdminBucketQuotaExceeded": "QuotaExceeded",
    "InsufficientStorage": "StorageFull", "XMinioStorageFull": "StorageFull", "507": "StorageFull",
    "503": "ServiceUnavailable", "429": "SlowDown", "TooManyRequests": "SlowDown",
    "MethodNotAllowed": "NotImplemented", "501": "NotImplemented", "405": "NotImplemented",
}  # fmt: skip


class RemoteError(ValueError):
    """Raised if an object store or the network fails. `code`: the store's code, or the name of the network failure."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def explained(place: str, timeout_s: float) -> Iterator[None]:
    """Convert errors of boto3 and the network to a RemoteError about `place`, the URL of bucket and store.

    timeout_s: time limit for an answer in seconds, shown for a slow store.
    """
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _of_response(error.response, error.operation_name, place) from error
    except (BotoCoreError, HTTPClientError, HTTPError, OSError) as error:
        code = type(error).__name__
        raise RemoteError(f"{place}: {_network_text(code, error, timeout_s)}", code) from error


def _of_response(response: Any, operation: str, place: str) -> RemoteError:
    details, status = response.get("Error", {}), response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(details.get("Code") or status)
    if code == "403" and not operation.startswith("Head"):  # a store gives its code, except where an answer has no content
        refusal = "something between here and the store refused with 403; check proxies and NO_PROXY"
        return RemoteError(f"{place}: {refusal} [{operation}]", code)
    code = _SAME_AS.get(code, code)
    if code not in _BY_CODE:
        code = _SAME_AS.get(str(status), code)
    text = _BY_CODE.get(code)
    if text is None and status >= 500:
        text = f"the store failed with status {status} after retries; check its log, and try again later"
    text = text or f"the store refused with {code}: {details.get('Message') or 'no reason given'}; {CHECK}"
    return RemoteError(f"{place}: {text} [{operation}]", code)


def _network_text(code: str, error: Exception, timeout_s: float) -> str:
    match code:
        case "EndpointConnectionError" | "ConnectTimeoutError" | "ConnectTimeout":
            return f"no server answers at this address; start the store, or correct the endpoint. {CHECK}"
        case "ProxyConnectionError":
            proxy = getattr(error, "kwargs", {}).get("proxy_url", "")  # botocore hides its account
            fix = "correct HTTP_PROXY and HTTPS_PROXY, or add the store's host to NO_PROXY"
            return f"the proxy {proxy} does not answer, or refuses; {fix}"
        case "ReadTimeoutError" | "ReadTimeout":
            return f"no answer within {timeout_s:g} s after retries; the store or the network is too slow, try again later"
        case "ConnectionClosedError" | "ResponseStreamingError" | "IncompleteReadError" | "ProtocolError" | "IncompleteRead":
            return "the connection was closed, also after retries; check the store's log, and proxies in between"
        case "SSLError":
            return f"the certificate of the store is not trusted; name its CA in AWS_CA_BUNDLE, or use http:// ({error})"
        case "NoCredentialsError" | "PartialCredentialsError" | "CredentialRetrievalError":
            return "no complete credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        case "ProfileNotFound":
            return f"{error}; correct AWS_PROFILE or the profile of the DVC remote"
        case "UnauthorizedSSOTokenError" | "SSOTokenLoadError" | "TokenRetrievalError" | "LoginRefreshRequired":
            return f"the login of the profile has expired; run `aws sso login` ({error})"
    return f"{error}; {CHECK}"
