"""Public data sets: fetching from a real server, and everything that can go wrong on the way."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench.commands.data import data
from bench.data import public_data
from bench.data.datasets import DATASET_NAMES
from bench.data.public_data import FetchError, PublicSet, catalogue, check, fetch, path_of

pytestmark = pytest.mark.e2e

TRACE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,396,109\n"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/cut.csv":
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(TRACE)))
            self.end_headers()
            self.wfile.write(TRACE)
        else:
            super().do_GET()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server with one trace; the cache is an empty folder, the catalogue has two entries."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "trace.csv").write_bytes(TRACE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    digest = hashlib.sha256(TRACE).hexdigest()
    sets = {
        "good": PublicSet("azure", f"{url}/trace.csv", "CC-BY-4.0", "two requests", digest),
        "changed": PublicSet("azure", f"{url}/trace.csv", "CC-BY-4.0", "another file", "0" * 64),
    }
    monkeypatch.setattr(public_data, "catalogue", lambda: sets)
    try:
        yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_catalogue_is_complete_and_pinned() -> None:
    sets = catalogue()
    assert len(sets) >= 14
    for name, entry in sets.items():
        assert entry.kind in DATASET_NAMES, name
        assert entry.url.startswith("https://"), name
        assert entry.sha256 == "" or len(bytes.fromhex(entry.sha256)) == 32, name
        assert entry.licence, name
        assert entry.about, name
    assert sum(bool(entry.sha256) for entry in sets.values()) >= 8


def test_a_set_is_fetched_once_and_checks(web: str) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch("good", progress=lambda came, total: seen.append((came, total)))
    assert path.read_bytes() == TRACE
    assert seen == [(len(TRACE), len(TRACE))]
    assert fetch("good", url="http://127.0.0.1:9/nobody") == path, "what is here is not fetched again"
    found = check("good")
    assert (found.fine, found.rows) == (True, 2)
    path.write_bytes(TRACE + b"x")
    assert "another file" in check("good").problem


@pytest.mark.parametrize(
    ("name", "url", "says"),
    [
        ("changed", "", "is not the published file"),
        ("good", "{web}/none.csv", "answers 404"),
        ("good", "{web}/cut.csv", "ended after"),
        ("good", "http://127.0.0.1:9/x.csv", "Without a network, bring the file"),
        ("god", "", "did you mean 'good'"),
    ],
)
def test_what_fails_is_said_and_leaves_nothing_behind(web: str, name: str, url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=says):
        fetch(name, url=url.format(web=web))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_said(web: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FetchError, match="cannot be written"):
        fetch("good")


def test_the_command_lists_fetches_and_checks(web: str) -> None:
    run = CliRunner().invoke
    assert run(data, ["path", "good"]).exit_code == 1
    assert "its checksum is right" in run(data, ["fetch", "good"]).output
    assert run(data, ["path", "good"]).output.strip() == str(path_of("good"))
    listed = msgspec.json.decode(run(data, ["list", "--json"]).stdout)
    assert [(name, row["here"]) for name, row in listed.items()] == [("good", True), ("changed", False)]
    assert "two requests" in run(data, ["list"]).output
    both = run(data, ["fetch", "changed", "god", "good"])
    assert both.exit_code == 1
    assert "good: was here already" in both.output, "one that fails does not keep back those after it"
    assert "changed: " in both.output
    assert "god: unknown data set" in both.output
    fine = run(data, ["check"])
    assert (fine.exit_code, fine.output) == (0, "good: fine, 2 rows\n")
    path_of("good").write_bytes(b"")
    assert run(data, ["check"]).exit_code == 1
    assert run(data, ["check", "changed"]).exit_code == 1
    refused = run(data, ["fetch", "god"])
    assert refused.exit_code == 1
    assert "did you mean 'good'" in refused.output
