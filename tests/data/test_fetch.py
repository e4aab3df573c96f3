"""Verified before use, downloaded once, repaired or refused; and never over plain http."""

import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from refresher_runner.data.fetch import Published, fetch, open_https, sha256
from refresher_runner.errors import DataError

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def server():
    """Serves CONTENT at /whole, half of it at /cut, and sends /moved to /whole. `asked` lists the paths asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(302 if self.path == "/moved" else 404 if self.path == "/none" else 200)
            if self.path == "/moved":
                self.send_header("Location", "/whole")
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            if self.path in ("/whole", "/cut"):
                self.wfile.write(CONTENT if self.path == "/whole" else CONTENT[: len(CONTENT) // 2])

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()
        thread.join()


def published(url: str) -> Published:
    return Published("set/raw/file.gz", url, sha256(CONTENT))


def plain(url: str):
    """What the product itself never does."""
    return urllib.request.urlopen(url, timeout=10)


def test_an_absent_file_is_downloaded_and_kept(tmp_path, server):
    url, asked = server
    for _ in range(2):
        assert fetch(str(tmp_path), published(f"{url}/whole"), plain) == CONTENT
    assert asked == ["/whole"]
    assert (tmp_path / "set/raw/file.gz").read_bytes() == CONTENT
    assert not list(tmp_path.rglob("*.part"))


def test_a_whole_file_asks_nobody_and_writes_nothing(tmp_path):
    file = tmp_path / "set/raw/file.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    assert fetch(str(tmp_path), published("https://nowhere.invalid/x")) == CONTENT
    assert [f.name for f in file.parent.iterdir()] == ["file.gz"]


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:7] + b"!" + CONTENT[8:], b""])
def test_a_damaged_file_is_replaced(tmp_path, server, damage):
    file = tmp_path / "set/raw/file.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(damage)
    assert fetch(str(tmp_path), published(f"{server[0]}/whole"), plain) == CONTENT
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(("damage", "word"), [(None, "is absent"), (b"damaged", "is damaged")])
def test_without_a_network_the_file_and_the_cure_are_named(tmp_path, damage, word):
    file = tmp_path / "set/raw/file.gz"
    file.parent.mkdir(parents=True)
    if damage:
        file.write_bytes(damage)
    url = "https://127.0.0.1:9/file.gz"
    with pytest.raises(DataError, match=word) as caught:
        fetch(str(tmp_path), published(url))
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(str(file))
    assert url in caught.value.cure
    assert "data.root" in caught.value.cure
    assert (file.read_bytes() if file.exists() else None) == damage


@pytest.mark.parametrize("path", ["/cut", "/none", "/other"])
def test_a_download_that_is_not_the_file_is_refused(tmp_path, server, path):
    with pytest.raises(DataError, match=r"set/raw/file\.gz"):
        fetch(str(tmp_path), published(server[0] + path), plain)


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "set").write_text("not a folder")
    with pytest.raises(DataError, match="absent"):
        fetch(str(tmp_path), published("https://nowhere.invalid/x"))


def test_plain_http_is_never_spoken(server):
    url, asked = server
    with pytest.raises(OSError, match="unknown url type"):
        open_https(f"{url}/whole")
    assert asked == []


def test_processes_at_once_download_once(tmp_path, server):
    url, asked = server
    script = (
        "import sys, urllib.request; from refresher_runner.data.fetch import *\n"
        "file = Published('set/raw/file.gz', sys.argv[2], sys.argv[3])\n"
        "print(sha256(fetch(sys.argv[1], file, urllib.request.urlopen)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path), f"{url}/whole", sha256(CONTENT)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert {process.communicate()[0].strip() for process in started} == {sha256(CONTENT)}
    assert asked == ["/whole"]
