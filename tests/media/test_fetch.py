"""Media are fetched from where everyone may look and from nowhere else, whatever URLs, names and servers say."""

import asyncio
import gzip
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

import httpcore
import pytest
import trustme
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.media import fetch
from qwen3vl_compat.media.fetch import LONGEST_URL, Address, Fetcher, FetchFailed, denied, parse_url, redirected
from tests.media.peers import (
    Behave,
    Lookups,
    Server,
    answer,
    dialled,
    naming,
    open_files,
    redirect,
    serving,
    trap,
    watched,
)

MESSAGE = "could not fetch media"
LOOPBACK = ("127.0.0.1/32",)
"""Where the tests' own servers are; all the rest of 127.0.0.0/8 stays inside."""
LIMIT = 1000


def words(text: str) -> list[str]:
    return text.split()


INNER = words(
    """
    0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.0 100.100.100.200 100.127.255.255
    127.0.0.1 127.0.0.2 127.0.0.53 127.255.255.255 169.254.0.0 169.254.169.254 169.254.170.2 169.254.255.255
    172.16.0.1 172.17.0.1 172.31.255.255 192.0.0.0 192.0.0.8 192.0.0.170 192.0.0.192 192.0.0.255 192.0.2.1
    192.31.196.1 192.52.193.1 192.88.99.1 192.88.99.2 192.168.0.0 192.168.1.1 192.168.255.255 192.175.48.1
    198.18.0.0 198.19.255.255 198.51.100.7 203.0.113.7 224.0.0.1 224.0.0.251 239.255.255.250 240.0.0.1 250.1.2.3
    255.255.255.254 255.255.255.255 168.63.129.16 :: ::1 ::2 ::7f00:1 ::169.254.169.254 ::8.8.8.8 ::ffff:0:0
    ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b:: 64:ff9b::a9fe:a9fe
    64:ff9b::7f00:1 64:ff9b::8.8.8.8 64:ff9b:1::1 64:ff9b:1:ffff::a00:1 100:: 100::1
    200::1 400::1 1000::1 1fff::1 5fff::1 c000::1 dfff::1
    100:0:0:1::1 2001::1
    2001:0:a9fe:a9fe::1 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1 2001:20::1 2001:30::1 2001:1ff:ffff::1
    2001:db8::1 2001:db8:ffff::1 2002:: 2002:7f00:1:: 2002:a9fe:a9fe:: 2002:a00:1::1 2620:4f:8000::1 3fff::1
    3fff:fff:ffff::1 4000::1 5f00::1 5f00:ffff::1 7fff::1 8000::1 fc00::1 fd00:: fd00:ec2::254 fd00:ec2::23
    fd12:3456:789a::1 fe80:: fe80::1 fe80::a9fe:a9fe febf::1 fec0::1 fec0:0:0:ffff::1 feff::1 ff01::1 ff02::1
    ff02::fb ff05::2 ff0e::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    """
)

PUBLIC = words(
    """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 93.184.216.34 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
    168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0
    192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255
    203.0.112.255 203.0.114.0 223.255.255.255 2000::1 2001:200::1 2001:4860:4860::8888 2001:db7::1 2001:db9::1
    2003::1 2606:4700::1111 2a00:1450:4001::1 2620:4f:7fff::1 2620:4f:8001::1 3ffe::1 3fff:1000::1
    """
)

SPELLINGS = words(
    """
    2852039166 0xa9fea9fe 0xA9FEA9FE 0251.0376.0251.0376 0x7f.1 127.1 127.0.1 017700000001 0177.0.0.1 2130706433
    0x7f000001 0x7f.0.0.1 127.0.0.0x1 127.0.0.01 127.0.0.001 127.00.0.1 0127.0.0.1 1 0 00 127.0.0.1. 127.0.0.256
    256.1.1.1 1.1.1 1.1.1.1.1 1..1.1 .1.1.1.1 1.1.1.1.. 1.1.1.0x1 a.0x7f a.127 a.1 a.0x a.09 +1.1.1.1 1.1.1.-1
    1e1.1.1.1 ①②⑦.⓪.⓪.① １２７.０.０.１ 127。0。0。1 127．0．0．1 ١٢٧.٠.٠.١ 127.0.0.①
    localhost LOCALHOST LocalHost localhost.
    LOCALHOST. ⓛocalhost loc%61lhost 127%2e0%2e0%2e1 %31.1.1.1 ip6-localhost redis kubernetes metadata a . .. ...
    -.com -a.com a-.com a..com .a.com a.com. a.com.. a.-com a.com- a.c a.c0m- a,b.com a!b.com a$b.com a&b.com
    a'b.com a(b.com a*b.com a+b.com a;b.com a=b.com a~b.com a|b.com a"b.com a<b.com a>b.com a^b.com a`b.com
    a{b.com a}b.com ex%61mple.com example.com%00.a.com example.com%2f.a.com example.com%20 exämple.com 例え.jp
    xn--.-- \u212aexample.com example.\u212aom \u0130.com exa\u00admple.com a\u200bb.com a\ufeff.com a\u202eb.com
    [] [::1 ::1] ::1 [::1]] [[::1]] [127.0.0.1] [::1%lo] [::1%25lo] [fe80::1%lo] [fe80::1%25eth0] [fe80::1%1]
    [::ffff:127.1] [::g] [:::1] [1::2::3] [1:2:3:4:5:6:7:8:9] [::127.0.0.01] [v1.a] [vF.127.0.0.1] [::1]a a[::1]
    [::1].com [::①] [0x1::1]
    """
)
"""Hosts in none of the usual spellings: read as an inner address by one resolver or another, or as nothing."""

MALFORMED = [
    *(f"http://{host}{end}" for host in SPELLINGS for end in ("/", ":{port}/x.png")),
    *(
        "",
        " ",
        "x",
        "/",
        "//",
        "//1.1.1.1/",
        "//127.0.0.1:{port}/",
        "http",
        "http:",
        "http:/",
        "http://",
        "http:///",
        "http:///x",
        "http:///127.0.0.1/",
        "http:////127.0.0.1/",
        "http:127.0.0.1",
        "http:/127.0.0.1",
        "http:?x",
        "http://?x",
        "http://#x",
        "http://:80/",
        "http://:{port}/",
        "http://@/",
        "://1.1.1.1/",
        "1.1.1.1",
        "1.1.1.1/x.png",
        "www.example.com/x.png",
        "h\u200bttp://1.1.1.1/",
        "http\u017f://1.1.1.1/",
        "\uff48ttp://1.1.1.1/",
        "http:\u2215\u22151.1.1.1/",
        "http\uff1a//1.1.1.1/",
        "url:http://1.1.1.1/",
        "http+unix://1.1.1.1/",
        "httpx://1.1.1.1/",
        "https+http://1.1.1.1/",
        "view-source:http://127.0.0.1/",
        "jar:http://127.0.0.1!/x",
        "blob:http://127.0.0.1/x",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "file://127.0.0.1/etc/passwd",
        "FILE:///etc/passwd",
        "file:/etc/passwd",
        "ftp://127.0.0.1:{port}/x",
        "ftps://127.0.0.1/x",
        "sftp://127.0.0.1/x",
        "tftp://127.0.0.1/x",
        "gopher://127.0.0.1:{port}/_GET%20/",
        "dict://127.0.0.1:{port}/info",
        "ldap://127.0.0.1:{port}/",
        "ws://127.0.0.1:{port}/",
        "wss://127.0.0.1:{port}/",
        "smb://127.0.0.1/x",
        "ssh://127.0.0.1/",
        "redis://127.0.0.1:{port}/",
        "s3://bucket/x.png",
        "gs://bucket/x.png",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "about:blank",
        "/etc/passwd",
        "../x.png",
        "C:\\x.png",
        "\\\\127.0.0.1\\x",
        "http://user@example.com/",
        "http://user:pw@example.com/",
        "http://:pw@example.com/",
        "http://@example.com/",
        "http://user@127.0.0.1:{port}/",
        "http://1.1.1.1&@127.0.0.1:{port}/",
        "http://1.1.1.1&@127.0.0.1:{port}# @1.1.1.1/",
        "http://1.1.1.1@127.0.0.1:{port}/",
        "http://1.1.1.1:80@127.0.0.1:{port}/",
        "http://1.1.1.1%40127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@1.1.1.1/",
        "http://1.1.1.1\\@127.0.0.1:{port}/",
        "http:\\\\127.0.0.1:{port}\\",
        "http:/\\127.0.0.1:{port}/",
        "http://example.com\\x",
        "http://example.com/\\x",
        "http://example.com/x\\",
        "http://1.1.1.1;127.0.0.1:{port}/",
        "http://1.1.1.1,127.0.0.1:{port}/",
        "http://1.1.1.1 127.0.0.1:{port}/",
        "http://1.1.1.1:80:{port}/",
        "http://127.0.0.1:{port}:80/",
        " http://example.com/",
        "\thttp://example.com/",
        "\nhttp://example.com/",
        "\u3000http://example.com/",
        "\ufeffhttp://example.com/",
        "http://example.com/ ",
        "http://example.com/\n",
        "http://example.com /",
        "http:// example.com/",
        "http://example.com/a b",
        "http://example.com/a\u00a0b",
        "http://example.com/a\u2028b",
        "http://example.com/a\u3000b",
        "ht\ntp://example.com/",
        "http://exam\nple.com/",
        "http://exam\tple.com/",
        "http://example.com/a\tb",
        "http://example.com/a\rb",
        "http://example.com/\r\nHost: 127.0.0.1",
        "http://example.com/x HTTP/1.1\r\nX: y",
        "http://example.com/?\r\nx",
        "http://example.com/#\n",
        "http://example.com\x00.a.com/",
        "http://example.com/\x00",
        "http://example.com/\x01",
        "http://example.com/\x1b[0m",
        "http://example.com/\x7f",
        "http://example.com/\x85",
        "http://example.com/\x9f",
        "http://example.com/%00",
        "http://example.com/x?y=%00",
        "http://example.com/x#%00",
        "http://example.com/\ud800",
        "http://example.com/?\udfff",
        "http://example.com:/",
        "http://example.com:0/",
        "http://example.com:00/",
        "http://example.com:080/",
        "http://example.com:+80/",
        "http://example.com:-80/",
        "http://example.com:8_0/",
        "http://example.com:80a/",
        "http://example.com:a/",
        "http://example.com:0x50/",
        "http://example.com:\u0668\u0660/",
        "http://example.com:\u2460/",
        "http://example.com:80 /",
        "http://example.com: 80/",
        "http://example.com:%38%30/",
        "http://example.com:80%20/",
        "http://example.com:65536/",
        "http://example.com:65616/",  # 80 in 16 bits
        "http://example.com:99999/",
        "http://example.com:4294967376/",  # 80 in 32 bits
        "http://example.com:" + "9" * 5000 + "/",
        "http://[::1",
        "http://[::1]80/",
        "http://[::1]:/",
        "http://[::1]@1.1.1.1/",
        "http://[::1\n]/",
        "http://[1.1.1.1]@127.0.0.1/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 127 + "com/",
        "http://example.com/" + "a" * LONGEST_URL,
        "http://example.com/" + "\u00e4" * (LONGEST_URL // 6),
        "http://example.com/#" + "a" * LONGEST_URL,
    ),
]

OTHER_PORTS = [
    f"{scheme}://example.com:{port}/" for scheme in ("http", "https") for port in (1, 22, 25, 6379, 8080, 65535)
]


def at(host: str, port: int | str = "{port}") -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/latest/meta-data/"


HOSTILE = [
    *MALFORMED,
    *OTHER_PORTS,
    *(at(host) for host in INNER),
    *(f"https://{f'[{host}]' if ':' in host else host}/" for host in INNER),
    *(f"http://{name}:{{port}}/" for name in ("inner.example.com", "a.localhost", "metadata.google.internal")),
]


async def failure(fetcher: Fetcher, url: str, limit: int = LIMIT) -> str:
    """The reason for which a fetch fails, as it must; what anyone but the log can see of it is always the same."""
    with pytest.raises(FetchFailed) as caught:
        await fetcher(url, limit)
    error = caught.value
    assert (str(error), error.args, error.__cause__, error.__context__) == (MESSAGE, (MESSAGE,), None, None)
    return error.reason


def fetcher_for(*servers: Server, **options: object) -> Fetcher:
    """One that may reach the servers; quick to fail."""
    ports = frozenset({80, 443, *(server.port for server in servers)})
    return Fetcher(**{"allow_networks": LOOPBACK, "ports": ports, "floor": 0.0, "seconds": 5.0, **options})


# Reading URLs


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://example.com", Address("http", "example.com", 80, "/")),
        ("https://example.com/", Address("https", "example.com", 443, "/")),
        ("HTTPS://Example.COM:443/A?B#c", Address("https", "example.com", 443, "/A?B")),
        ("http://example.com:443/", Address("http", "example.com", 443, "/")),
        ("http://example.com?x=/@:", Address("http", "example.com", 80, "/?x=/@:")),
        ("http://example.com#x", Address("http", "example.com", 80, "/")),
        ("http://1.1.1.1/@user/x.png", Address("http", "1.1.1.1", 80, "/@user/x.png")),
        ("http://[2606:4700:0::1111]:80/", Address("http", "2606:4700::1111", 80, "/")),
        ("http://[::FFFF:1.2.3.4]/", Address("http", "::ffff:102:304", 80, "/")),
        ("http://a_b.xn--p1ai/", Address("http", "a_b.xn--p1ai", 80, "/")),
        ("http://a.xn--lgbbat1ad8/", Address("http", "a.xn--lgbbat1ad8", 80, "/")),
        ("http://1.2.3.com/", Address("http", "1.2.3.com", 80, "/")),
        ("http://a.com/é?ü=漢#字", Address("http", "a.com", 80, "/%C3%A9?%C3%BC=%E6%BC%A2")),
        ("http://a.com/%C3%A9%zz%?'\"<>^`{|}", Address("http", "a.com", 80, "/%C3%A9%zz%?'\"<>^`{|}")),
        ("http://a.com//x/../y?a?b", Address("http", "a.com", 80, "//x/../y?a?b")),
        ("http://" + "a." * 125 + "com/", Address("http", "a." * 125 + "com", 80, "/")),
    ],
)
def test_urls_are_read(text: str, address: Address) -> None:
    assert parse_url(text) == address
    assert parse_url(str(address)) == address


@pytest.mark.parametrize("text", MALFORMED)
def test_urls_that_could_be_read_in_two_ways_are_not(text: str) -> None:
    with pytest.raises(FetchFailed, match=MESSAGE):
        parse_url(text.replace("{port}", "80"))


@pytest.mark.parametrize("text", OTHER_PORTS)
def test_only_the_ports_allowed_are_taken(text: str) -> None:
    with pytest.raises(FetchFailed, match=MESSAGE):
        parse_url(text)
    port = int(text.rsplit(":", 1)[1].rstrip("/"))
    assert parse_url(text, frozenset({port})).port == port
    with pytest.raises(FetchFailed, match=MESSAGE):
        parse_url("http://example.com/", frozenset({port}))


PIECES = st.sampled_from(
    [
        *words(
            r"http https :// : / // @ ? # [ ] . .. \ % %00 %41 80 443 0 127.0.0.1 ::1 1 a b.c example.com é ① 。 - _"
        ),
        "\t",
        "\n",
    ]
)
URLISH = st.one_of(
    st.text(), st.lists(PIECES).map("".join), st.lists(PIECES).map(lambda pieces: "http://" + "".join(pieces))
)


def is_settled(address: Address) -> None:
    """It reads the same again, by us and by two parsers that are not ours."""
    text = str(address)
    assert text.isascii()
    assert parse_url(text) == address
    split = urlsplit(text)
    assert (split.hostname, split.username, split.password) == (address.host, None, None)
    assert (split.port or split.scheme) in {address.port, address.scheme}
    assert httpcore.URL(text).host.decode().strip("[]") == address.host
    assert (split.path, split.query) == (address.target.partition("?")[0], address.target.partition("?")[2])


@given(URLISH)
def test_what_is_read_once_reads_the_same_again(text: str) -> None:
    try:
        address = parse_url(text)
    except FetchFailed:
        return
    is_settled(address)


BASE = Address("http", "a.com", 80, "/b/c/d?e=/f")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://b.com/x", "https://b.com/x"),
        ("//b.com/x", "http://b.com/x"),
        ("/x?y#z", "http://a.com/x?y"),
        ("?y", "http://a.com/b/c/d?y"),
        ("#z", "http://a.com/b/c/"),
        ("x", "http://a.com/b/c/x"),
        ("./x", "http://a.com/b/c/x"),
        ("../x?../y", "http://a.com/b/x?../y"),
        ("../../../../x", "http://a.com/x"),
        ("..", "http://a.com/b/"),
        (".", "http://a.com/b/c/"),
        ("x/./../y/", "http://a.com/b/c/y/"),
        ("x//y", "http://a.com/b/c/x//y"),
        ("1:x", "http://a.com/b/c/1:x"),
        ("é", "http://a.com/b/c/%C3%A9"),
        ("@127.0.0.1/", "http://a.com/b/c/@127.0.0.1/"),
    ],
)
def test_redirects_are_followed_from_where_they_stand(location: str, url: str) -> None:
    assert str(redirected(BASE, location)) == url


@pytest.mark.parametrize(
    "location",
    words(
        """
        file:///etc/passwd ftp://b.com/ data:image/png;base64,AAAA gs://b/x javascript:0 http:127.0.0.1 http:/x HTTP:x
        //user@b.com/ ///b.com/ //b.com:22/ // \\\\b.com/ /\\b.com/ http://localhost/ http://b.com:6379/ /%00 a:80
        b.com:80/x
        """
    )
    + ["/ ", "/a b", "\thttp://b.com/", "/\n", "x" * 9000],
)
def test_redirects_to_anything_else_are_refused(location: str) -> None:
    with pytest.raises(FetchFailed, match=MESSAGE):
        redirected(BASE, location)


def test_https_never_falls_back() -> None:
    base = Address("https", "a.com", 443, "/")
    assert redirected(base, "/x").scheme == redirected(base, "//b.com").scheme == "https"
    assert redirected(BASE, "https://a.com/").scheme == "https"
    with pytest.raises(FetchFailed, match=MESSAGE):
        redirected(base, "http://a.com/")


@given(URLISH, st.sampled_from(["http", "https"]))
def test_a_redirect_leads_to_a_settled_address(location: str, scheme: str) -> None:
    try:
        address = redirected(Address(scheme, "a.com", 443, "/b?c"), location)
    except FetchFailed:
        return
    is_settled(address)
    assert address.scheme == "https" or scheme == "http"


# Which addresses are dialled


@pytest.mark.parametrize("address", INNER)
def test_inner_addresses_are_denied(address: str) -> None:
    assert denied(address)
    assert not denied(address, (f"{address}/32" if "." in address and ":" not in address else f"{address}/128",))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not(address: str) -> None:
    assert not denied(address)


@pytest.mark.parametrize(
    "text", ["", "x", "a.com", "127.1", "8.8.8.8%eth0", "2606:4700::1%eth0", "8.8.8.8/32", "[2606::1]"]
)
def test_what_is_no_address_is_denied(text: str) -> None:
    assert denied(text, ("0.0.0.0/0", "::/0"))


@given(st.one_of(st.ip_addresses(), st.sampled_from(INNER).map(ipaddress.ip_address)))
def test_nothing_is_allowed_that_the_standard_library_calls_local(address: ipaddress.IPv4Address) -> None:
    assert address.is_global or denied(str(address))


def test_networks_are_allowed_one_by_one() -> None:
    allowed = ("10.1.0.0/16", "fd00:1::/32")
    assert not denied("10.1.2.3", allowed)
    assert not denied("fd00:1::5", allowed)
    assert denied("10.2.0.1", allowed)
    assert denied("fd00:2::5", allowed)
    assert denied("::ffff:10.1.2.3", allowed)


@pytest.mark.parametrize("network", ["", "10.0.0.0/33", "10.0.0.1/8", "localhost", "fd00::/129"])
def test_a_network_that_is_none_is_said_at_once(network: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Fetcher((network,))


async def test_no_hostile_url_makes_a_connection() -> None:
    """Traps at both loopback addresses listen where the URLs point, and every connect of the process is seen."""
    with trap() as four, trap("::1", four.getsockname()[1]) as six, watched() as connects:
        port = four.getsockname()[1]
        ports = frozenset({80, 443, port})
        names = Lookups(others=["8.8.8.8", "127.0.0.1"])
        urls = [url.replace("{port}", str(port)) for url in HOSTILE]
        assert len(set(urls)) >= 500
        fetcher = Fetcher(ports=ports, floor=0.0, resolve=names)
        for url in urls:
            await failure(fetcher, url)
        assert connects == []
        assert (dialled(four), dialled(six)) == (0, 0)
        assert names.asked == ["inner.example.com", "a.localhost", "metadata.google.internal"]

        willing = Fetcher(("127.0.0.0/8", "::1/128"), ports, seconds=0.2, floor=0.0)
        for host in ("127.0.0.1", "::1"):
            await failure(willing, at(host, port))
        assert [address[:2] for address in connects] == [("127.0.0.1", port), ("::1", port)]
        assert (dialled(four), dialled(six)) == (1, 1)


# What is fetched


@pytest.mark.parametrize(
    "response",
    [
        answer(),
        answer(length=False),
        answer(b"7\r\npicture\r\n0\r\n\r\n", "200 OK", "Transfer-Encoding: chunked", length=False),
        answer(b"3;x=y\r\npic\r\n4\r\nture\r\n0\r\nX: y\r\n\r\n", "200 OK", "Transfer-Encoding: chunked", length=False),
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(),
        b"HTTP/1.0 200 OK\r\n\r\npicture",
        answer(b"picture", "200 OK", "Content-Encoding: Identity", "Content-Type: text/html"),
        answer() + b"HTTP/1.1 200 OK\r\n\r\nmore",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npictures",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7, 7\r\nContent-Length: 7\r\n\r\npicture",
    ],
)
async def test_the_body_is_brought_back(response: bytes) -> None:
    async with serving(response) as server:
        assert await fetcher_for(server)(server.url("/a/b?c=é"), LIMIT) == b"picture"
    asked = server.asked[0].decode().split("\r\n")
    assert asked[0] == "GET /a/b?c=%C3%A9 HTTP/1.1"
    assert sorted(asked[1:-2]) == [
        "Accept-Encoding: identity",
        "Accept: */*",
        "Connection: close",
        f"Host: 127.0.0.1:{server.port}",
        "User-Agent: qwen3vl-compat",
    ]


async def test_ipv6_and_names_are_fetched_from() -> None:
    async with serving(answer(), "::1") as six, serving(answer()) as four:
        fetcher = fetcher_for(
            six, four, allow_networks=("::1/128", *LOOPBACK), resolve=Lookups({"a.com": [["127.0.0.1"]]})
        )
        assert await fetcher(six.url(host="[::1]"), LIMIT) == b"picture"
        assert await fetcher(four.url(host="A.com"), LIMIT) == b"picture"
    assert f"Host: [::1]:{six.port}\r\n".encode() in six.asked[0]
    assert f"Host: a.com:{four.port}\r\n".encode() in four.asked[0]


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"\r\n\r\n",
        b"picture",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"-ERR wrong number of arguments for 'get' command\r\n",
        b"220 mail ESMTP\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7a\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 6\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\npicture\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\npicture",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-7\r\npicture\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n7\r\npicture\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\npicture",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20_000 + answer(),
        answer(b""),
        answer(b"", length=False),
        answer(b"0\r\n\r\n", "200 OK", "Transfer-Encoding: chunked", length=False),
        *(
            answer(b"picture", status)
            for status in (
                "101 Switching Protocols",
                "201 Created",
                "204 No Content",
                "206 Partial Content",
                "300 Multiple Choices",
                "304 Not Modified",
                "305 Use Proxy",
                "400 Bad Request",
                "401 Unauthorized",
                "403 Forbidden",
                "404 Not Found",
                "429 Too Many Requests",
                "500 Internal Server Error",
                "503 Service Unavailable",
                "999 Whatever",
            )
        ),
    ],
)
async def test_all_but_a_whole_good_answer_fails(response: bytes) -> None:
    async with serving(response) as server:
        assert await failure(fetcher_for(server), server.url()) != "TimeoutError"
    assert server.accepted == 1


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("length", [True, False])
async def test_the_limit_is_exact(chunked: bool, length: bool) -> None:
    body = b"0" * LIMIT
    sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    fields = ["Transfer-Encoding: chunked"] if chunked else []
    async with serving(answer(sent, "200 OK", *fields, length=length and not chunked)) as server:
        assert await fetcher_for(server)(server.url(), LIMIT) == body
        assert await failure(fetcher_for(server), server.url(), LIMIT - 1) == "body too large"


@pytest.mark.parametrize("head", ["Content-Length: 10000000000", "Content-Encoding: gzip", "X-No-Length: 1"])
async def test_what_is_too_large_or_encoded_is_hardly_read(head: str) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
        while True:
            writer.write(bytes(65_536))
            await writer.drain()
            sent += 65_536

    async with serving(pour) as server:
        started = time.monotonic()
        reason = await failure(fetcher_for(server), server.url(), 100_000)
        assert reason in {"body too large", "encoded body"}
        assert time.monotonic() - started < 1
    assert sent < 20_000_000  # what two sockets' buffers take on a loopback device


@pytest.mark.parametrize(
    "encoding", ["gzip", "GZIP", "x-gzip", "br", "deflate", "zstd", "identity, gzip", "gzip, gzip"]
)
async def test_an_encoded_body_is_never_inflated(encoding: str) -> None:
    bomb = gzip.compress(bytes(1_000_000))
    async with serving(answer(bomb, "200 OK", f"Content-Encoding: {encoding}")) as server:
        assert await failure(fetcher_for(server), server.url(), 10_000_000) == "encoded body"
    async with serving(answer(bomb)) as server:
        assert await fetcher_for(server)(server.url(), len(bomb)) == bomb


async def test_a_length_over_the_limit_is_not_waited_for() -> None:
    async def announce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode())
        await reader.read()

    async with serving(announce) as server:
        assert await failure(fetcher_for(server), server.url()) == "body too large"


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def dripping(response: bytes) -> Behave:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for at in range(len(response)):
            writer.write(response[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0.03)

    return drip


@pytest.mark.parametrize(
    "behave", [silent, dripping(answer()), dripping(answer(length=False)), dripping(redirect("/"))]
)
async def test_all_of_a_fetch_shares_one_deadline(behave: Behave) -> None:
    async with serving(behave) as server:
        started = time.monotonic()
        assert await failure(fetcher_for(server, seconds=0.4), server.url()) == "TimeoutError"
        assert 0.4 <= time.monotonic() - started < 1.2


async def test_redirects_share_the_deadline_too() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(redirect("/again"))

    async with serving(slow) as server:
        started = time.monotonic()
        assert await failure(fetcher_for(server, seconds=0.4, hops=9), server.url()) == "TimeoutError"
        assert time.monotonic() - started < 1.2
    assert server.accepted == 3


@pytest.mark.parametrize("flood", [b"1\r\n0\r\n", b"HTTP/1.1 103 \r\n\r\n"])
async def test_a_flood_of_small_pieces_leaves_the_event_loop_to_others(flood: bytes) -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if flood.startswith(b"1"):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(flood * 5_000)
            await writer.drain()

    gaps = [0.0]

    async def beat() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async with serving(pour) as server:
        beating = asyncio.create_task(beat())
        assert await failure(fetcher_for(server), server.url(), 20_000_000) in {
            "body in too many pieces",
            "too much sent",
        }
        beating.cancel()
    assert max(gaps) < 0.5


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(status: int) -> None:
    async with serving(answer()) as last, serving(redirect(last.url("/there"), status)) as first:
        assert await fetcher_for(first, last)(first.url(), LIMIT) == b"picture"
    assert last.asked[0].startswith(b"GET /there HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{last.port}\r\n".encode() in last.asked[0]


async def test_so_many_redirects_and_no_more() -> None:
    async def next_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int(server.asked[-1].split()[1][1:])
        writer.write(answer() if number == 20 else redirect(str(number + 1)))

    async with serving(next_one) as server:
        fetcher = fetcher_for(server)
        assert await fetcher(server.url("/17"), LIMIT) == b"picture"
        assert server.accepted == 4
        assert await failure(fetcher, server.url("/16")) == "too many redirects"
        assert await failure(fetcher, server.url("/0")) == "too many redirects"
        assert server.accepted == 12
        assert await failure(fetcher_for(server, hops=0), server.url("/19")) == "too many redirects"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "//127.0.0.2:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://0.0.0.0:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://inner.com:{port}/",
        "http://localhost:{port}/",
        "http://2130706433:{port}/",
        "http://user@127.0.0.1:{port}/",
        "http://127.0.0.1:22/",
        "http:127.0.0.1:{port}",
        "file:///etc/passwd",
        "ftp://127.0.0.1:{port}/",
        "gopher://127.0.0.1:{port}/_x",
        "data:image/png;base64,AAAA",
        "gs://bucket/x.png",
        "",
    ],
)
@pytest.mark.parametrize("status", [301, 307])
async def test_a_redirect_to_elsewhere_is_not_dialled(location: str, status: int) -> None:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(redirect(location.replace("{port}", str(port)), status))

    with trap("127.0.0.2") as four:
        port = four.getsockname()[1]
        with trap("::1", port) as six:
            async with serving(send) as server:
                names = Lookups({"inner.com": [["127.0.0.2"]]})
                fetcher = fetcher_for(server, ports=frozenset({80, port, server.port}), resolve=names)
                with watched() as connects:
                    await failure(fetcher, server.url())
            assert connects == [("127.0.0.1", server.port)]
            assert (dialled(four), dialled(six)) == (0, 0)


@pytest.mark.parametrize("fields", [[], ["Location: /a", "Location: /b"], ["Location: /\xff"]])
async def test_a_redirect_must_say_where_to(fields: list[str]) -> None:
    async with serving("\r\n".join(["HTTP/1.1 302 Found", *fields, "", ""]).encode("latin-1")) as server:
        await failure(fetcher_for(server), server.url())
    assert server.accepted == 1


# Names


@pytest.mark.parametrize(
    "answers", [["8.8.8.8", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"], ["::1"], [], ["x"], ["8.8.8.8", "fe80::1%lo"]]
)
async def test_one_inner_answer_denies_a_name(answers: list[str]) -> None:
    with watched() as connects:
        fetcher = Fetcher(LOOPBACK, floor=0.0, resolve=Lookups({"a.com": [answers]}))
        assert await failure(fetcher, "http://a.com/") in {"denied address", "no address"}
    assert connects == []


async def test_a_name_is_looked_up_once_and_what_was_checked_is_dialled() -> None:
    zone: dict[str, list[list[str] | None]] = {"rebind.com": [["127.0.0.1"], ["127.0.0.2"]]}
    async with serving(answer()) as server, naming(zone) as (names, resolve):
        with trap("127.0.0.2", server.port) as inner:
            fetcher = fetcher_for(server, resolve=resolve)
            with watched() as connects:
                assert await fetcher(server.url(host="rebind.com"), LIMIT) == b"picture"
            assert names.asked == ["rebind.com"]
            assert [place for place in connects if place[1] == server.port] == [("127.0.0.1", server.port)]
            assert await failure(fetcher, server.url(host="rebind.com")) == "denied address"
            assert dialled(inner) == 0
    assert server.accepted == 1


async def test_a_name_is_checked_anew_at_each_redirect() -> None:
    zone: dict[str, list[list[str] | None]] = {"rebind.com": [["127.0.0.1"], ["127.0.0.2"]]}
    async with serving(redirect("/again")) as server, naming(zone) as (names, resolve):
        with trap("127.0.0.2", server.port) as inner:
            assert (
                await failure(fetcher_for(server, resolve=resolve), server.url(host="rebind.com")) == "denied address"
            )
            assert dialled(inner) == 0
        assert names.asked == ["rebind.com", "rebind.com"]
    assert server.accepted == 1


async def test_aliases_lead_nowhere_else() -> None:
    zone: dict[str, list[list[str] | None]] = {
        "alias.com": [["b.alias.com"]],
        "b.alias.com": [["c.alias.com"]],
        "c.alias.com": [["127.0.0.1"]],
        "bad.com": [["c.alias.com", "inner.bad.com"]],
        "inner.bad.com": [["127.0.0.2"]],
        "dangling.com": [["none.com"]],
        "empty.com": [[]],
    }
    async with serving(answer()) as server, naming(zone) as (_, resolve):
        fetcher = fetcher_for(server, resolve=resolve)
        assert await fetcher(server.url(host="alias.com"), LIMIT) == b"picture"
        assert await failure(fetcher, server.url(host="bad.com")) == "denied address"
        assert await failure(fetcher, server.url(host="dangling.com")) == "OSError"
        assert await failure(fetcher, server.url(host="none.com")) == "OSError"
        assert await failure(fetcher, server.url(host="empty.com")) == "no address"
    assert server.accepted == 1


async def test_the_next_address_is_tried_and_not_for_ever() -> None:
    async with serving(answer()) as server:
        dead = [f"127.0.0.{number}" for number in range(2, 7)]
        names = Lookups({"a.com": [[dead[0], dead[1], "127.0.0.1"]], "b.com": [[*dead, "127.0.0.1"]]})
        fetcher = fetcher_for(server, allow_networks=("127.0.0.0/8",), resolve=names)
        assert await fetcher(server.url(host="a.com"), LIMIT) == b"picture"
        with watched() as connects:
            assert await failure(fetcher, server.url(host="b.com")) == "no connection"
        assert connects == [(address, server.port) for address in dead[:4]]


async def test_the_system_is_asked_for_names() -> None:
    assert "127.0.0.1" in await fetch._looked_up("localhost", 80)


async def test_dead_name_servers_hold_up_only_media(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both a system resolver that hangs, in more threads than there are, and one of ours that is never answered."""
    over = threading.Event()
    calls: list[str] = []

    def hang(host: str, *args: object, **options: object) -> list[object]:
        calls.append(host)
        over.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    async with naming({"silent.com": [None]}) as (_, resolve):
        started = time.monotonic()
        failing = [failure(Fetcher(), f"http://a{number}.com/") for number in range(100)]
        tasks = [asyncio.create_task(it) for it in (*failing, failure(Fetcher(resolve=resolve), "http://silent.com/"))]
        await asyncio.sleep(0.1)
        assert await asyncio.to_thread(lambda: "free") == "free"
        assert set(await asyncio.gather(*tasks)) == {"TimeoutError"}
        assert 2 <= time.monotonic() - started < 3
    over.set()
    await asyncio.to_thread(fetch._lookups.submit(lambda: None).result)
    assert len(calls) == 64


async def test_a_name_that_is_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **options: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", missing)
    assert await failure(Fetcher(floor=0.0), "http://a.com/") == "gaierror"


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("good.com", "127.0.0.1").configure_cert(context)
    return context


NAMES = {"good.com": [["127.0.0.1"]], "other.com": [["127.0.0.1"]]}


async def test_tls_holds_the_name_against_the_certificate(certified: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async with serving(answer(bytes(900_000)), context=certified) as server:
        fetcher = fetcher_for(server, resolve=Lookups(NAMES), ssl_context=trusting)
        assert await fetcher(server.url(scheme="https", host="good.com"), 900_000) == bytes(900_000)
        assert await fetcher(server.url(scheme="https"), 900_000) == bytes(900_000)
        assert await failure(fetcher, server.url(scheme="https", host="other.com")) == "no connection"
        assert await failure(fetcher, server.url(host="good.com")) != "TimeoutError"
        usual = fetcher_for(server, resolve=Lookups(NAMES))
        assert await failure(usual, server.url(scheme="https", host="good.com")) == "no connection"
    assert len(server.asked) == 2
    async with serving(answer()) as plain:
        fetcher = fetcher_for(plain, ssl_context=trusting, seconds=0.5)
        assert await failure(fetcher, plain.url(scheme="https")) in {"TimeoutError", "no connection"}


async def test_an_address_that_shakes_no_hands_is_left_for_the_next(
    certified: ssl.SSLContext, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "DIAL_SECONDS", 0.2)
    names = Lookups({"good.com": [["127.0.0.2", "127.0.0.1"]]})
    async with serving(answer(), context=certified) as server:
        with trap("127.0.0.2", server.port) as mute:
            allowed = ("127.0.0.0/8",)
            fetcher = fetcher_for(server, allow_networks=allowed, resolve=names, ssl_context=trusting, seconds=2.0)
            assert await fetcher(server.url(scheme="https", host="good.com"), LIMIT) == b"picture"
            assert dialled(mute) == 1


async def test_https_is_not_left_for_http(certified: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async with serving(answer()) as plain, serving(redirect(plain.url()), context=certified) as server:
        fetcher = fetcher_for(server, plain, ssl_context=trusting)
        assert await failure(fetcher, server.url(scheme="https")) == "redirect from https to http"
    assert (server.accepted, plain.accepted) == (1, 0)
    async with serving(answer(), context=certified) as server, serving(redirect(server.url(scheme="https"))) as plain:
        assert await fetcher_for(server, plain, ssl_context=trusting)(plain.url(), LIMIT) == b"picture"


# What is left behind


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with trap() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy"):
            for spelling in (name, name.upper()):
                monkeypatch.setenv(spelling, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with serving(answer()) as server:
            assert await fetcher_for(server)(server.url(), LIMIT) == b"picture"
        assert dialled(proxy) == 0


async def test_failures_look_alike_and_take_their_time() -> None:
    """An open port with something else behind it, a closed one, a denied address, a missing name: one and the same."""
    with trap("127.0.0.2") as inner:
        port = inner.getsockname()[1]
        async with serving(b"SSH-2.0-OpenSSH_9.2\r\n") as other, serving(answer(b"", "404 Not Found")) as missing:
            fetcher = Fetcher(LOOPBACK, frozenset({80, port, other.port, missing.port}), resolve=Lookups())
            urls = [
                other.url(),
                missing.url(),
                at("127.0.0.2", port),
                at("127.0.0.1", port),
                "http://none.com/",
                "x",
                "\0",
            ]
            started = time.monotonic()

            async def timed(url: str) -> tuple[str, float]:
                return await failure(fetcher, url), time.monotonic() - started

            found = await asyncio.gather(*map(timed, urls))
    assert len({reason for reason, _ in found}) > 4
    assert all(0.3 <= took < 1 for _, took in found)


async def settled(count: int) -> bool:
    """Whether the files that are open come down to `count`, within a second."""
    for _ in range(100):
        if open_files() <= count:
            return True
        await asyncio.sleep(0.01)
    return False


async def scenario(certified: ssl.SSLContext, trusting: ssl.SSLContext, rounds: int) -> int:
    """All kinds of failures, `rounds` times each, and some successes; how many failed. No socket is left open."""
    async with (
        serving(answer()) as good,
        serving(answer(bytes(900_000)), context=certified) as secure,
        serving(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n") as short,
        serving(answer(b"", "404 Not Found")) as missing,
        serving(redirect("/again")) as circular,
        serving(silent) as mute,
    ):
        servers = (good, secure, short, missing, circular, mute)
        fetcher = fetcher_for(*servers, resolve=Lookups(NAMES), ssl_context=trusting, seconds=0.5)
        assert await fetcher(secure.url(scheme="https"), 900_000) == bytes(900_000)
        before = open_files()
        urls = [
            good.url(scheme="https"),
            secure.url(),
            secure.url(scheme="https", host="other.com"),
            secure.url(scheme="https", host="good.com"),  # too large
            short.url(),
            missing.url(),
            circular.url(),
            mute.url(),
            mute.url(scheme="https"),
            "http://127.0.0.2/",
            "http://127.0.0.1/",
        ]
        for _ in range(rounds):
            await asyncio.gather(*(failure(fetcher, url) for url in urls))
            assert await fetcher(good.url(), LIMIT) == b"picture"
            assert await fetcher(secure.url(scheme="https", host="good.com"), 900_000) == bytes(900_000)
        assert await settled(before)
    return rounds * len(urls)


async def test_no_socket_is_left_open(certified: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    assert await scenario(certified, trusting, rounds=2) == 22
    async with serving(answer(b"", "404 Not Found")) as server:
        fetcher = fetcher_for(server)
        before = open_files()
        for _ in range(200):
            await failure(fetcher, server.url())
        assert await settled(before)


def test_the_same_on_the_event_loop_of_the_server(certified: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario(certified, trusting, rounds=2)) == 22


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n\r\npict"])
async def test_a_fetch_that_is_cancelled_hangs_up(scheme: str, sent: bytes) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(sent if scheme == "http" else b"")
        came.set()
        try:
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
        writer.close()
        gone.set()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    before = open_files()
    fetcher = Fetcher(LOOPBACK, frozenset({port}))
    task = asyncio.create_task(fetcher(f"{scheme}://127.0.0.1:{port}/", LIMIT))
    await came.wait()
    await asyncio.sleep(0.02)
    cancelled = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(1):
        await gone.wait()
    assert time.monotonic() - cancelled < 0.2  # the floor is for failures
    assert await settled(before)
    server.close()


@pytest.mark.parametrize("name", ["localhost", "minio", "a_b-c"])
async def test_names_without_a_dot_are_for_networks_of_the_operators(name: str) -> None:
    with pytest.raises(FetchFailed):
        parse_url(f"http://{name}/")
    assert parse_url(f"http://{name}/", local=True).host == name
    for spelling in (*SPELLINGS, "a.", ".a", "-a", "a-", "0x7f", "1", "a..b"):
        assert parse_or_none(spelling) in (None, spelling.lower())


def parse_or_none(host: str) -> str | None:
    """The host of a URL that is read, if any address can only follow from looking it up."""
    try:
        found = parse_url(f"http://{host}/", local=True).host
    except FetchFailed:
        return None
    assert found[0].isalpha()
    return found


async def test_a_nearby_name_is_fetched_only_from_listed_networks() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return {"near": ["127.0.0.1"], "metadata": ["169.254.169.254"]}[host]

    async with serving(answer(b"hello")) as server:
        fetcher = Fetcher(LOOPBACK, frozenset({server.port}), resolve=resolve)
        assert await fetcher(f"http://near:{server.port}/", LIMIT) == b"hello"
        for url, allowed in ((f"http://metadata:{server.port}/", LOOPBACK), (f"http://near:{server.port}/", ())):
            with pytest.raises(FetchFailed):
                await Fetcher(allowed, frozenset({server.port}), resolve=resolve)(url, LIMIT)
