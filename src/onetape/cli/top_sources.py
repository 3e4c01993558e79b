"""What a running `onetape serve` says of its sources, asked once a second in a thread: a screen never waits for it."""

from __future__ import annotations

import threading
from typing import Any

from onetape.cli.output import plain

_EVERY_S = 1.0
_TIMEOUT_S = 2.0
_FIRST_S = 30.0  # what prints once waits for the first answer: asking has its own, shorter, limits


class Sources:
    """The sources of the system at `url`; of none where there is no URL. Use it in `with`."""

    def __init__(self, url: str | None, token: str | None = None) -> None:
        self._url, self._token = url, token
        self._seen: list[dict[str, Any]] = []
        self._trouble: str | None = None
        self._stopped, self._asked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True) if url else None

    def __enter__(self) -> Sources:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_TIMEOUT_S)

    def await_first(self) -> None:
        """Return once the first answer, or what went wrong with it, is there; at once where there is no URL."""
        if self._thread is not None:
            self._asked.wait(_FIRST_S)

    def look(self) -> list[dict[str, Any]]:
        """Return the sources as they were last told."""
        return self._seen

    def lines(self) -> list[str]:
        """Return a line a source, and one for what went wrong with asking."""
        told = [_line(source) for source in self._seen]
        return [*told, self._trouble] if self._trouble else told

    def _ask(self) -> None:
        import httpx2

        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        assert self._url is not None
        with httpx2.Client(timeout=_TIMEOUT_S, headers=headers, trust_env=False) as client:
            while not self._stopped.is_set():
                try:
                    answer = client.get(self._url.rstrip("/") + "/api/v1/sources")
                    answer.raise_for_status()
                    self._seen, self._trouble = answer.json()["sources"], None
                except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
                    self._trouble = plain(f"{self._url}: {error or type(error).__name__}")
                finally:
                    self._asked.set()
                self._stopped.wait(_EVERY_S)


def _line(source: dict[str, Any]) -> str:
    lag = source.get("lag_ms")
    parts = [
        f"{source.get('name')} ({source.get('kind')}): {source.get('state')}",
        f"lag {lag:,.0f} ms" if isinstance(lag, int | float) else "no lag yet",
        f"{source.get('records', 0):,} records",
        f"{source.get('gaps', 0):,} gaps",
        f"{source.get('dropped', 0):,} dropped",
    ]
    if source.get("trouble"):
        parts.append(str(source["trouble"]))
    return plain("  ".join(parts))
