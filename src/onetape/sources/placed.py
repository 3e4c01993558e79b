"""A delivery with a place of its own: for sources that read several things, each with its own cursor on the tape."""

from __future__ import annotations

from onetape.sources.source import Delivery


class Placed(Delivery, frozen=True):
    """A delivery that moves the cursor `place` = (name, before, after) instead of its source's."""

    place: tuple[str, str | None, str] | None = None
