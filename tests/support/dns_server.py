"""A DNS server of the tests' own, and a look-up that asks it and nobody else."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import cast

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset


class DnsServer(asyncio.DatagramProtocol):
    """Answers what the test says; each look-up of a name takes its next answer, and the last one stays."""

    def __init__(self) -> None:
        self.port = 0
        self.silent = False
        self.silent_about: str | None = None
        """The end of names that are not answered for."""
        self.malformed_about: str | None = None
        """The end of names that are answered for with what is no answer."""
        self.truncated: str | None = None
        """A name whose answer is too long, so that it has to be asked for over a connection, which nobody takes."""
        self.delays: dict[str, float] = {}
        """Seconds after which names are answered for."""
        self.lifetime = 0
        """Seconds for which an answer may be remembered."""
        self.queries: list[tuple[str, str]] = []
        self._answers: defaultdict[str, list[list[str]]] = defaultdict(list)
        self._transport: asyncio.DatagramTransport | None = None

    def says(self, name: str, *answers: list[str]) -> None:
        """Set the addresses of a name: the first look-up is answered with the first list, and so on."""
        self._answers[name] = list(answers)

    def looked_up(self, name: str) -> int:
        """Return how often a name was looked up."""
        return self.queries.count((name, "A"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.queries.append((name, kind))
        if self.silent or not self._transport or (self.silent_about and name.endswith(self.silent_about)):
            return
        if self.malformed_about and name.endswith(self.malformed_about):
            self._transport.sendto(b"nonsense", addr)
            return
        response = dns.message.make_response(query)
        if name == self.truncated:
            response.flags |= dns.flags.TC
        known = self._answers.get(name)
        if kind == "NS":
            response.answer.append(dns.rrset.from_text(question.name, self.lifetime, "IN", "NS", "ns.test."))
        elif not known:
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            version = 4 if kind == "A" else 6
            found = [text for text in known[0] if ip_address(text).version == version]
            if found:
                response.answer.append(dns.rrset.from_text(question.name, self.lifetime, "IN", kind, *found))
            if kind == "A" and len(known) > 1:  # AAAA is asked before
                known.pop(0)
        asyncio.get_running_loop().call_later(self.delays.get(name, 0), self._send, response.to_wire(), addr)

    def _send(self, response: bytes, addr: tuple[str, int]) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.sendto(response, addr)

    async def resolve(self, host: str) -> list[str]:
        """Look a name up, as `timemachine.webhooks.network.Resolve` says."""
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], self.port
        found: list[str] = []
        try:
            for kind in ("AAAA", "A"):
                with suppress(dns.resolver.NoAnswer):
                    found += [record.to_text() for record in await resolver.resolve(f"{host.rstrip('.')}.", kind)]
        except dns.exception.DNSException as error:
            raise OSError(f"DNS says {type(error).__name__}") from error
        return found


@asynccontextmanager
async def dns_serving() -> AsyncIterator[DnsServer]:
    """Serve on a free loopback port."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        DnsServer, local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
