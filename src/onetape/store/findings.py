"""Findings: what a look at a tape says, each with its place and what to do about it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Weight = Literal["problem", "warning", "note"]


class Finding(msgspec.Struct, frozen=True):
    """One thing found. A problem is damage; a warning may become one; a note is good to know."""

    weight: Weight
    place: str
    message: str
    hint: str = ""
    facts: dict[str, Any] = {}


class Checkup(msgspec.Struct, frozen=True):
    """All that a look at a tape has found, problems first."""

    path: str
    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        """Return whether nothing is damaged."""
        return not self.problems

    @property
    def problems(self) -> list[Finding]:
        """Return what is damaged."""
        return [finding for finding in self.findings if finding.weight == "problem"]


class Findings:
    """Findings as they are made."""

    def __init__(self) -> None:
        self.made: list[Finding] = []

    def problem(self, place: str, message: str, hint: str = "", **facts: Any) -> None:
        """Add damage."""
        self.made.append(Finding("problem", place, message, hint, facts))

    def warning(self, place: str, message: str, hint: str = "", **facts: Any) -> None:
        """Add what may become a problem."""
        self.made.append(Finding("warning", place, message, hint, facts))

    def note(self, place: str, message: str, **facts: Any) -> None:
        """Add what is good to know."""
        self.made.append(Finding("note", place, message, "", facts))

    def sorted(self) -> list[Finding]:
        """Return the findings, problems first, else in the order in which they were made."""
        order = {"problem": 0, "warning": 1, "note": 2}
        return sorted(self.made, key=lambda finding: order[finding.weight])
