"""Downloads stay within their limits and never reach a private address, whatever names and redirects say."""

from __future__ import annotations

import ipaddress
import socket
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_data import png, serving

from infinity_mm.errors import UserError
from infinity_mm.sources.base import SourceItem
from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.fetch import Limits, fetch, is_public
from infinity_mm.sources.urls import UrlSource
from infinity_mm.vision.images import BadImage

HERE = frozenset({"127.0.0.1"})
PNG = {"Content-Type": "image/png"}


def limits(**options: Any) -> Limits:
    return Limits(open_addresses=HERE, **{"tries": 1, **options})


def reason(url: str, limits_: Limits | None = None) -> str:
    with pytest.raises(BadImage) as error:
        fetch(url, limits_ or limits(), sleep=lambda seconds: None)
    return error.value.reason


def test_an_image_is_fetched_and_redirects_are_followed() -> None:
    table: dict[str, Any] = {
        "/a.png?x=1": (200, PNG, png(1)),
        "/from": (302, {"Location": "a.png?x=1"}, b""),
    }
    with serving(table) as server:
        assert fetch(f"{server.url}/a.png?x=1", limits()) == png(1)
        assert fetch(f"{server.url}/from", limits()) == png(1)
        host = server.url.removeprefix("http://")
        assert server.asked[0] == ("/a.png?x=1", host)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((404, PNG, b""), "http_404"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), "content_type"),
        ((200, {}, b"x"), "content_type"),
        ((200, {**PNG, "Content-Encoding": "gzip"}, b"x"), "content_encoding"),
        ((200, {**PNG, "Content-Length": "1001"}, b""), "file_too_large"),
        ((200, PNG, b"x" * 1001), "file_too_large"),
        ((200, {**PNG, "Content-Length": "100"}, b"x" * 99), "unreachable"),
        ((302, {}, b""), "bad_redirect"),
        ((302, {"Location": "http://[::1"}, b""), "bad_redirect"),
        ((302, {"Location": "/"}, b""), "too_many_redirects"),
        ((302, {"Location": "http://10.0.0.1/a.png"}, b""), "private_address"),
        ((302, {"Location": "http://[::1]/a.png"}, b""), "private_address"),
        ((302, {"Location": "http://169.254.169.254/latest/meta-data"}, b""), "private_address"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "bad_url"),
    ],
)
def test_what_goes_beyond_a_limit_has_its_own_reason(answer: Any, expected: str) -> None:
    with serving({"/": answer}) as server:
        assert reason(f"{server.url}/", limits(max_bytes=1000)) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1/", "private_address"),
        ("http://localhost/", "private_address"),
        ("http://2130706433/", "private_address"),
        ("http://0x7f.1/", "private_address"),
        ("http://[::ffff:127.0.0.1]/", "private_address"),
        ("http://0.0.0.0/", "private_address"),
        ("http://192.168.1.1/a.png", "private_address"),
        ("ftp://example.org/a.png", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("http://user:secret@example.org/", "bad_url"),
        ("http:///a.png", "bad_url"),
        ("http://example.org:99999/", "bad_url"),
        ("http://example.org/a b", "bad_url"),
        ("http://example.org/a\r\nHost: x", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("not a link", "bad_url"),
    ],
)
def test_without_permission_no_private_address_is_reached_however_it_is_written(
    url: str, expected: str
) -> None:
    assert reason(url, Limits(tries=1)) == expected


def test_a_name_is_looked_up_once_and_the_connection_goes_to_what_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that is public when it is checked and private a moment later (DNS rebinding)."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    real = socket.getaddrinfo

    def lookup(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host == "pictures.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in answers.pop(0)]
        return real(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with serving({"/a": (200, PNG, png(1))}) as server:
        url = server.url.replace("127.0.0.1", "pictures.example") + "/a"
        assert fetch(url, limits()) == png(1)
        assert server.asked[0][1].startswith("pictures.example:")
        assert reason(url) == "private_address"


def test_a_name_with_one_private_address_among_public_ones_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    assert reason("http://example.org/", Limits(tries=1)) == "private_address"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.0.1", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1",
        "2002:7f00:0001::", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_server_that_drips_is_cut_off_and_one_that_is_silent_too() -> None:
    def drip() -> bytes:
        time.sleep(0.05)
        return b"x"

    table: dict[str, Any] = {
        "/": (200, PNG, [drip] * 100),
        "/long": (200, {**PNG, "Content-Length": "9"}, [drip] * 100),
    }
    with serving(table) as server:
        assert reason(f"{server.url}/", limits(timeout_s=0.2)) == "timeout"
        assert reason(f"{server.url}/long", limits(timeout_s=0.2)) == "timeout"


def test_an_overloaded_server_is_asked_again_and_a_missing_image_is_not() -> None:
    waits: list[float] = []
    with serving({"/busy": (503, {}, b""), "/gone": (410, {}, b"")}) as server:
        with pytest.raises(BadImage, match="http_503"):
            fetch(f"{server.url}/busy", limits(tries=3), sleep=waits.append)
        with pytest.raises(BadImage, match="http_410"):
            fetch(f"{server.url}/gone", limits(tries=3), sleep=waits.append)
        assert [path for path, _ in server.asked] == ["/busy"] * 3 + ["/gone"]
        assert waits == [1.0, 2.0]


def test_links_come_from_lines_or_from_a_column(tmp_path: Path) -> None:
    (tmp_path / "links.txt").write_text("# mine\nhttp://a.example/1\n\nhttp://a.example/2\n")
    text = UrlSource(name="u", path=str(tmp_path / "links.txt"))
    assert [(item.key, item.uri) for item in text.items()] == [
        ("000000001", "http://a.example/1"),
        ("000000003", "http://a.example/2"),
    ]
    pq.write_table(pa.table({"link": ["http://a.example/1", None, ""]}), tmp_path / "0.parquet")
    table = UrlSource(name="u", path=str(tmp_path), url_column="link")
    assert [item.problem for item in table.items()] == [None, "no_url", "no_url"]
    with pytest.raises(UserError, match="there is no column `url`"):
        list(UrlSource(name="u", path=str(tmp_path)).items())


def test_a_fetched_image_is_a_picture_that_the_run_keeps() -> None:
    with serving({"/a": (200, PNG, png(1))}) as server:
        source = UrlSource(name="u", path="/links.txt", limits=limits())
        (picture,) = source.read(SourceItem(key="0", source="u", uri=f"{server.url}/a")).pictures
        assert (picture.data, picture.uri) == (png(1), None)


def test_no_configuration_opens_the_network_by_itself_or_private_addresses_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allow_network: true"):
        SourceConfig(kind="urls", path=str(tmp_path / "links.txt"))
    assert not hasattr(
        SourceConfig(kind="urls", path=str(tmp_path / "links.txt"), allow_network=True), "open_addresses"
    )
