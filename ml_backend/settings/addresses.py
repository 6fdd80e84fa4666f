"""Where images may come from, and what of an image's address may be shown."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qs, urlencode, urlsplit

from ml_backend.errors import SettingsError

__all__ = ["ImageHosts", "checked_address", "is_data_uri", "shown_address"]

SHOWN = 200  # characters of an address
_DATA = re.compile(r"[\x00-\x20]*" + r"[\t\r\n]*".join("data:"), re.IGNORECASE)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class ImageHosts:
    """Where images may come from, besides Label Studio.

    Attributes:
        hosts: names or addresses, each with its port, or None for the usual one of http and https.
        networks: private ones that these hosts may lie in; public addresses need no entry.
    """

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host``, ``host:port``, ``[address]:port`` and ``network/length``, separated by commas.

        Raises:
            ValueError: names the first entry that is none of these.
        """
        hosts: set[tuple[str, int | None]] = set()
        networks: list[Network] = []
        for entry in filter(None, map(str.strip, text.split(","))):
            if "/" in entry:
                networks.append(_network(entry))
                continue
            found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::(\d{1,5}))?", entry)
            if found is None:
                raise ValueError(f"{entry!r} is no host; wanted are host, host:port or 10.0.0.0/8, separated by commas")
            host = (found[1] or found[2]).lower()
            hosts.add((host, int(found[3]) if found[3] else None))
            # An address that is written out is meant, however private it is.
            if re.fullmatch(r"[\d.]+", host) or found[1]:
                networks.append(_network(host))
        return cls(frozenset(hosts), tuple(networks))

    def allows(self, host: str, port: int, *, usual: bool) -> bool:
        """Whether images may come from a host; ``usual``: the port is the one that its scheme has by itself."""
        return (host.lower(), port) in self.hosts or (usual and (host.lower(), None) in self.hosts)

    def reaches(self, address: str) -> bool:
        """Whether an address may be connected to: a public one, or one in an allowed network."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        public = ip.is_global and not ip.is_multicast
        return public or any(ip in network for network in self.networks)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{error}; wanted is a network such as 10.0.0.0/8") from None


def is_data_uri(uri: str) -> bool:
    """Whether an image stands in its own address, as browsers see it: in any case, with blanks before it."""
    return _DATA.match(uri) is not None


def checked_address(url: str, setting: str = "AL_LABEL_STUDIO_URL") -> str:
    """The address of a server, without a slash at the end.

    Raises:
        SettingsError: it cannot be one; names the setting, and repeats no user or password.
    """
    url = url.strip()
    # Its user and password before anything that repeats the address.
    if "@" in url:
        where = "AL_LABEL_STUDIO_API_KEY" if setting == "AL_LABEL_STUDIO_URL" else "AL_BASIC_AUTH_USER and _PASS"
        raise SettingsError(
            f"{setting} holds a user or a password; expected http://host:port, with the secret in {where}"
        )
    try:
        parts = urlsplit(url)
        # A port that is none shows when it is asked for.
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or re.search(r"\s", url):
        raise SettingsError(f"{setting} is {url!r}; expected http://host:port or https://host")
    return url.rstrip("/")


def shown_address(uri: str) -> str:
    """An image's address for a report, a log or an error: without what lets its reader in.

    A presigned URL carries its signature in the query, and user and password may stand before the host. Of the query
    only ``d`` is kept: in the addresses of Label Studio's local files it is the file's name.
    """
    if is_data_uri(uri):
        return f"{uri.partition(',')[0][:SHOWN]},..."
    if re.match(r"[A-Za-z]:[\\/]", uri):  # a path of Windows, whose drive is no scheme
        return uri if len(uri) <= SHOWN else f"{uri[:SHOWN]}..."
    try:
        parts = urlsplit(uri)
    except ValueError:  # an IPv6 address without its end
        return f"{uri.partition('?')[0].rpartition('@')[2][:SHOWN]}"
    file = parse_qs(parts.query).get("d")
    query = urlencode({"d": file[0]}, safe="/") if file else "..." if parts.query else ""
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="").geturl()
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
