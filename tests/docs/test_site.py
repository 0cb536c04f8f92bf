"""The site is whole: it builds strictly, every link and anchor leads somewhere, and no page fetches anything from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.helpers.documents import ROOT

FETCHING = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("object", "data"),
    ("form", "action"),
}
"""Attributes that make a browser fetch. A link that somebody clicks is none of them."""
PAGES_MIN = 30


class Document(HTMLParser):
    """What a page links to, what it fetches, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif (tag, name) in FETCHING and value is not None:
                self.fetched.append(value)
            elif (tag, name) == ("a", "href") and value is not None:
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--clean", "--site-dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[str, Document]:
    found = {
        path.relative_to(site).as_posix(): Document(path.read_text())
        for path in site.rglob("*.html")
        if path.name != "404.html"
    }
    assert len(found) >= PAGES_MIN
    return found


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_leads_somewhere(
    site: Path, documents: dict[str, Document]
) -> None:
    broken = []
    for page, document in documents.items():
        for link in document.links:
            if urlsplit(link).scheme:
                continue
            target, anchor = urldefrag(unquote(link))
            path = (site / page).parent.joinpath(target).resolve() if target else site / page
            name = path.relative_to(site).as_posix()
            if not path.is_file():
                broken.append(f"{page}: {link}")
            elif anchor and name in documents and anchor not in documents[name].anchors:
                broken.append(f"{page}: {link} (no such anchor)")
    assert broken == []


@pytest.mark.slow
def test_no_page_fetches_anything_from_another_host(
    site: Path, documents: dict[str, Document]
) -> None:
    elsewhere = [
        f"{page}: {address}"
        for page, document in documents.items()
        for address in document.fetched
        if urlsplit(address).netloc
    ]
    assert elsewhere == []
    for page, document in documents.items():
        for address in document.fetched:
            path = (site / page).parent / unquote(urlsplit(address).path)
            assert path.is_file() or not urlsplit(address).path, f"{page}: {address}"
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text().replace("url(https://www.w3.org", ""), style


@pytest.mark.slow
def test_blocks_and_lists_are_shown_as_such(site: Path) -> None:
    """What Markdown here reads differently than a code host: a fence in a list, and what blocks tell the tests."""
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert "no-run:" not in text, path
        assert "```" not in text, path
        assert not re.search(r"^\d\. <strong>", text, re.MULTILINE), path


def test_make_docs_builds_what_is_tested() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "$(BIN)/python -m mkdocs build" in makefile
    assert "--dev-addr 127.0.0.1:8000" in makefile
