"""Asking Google Cloud: whose credentials, which endpoint, and every failure as one clear error.

The secret of a connection is the key of a service account, the whole JSON file (`--secret file:key.json`), or an access token, which
Google ends after about an hour: for a trial. Without a secret google-auth's own chain finds a login (Application Default Credentials).

Cloud Monitoring is asked by gRPC, BigQuery by HTTP. Retries are made here and bounded, for both alike, and honour what Google says
about when to come back (RetryInfo); whatever finally fails says what to do and never holds the secret.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import ConnectionConfig
from tokentra_dagster.providers.failures import DamagedPage, Refused
from tokentra_dagster.providers.options import Options

Found = TypeVar("Found")
OPTIONS = ("endpoint", "bigquery_endpoint")
KEY_NEEDED = "the JSON key of a service account with the roles of docs/providers-google.md"
EXTRA = "Google needs the packages of the extra google; install them: pip install 'tokentra-usage[google]'"
SCOPES = ("https://www.googleapis.com/auth/monitoring.read", "https://www.googleapis.com/auth/bigquery")
"""Those that the clients ask for themselves; the roles say what may be read."""
MONITORING = "monitoring.googleapis.com"
_LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
_PASSES = frozenset((408, 409, 429, 499))
_BUSY = frozenset(("rateLimitExceeded", "jobRateLimitExceeded", "backendError", "internalError"))
"""Reasons by which BigQuery says with HTTP 400 or 403 that it is only busy."""
_LONGEST_QUOTE = 300
_LONGEST_PAUSE = 8.0
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is. `plain`: without TLS, which is for loopback only, because a token is sent there."""

    address: str
    plain: bool


@dataclass(slots=True)
class Google:
    """One login at Google Cloud. Makes clients lazily: making this asks nobody and reads no credentials."""

    integration: str
    secret: str = field(repr=False)
    monitoring_at: Endpoint
    bigquery_at: str | None
    timeout_seconds: float
    max_retries: int
    _login: Any = field(default=None, repr=False)
    _monitoring: Any = field(default=None, repr=False)
    _bigquery: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, config: ConnectionConfig, options: Options) -> Google:
        asked = options.text("endpoint") or config.base_url
        bigquery = options.text("bigquery_endpoint")
        if bigquery is not None:
            place = urlsplit(bigquery)
            if place.scheme not in ("http", "https") or (place.scheme == "http" and place.hostname not in _LOOPBACK):
                raise options.wrong("bigquery_endpoint", bigquery, "a token is sent there, so it must begin with https://")
        return cls(
            config.asked,
            config.api_key.strip(),
            _endpoint(asked, options) if asked else Endpoint(MONITORING, plain=False),
            bigquery.rstrip("/") if bigquery else None,
            options.timeout_seconds,
            options.max_retries,
        )

    def time_series(self, request: Mapping[str, Any]) -> Any:
        """One page of ListTimeSeries, a `ListTimeSeriesResponse` of protocol buffers."""
        if self._monitoring is None:
            self._monitoring = self._monitoring_client()
        if not self.monitoring_at.plain:
            self._refresh()
        pager = self._monitoring.list_time_series(request=request, retry=None, timeout=self.timeout_seconds)
        page = next(iter(pager.pages))
        return type(page).pb(page)

    def table(self, name: str) -> Any:
        """What BigQuery says of a table: a `google.cloud.bigquery.Table`."""
        return self._bigquery_client(name).get_table(name, retry=None, timeout=self.timeout_seconds)

    def rows(self, name: str, sql: str, parameters: Mapping[str, Any], page_size: int) -> Iterator[Mapping[str, Any]]:
        """The rows that a query gives of the table `name`, page by page. Parameters are timestamps or lists of text."""
        from google.cloud import bigquery

        typed = [
            bigquery.ArrayQueryParameter(key, "STRING", list(value))
            if isinstance(value, (list, tuple))
            else bigquery.ScalarQueryParameter(key, "TIMESTAMP", value)
            for key, value in parameters.items()
        ]
        found = self._bigquery_client(name).query_and_wait(
            sql,
            job_config=bigquery.QueryJobConfig(query_parameters=typed),
            api_timeout=self.timeout_seconds,
            retry=None,
            job_retry=None,
            page_size=page_size,
        )
        yield from map(dict, found)

    def ask(self, asking: str, ask: Callable[[], Found], todo: str = "") -> Found:
        """What `ask` returns. `asking` is the subject of the sentence when it fails, `todo` what to do where Google refuses it.

        Raises `Refused` for what is not allowed or not there, `PermanentError` or `TransientError` for the rest.
        """
        for attempt in range(self.max_retries + 1):
            try:
                return ask()
            except PermanentError:
                raise
            except ModuleNotFoundError:
                failure: Exception = PermanentError(f"{self.integration}: {EXTRA}")
                break
            except DamagedPage as damage:
                failure = TransientError(f"{self.integration}: {asking} cannot be used ({damage}); try again later")
            except Exception as error:
                failure = error if isinstance(error, TransientError) else self._translate(error, asking, todo)
            if not isinstance(failure, TransientError):
                break
            if attempt < self.max_retries:
                pause = 0.25 * 2**attempt if failure.retry_after is None else failure.retry_after
                time.sleep(min(pause, _LONGEST_PAUSE))
        # Raised here, outside the handlers: the vendor's error may hold the request with its credentials.
        raise failure

    # ---- Clients -----------------------------------------------------------------------------------------------------

    def _monitoring_client(self) -> Any:
        import grpc
        from google.cloud.monitoring_v3 import MetricServiceClient
        from google.cloud.monitoring_v3.services.metric_service.transports import MetricServiceGrpcTransport

        if not self.monitoring_at.plain:
            transport = MetricServiceGrpcTransport(host=self.monitoring_at.address, credentials=self._credentials())
            return MetricServiceClient(transport=transport)
        channel = grpc.insecure_channel(
            self.monitoring_at.address,
            options=[("grpc.max_receive_message_length", _MOST_BYTES), ("grpc.initial_reconnect_backoff_ms", 100)],
        )
        # Call credentials are refused on a channel without TLS; a header is not. Inside the client's own interceptor, which logs.
        if self.secret:
            self._refresh()
            channel = grpc.intercept_channel(channel, _with_token(self._credentials().token))
        return MetricServiceClient(transport=MetricServiceGrpcTransport(channel=channel))

    def _bigquery_client(self, table: str) -> Any:
        if self._bigquery is None:
            from google.auth.credentials import AnonymousCredentials
            from google.cloud import bigquery

            local = self.bigquery_at is not None and self.bigquery_at.startswith("http://")
            self._bigquery = bigquery.Client(
                project=table.split(".")[0],
                credentials=AnonymousCredentials() if local and not self.secret else self._credentials(),  # type: ignore[no-untyped-call]
                client_options={"api_endpoint": self.bigquery_at} if self.bigquery_at else None,
            )
        return self._bigquery

    def _refresh(self) -> None:
        """Get a token before gRPC does: it would call a login that is refused UNAVAILABLE, as if it passed by itself."""
        from google.auth.transport.requests import Request

        if not self._credentials().valid:
            self._credentials().refresh(Request())

    def _credentials(self) -> Any:
        if self._login is None:
            self._login = self._found_credentials()
        return self._login

    def _found_credentials(self) -> Any:
        import google.auth
        from google.oauth2 import credentials, service_account

        if not self.secret:
            return google.auth.default(scopes=SCOPES)[0]
        if not self.secret.startswith("{"):
            if any(character.isspace() for character in self.secret):
                raise PermanentError(f"{self.integration}: the secret is not {KEY_NEEDED}; it is not shown here")
            return credentials.Credentials(self.secret)  # type: ignore[no-untyped-call]
        try:
            info = json.loads(self.secret)
            if info.get("type") != "service_account":
                raise ValueError
            return service_account.Credentials.from_service_account_info(info, scopes=SCOPES)  # type: ignore[no-untyped-call]
        except (ValueError, KeyError, TypeError):
            pass
        # Outside the handler: the error of a key that cannot be read may quote it.
        raise PermanentError(f"{self.integration}: the secret is not {KEY_NEEDED}; it is not shown here")

    # ---- Failures ----------------------------------------------------------------------------------------------------

    def _translate(self, error: Exception, asking: str, todo: str) -> Exception:
        from google.api_core import exceptions
        from google.auth import exceptions as auth
        from requests import exceptions as http

        said = f"{self.integration}: {asking}"
        kind = type(error).__name__
        if isinstance(error, exceptions.GoogleAPICallError):
            # UNKNOWN and DATA_LOSS have no HTTP status.
            return self._from_status(error, int(error.code or 500), said, todo)
        if isinstance(error, auth.TransportError) or (isinstance(error, auth.GoogleAuthError) and error.retryable):
            return TransientError(f"{said} could not reach Google's login ({kind}); check the network and try again later")
        if isinstance(error, auth.RefreshError) and self.secret and not self.secret.startswith("{"):
            # BigQuery's client answers a refusal by asking for another token, which an access token has not.
            return Refused(
                f"{said}: the login was not accepted, access tokens end after an hour; give the connection {KEY_NEEDED}", 401
            )
        if isinstance(error, auth.GoogleAuthError):
            return PermanentError(
                f"{said} got no token ({self._clean(str(error))}); give the connection {KEY_NEEDED}, or this machine a login"
            )
        if isinstance(error, (TimeoutError, http.Timeout)):
            return TransientError(f"{said} timed out; try again later or raise the option timeout_seconds")
        if isinstance(error, (exceptions.GoogleAPIError, http.JSONDecodeError, json.JSONDecodeError)):
            return TransientError(f"{said} broke off or cannot be read ({kind}); try again later")
        if isinstance(error, (OSError, http.RequestException)):
            return TransientError(f"{said} could not reach Google ({kind}); check the network, endpoint and bigquery_endpoint")
        return PermanentError(
            f"{said} could not be asked ({kind}: {self._clean(str(error))}); check secret, options and endpoint"
        )

    def _from_status(self, error: Any, status: int, said: str, todo: str) -> Exception:
        reasons = {str(one.get("reason")) for one in error.errors if isinstance(one, Mapping)}
        name = getattr(error.grpc_status_code, "name", None) or f"HTTP {status}"
        if status == 504:
            return TransientError(f"{said} timed out ({name}); try again later or raise the option timeout_seconds")
        said = f"{said} answered {name} ({self._clean(error.message)})"
        if status in _PASSES or (status >= 500 and status != 501) or reasons & _BUSY:
            wait = _retry_delay(error)
            when = f"wait {wait:g} s before trying again" if wait is not None else "try again later"
            return TransientError(f"{said}; {when}", retry_after=wait)
        if status == 401:
            return Refused(f"{said}; the login was not accepted, give the connection {KEY_NEEDED}", status)
        return Refused(f"{said}; {todo or 'correct the options of the connection'}", status)

    def _clean(self, text: str) -> str:
        one_line = " ".join(str(text or "no message").split())
        return (one_line.replace(self.secret, "[secret]") if self.secret else one_line)[:_LONGEST_QUOTE]


def _endpoint(text: str, options: Options) -> Endpoint:
    """`HOST:PORT` with or without `https://`; `http://` is without TLS, and so is loopback where nothing is said."""
    scheme, _, rest = text.rpartition("://")
    place = urlsplit(f"//{rest}")
    loopback = place.hostname in _LOOPBACK
    plain = scheme == "http" or (not scheme and loopback)
    if scheme not in ("", "http", "https") or not place.hostname or (plain and not loopback):
        raise options.wrong(
            "endpoint", text, "give HOST:PORT of a server with TLS, or http://127.0.0.1:PORT of one on this machine"
        )
    return Endpoint(place.netloc, plain)


def _with_token(token: str) -> Any:
    """A gRPC interceptor that sends an access token as a header."""
    import grpc

    class WithToken(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        def intercept_unary_unary(self, continuation: Any, call: Any, request: Any) -> Any:
            metadata = [*(call.metadata or ()), ("authorization", f"Bearer {token}")]
            return continuation(call._replace(metadata=metadata), request)

    return WithToken()


def _retry_delay(error: Any) -> float | None:
    """Seconds that Google asks to wait, from google.rpc.RetryInfo."""
    for detail in error.details or ():
        delay = getattr(detail, "retry_delay", None)
        if delay is not None:
            return float(delay.seconds) + float(delay.nanos) / 1e9
    return None
