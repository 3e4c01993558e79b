"""HTTP to a bridge: bounded answers, and one kind of error for whatever keeps it from answering."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec


class BridgeAway(ConnectionError):
    """The bridge did not answer as it should; why. `status` is its HTTP status where it gave one."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class BridgeHttp:
    """A client of one bridge. An answer is at most `bytes_max` long and takes at most `answer_s`, all in all."""

    def __init__(self, host: str, port: int, *, bytes_max: int = 16 << 20, answer_s: float = 30.0) -> None:
        self._bytes_max, self._answer_s = bytes_max, answer_s
        shown = f"[{host}]" if ":" in host else host
        self._client = httpx2.Client(base_url=f"http://{shown}:{port}", timeout=10.0, trust_env=False)

    def __enter__(self) -> BridgeHttp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it. May be called twice."""
        self._client.close()

    def bytes(self, path: str, query: Mapping[str, Any] | None = None) -> bytes:
        """Return the body of a 200. Raises BridgeAway."""
        deadline, body = time.monotonic() + self._answer_s, bytearray()
        try:
            with self._client.stream("GET", path, params=query) as response:
                if response.status_code != 200:
                    raise BridgeAway(f"{path}: the bridge answered {response.status_code}", response.status_code)
                for part in response.iter_bytes(1 << 16):
                    body += part
                    if len(body) > self._bytes_max:
                        raise BridgeAway(f"{path}: an answer of more than {self._bytes_max} bytes")
                    if time.monotonic() > deadline:
                        raise BridgeAway(f"{path}: no whole answer within {self._answer_s:g} s")
        except httpx2.HTTPError as error:
            raise BridgeAway(f"{path}: {str(error) or type(error).__name__}") from error
        return bytes(body)

    def json(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """Return the body, decoded. Raises BridgeAway."""
        body = self.bytes(path, query)
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise BridgeAway(f"{path}: no JSON: {body[:40]!r}") from error


def quoted(symbol: str) -> str:
    """Return a symbol as one part of a path."""
    return quote(symbol, safe="")
