"""The migration that a system shows: its view as plain data, asked for at most once a second, however many look."""

from __future__ import annotations

import threading
import time
from typing import Any

from onetape.config import Settings
from onetape.migrate.phases.helm import Helm
from onetape.migrate.plans.named import ledger_of, plan_of
from onetape.migrate.watching.view import Viewer

_EVERY_S = 1.0
_TIMEOUT_S = 2.0


class Shown:
    """The view of the migration that the settings name. Where they name no Redis there is none: look() gives None."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._viewer: Viewer | None = None
        self._seen: dict[str, Any] | None = None
        self._due_s = 0.0
        self._lock = threading.Lock()

    @property
    def named(self) -> bool:
        """Whether the settings name a Redis."""
        return "redis_url" in self._settings.model_fields_set

    def look(self) -> dict[str, Any] | None:
        """Return the view. What cannot be asked is in its `trouble`."""
        if not self.named:
            return None
        with self._lock:
            if time.monotonic() >= self._due_s:
                if self._viewer is None:
                    self._viewer = self._made()
                self._seen = self._viewer.view().to_dict()
                self._due_s = time.monotonic() + _EVERY_S
            return self._seen

    def close(self) -> None:
        """Let the connection go."""
        with self._lock:
            if self._viewer is not None:
                self._viewer.close()
                self._viewer = None

    def _made(self) -> Viewer:
        settings = self._settings
        return Viewer(Helm(settings.redis_url, plan_of(settings), ledger_of(settings), timeout_s=_TIMEOUT_S))
