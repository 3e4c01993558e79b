"""Links between the pages: each leads to a file that is there, and to a heading that is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.conftest import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for where in ("*.md", "docs/**/*.md", "bench/*.md", "compat/*.md", "examples/*.md")
    for path in ROOT.glob(where)
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _text(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S))


def _anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers of Markdown make them."""
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    here = ROOT / page
    for link in _LINK.findall(_text(here)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (here.parent / name).resolve() if name else here
        assert target.exists(), f"{page} leads to {link}, which is not there"
        if anchor:
            assert anchor in _anchors(target), f"{page} leads to {link}: no such heading"


def test_every_page_of_docs_is_led_to() -> None:
    led = set()
    for page in PAGES:
        for link in _LINK.findall(_text(ROOT / page)):
            if not re.match(r"[a-z]+:", link) and not link.startswith("#"):
                led.add(((ROOT / page).parent / link.partition("#")[0]).resolve())
    alone = [page for page in PAGES if page.startswith("docs/") and (ROOT / page).resolve() not in led]
    assert not alone, f"no page leads to {alone}"
