"""Downloads against a server on this machine that can cut, forget ranges, or change its mind."""

import hashlib
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from holocron.models import DownloadError, HashMismatchError, TruncatedDownloadError
from holocron.models import download as download_module
from holocron.models.download import cache_directory, download, sha256_of

CONTENT = bytes(range(256)) * 9000  # over two of the pieces that a download is read in
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`; the attributes of the server say how badly."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append(asked)
        if server.status != 200:
            self.send_error(server.status)
            return
        content, start = server.content, 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            shown = server.wrong_start if server.wrong_start is not None else start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
            start = shown
        else:
            self.send_response(200)
        body = content[start:]
        if server.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if server.cut_after is None else body[: server.cut_after])
        if server.stall is not None:
            self.wfile.flush()
            server.stall.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content, httpd.requests, httpd.status = CONTENT, [], 200
    httpd.ranges, httpd.announce, httpd.cut_after, httpd.wrong_start, httpd.stall = True, True, None, None, None
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/release/weights.pth?token=1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fetches_once_into_the_cache(server, cache, capfd):
    path = download(server.url, sha256=SHA256, progress=False)
    assert path == cache / "weights.pth" == cache_directory() / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert download(server.url, sha256=SHA256.upper(), progress=False) == path
    assert server.requests == [None]
    assert left_in(cache) == ["weights.pth"]
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_the_error_stream(server, capfd):
    download(server.url, sha256=SHA256, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "weights.pth" in err


def test_a_cut_transfer_is_resumed(server, cache):
    server.cut_after = 1_500_000
    with pytest.raises(TruncatedDownloadError, match=r"1500000 of 2304000 bytes.*next call resumes"):
        download(server.url, sha256=SHA256, progress=False)
    assert left_in(cache) == ["weights.pth.part"]
    server.cut_after = None
    assert download(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1500000-"]
    assert left_in(cache) == ["weights.pth"]


def test_a_cut_transfer_without_a_digest_starts_over(server, cache):
    server.cut_after = 1000
    with pytest.raises(TruncatedDownloadError, match="Try again"):
        download(server.url, progress=False)
    assert left_in(cache) == []
    server.cut_after = None
    assert download(server.url, progress=False).read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_a_stalled_transfer_is_kept(server, cache, monkeypatch):
    monkeypatch.setattr(download_module, "_TIMEOUT_S", 0.2)
    server.cut_after, server.stall = 2_000_000, threading.Event()
    with pytest.raises(TruncatedDownloadError, match="timed out"):
        download(server.url, sha256=SHA256, progress=False)
    server.stall.set()
    # What was read in whole pieces is there, and is the beginning of the file.
    kept = (cache / "weights.pth.part").read_bytes()
    assert kept == CONTENT[: len(kept)]
    server.cut_after = server.stall = None
    assert download(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT


def part(cache, content):
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "weights.pth.part").write_bytes(content)


@pytest.mark.parametrize(
    ("ranges", "wrong_start"), [(False, None), (True, 0)], ids=["server ignores ranges", "server sends another range"]
)
def test_a_server_that_does_not_resume(server, cache, ranges, wrong_start):
    server.ranges, server.wrong_start = ranges, wrong_start
    part(cache, CONTENT[:1000])
    assert download(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT
    assert server.requests == ["bytes=1000-"]


def test_a_part_longer_than_the_file_starts_over(server, cache):
    part(cache, CONTENT + b"more")
    assert download(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_complete_part_needs_no_network(server, cache):
    part(cache, CONTENT)
    assert download(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("announce", [True, False])
def test_wrong_content_is_removed(server, cache, announce):
    server.content, server.announce = CONTENT[:-1] + b"!", announce
    with pytest.raises(HashMismatchError, match=f"expected {SHA256}"):
        download(server.url, sha256=SHA256, progress=False)
    assert left_in(cache) == []


def test_a_part_of_something_else_is_removed_and_the_next_call_succeeds(server, cache):
    part(cache, b"another file")
    with pytest.raises(HashMismatchError):
        download(server.url, sha256=SHA256, progress=False)
    assert download(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT


def test_a_cached_file_with_another_digest_is_replaced(server, cache):
    cache.mkdir(parents=True)
    (cache / "weights.pth").write_bytes(b"an old release")
    assert download(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT


def test_concurrent_calls_fetch_once(server, cache):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: download(server.url, sha256=SHA256, progress=False), range(8)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.requests == [None]
    assert left_in(cache) == ["weights.pth"]


def test_errors_name_the_address_and_the_place(server, cache):
    server.status = 404
    with pytest.raises(DownloadError, match=r"/weights\.pth.*404 Not Found.*place it at .*weights\.pth \(sha256 "):
        download(server.url, sha256=SHA256, progress=False)
    assert left_in(cache) == []


def test_no_network(cache):
    # Port 9 of this machine: nothing listens there.
    with pytest.raises(DownloadError, match=r"cannot download http://127\.0\.0\.1:9/weights\.pth: .*place it at"):
        download("http://127.0.0.1:9/weights.pth", sha256=SHA256, progress=False)


def test_file_addresses(tmp_path, cache):
    source = tmp_path / "a folder" / "weights.pth"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    path = download(source.as_uri(), sha256=SHA256, progress=False)
    assert path == cache / "weights.pth"
    assert sha256_of(path) == SHA256
    part(cache, CONTENT[:10])
    path.unlink()
    assert download(source.as_uri(), sha256=SHA256, progress=False).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"cannot download file:///no/such\.pth"):
        download("file:///no/such.pth", sha256=SHA256, progress=False)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a.pth",
        "weights.pth",
        "https://host",
        "https://host/a/..",
        "https://host/%2e%2e",
        "https://host/a%5Cb",
    ],
)
def test_refused_addresses(url):
    with pytest.raises(ValueError, match="cannot download"):
        download(url, progress=False)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="TORCH_HOME"):
        download(server.url, sha256=SHA256, progress=False, folder=tmp_path / "file" / "cache")


def test_a_full_disk_keeps_what_arrived(server, cache, monkeypatch):
    def receive(self, response, start):
        self.part.write_bytes(response.read(100))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download_module._Transfer, "_receive", receive)
        with pytest.raises(DownloadError, match="No space left on device"):
            download(server.url, sha256=SHA256, progress=False)
    assert left_in(cache) == ["weights.pth.part"]
    assert download(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT


def test_an_interrupt_leaves_no_lock(server, cache, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(download_module._Transfer, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(server.url, sha256=SHA256, progress=False)
    assert left_in(cache) == []
