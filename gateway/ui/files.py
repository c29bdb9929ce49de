"""The page's own files, read once; a path that is not the very name of one is none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

FOLDER = Path(__file__).with_name("static")
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


class PageFile(msgspec.Struct, frozen=True):
    """One file as it is served."""

    content_type: str
    etag: str
    body: bytes


def page_files() -> dict[str, PageFile]:
    """All, by path below `/ui/`; the page itself is the empty path."""
    found: dict[str, PageFile] = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and path.suffix in _TYPES:
            body = path.read_bytes()
            file = PageFile(_TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"', body)
            name = path.relative_to(FOLDER).as_posix()
            found["" if name == INDEX else name] = file
    assert "" in found, f"{FOLDER} holds the page"
    return found
