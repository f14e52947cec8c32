"""The DSN: what it says is found to be wrong before anything connects."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from ssl import SSLContext, TLSVersion
from typing import Any
from urllib.parse import parse_qsl, unquote

import asyncpg
import msgspec
from asyncpg import connect_utils

from timemachine.domain.errors import SettingsError
from timemachine.settings import Settings

_VARIABLE = "TIMEMACHINE_POSTGRES_DSN"

_Address = str | tuple[str, int]
"""A Unix socket, or a host and a port."""

Addresses = tuple[tuple[str, int], ...]
"""Hosts, or Unix sockets, each with its port."""


class Dsn(msgspec.Struct, frozen=True):
    """Where to connect to, and how."""

    text: str
    """For asyncpg: without hosts, and without the options that it does not know and that are safe to leave out."""
    addresses: Addresses
    """The first that can be used is to be taken."""


_CHANNEL_BINDING = "channel_binding"
_ANY = None
_NONE = frozenset[str]()

_BLANKS = " \t\r\n"

_ENCODED = "%[0-9A-Fa-f]{2}"
_NAME, _IN_BRACKETS = rf"(?:[^\s,:/?#@%\[\]&=+]|{_ENCODED})*", rf"(?:[^\s,/?#@%\[\]]|{_ENCODED})+"
_HOST = rf"(?:{_NAME}|\[{_IN_BRACKETS}\])(?::[0-9]{{1,5}})?"
_PARTS_OF_HOST = re.compile(rf"(?:\[(?P<v6>{_IN_BRACKETS})\]|(?P<name>{_NAME}))(?::(?P<port>[0-9]+))?")
_HOSTS = f"{_HOST}(?:,{_HOST})*"
_OPTION = rf"[a-z_][a-z0-9_.]*=(?:[^\s&#%+=]|{_ENCODED})*"

# libpq's URI, without what asyncpg drops or reads differently: it takes a `+` in an option for a blank, for instance.
_URI = re.compile(
    r"postgres(?:ql)?://"
    rf"(?:(?P<user>(?:[^\s:/?#@%\[\]]|{_ENCODED})*)(?::(?P<password>(?:[^\s/?#@%\[\]]|{_ENCODED})*))?@)?"
    rf"(?P<hosts>{_HOSTS})"
    rf"(?P<path>/(?:[^\s?#%]|{_ENCODED})*)?"
    rf"(?:\?(?:{_OPTION}(?:&{_OPTION})*)?)?"
)
_OF_OPTIONS = {
    "host": re.compile("(?:{0})(?:,(?:{0}))*".format(rf"{_HOST}|/[^,]*")),
    "port": re.compile("[0-9]{1,5}(?:,[0-9]{1,5})*"),
}
_HAS_PORT = re.compile(r":[0-9]+(?:,|$)|/\.s\.PGSQL\.")
_IN_NO_NAME = re.compile(r"[\s,/@\[\]]")
_LONGEST_NAME = 253
_DEFAULT_PORT = 5432
_SOCKET = re.compile(r"/(?:.*/)?\.s\.PGSQL\.(?P<port>[0-9]{1,5})")
_LONGEST_SOCKET = 107
"""Bytes of a path; see unix(7)."""

_SAME = {"database": "dbname"}
"""Options with two names."""

_MAY_BE_EMPTY = frozenset({"application_name", "options"})
"""Options of libpq that say nothing where they are empty. Of all others asyncpg drops what libpq would not."""

_TO_WRITE = frozenset({"any", "primary", "read-write"})
"""What servers may be asked for: a standby takes no job."""

# What libpq takes and asyncpg does not: it would send these to the server, which refuses the session for them. With
# these values each asks for no more than asyncpg does anyway, or for what our own limits on time do.
_OF_LIBPQ_ALONE: Mapping[str, frozenset[str] | None] = {
    **dict.fromkeys(("connect_timeout", "tcp_user_timeout", "load_balance_hosts", "fallback_application_name"), _ANY),
    **dict.fromkeys(("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"), _ANY),
    **dict.fromkeys(("sslcompression", "sslsni", "sslkeylogfile", "gssdelegation"), _ANY),
    "max_protocol_version": _ANY,
    "min_protocol_version": frozenset({"3.0"}),
    "client_encoding": frozenset({"auto", "utf8", "utf-8", "unicode"}),
    _CHANNEL_BINDING: frozenset({"disable", "prefer"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "sslcertmode": frozenset({"allow"}),
    "requiressl": frozenset({"0"}),
    "replication": frozenset({"false", "off", "no", "0"}),
    **dict.fromkeys(("hostaddr", "requirepeer", "require_auth", "scram_client_key", "scram_server_key"), _NONE),
    **dict.fromkeys(("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"), _NONE),
    **dict.fromkeys(("ssl", "sslcrldir"), _NONE),
    **dict.fromkeys(("service", "servicefile"), _NONE),  # asyncpg takes a service that is in no file for nothing said
}

# What the DSN alone has to say, of all that asyncpg takes besides.
_UNSAID = dict.fromkeys(
    (
        *("host", "port", "user", "password", "passfile", "database", "ssl", "service", "servicefile", "direct_tls"),
        *("server_settings", "target_session_attrs", "krbsrvname", "gsslib"),
    )
)


def read_dsn(settings: Settings) -> Dsn:
    """Return what the DSN says.

    Raises:
        SettingsError: There is none, it cannot be read, or nothing could ever connect with it. The message never holds
            a part of the password.
    """
    dsn = (settings.postgres_dsn or "").strip(_BLANKS)
    if not dsn:
        raise SettingsError(f"{_VARIABLE} is not set")
    if not dsn.startswith(("postgresql://", "postgres://")):
        raise SettingsError(f"{_VARIABLE} must begin with postgresql://")
    if "#" in dsn:  # to asyncpg all ends there, also an `sslmode` that follows; to libpq it is a character like others
        raise SettingsError(f"{_VARIABLE}: write %23 in place of #, or take out what follows it")
    try:
        uri = _matched(dsn)
        _check_once(uri)
        _check_values(_options(dsn))
        known = _for_asyncpg(uri)
        addresses, session = _as_asyncpg_reads(known, _hosts(uri))
        for text in _texts(addresses, session):
            _check_text(text)
    except ValueError:
        raise _unreadable() from None
    _check_session(session)
    is_verified = session.sslmode is connect_utils.SSLMode.verify_full
    _check_libpq_options(dsn, verifies_server=is_verified and not any(isinstance(to, str) for to in addresses))
    return Dsn(known, tuple(_checked(address) for address in addresses))


def left_out(dsn: str) -> list[str]:
    """Return the names of the options of a DSN that `read_dsn` leaves out."""
    return [name for name, _ in _options(dsn) if name in _OF_LIBPQ_ALONE]


def _matched(dsn: str) -> re.Match[str]:
    """Return the parts of a DSN.

    Raises:
        ValueError: libpq and asyncpg do not read it alike, or it is not UTF-8 once it is decoded.
    """
    uri = _URI.fullmatch(dsn)
    if uri is None:
        raise ValueError("it is no such URI")
    rest = dsn[uri.start("hosts") :]
    if uri["user"] is None and any("@" in rest.partition(end)[0] for end in "/?"):
        raise ValueError("what should be the user and the password ends elsewhere")
    options = dict(_options(dsn))
    for name, pattern in _OF_OPTIONS.items():
        if name in options and not pattern.fullmatch(options[name]):
            raise ValueError("asyncpg drops a part of it")
    unquote(dsn, errors="strict")
    return uri


def _check_once(uri: re.Match[str]) -> None:
    """Refuse what is said twice, of which asyncpg takes one and libpq another."""
    options = _options(uri.string)
    path = uri["path"] or "/"
    # A port has its place behind its host: asyncpg does not look for one elsewhere where a host has one.
    url = {"user": uri["user"], "password": uri["password"], "host": uri["hosts"], "port": uri["hosts"]}
    said = [name for name, value in url.items() if value] + ["dbname"] * (path != "/")
    said += [_SAME.get(name, name) for name, _ in options]
    said += ["port" for name, value in options if name == "host" and _HAS_PORT.search(value)]
    if len(said) > len(set(said)):
        raise SettingsError(
            f"{_VARIABLE}: nothing may be said twice; user, password, host and database stand before the `?` or behind "
            "it, and a port where its host does"
        )


def _check_values(options: list[tuple[str, str]]) -> None:
    """Refuse options that asyncpg would pass over: those without a value, and a certificate that is no file."""
    for name, value in options:
        if not value and name not in _OF_LIBPQ_ALONE and name not in _MAY_BE_EMPTY:
            raise SettingsError(f"{_VARIABLE}: the option `{name}` has no value")
    if dict(options).get("sslrootcert") == "system":
        raise SettingsError(
            f"{_VARIABLE}: asyncpg does not know `sslrootcert=system`; write the file's name, such as "
            "`sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca-certificates.crt`"
        )


def _options(dsn: str) -> list[tuple[str, str]]:
    return parse_qsl(dsn.partition("?")[2], keep_blank_values=True)


def _for_asyncpg(uri: re.Match[str]) -> str:
    """Return a DSN as asyncpg can read it, whose parts are as they were, byte for byte.

    It is without hosts: of several with one in brackets, Python's `urlsplit` takes none any more (CVE-2025-0938). It is
    without the options that asyncpg does not know, and without a slash that no database follows.
    """
    start, _, query = uri.string.partition("?")
    start = start[: uri.start("hosts")] + start[uri.end("hosts") :]
    if uri["path"] == "/":  # to asyncpg a database without a name, to libpq none
        start = start.removesuffix("/")
    kept = [option for option in query.split("&") if option and option.partition("=")[0] not in _OF_LIBPQ_ALONE]
    return f"{start}?{'&'.join(kept)}" if kept else start


def _hosts(uri: re.Match[str]) -> dict[str, Any]:
    """Return the hosts before the `?` of a DSN and their ports, None where it leaves them to what follows.

    Commas and colons are looked for before anything is decoded, as libpq does.

    Raises:
        ValueError: What is in brackets is no address of IPv6.
    """
    found = [host for text in uri["hosts"].split(",") if (host := _PARTS_OF_HOST.fullmatch(text))]
    if not all(_is_ipv6(unquote(host["v6"])) for host in found if host["v6"]):
        raise ValueError("what is in brackets is no address")
    names = [unquote(host["v6"] or host["name"]) for host in found]
    ports = [int(host["port"] or _DEFAULT_PORT) for host in found] if any(host["port"] for host in found) else None
    return {"host": names, "port": ports} if uri["hosts"] else {}


def _as_asyncpg_reads(dsn: str, hosts: Mapping[str, Any]) -> tuple[list[_Address], connect_utils._ConnectionParameters]:
    """Return the addresses and the parameters of a session, of the DSN and of what takes the place of its gaps.

    asyncpg does this by itself when it connects, too late. It has no public name.

    Raises:
        SettingsError: asyncpg says what is wrong.
        ValueError: The reason may hold a part of the password.
    """
    try:
        return connect_utils._parse_connect_dsn_and_args(dsn=dsn, **{**_UNSAID, **hosts})  # type: ignore[attr-defined, no-any-return]
    except asyncpg.ClientConfigurationError as error:
        if "@" in dsn.partition("?")[2]:
            raise ValueError("what it shows may be the end of a password with a slash") from None
        raise SettingsError(f"{_VARIABLE}, or a PG* variable that it leaves something to: {error}") from None
    except (OSError, KeyError) as error:  # the latter where the system has no name for this process's user
        raise SettingsError(
            f"{_VARIABLE}: a certificate or key that it names, or the user that it does not name, cannot be found: "
            f"{error}; a certificate must be a file, such as `sslrootcert=/etc/ssl/certs/ca-certificates.crt`"
        ) from None
    except Exception:  # whatever a parser that was not made to be called raises
        raise ValueError("asyncpg cannot read it") from None


def _texts(addresses: list[_Address], session: connect_utils._ConnectionParameters) -> Iterator[str]:
    yield from (address if isinstance(address, str) else address[0] for address in addresses)
    yield from (session.user, session.database)
    if isinstance(session.password, str):
        yield session.password
    for setting in (session.server_settings or {}).items():
        yield from setting


def _check_text(text: str) -> None:
    """Raise ValueError for what neither a look-up nor the protocol can send."""
    if b"\0" in text.encode():
        raise ValueError("a text ends with its first zero byte")


def _check_session(session: connect_utils._ConnectionParameters) -> None:
    """Refuse what asyncpg takes, and no session that is of use can be opened with."""
    if session.target_session_attrs.value not in _TO_WRITE:
        raise SettingsError(
            f"{_VARIABLE}: the service writes, so `target_session_attrs` must be `any`, `primary` or `read-write`"
        )
    if not isinstance(session.sslmode, connect_utils.SSLMode):  # it takes any attribute of that class for one
        raise SettingsError(f"{_VARIABLE}: `sslmode` is none that there is")
    if isinstance(session.ssl, SSLContext) and not _has_versions(session.ssl):
        # With `prefer`, which is the default, asyncpg would go on without TLS.
        raise SettingsError(
            f"{_VARIABLE}: no version of TLS is from `ssl_min_protocol_version` (TLSv1.2 where none is said) to "
            "`ssl_max_protocol_version`"
        )


def _has_versions(context: SSLContext) -> bool:
    return context.maximum_version in (
        TLSVersion.MAXIMUM_SUPPORTED,
        max(context.minimum_version, context.maximum_version),
    )


def _checked(address: _Address) -> tuple[str, int]:
    """Return a host or a Unix socket, and its port."""
    if isinstance(address, str):
        socket = _SOCKET.fullmatch(address)
        if not socket or len(address.encode()) > _LONGEST_SOCKET:
            raise SettingsError(f"{_VARIABLE}: the path of a Unix socket has at most {_LONGEST_SOCKET} bytes")
        host, port = address, int(socket["port"])
    else:
        host, port = address
        if not _is_name(host):
            raise SettingsError(f"{_VARIABLE}: a host is no name; what is between its dots has 1 to 63 characters")
    if not 0 < port <= 65_535:
        raise SettingsError(f"{_VARIABLE}: a port must be 1 to 65535")
    return host, port


def _is_name(host: str) -> bool:
    """Return whether a host can be looked up. An empty one is this machine to libpq, and to asyncpg it is not."""
    if _IN_NO_NAME.search(host):
        return False
    if ":" in host:
        return _is_ipv6(host)
    try:
        return 0 < len(host.encode("idna")) <= _LONGEST_NAME
    except UnicodeError:
        return False


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _check_libpq_options(dsn: str, *, verifies_server: bool) -> None:
    """Refuse options that ask for more than asyncpg does.

    Channel binding keeps whoever is in between out, and asyncpg has none. A certificate that is verified in full does
    so, too: with one nothing is lost. Without one a program would be less safe than its operator believes.
    """
    for name, value in _options(dsn):
        values = _OF_LIBPQ_ALONE.get(name, _ANY)
        if not value or values is _ANY or value.lower() in values or (name == _CHANNEL_BINDING and verifies_server):
            continue
        if name == _CHANNEL_BINDING:
            raise SettingsError(
                f"{_VARIABLE}: asyncpg has no channel binding, so `channel_binding` must be `disable` or `prefer`; or "
                "write `sslmode=verify-full&sslrootcert=FILE`, with the certificates of your provider or of the "
                "system, by which the server proves itself as well"
            )
        raise SettingsError(f"{_VARIABLE}: asyncpg cannot do what the option `{name}` asks for; take it out")


def _unreadable() -> SettingsError:
    """Return the error for a DSN that cannot be read, without the reason, which may hold a part of the password."""
    return SettingsError(
        f"{_VARIABLE}, or a PG* variable or file that it leaves something to, is malformed; these must be "
        "percent-encoded, as UTF-8: the characters / ? # @ : % [ ] of a password, blanks anywhere, and + and = in an "
        "option; names of options are in small letters"
    )
