"""One image from the public web, within limits, and never from a private address.

URL --resolve--> addresses, all public? --connect to that very address--> head --type, size--> bytes
                                                \\--redirect: the whole of it again

The name is resolved once and the connection goes to the address that was looked at, so that a name which answers
differently the second time leads nowhere. Proxies of the environment are not used: they would resolve by themselves.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from urllib.parse import SplitResult, urljoin, urlsplit

from infinity_mm.vision.images import BadImage

_REDIRECTS = (301, 302, 303, 307, 308)
_AGAIN = frozenset({"timeout", "unreachable", "http_429", "http_500", "http_502", "http_503", "http_504"})
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one download may cost."""

    max_bytes: int = 32 << 20
    """A larger body is refused, by its head or as it comes."""
    timeout_s: float = 30.0
    """For the whole of one try, redirects included."""
    content_types: tuple[str, ...] = ("image/",)
    """Beginnings of the content types that are taken."""
    max_redirects: int = 5
    tries: int = 3
    """How often a server that does not answer, or is overloaded, is asked."""
    open_addresses: frozenset[str] = frozenset()
    """Private addresses that are allowed all the same. No configuration sets it: it is for tests on this machine."""


def fetch(url: str, limits: Limits, *, sleep: Callable[[float], None] = time.sleep) -> bytes:
    """The body at a URL; raises `BadImage` with the reason."""
    for attempt in range(limits.tries):
        try:
            return _follow(url, limits, time.monotonic() + limits.timeout_s)
        except BadImage as bad:
            if bad.reason not in _AGAIN or attempt + 1 == limits.tries:
                raise
            sleep(2.0**attempt)
    raise AssertionError("unreachable")


def _follow(url: str, limits: Limits, deadline: float) -> bytes:
    for _ in range(limits.max_redirects + 1):
        found = _get(url, limits, deadline)
        if isinstance(found, bytes):
            return found
        secure = urlsplit(url).scheme == "https"
        try:
            url = urljoin(url, found)
            leaves_tls = secure and urlsplit(url).scheme != "https"
        except ValueError as error:
            raise BadImage("bad_redirect", f"{error}"[:200]) from error
        if leaves_tls:
            raise BadImage("insecure_redirect", url[:200])
    raise BadImage("too_many_redirects", f"more than {limits.max_redirects}")


def _get(url: str, limits: Limits, deadline: float) -> bytes | str:
    """The body, or where a redirect points to."""
    parts = _checked(url)
    connection = _connection(parts, limits, deadline)
    # A server that sends a byte now and then keeps every single read within its time, but not the whole.
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _hang_up, [connection.sock])
    timer.daemon = True
    timer.start()
    try:
        if isinstance(connection.sock, ssl.SSLSocket):
            connection.sock.do_handshake()
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "infinity-mm"}
        connection.request("GET", path, headers=headers)
        with contextlib.closing(connection.getresponse()) as response:
            if response.status in _REDIRECTS:
                if not (location := response.getheader("Location")):
                    raise BadImage("bad_redirect", "no Location")
                return location
            if response.status != 200:
                raise BadImage(f"http_{response.status}", response.reason[:200])
            body = _body(response, limits)
        _left(deadline)  # a body without a length ends where the line is cut
        return body
    except BadImage:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
            raise BadImage("timeout", f"not done within {limits.timeout_s:g} s") from error
        raise BadImage("unreachable", f"{type(error).__name__}: {error}"[:200]) from error
    finally:
        timer.cancel()
        connection.close()


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which another thread may be using


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise BadImage("bad_url", f"{error}"[:200]) from error
    if parts.scheme not in ("http", "https"):
        raise BadImage("bad_url", f"scheme {parts.scheme!r}; http and https are fetched"[:200])
    if (
        not host
        or parts.username is not None
        or not url.isascii()
        or any(c <= " " or c == "\x7f" for c in url)
    ):
        raise BadImage("bad_url", "no host, a user name, or characters that a URL must escape")
    return parts


def _connection(parts: SplitResult, limits: Limits, deadline: float) -> http.client.HTTPConnection:
    """Connected to an address that was checked; name and certificate are still those of the URL."""
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadImage("unknown_host", f"{host}: {error}"[:200]) from error
    addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
    for address in addresses:
        if address not in limits.open_addresses and not is_public(ipaddress.ip_address(address)):
            raise BadImage("private_address", f"{host} is {address}")
    secure = parts.scheme == "https"
    connection = (
        http.client.HTTPSConnection(host, port, context=_tls())
        if secure
        else http.client.HTTPConnection(host, port)
    )
    error: Exception = OSError("no address")
    for address in addresses:
        try:
            sock = socket.create_connection((address, port), timeout=_left(deadline))
            if secure:
                sock = _tls().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            connection.sock = sock
            return connection
        except OSError as tried:
            error = tried
    if isinstance(error, TimeoutError):
        raise BadImage("timeout", f"{host} does not accept a connection") from error
    raise BadImage("unreachable", f"{type(error).__name__}: {error}"[:200]) from error


@cache
def _tls() -> ssl.SSLContext:
    """Reading the system's certificates takes longer than many a download."""
    return ssl.create_default_context()


def _body(response: http.client.HTTPResponse, limits: Limits) -> bytes:
    kind = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    if not kind.startswith(limits.content_types):
        raise BadImage("content_type", kind[:200] or "none is given")
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise BadImage("content_encoding", "compressed, though it was asked not to be")
    if response.length is not None and response.length > limits.max_bytes:
        raise BadImage("file_too_large", f"{response.length} bytes, limit {limits.max_bytes}")
    expected, chunks, size = response.length, [], 0
    while chunk := response.read1(_CHUNK):
        size += len(chunk)
        if size > limits.max_bytes:
            raise BadImage("file_too_large", f"more than {limits.max_bytes} bytes")
        chunks.append(chunk)
    if expected is not None and size != expected:
        raise http.client.IncompleteRead(b"".join(chunks), expected - size)
    return b"".join(chunks)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def is_public(address: Address) -> bool:
    """Whether it lies on the public internet; an address inside another one is looked at as well."""
    inner: list[Address | None] = []
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast and all(is_public(one) for one in inner if one)
