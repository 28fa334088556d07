"""Asking Azure: whose credentials, which endpoint, and every failure as one clear error.

The secret of a connection is `TENANT:CLIENT:SECRET` of an app registration, or a bearer token (which Azure ends after about an
hour: for a trial). Without a secret azure-identity's own chain finds a login (environment, workload or managed identity, `az login`).

azure-core retries 408, 429, 5xx and connections that fail, with back-off and honouring Retry-After. This module adds what it
does not do: an answer that cannot be read is asked for again, and whatever finally fails says what to do and never holds the secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import ConnectionConfig
from tokentra_dagster.providers.failures import DamagedPage, Refused, read_json, retry_after
from tokentra_dagster.providers.options import Options

Found = TypeVar("Found")
KEY_NEEDED = "the secret TENANT:CLIENT:SECRET of an app registration with the roles of docs/providers-azure.md"
MANAGEMENT = "https://management.azure.com"
EXTRA = "Azure needs the packages of the extra azure; install them: pip install 'tokentra-usage[azure]'"
_LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
_METHODS = frozenset(("GET", "POST"))
_LONGEST_QUOTE = 300
_DAMAGED_RETRIES = 2
_TOKEN_SECONDS = 3600


class _Bearer:
    """A credential that is a token already; every audience gets the same."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __repr__(self) -> str:
        return "_Bearer()"

    def get_token(self, *scopes: str, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        return AccessToken(self._token, int(time.time()) + _TOKEN_SECONDS)


@dataclass(slots=True)
class Azure:
    """One login at Azure. Makes clients lazily: making this asks nobody and reads no credentials."""

    integration: str
    secret: str = field(repr=False)
    endpoint: str | None
    timeout_seconds: float
    max_retries: int
    _login: Any = field(default=None, repr=False)
    _clients: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: ConnectionConfig, options: Options) -> Azure:
        endpoint = config.base_url.rstrip("/") if config.base_url else None
        if endpoint and urlsplit(endpoint).scheme != "https" and urlsplit(endpoint).hostname not in _LOOPBACK:
            raise PermanentError(f"{config.asked}: base_url is {endpoint}; a token is sent there, so it must begin with https://")
        return cls(config.asked, config.api_key.strip(), endpoint, options.timeout_seconds, options.max_retries)

    def metrics(self, region: str, **query: Any) -> Mapping[str, Any]:
        """The answer to one `MetricsClient.query_resources`, as it was given: the client's own model leaves out errors of
        single metrics."""
        client = self._client(region, lambda: self._metrics_client(region))
        body: list[bytes] = []
        hook = {"raw_response_hook": lambda answer: body.append(answer.http_response.body())}
        try:
            client.query_resources(**query, **hook, **self._per_call())
        except (KeyError, TypeError, ValueError, AttributeError):
            # The client's model does not fit the answer; the caller says what is wrong with it.
            if not body:
                raise
        return read_json(body[-1])

    def resource(self, url: str) -> Mapping[str, Any]:
        """One page of Azure Resource Manager; `url` is a path or a page's `nextLink`."""
        from azure.core.rest import HttpRequest

        base = self.endpoint or MANAGEMENT
        if "://" in url and urlsplit(url)[:2] != urlsplit(base)[:2]:
            raise DamagedPage(f"its next page is at {urlsplit(url).netloc}, not at {urlsplit(base).netloc}")
        client = self._client("", self._management_client)
        answer = client.send_request(HttpRequest("GET", url if "://" in url else base + url), **self._per_call())
        answer.raise_for_status()
        return read_json(answer.content)

    def ask(self, asking: str, ask: Callable[[], Found], todo: str = "") -> Found:
        """What `ask` returns. `asking` is the subject of the sentence when it fails, `todo` what to do where Azure refuses it.

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
            except ModuleNotFoundError:
                failure = PermanentError(f"{self.integration}: {EXTRA}")
                break
            except DamagedPage as damage:
                failure = TransientError(f"{self.integration}: {asking} cannot be used ({damage}); try again later")
            except Exception as error:
                failure = self._translate(error, asking, todo)
                if not _is_damage(error):
                    break
        # Raised here, outside the handlers: azure-core's errors hold the request with its Authorization header.
        raise failure

    # ---- Clients -----------------------------------------------------------------------------------------------------

    def _client(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._clients:
            self._clients[name] = make()
        return self._clients[name]

    def _metrics_client(self, region: str) -> Any:
        from azure.monitor.querymetrics import MetricsClient

        return MetricsClient(
            self.endpoint or f"https://{region}.metrics.monitor.azure.com", self._credential(), **self._configuration()
        )

    def _management_client(self) -> Any:
        from azure.core import PipelineClient
        from azure.core.pipeline import policies

        options = self._configuration()
        return PipelineClient(
            self.endpoint or MANAGEMENT,
            policies=[
                policies.UserAgentPolicy(**options),
                policies.RetryPolicy(**options),
                policies.BearerTokenCredentialPolicy(self._credential(), f"{MANAGEMENT}/.default"),
                policies.HttpLoggingPolicy(),
            ],
            **options,
        )

    def _credential(self) -> Any:
        if self._login is None:
            parts = self.secret.split(":", 2)
            if len(parts) not in (1, 3) or (not all(parts) and self.secret):
                raise PermanentError(f"{self.integration}: the secret is not {KEY_NEEDED}; it is not shown here")
            if not self.secret:
                from azure.identity import DefaultAzureCredential

                self._login = DefaultAzureCredential()
            elif len(parts) == 1:
                self._login = _Bearer(self.secret)
            else:
                from azure.identity import ClientSecretCredential

                self._login = ClientSecretCredential(*parts)
        return self._login

    def _configuration(self) -> dict[str, Any]:
        return {
            "retry_total": self.max_retries, "retry_connect": self.max_retries, "retry_read": self.max_retries,
            "retry_status": self.max_retries, "read_timeout": self.timeout_seconds,
            "connection_timeout": min(self.timeout_seconds, 10.0),
        }  # fmt: skip

    def _per_call(self) -> dict[str, Any]:
        """Reading is done by POST here: it may be repeated. Plain HTTP is for loopback only, see `of`."""
        plain = self.endpoint is not None and urlsplit(self.endpoint).scheme == "http"
        return {"retry_on_methods": _METHODS} | ({"enforce_https": False} if plain else {})

    # ---- Failures ----------------------------------------------------------------------------------------------------

    def _translate(self, error: Exception, asking: str, todo: str) -> Exception:
        from azure.core import exceptions

        said = f"{self.integration}: {asking}"
        kind = type(error).__name__
        status = getattr(error, "status_code", None)
        if _is_damage(error):
            return TransientError(f"{said} broke off or cannot be read ({kind}); try again later")
        if isinstance(error, exceptions.HttpResponseError) and status is not None:
            return self._from_status(error, int(status), said, todo)
        if isinstance(error, exceptions.ClientAuthenticationError):
            quote = self._clean(" ".join(str(error).split()))[:_LONGEST_QUOTE]
            return PermanentError(f"{said} got no token ({quote}); give the connection {KEY_NEEDED}, or this machine an identity")
        if isinstance(error, (exceptions.ServiceRequestTimeoutError, exceptions.ServiceResponseTimeoutError)):
            return TransientError(f"{said} timed out; try again later or raise the option timeout_seconds")
        if isinstance(error, (exceptions.ServiceRequestError, exceptions.ServiceResponseError, OSError)):
            return TransientError(f"{said} could not reach Azure ({kind}); check the network, the region and base_url")
        text = self._clean(f"{said} could not be asked ({kind}: {error}); check secret, options and base_url")
        return PermanentError(" ".join(text.split())[: 2 * _LONGEST_QUOTE])

    def _from_status(self, error: Any, status: int, said: str, todo: str) -> Exception:
        said = f"{said} answered HTTP {status} ({self._quote(error)})"
        if status in (408, 429) or status >= 500:
            wait = retry_after(error.response.headers) if error.response is not None else None
            when = f"wait {wait:g} s before trying again" if wait is not None else "try again later"
            return TransientError(f"{said}; {when}", retry_after=wait)
        if status == 401:
            return Refused(f"{said}; the login was not accepted, give the connection {KEY_NEEDED}", status)
        if status == 403:
            return Refused(f"{said}; {todo or 'give the login the role Monitoring Reader on the subscription'}", status)
        return Refused(f"{said}; {todo or 'correct the options of the connection or base_url'}", status)

    def _quote(self, error: Any) -> str:
        try:
            body = read_json(error.response.body())
            inner = body.get("error", body)
            text = f"{inner.get('code', '')}: {inner.get('message', '')}" if isinstance(inner, Mapping) else str(inner)
        except (DamagedPage, AttributeError):
            text = str(error.reason or "no message")
        return self._clean(" ".join(text.split()))[:_LONGEST_QUOTE]

    def _clean(self, text: str) -> str:
        for part in (self.secret, self.secret.rpartition(":")[2]):
            text = text.replace(part, "[secret]") if part else text
        return text


def _is_damage(error: Exception) -> bool:
    """An answer that broke off or is no JSON; worth asking for again."""
    from azure.core import exceptions

    return isinstance(error, (exceptions.DecodeError, exceptions.IncompleteReadError))
