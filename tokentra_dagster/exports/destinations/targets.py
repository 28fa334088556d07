"""Where a webhook may connect to, and a connection that goes exactly there.

A host name is resolved once; every address it has is checked; the connection goes to a checked address while TLS and the
Host header keep the name. So a name whose answer changes in between (DNS rebinding) cannot lead inside. See OWASP's page on
server-side request forgery, and https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.exports.destinations.base import Allowances

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Cloud services that only the machine itself should ask. The others are link-local or private: Azure's is a public address.
_METADATA = frozenset(ipaddress.ip_address(text) for text in ("168.63.129.16", "100.100.100.200", "fd00:ec2::254", "192.0.0.192"))


@dataclass(frozen=True, slots=True)
class Target:
    """An address that a webhook goes to. The path and query may be secret: they are in no text that this makes."""

    scheme: str
    host: str
    port: int
    url: str = field(repr=False)

    @property
    def shown(self) -> str:
        usual = {"https": 443, "http": 80}[self.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == usual else f":{self.port}")


def target_of(url: str, allowances: Allowances) -> Target:
    """Raises `PermanentError` unless this is an https:// address (http:// where allowed) without a login in it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise PermanentError("The webhook's address cannot be read; give https://host/path.") from None
    schemes = ("https", "http") if allowances.plain_text else ("https",)
    host = parts.hostname or ""
    if parts.scheme not in schemes:
        raise PermanentError(f"The webhook's address must start with {' or '.join(f'{name}://' for name in schemes)}.")
    if not host or not host.isascii() or not url.isprintable() or " " in url or port == 0:
        raise PermanentError(
            "The webhook's address must name a host in ASCII (xn--... for others), e.g. https://example.com/hook."
        )
    if parts.username is not None or parts.password is not None:
        raise PermanentError(
            f"The webhook's address for {host} must not hold a login; the signature is what the receiver checks."
        )
    return Target(parts.scheme, host, port or {"https": 443, "http": 80}[parts.scheme], url)


def refusal(address: Address, allowances: Allowances) -> str:
    """Why this address is no target, or an empty text."""
    inner = _inside(address)
    if inner is not None:
        return refusal(inner, allowances)
    if address.is_link_local or address in _METADATA:
        return "a link-local or metadata address"
    if address.is_unspecified or address.is_multicast:
        return "not the address of one machine"
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    if address.is_loopback or not address.is_global or address.is_reserved or site_local:
        return "" if allowances.private_targets else "a private, loopback or reserved address"
    return ""


def addresses_of(target: Target, allowances: Allowances) -> tuple[str, ...]:
    """Every address the host has, in the resolver's order. Raises `PermanentError` if any of them is no target."""
    try:
        answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TransientError(
            f"The host of the webhook {target.shown} was not found ({type(error).__name__}); check its name."
        ) from None
    found = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
    for text in found:
        reason = refusal(ipaddress.ip_address(text.partition("%")[0]), allowances)
        if reason:
            raise PermanentError(
                f"The webhook {target.shown} leads to {text}, {reason}; nothing was sent. "
                "Give a public address, or let the operator allow private targets."
            )
    return found


class PinnedBackend(httpcore2.NetworkBackend):
    """Connects to given addresses whatever the host name, and lets nothing take longer than until `deadline`."""

    def __init__(self, addresses: Sequence[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline
        """On the clock of `time.monotonic`."""
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        failure: Exception = httpcore2.ConnectError("no address")
        for number, address in enumerate(self._addresses):
            share = left(self._deadline, httpcore2.ConnectTimeout) / (len(self._addresses) - number)
            try:
                stream = self._sockets.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _BoundedStream(stream, self._deadline)
        raise failure


class _BoundedStream(httpcore2.NetworkStream):
    # A time-out for each read is not enough: a receiver that sends one byte a second would hold us for ever.
    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, left(self._deadline, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, left(self._deadline, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        seconds = left(self._deadline, httpcore2.ConnectTimeout)
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def left(deadline: float, timed_out: type[Exception]) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise timed_out("the time for this attempt is over")
    return seconds


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for, which is where a gateway would lead."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
