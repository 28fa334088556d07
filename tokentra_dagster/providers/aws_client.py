"""Asking AWS through boto3: whose credentials, which endpoint, and every failure as one clear error.

The secret of a connection is `ACCESS_KEY_ID:SECRET_ACCESS_KEY`, or with `:SESSION_TOKEN` behind it. Without a secret boto3's own
chain finds a login (environment, profile, the role of the machine). The option `role_arn` then assumes a role, e.g. one in the
account whose usage is read; its credentials are renewed by botocore as they run out.

botocore retries throttling, 5xx and connections that fail, with back-off (mode `standard`). This module adds what it does not
do: an answer that cannot be read is asked for again, and whatever finally fails says what to do and never holds the secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import ConnectionConfig
from tokentra_dagster.providers.failures import DamagedPage, Refused, retry_after
from tokentra_dagster.providers.options import Options

Found = TypeVar("Found")
KEY_NEEDED = "an access key as ACCESS_KEY_ID:SECRET_ACCESS_KEY (of a user or role with the policy of docs/providers-aws.md)"
OPTIONS = ("role_arn", "external_id")
_THROTTLED = frozenset(
    (
        "InternalError", "InternalServiceError", "InternalServiceFault", "OperationAborted", "RequestLimitExceeded", "RequestTimeout",
        "RequestTimeTooSkewed", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException",
    )
)  # fmt: skip
_NOT_ACCEPTED = frozenset(
    (
        "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSignatureException",
        "MissingAuthenticationToken", "SignatureDoesNotMatch", "UnrecognizedClientException",
    )
)  # fmt: skip
_LONGEST_QUOTE = 300
_DAMAGED_RETRIES = 2


@dataclass(slots=True)
class Aws:
    """One login at AWS. Makes clients lazily: making this asks nobody and reads no credentials."""

    integration: str
    secret: str = field(repr=False)
    endpoint: str | None
    role_arn: str | None
    external_id: str | None
    timeout_seconds: float
    max_retries: int
    _session: Any = field(default=None, repr=False)
    _clients: dict[tuple[str, str | None], Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: ConnectionConfig, options: Options) -> Aws:
        role = options.text("role_arn")
        if role is not None and not (role.startswith("arn:") and ":role/" in role):
            raise options.wrong(
                "role_arn", role, "it must be the ARN of a role, e.g. arn:aws:iam::123456789012:role/usage-reader"
            )
        return cls(
            config.asked, config.api_key.strip(), config.base_url, role, options.text("external_id"), options.timeout_seconds,
            options.max_retries,
        )  # fmt: skip

    def client(self, service: str, region: str | None) -> Any:
        """A boto3 client, one for each service and region."""
        key = (service, region)
        if key not in self._clients:
            self._clients[key] = self.ask("its credentials", lambda: self._made(service, region))
        return self._clients[key]

    def ask(self, asking: str, ask: Callable[[], Found], todo: str = "") -> Found:
        """What `ask` returns. `asking` is the subject of the sentence when it fails, `todo` what to do where AWS refuses it.

        Raises `Refused` for what is not allowed or not there, `PermanentError` or `TransientError` for the rest.
        """
        for attempt in range(_DAMAGED_RETRIES + 1):
            if attempt:
                time.sleep(0.25 * 2**attempt)
            failure: Exception
            try:
                return ask()
            except (PermanentError, TransientError):
                raise
            except DamagedPage as damage:
                failure = TransientError(f"{self.integration}: {asking} cannot be read ({damage}); try again later")
            except Exception as error:
                if not _is_damage(error):
                    failure = self._translate(error, asking, todo)
                    break
                kind = type(error).__name__
                failure = TransientError(f"{self.integration}: {asking} broke off or cannot be read ({kind}); try again later")
        # Raised here, outside the handlers: botocore's errors hold the signed request, which must not travel into a log.
        raise failure

    # ---- Sessions ----------------------------------------------------------------------------------------------------

    def _made(self, service: str, region: str | None) -> Any:
        if self._session is None:
            self._session = self._assumed(self._login()) if self.role_arn else self._login()
        return self._session.client(service, region_name=region, endpoint_url=self.endpoint, config=self._config())

    def _login(self) -> Any:
        import boto3
        import botocore.session

        if not self.secret:
            return boto3.session.Session()
        parts = self.secret.split(":", 2)
        if len(parts) < 2 or not all(parts):
            raise PermanentError(f"{self.integration}: the secret is not {KEY_NEEDED}; it is not shown here")
        # A key needs no profile: one that the environment names and that is not there would be an error.
        plain = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
        return boto3.session.Session(
            botocore_session=plain,
            aws_access_key_id=parts[0],
            aws_secret_access_key=parts[1],
            aws_session_token=parts[2] if len(parts) > 2 else None,
        )

    @property
    def _sts_region(self) -> str:
        """Any region of the role's partition."""
        partition = (self.role_arn or "").split(":")[1]
        return {"aws-cn": "cn-north-1", "aws-us-gov": "us-gov-west-1"}.get(partition, "us-east-1")

    def _assumed(self, login: Any) -> Any:
        import boto3
        import botocore.session
        from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

        def sts(name: str, **arguments: Any) -> Any:
            return login.client(
                name, endpoint_url=self.endpoint, config=self._config(), region_name=self._sts_region, **arguments
            )

        fetcher = AssumeRoleCredentialFetcher(
            client_creator=lambda name, **arguments: sts(
                name, **{k: v for k, v in arguments.items() if k.startswith("aws_") and v is not None}
            ),
            source_credentials=login.get_credentials(),
            role_arn=self.role_arn,
            extra_args={"RoleSessionName": "tokentra"} | ({"ExternalId": self.external_id} if self.external_id else {}),
        )
        session: Any = botocore.session.Session()
        session._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
        return boto3.session.Session(botocore_session=session)

    def _config(self) -> Any:
        from botocore.config import Config

        return Config(
            retries={"mode": "standard", "total_max_attempts": self.max_retries + 1},
            connect_timeout=min(self.timeout_seconds, 10.0),
            read_timeout=self.timeout_seconds,
            s3={"addressing_style": "path" if self.endpoint else "auto"},
            # A connection says where it goes; a developer's environment must not.
            ignore_configured_endpoint_urls=True,
        )

    # ---- Failures ----------------------------------------------------------------------------------------------------

    def _translate(self, error: Exception, asking: str, todo: str) -> Exception:
        from botocore import exceptions

        said = f"{self.integration}: {asking}"
        kind = type(error).__name__
        if isinstance(error, exceptions.ClientError):
            return self._from_status(error.response, said, todo)
        if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
            return PermanentError(f"{said} found no credentials; give the connection {KEY_NEEDED} or this machine a role")
        if isinstance(error, exceptions.SSLError):
            return PermanentError(f"{said}: the server's certificate was not accepted; check base_url")
        if isinstance(error, (exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError)):
            return TransientError(f"{said} timed out; try again later or raise the option timeout_seconds")
        if isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError, OSError)):
            return TransientError(f"{said} could not reach AWS ({kind}); check the network, the region and base_url")
        return PermanentError(
            self._clean(f"{said} could not be asked ({kind}: {error}); check credentials, options and base_url")[
                : 2 * _LONGEST_QUOTE
            ]
        )

    def _from_status(self, response: Any, said: str, todo: str) -> Exception:
        about = response.get("ResponseMetadata", {})
        status = int(about.get("HTTPStatusCode", 0))
        code = str(response.get("Error", {}).get("Code", ""))
        message = " ".join(str(response.get("Error", {}).get("Message", "")).split())
        quote = self._clean(f"{code}: {message}")[:_LONGEST_QUOTE]
        said = f"{said} answered HTTP {status} ({quote})"
        if code in _THROTTLED or status in (408, 429) or status >= 500:
            wait = retry_after(about.get("HTTPHeaders", {}))
            when = f"wait {wait:g} s before trying again" if wait is not None else "try again later"
            return TransientError(f"{said}; {when}", retry_after=wait)
        if code in _NOT_ACCEPTED or status == 401:
            return Refused(f"{said}; the key was not accepted, give the connection {KEY_NEEDED}", status)
        if status == 403:
            return Refused(f"{said}; {todo or 'the key may not read this, give it the policy of docs/providers-aws.md'}", status)
        return Refused(f"{said}; {todo or 'correct the options of the connection or base_url'}", status)

    def _clean(self, text: str) -> str:
        for part in (self.secret, *self.secret.split(":", 2)):
            text = text.replace(part, "[secret]") if part else text
        return text


def _is_damage(error: Exception) -> bool:
    """An answer that broke off or is not what it should be; worth asking for again."""
    from botocore import exceptions, parsers

    return isinstance(
        error,
        (
            parsers.ResponseParserError, exceptions.IncompleteReadError, exceptions.ResponseStreamingError,
            exceptions.ChecksumError, exceptions.FlexibleChecksumError, EOFError,
        ),
    ) or type(error).__module__.startswith("urllib3")  # fmt: skip
