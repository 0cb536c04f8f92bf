"""The site's pages that are made of other files: README, runbook, changelog, examples, settings, decisions, the API.

A hook of MkDocs (mkdocs.yml). Rules it keeps: a text has one place, so what is shown twice is made here and never copied by hand; links
are written for the repository and turned here to the site's; a link to nothing fails the build. It must not know what a page says.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
COPIED: Final = {
    "README.md": "index.md",
    "RECONCILIATION.md": "reconciliation.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the repository's root: where they are on the site."""
_INFO: Final = re.compile(r"^( *```[\w-]+) [^\n]*$", re.MULTILINE)
_LINK: Final = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)((?:#[^)\s]*)?)\)")
_SETTINGS: Final = re.compile(r"^## Settings\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_LANGUAGES: Final = {
    ".py": "python",
    ".mjs": "javascript",
    ".js": "javascript",
    ".yaml": "yaml",
    ".csv": "csv",
}
_LISTED_LINES_MAX: Final = 120


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {site: (ROOT / source).read_text() for source, site in COPIED.items()}
    made |= {
        "settings.md": f"# Settings\n{_found(_SETTINGS, made['index.md'])}",
        "decisions/index.md": _decisions(),
        "api.md": _api(),
    }
    made |= _examples()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """A page's text with the site's links, and without what its blocks tell the tests."""
    source = _source_of(page.file.src_uri)
    return _LINK.sub(
        lambda match: _link(match, source, page.file.src_uri), _INFO.sub(r"\1", markdown)
    )


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    if match is None:
        raise PluginError(f"README.md has nothing that matches {pattern.pattern!r} any more")
    return match[1]


def _source_of(site: str) -> str:
    """The repository's path of a page, as far as its links are concerned."""
    for source, copied in COPIED.items():
        if copied == site:
            return source
    if site == "settings.md":
        return "README.md"
    if site.startswith("examples/"):
        name = PurePosixPath(site).stem
        return f"examples/{name}/README.md" if name != "index" else "examples/README.md"
    return f"docs/{site}"


def _site_of(source: str) -> str | None:
    """The site's page of a file of the repository; None: it has none."""
    if source in COPIED:
        return COPIED[source]
    if source == "docs/decisions":
        return "decisions/index.md"
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    if source == "examples":
        return "examples/index.md"
    parts = source.split("/")
    if parts[0] == "examples" and (ROOT / "examples" / parts[1]).is_dir():
        return f"examples/{parts[1]}.md"
    return None


def _link(match: re.Match[str], source: str, site: str) -> str:
    """A link to where its target is on the site; its text alone where the target is a file that is no page."""
    text, target, anchor = match.groups()
    if not target or ":" in target or site in {"api.md", "decisions/index.md", "examples/index.md"}:
        return match[0]
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / wanted).exists():
        raise PluginError(f"{source}: the link to {target} leads nowhere")
    found = _site_of(wanted)
    if found is None:
        return text
    relative = posixpath.relpath(found, posixpath.dirname(site) or ".")
    return f"[{text}]({relative}{anchor})"


def _decisions() -> str:
    rows = []
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        if path.name.startswith("0000"):
            continue
        title = path.read_text().splitlines()[0].removeprefix("# ")
        rows.append(f"- [{title}]({path.name})")
    return (
        "# Decisions\n\nWhat others will question, why it is so, and what was rejected.\n\n"
        + "\n".join(rows)
    )


def _api() -> str:
    """A table of all endpoints, from the table that the server itself is made of."""
    from gateway.openapi import TAGS  # noqa: PLC0415 - the meter is only needed for this page
    from gateway.table import ROUTES  # noqa: PLC0415

    parts = [
        "# HTTP API\n\nEvery endpoint of the server. A running server has all of it with parameters, bodies, examples and a form to "
        "try: `/docs`, and as OpenAPI 3.1: `/openapi.json`.\n\nThe scope is what an API key needs "
        "([security](security.md)); without one the endpoint is open to everybody.\n"
    ]
    for tag, description in TAGS.items():
        rows = [route for route in ROUTES if route.tag == tag]
        if rows:
            parts.append(
                f"\n## {tag.capitalize()}\n\n{description}\n\n| | | scope |\n|---|---|---|"
            )
            parts += [
                f"| `{route.method} {route.path}` | {route.summary} | {f'`{route.scope}`' if route.scope else ''} |"
                for route in rows
            ]
    return "\n".join(parts)


def _examples() -> dict[str, str]:
    """A page for each folder of examples/: its README, then its files."""
    pages: dict[str, str] = {}
    index = ["# Examples\n\nEach is a folder of `examples/` that a test runs.\n"]
    for folder in sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir()):
        readme = folder / "README.md"
        if not readme.exists():
            continue
        text = readme.read_text()
        title, _, rest = text.partition("\n")
        summary = rest.strip().split("\n\n")[0].replace("\n", " ")
        plain = _LINK.sub(r"\1", summary)
        index.append(f"- [{title.removeprefix('# ')}]({folder.name}.md): {plain}")
        pages[f"examples/{folder.name}.md"] = "\n\n".join([text, *_listings(folder)])
    pages["examples/index.md"] = "\n".join(index)
    return pages


def _listings(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.iterdir()):
        language = _LANGUAGES.get(path.suffix)
        text = path.read_text() if language else ""
        if text and text.count("\n") <= _LISTED_LINES_MAX:
            found.append(f"## {path.name}\n\n```{language}\n{text.rstrip()}\n```")
    return found
