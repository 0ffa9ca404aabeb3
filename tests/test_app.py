"""The web page, as its visitors find it: in a real browser, driven against the real server."""

import builtins
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import app
import numpy as np
import pytest
from carvana.cutout import make_pictures
from carvana.pictures import upsample
from carvana.segmenter import Segmenter
from carvana.visitors import Visitors, choose_background, draw_view, segment_upload, to_hex
from conftest import SCRIPT_DIR
from PIL import Image
from red_network import draw_photo, is_red, need, save_red_weights

need("gradio", requirements="requirements-app.txt")
need("playwright", requirements="requirements-dev.txt")
from playwright.sync_api import expect, sync_playwright  # noqa: E402

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
if not Path(CHROMIUM).exists() and not os.environ.get("CI"):
    pytest.skip("chromium is not installed: apt-get install chromium", allow_module_level=True)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
PATIENCE = 60_000  # ms, of a page on a busy machine

# Runs app.py, noting down each address that the process wants to reach.
WATCHER = """
import runpy, socket, sys
log, sys.argv = sys.argv[1], sys.argv[2:]
connect = socket.socket.connect
def watched(self, address):
    with open(log, "a") as file:
        print(address[0] if isinstance(address, tuple) else "local", file=file)
    return connect(self, address)
socket.socket.connect = watched
lookup = socket.getaddrinfo
def watched_lookup(host, *args, **keywords):
    with open(log, "a") as file:
        print(host.decode() if isinstance(host, bytes) else host, file=file)
    return lookup(host, *args, **keywords)
socket.getaddrinfo = watched_lookup
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Server:
    def __init__(self, folder: Path):
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        self.weights = save_red_weights(folder / "red.safetensors")
        self.addresses = folder / "addresses.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-c", WATCHER, self.addresses, SCRIPT_DIR / "app.py"]
        options = ["--weights", self.weights, "--device", "cpu", "--port", str(self.port)]
        environment = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        with open(folder / "stderr.txt", "w") as errors:
            self.process = subprocess.Popen(
                command + options, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
            )
        self.first_line = self.process.stdout.readline()
        self.url = f"http://127.0.0.1:{self.port}/"

    def files(self) -> list[Path]:
        """List the server's files; unlike Path.rglob, os.walk takes a folder that vanishes meanwhile for an empty one."""
        return [
            path
            for folder, _, names in os.walk(self.temporary)
            for name in names
            if (path := Path(folder, name)).is_file()
        ]

    def filled_files(self) -> set[Path]:
        """Leave out the empty file that Gradio makes for each upload and forgets."""
        files = set()
        for path in self.files():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size:
                    files.add(path)
        return files

    def get(self, path: str) -> tuple[int, bytes]:
        """Send a request as it stands, with no client that tidies the path up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest("GET", path, skip_host=False)
        connection.endheaders()
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def post(self, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        finally:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    assert server.url in server.first_line, (server.folder / "stderr.txt").read_text()
    yield server
    server.process.kill()
    server.process.wait()
    server.process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    """Open the page as a new visitor; each request that it sends is noted in `page.asked`."""
    contexts = []

    def open_page():
        context = browser.new_context(viewport=dict(width=1280, height=900), accept_downloads=True)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(server.url)
        page.wait_for_selector("#upload input[type=file]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()


def save_photo(folder: Path, name: str, *size, **keywords) -> Path:
    Image.fromarray(draw_photo(*size, **keywords)).save(folder / name, quality=95)
    return folder / name


def upload(page, *paths: Path) -> None:
    page.set_input_files("#upload input[type=file]", list(map(str, paths)))


def expect_facts(page, text: str) -> None:
    expect(page.locator("#facts")).to_contain_text(text, timeout=PATIENCE)


def download(page, button: str, folder: Path) -> Path:
    with page.expect_download(timeout=PATIENCE) as waiting:
        page.click(button)
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def load(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def shown_pictures(page) -> list[str]:
    return page.eval_on_selector_all("#result img", "images => images.map(image => image.src)")


# ------------------------------------------------------------------------------------------------------- in the browser


def test_photo_becomes_a_cut_out_to_download(server, visit, tmp_path):
    page = visit()
    path = save_photo(tmp_path, "my car.png", 300, 200)
    upload(page, path)
    expect_facts(page, "my car")
    expect_facts(page, "300 × 200 pixels")
    expect_facts(page, "s (cpu")
    share = is_red(load(path)).mean()
    assert abs(float(re.search(r"car ([\d.]+)% of", page.inner_text("#facts"))[1]) / 100 - share) < 0.01
    assert len(shown_pictures(page)) == 2

    one = download(page, "#one", tmp_path)
    assert one.name == "my car_cutout.png"
    segmenter, photo = Segmenter(server.weights, "cpu"), load(path)
    [(_, picture)] = make_pictures(photo, upsample(segmenter.logits(photo), *photo.shape[:2]), 0.4, ["cutout"])
    assert np.array_equal(load(one), np.array(picture))


def test_views_backgrounds_and_threshold_change_the_picture_without_the_network(visit, tmp_path):
    page = visit()
    upload(page, save_photo(tmp_path, "car.png", 300, 200))
    expect_facts(page, "car")
    expect(page.locator("#result img").first).to_be_visible(timeout=PATIENCE)
    network_seconds = re.search(r"network [\d.]+ s", page.inner_text("#facts"))[0]
    seen = set(shown_pictures(page))

    def changed_picture():
        deadline = time.monotonic() + PATIENCE / 1000
        while set(shown_pictures(page)) & seen and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        pictures = shown_pictures(page)
        assert not set(pictures) & seen
        seen.update(pictures)
        answer = page.request.get(pictures[1])
        path = tmp_path / "shown.jpg"
        path.write_bytes(answer.body())
        return load(path)

    page.click("#view label:has-text('mask')")
    picture = changed_picture()
    assert picture[100, 150].min() > 250 and picture[2, 2].max() < 5
    assert download(page, "#one", tmp_path).name == "car_mask.png"

    page.click("#view label:has-text('overlay')")
    picture = changed_picture()
    assert picture[2, 2, 1] > 180 and picture[100, 150, 2] > 60  # green background, car tinted blue

    page.click("#view label:has-text('cut-out')")
    changed_picture()
    page.click("#background label:has-text('white')")
    picture = changed_picture()
    assert picture[2, 2].min() > 250 and picture[100, 150, 0] > 200 and picture[100, 150, 1] < 40
    one = download(page, "#one", tmp_path)
    assert one.name == "car_background.jpg" and load(one)[2, 2].min() > 250

    page.click("#background label:has-text('colour')")
    changed_picture()
    page.click("#background label:has-text('photo')")
    page.set_input_files("#own input[type=file]", str(save_photo(tmp_path, "wall.png", 60, 40, background=(9, 8, 200))))
    deadline = time.monotonic() + PATIENCE / 1000
    while changed_picture()[2, 2, 2] < 180 and time.monotonic() < deadline:
        pass  # the choice itself draws once, the photo then again

    share = lambda: float(re.search(r"car ([\d.]+)% of", page.inner_text("#facts"))[1])
    before = share()
    page.fill("#threshold input[type=number]", "0.95")
    page.press("#threshold input[type=number]", "Tab")
    changed_picture()
    deadline = time.monotonic() + PATIENCE / 1000
    while share() >= before and time.monotonic() < deadline:
        page.wait_for_timeout(50)  # picture and words reach the page one after the other
    assert share() < before
    assert network_seconds in page.inner_text("#facts")


def test_several_photos_come_as_one_archive_and_each_can_be_looked_at(visit, tmp_path):
    page = visit()
    (tmp_path / "other").mkdir()
    upload(
        page,
        save_photo(tmp_path, "a.jpg", 90, 60),
        save_photo(tmp_path, "b.png", 60, 90),
        save_photo(tmp_path / "other", "a.png", 120, 80),
    )
    expect_facts(page, "120 × 80 pixels")
    page.locator("#photos button").nth(1).click()
    expect_facts(page, "60 × 90 pixels")
    archive = download(page, "#every", tmp_path)
    with zipfile.ZipFile(archive) as content:
        kinds = ("mask.png", "cutout.png", "overlay.jpg")
        assert sorted(content.namelist()) == sorted(f"{name}_{kind}" for name in ("a", "a (2)", "b") for kind in kinds)
        with content.open("b_cutout.png") as file:
            assert load(file).shape == (90, 60, 4)
    page.click("#clear")
    expect_facts(page, "Drop one or several photos")


def test_what_is_no_photo_is_said_and_the_others_are_done(visit, server, tmp_path):
    page = visit()
    bad, huge = tmp_path / "bad.jpg", tmp_path / "huge.png"
    bad.write_text("not a photo")
    Image.new("1", (9000, 6000)).save(huge)
    upload(page, bad, huge, save_photo(tmp_path, "good.png", 90, 60))
    expect_facts(page, "90 × 60 pixels")
    messages = page.locator(".toast-body").all_inner_texts()
    text = "\n".join(messages)
    assert "bad.jpg must be a JPEG, PNG, WebP, BMP or TIFF photo" in text
    assert "huge.png must have at most 50 million pixels, got 54 million" in text
    assert "tmp" not in text  # no path of the server
    assert server.process.poll() is None


def test_two_visitors_at_once_see_their_own_photos(visit, tmp_path):
    first, second = visit(), visit()
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    same = save_photo(tmp_path, "same.png", 150, 100)
    upload(first, same, save_photo(tmp_path / "1", "mine.png", 90, 60))
    upload(second, same, save_photo(tmp_path / "2", "mine.png", 60, 90))
    expect_facts(first, "90 × 60 pixels")
    expect_facts(second, "60 × 90 pixels")
    assert load(download(first, "#one", tmp_path / "1")).shape == (60, 90, 4)
    assert load(download(second, "#one", tmp_path / "2")).shape == (90, 60, 4)
    # When one leaves, the photo that both uploaded stays for the other.
    first.context.close()
    second.wait_for_timeout(3000)
    second.locator("#photos button").first.click()
    expect_facts(second, "150 × 100 pixels")
    assert load(download(second, "#one", tmp_path / "2")).shape == (100, 150, 4)


def wait_until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert true()


def test_nothing_is_kept_after_the_visit_though_another_visitor_stays(visit, server, tmp_path):
    other, page = visit(), visit()
    upload(other, save_photo(tmp_path, "stays.png", 60, 90))
    expect_facts(other, "stays")
    before = server.filled_files()
    upload(page, save_photo(tmp_path, "secret.png", 90, 60))
    expect_facts(page, "secret")
    page.locator("#background").get_by_text("photo", exact=True).click()
    page.locator("#own input[type=file]").set_input_files(save_photo(tmp_path, "secret wall.png", 80, 80))
    page.wait_for_timeout(2000)
    download(page, "#every", tmp_path)
    assert sum("secret" in path.name for path in server.files()) >= 2
    page.context.close()
    wait_until(lambda: server.filled_files() <= before)
    other.context.close()
    wait_until(lambda: server.files() == [])


def test_nothing_is_kept_of_a_page_that_is_closed_while_its_photos_are_worked_on(visit, server, tmp_path):
    other, page = visit(), visit()
    upload(page, *(save_photo(tmp_path, f"secret {number}.png", 1200 + number, 800) for number in range(30)))
    wait_until(lambda: len([path for path in server.files() if "secret" in path.name]) == 30)
    page.context.close()
    wait_until(lambda: not server.filled_files())
    time.sleep(2)  # work that was begun for the visitor may still end
    assert not server.filled_files()
    assert "Traceback" not in (server.folder / "stderr.txt").read_text()
    other.context.close()


def test_nothing_is_kept_of_a_page_that_is_closed_before_it_says_what_it_sent(visit, server, tmp_path):
    other, page = visit(), visit()
    upload(other, save_photo(tmp_path, "stays.png", 60, 90))
    expect_facts(other, "stays")
    before = server.filled_files()
    page.route(re.compile("/queue/join|/run/"), lambda route: route.abort())
    upload(page, save_photo(tmp_path, "secret.png", 91, 60))
    wait_until(lambda: any(path.name == "secret.png" for path in server.files()))
    page.context.close()
    wait_until(lambda: server.filled_files() == before)
    other.context.close()


def test_two_photos_of_one_name_both_come_in_the_zip(visit, tmp_path):
    page = visit()
    upload(page, *(save_photo(tmp_path, name, 90, 60) for name in ("car.jpg", "car.png", "car (2).jpg", "CAR.png")))
    expect_facts(page, "90 × 60 pixels")
    with zipfile.ZipFile(download(page, "#every", tmp_path)) as archive:
        masks = [name for name in archive.namelist() if name.endswith("_mask.png")]
    assert len({name.casefold() for name in masks}) == 4


def test_nothing_is_asked_of_other_machines(visit, server, tmp_path):
    page = visit()
    upload(page, save_photo(tmp_path, "car.png", 90, 60))
    expect_facts(page, "90 × 60 pixels")
    page.wait_for_timeout(1000)
    assert len(page.asked) > 10
    outside = [
        url
        for url in page.asked
        if not url.startswith((server.url, "data:", "blob:", server.url.replace("http", "ws")))
    ]
    assert outside == []
    hosts = set(server.addresses.read_text().split())
    assert hosts <= {"127.0.0.1", "localhost", "::1", "0.0.0.0", "local", "None"}, hosts


# ------------------------------------------------------------------------------------------------ without the browser


@pytest.mark.parametrize(
    "path",
    [
        SCRIPT_DIR / "app.py",
        "/etc/passwd",
        "../../../../etc/passwd",
        "/proc/self/environ",
        SCRIPT_DIR / "../.git/config",
        "%2e%2e/%2e%2e/etc/passwd",
        "/dev/zero",
        "C:/Windows/win.ini",
    ],
)
def test_no_file_of_the_server_is_given_out(server, path):
    for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/gradio_api/stream/"):
        status, content = server.get(f"{prefix}{path}")
        assert status in (307, 400, 403, 404, 405), (prefix, status)
        assert b"root:" not in content and b"import" not in content


def test_weights_are_not_given_out_and_a_forged_upload_is_refused(server):
    assert server.get(f"/gradio_api/file={server.weights}")[0] in (403, 404)
    config = json.loads(server.get("/config")[1])
    numbers = [event["id"] for event in config["dependencies"] if any(kind == "upload" for _, kind in event["targets"])]
    assert numbers
    for number in numbers:
        forged = [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
        body = json.dumps(dict(data=[forged, None], fn_index=number, session_hash="forged", event_data=None)).encode()
        status, _ = server.post("/gradio_api/queue/join", body, "application/json")
        if status == 200:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.request("GET", "/gradio_api/queue/data?session_hash=forged")
            events = connection.getresponse().read().decode()
            connection.close()
            assert '"success":true' not in events.replace(" ", "").split('"process_completed"')[-1]
            assert "root:" not in events
    assert not any(path.name == "passwd" for path in server.files())


def test_a_file_too_large_is_refused(server):
    head = b'--boundary\r\nContent-Disposition: form-data; name="files"; filename="big.jpg"\r\n\r\n'
    body = head + b"\0" * (app.MAX_FILE_MB * 10**6 + 1) + b"\r\n--boundary--\r\n"
    try:
        status, _ = server.post("/gradio_api/upload", body, "multipart/form-data; boundary=boundary")
    except ConnectionError:  # the server may hang up before all is sent
        status = 413
    assert status in (400, 413)
    assert not any(path.stat().st_size > 10**7 for path in server.files())


def test_ctrl_c_ends_the_page_and_leaves_no_file(tmp_path):
    server = Server(tmp_path)
    assert server.url in server.first_line, (tmp_path / "stderr.txt").read_text()
    assert server.stop() == 0
    assert list(server.temporary.rglob("*")) == []


def test_taken_port_is_said_in_one_line(server, run_script):
    result = run_script(
        "app.py", "--weights", server.weights, "--port", server.port, env=dict(TMPDIR=str(server.folder))
    )
    assert result.returncode == 1
    assert f"error: port must be free, got {server.port}, which another program uses." in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_gradio_is_named(monkeypatch, tmp_path):
    real_import = builtins.__import__

    def without_gradio(name, *args, **keywords):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real_import(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_gradio)
    segmenter = Segmenter(save_red_weights(tmp_path / "red.safetensors"), "cpu")
    with pytest.raises(
        RuntimeError, match="gradio must be installed for the web page. Run `pip install -r requirements-app.txt`."
    ):
        app.make_app(segmenter)


def test_picked_colours_are_understood():
    assert to_hex("#a1b2c3") == "#a1b2c3"
    assert to_hex("rgba(255, 0.4, 128, 1)") == "#ff0080"


def test_display_is_small_and_share_is_of_the_whole_photo(tmp_path):
    segmenter = Segmenter(save_red_weights(tmp_path / "red.safetensors"), "cpu")
    shown = segment_upload(save_photo(tmp_path, "large.jpg", 2000, 1000), segmenter)
    before, after, size, share = draw_view(shown, "overlay", None, 0.4)
    assert before.size == after.size == (1280, 640) and size == (1000, 2000)
    assert share == pytest.approx(is_red(load(tmp_path / "large.jpg")).mean(), abs=0.01)


def test_visitors_share_no_folder_and_leave_nothing(tmp_path):
    visitors = Visitors(tmp_path)
    upload = tmp_path / "upload.png"
    upload.touch()
    for name in ("../../etc", "b"):
        visitors.arrive(name)
        visitors.claim(name, [upload])
        folder = visitors.folder(name)
        assert folder.is_relative_to(tmp_path) and ".." not in str(folder)
        (folder / "result.png").touch()
    visitors.leave("../../etc")
    assert upload.exists() and len([path for path in tmp_path.rglob("result.png")]) == 1
    visitors.leave("never seen")
    kept = visitors.folder("b")
    passing = [visitors.folder("b", passing=True) for _ in range(20)]
    assert kept.exists() and [folder.exists() for folder in passing] == [False] * 8 + [True] * 12
    visitors.leave("b")
    assert list(tmp_path.iterdir()) == []


def test_a_background_photo_has_the_same_limits_as_a_photo(tmp_path):
    Image.new("1", (9000, 6000)).save(tmp_path / "wall.png")
    with pytest.raises(ValueError, match=r"^wall\.png must have at most 50 million pixels, got 54 million"):
        choose_background("photo", "", str(tmp_path / "wall.png"))
