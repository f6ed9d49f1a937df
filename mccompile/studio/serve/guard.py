"""Who may talk to the server: the page itself, from the names and with the token that it was started for."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mccompile.studio.serve.errors import RequestRefused

COOKIE = "mccompile-token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " \
    "media-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # fmt: skip
REPORT_POLICY = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; " \
    "img-src data: blob:; frame-ancestors 'self'"  # fmt: skip


@dataclass(frozen=True, slots=True)
class Door:
    """names: under which the server may be called, lower case; empty: under any. token: "" where none is asked for."""

    names: tuple[str, ...]
    token: str

    @classmethod
    def of(cls, host: str) -> Door:
        """Of a server that is bound to `host`: loopback needs no token, any other place does."""
        if is_loopback(host):
            return cls((*LOOPBACK, host.lower()), "")
        anywhere = host in ("", "0.0.0.0", "::")
        return cls(() if anywhere else (*LOOPBACK, host.lower()), secrets.token_urlsafe(24))

    def check(self, headers: Mapping[str, str], query: Mapping[str, str], method: str) -> None:
        """Raises RequestRefused (MC0763) for a request of another site, under another name, or without the token.

        A name that is not the server's own is what a page of somebody else uses that has made its name point here.
        """
        own = headers.get("host", "")
        name = (urlsplit(f"//{own}").hostname or "").lower()
        if self.names and name not in self.names:
            remedy = f"call it as {self.names[0]}, or start it with --host for the name that you use"
            raise RequestRefused(403, f"it is served here under other names than `{name:.80}`", remedy)
        origin = headers.get("origin")
        foreign = origin is not None and origin not in (f"http://{own}", f"https://{own}")
        if foreign or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise RequestRefused(403, "it comes from a page of another site", "open the page itself")
        if method != "GET" and headers.get("content-type", "").partition(";")[0] != "application/json":
            raise RequestRefused(415, "its content is no JSON", "open the page itself")
        given = query.get("token") or cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if self.token and not secrets.compare_digest(given.encode(), self.token.encode()):
            raise RequestRefused(401, "it has no token", "open the address that `mccompile serve` has printed")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class DoorGuard:
    """Stands before the application: lets the page's own requests in, and tells browsers what a page of ours may do."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        try:
            self._door.check(headers, query, scope["method"])
        except RequestRefused as refused:
            await PlainTextResponse(f"{refused}\n", refused.status)(scope, receive, _locked(send))
            return
        if self._door.token and "token" in query:  # the address bar and the history need not keep it
            rest = urlencode([(k, v) for k, v in query.multi_items() if k != "token"])
            answer = RedirectResponse(f"{scope['path']}{'?' * bool(rest)}{rest}")
            answer.set_cookie(COOKIE, self._door.token, httponly=True, samesite="strict")
            await answer(scope, receive, _locked(send))
            return
        await self._app(scope, receive, _locked(send))


def _locked(send: Send) -> Send:
    """Adds to every answer that it belongs to this page alone."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("content-security-policy", POLICY)
            headers.setdefault("cache-control", "no-store")
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "no-referrer"
        await send(message)

    return sent
