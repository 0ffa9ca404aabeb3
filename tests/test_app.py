"""The web page, as its visitors find it: in a real browser, driven against the real server."""

import base64
import contextlib
import http.client
import io
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
from conftest import SCRIPT_DIR
from PIL import Image
from red_network import RED, draw_photo, load, need, save_photo, save_red_weights

need("gradio", requirements="requirements-app.txt")
need("playwright", requirements="requirements-dev.txt")
from playwright.sync_api import expect, sync_playwright  # noqa: E402

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
if not Path(CHROMIUM).exists() and not os.environ.get("CI"):
    pytest.skip("chromium is not installed: apt-get install chromium", allow_module_level=True)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
PATIENCE = 60_000  # ms, of a page on a busy machine
OWN = "[data-testid='Choose a picture-upload-button']"  # where the browser puts the visitor's own background

# Runs app.py, noting down each address that the process wants to reach.
WATCHER = """
import sys
log, folder, seconds, *args = sys.argv[1:]
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = args[1] if event == "socket.connect" else args
        with open(log, "a") as file:
            print(address[0] if isinstance(address, tuple) else "local", file=file)
sys.addaudithook(watch)
sys.path.insert(0, folder)
import app
app.CLEANING = int(seconds), int(seconds)
app.run_command(lambda args: app.serve(app.parse_settings(app.Settings, args, "")), args)
"""


# Contrast of each visible text with what is behind it, after WCAG 2.
CONTRASTS = """() => {
  const levels = colour => colour.match(/[0-9.]+/g).map(Number);
  const linear = level => level <= 10 ? level / 3294 : ((level / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = element => {
    const colour = levels(getComputedStyle(element).backgroundColor);
    return colour[3] === 0 && element.parentElement ? ground(element.parentElement) : colour;
  };
  const has_text = element => element.checkVisibility() && !element.matches('.sr-only, .sr-only *')
    && [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...document.querySelectorAll('.gradio-container *')].filter(has_text).map(element => {
    const sides = [light(levels(getComputedStyle(element).color)), light(ground(element))];
    return [element.textContent.trim(), (Math.max(...sides) + 0.05) / (Math.min(...sides) + 0.05)];
  });
}"""


class Server:
    def __init__(self, folder: Path, seconds_on_disk: int = 60):
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        self.weights = save_red_weights(folder / "red.safetensors")
        self.addresses = folder / "addresses.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-c", WATCHER, self.addresses, SCRIPT_DIR, str(seconds_on_disk)]
        command += ["--weights", self.weights, "--device", "cpu", "--port", str(self.port)]
        environment = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        with open(folder / "stderr.txt", "w") as errors:
            pipes = dict(stdout=subprocess.PIPE, stderr=errors, text=True)
            self.process = subprocess.Popen(command, env=environment, cwd=folder, **pipes)
        self.url = f"http://127.0.0.1:{self.port}/"
        assert self.url in self.process.stdout.readline(), (folder / "stderr.txt").read_text()

    def files(self) -> set[str]:
        """List the server's files, but for the empty ones that Gradio makes for each upload and forgets."""
        # Unlike Path.rglob, find bears folders that vanish meanwhile.
        found = subprocess.run(["find", self.temporary, "-type", "f", "-size", "+0"], capture_output=True, text=True)
        return set(found.stdout.splitlines())

    def ask(self, method: str, path: str, body: str = "", kind: str = "application/json") -> tuple[int, str]:
        """Send a request as it stands, with no client that tidies the path up."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")

    def send_file(self, name: str) -> str:
        """Upload a file that is no photo; return where Gradio put it."""
        head = f'--boundary\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        kind = "multipart/form-data; boundary=boundary"
        return json.loads(self.ask("POST", "/gradio_api/upload", f"{head}secret\r\n--boundary--\r\n", kind)[1])[0]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        finally:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    """Open the page as a new visitor."""

    def open_page(width: int = 1280, height: int = 900):
        context = browser.new_context(viewport=dict(width=width, height=height))
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("#upload input[type=file]", state="attached")
        return page

    yield open_page
    for context in browser.contexts:
        context.close()


def upload(page, *paths: Path) -> None:
    page.set_input_files("#upload input[type=file]", list(map(str, paths)))


def expect_details(page, text: str) -> None:
    page.wait_for_selector(".compare")
    if not page.locator("#details li").count():
        page.click("#details button")
    expect(page.locator("#details")).to_contain_text(text, timeout=PATIENCE)


def download(page, button: str, folder: Path) -> Path:
    with page.expect_download(timeout=PATIENCE) as waiting:
        page.click(button)
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def wait_until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert true()


class Result:
    """The result that a page shows."""

    def __init__(self, page):
        self.locator, self.url = page.locator(".compare .after"), "none yet"

    def next(self) -> np.ndarray:
        """Wait until another picture than the last one is shown; return it."""
        expect(self.locator).not_to_have_attribute("src", self.url, timeout=PATIENCE)
        self.url = self.locator.get_attribute("src")
        return load(io.BytesIO(base64.b64decode(self.url.partition(",")[2])))


# ------------------------------------------------------------------------------------------------------- in the browser


def test_photo_becomes_the_cut_out_that_the_command_makes(server, visit, tmp_path):
    page, path = visit(), save_photo(tmp_path / "my car.png", 300, 200)
    upload(page, path)
    expect_details(page, "300 × 200 pixels")
    assert page.get_by_alt_text("my car, cut-out").is_visible()
    saved = download(page, "#one", tmp_path)
    assert saved.name == "my car_cutout.png"
    segmenter, photo = Segmenter(server.weights, "cpu"), load(path)
    [(_, picture)] = make_pictures(photo, upsample(segmenter.logits(photo), *photo.shape[:2]), 0.4, ["cutout"])
    assert np.array_equal(load(saved), picture)


def test_keyboard_alone_leads_from_the_sample_car_to_its_download(visit):
    page = visit()

    def tab_to(selector: str) -> None:
        is_there = lambda: (
            page.keyboard.press("Tab") or page.evaluate("s => document.activeElement.matches(s)", selector)
        )
        assert any(is_there() for _ in range(40)), selector

    outline = "getComputedStyle(document.activeElement).outlineStyle"
    line = "getComputedStyle(document.querySelector('.line')).left"
    tab_to("#upload button")
    tab_to("#sample")
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector(".compare")
    tab_to(".compare input")
    before = page.evaluate(line)
    page.keyboard.press("ArrowRight")
    assert float(page.evaluate(line)[:-2]) > float(before[:-2])
    tab_to("#one")
    with page.expect_download(timeout=PATIENCE) as waiting:
        page.keyboard.press("Enter")
    assert waiting.value.suggested_filename == "sample-car_cutout.png"
    tab_to("#view label:nth-child(2) input")
    page.keyboard.press("Space")
    expect(page.get_by_alt_text("sample-car, outline")).to_be_visible(timeout=PATIENCE)
    tab_to("#threshold input[type=range]")


@pytest.mark.parametrize("width, height", [(400, 850), (1280, 860)])
def test_result_is_on_the_first_screen_whatever_the_shape_of_photo_and_window(visit, tmp_path, width, height):
    page = visit(width, height)
    for shape in ((300, 200), (200, 300), (90, 400)):
        upload(page, save_photo(tmp_path / "car.png", *shape))
        expect_details(page, f"{shape[0]} × {shape[1]} pixels")
        picture, controls = (page.locator(place).bounding_box() for place in (".compare", "#controls"))
        assert picture["width"] / picture["height"] == pytest.approx(shape[0] / shape[1], rel=0.02)
        assert picture["y"] + picture["height"] < height and picture["x"] + picture["width"] <= width
        if width == 400:
            assert controls["y"] > picture["y"] + picture["height"]
        else:
            assert controls["x"] + controls["width"] <= picture["x"]
        page.reload()
        page.wait_for_selector("#upload input[type=file]", state="attached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_can_be_read_and_jargon_stands_in_the_details_alone(visit, scheme):
    page = visit()
    page.emulate_media(color_scheme=scheme)
    page.reload()
    page.click("#sample")
    expect(page.get_by_alt_text("sample-car, cut-out")).to_be_visible(timeout=PATIENCE)
    jargon = page.get_by_text(re.compile("U-Net|float|threshold|672|cpu", re.IGNORECASE)).locator("visible=true")
    expect(jargon).to_have_count(0)
    page.click("#details button")
    expect(jargon.first).to_be_visible()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 15
    assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == []


def test_each_control_changes_the_picture_without_the_network(visit, tmp_path):
    page, photo = visit(), draw_photo(300, 200)
    photo[10:30, 10:30] = RED  # a second car
    Image.fromarray(photo).save(tmp_path / "car.png")
    upload(page, tmp_path / "car.png")
    expect_details(page, "300 × 200 pixels")
    result, seconds = Result(page), re.search(r"found in [\d.]+ s", page.locator("#details").text_content())[0]
    picture = result.next()
    assert picture[2, 2, 3] == 0 and picture[20, 20, 3] == 0 and picture[100, 150, 3] == 255

    page.click("#shadow input")
    assert 0 < result.next()[165, 150, 3] < 255  # the floor just below the car
    page.click("#main input")
    assert result.next()[20, 20, 3] == 255
    page.click("#main input")
    result.next()
    page.click("#view label:has-text('Mask')")
    picture = result.next()
    assert picture[100, 150].min() > 250 and picture[2, 2].max() < 5
    assert download(page, "#one", tmp_path).name == "car_mask.png"
    page.click("#view label:has-text('Outline')")
    picture = result.next()
    assert picture[2, 2, 1] > 180 and picture[100, 150, 2] > 60  # green background, car tinted blue

    page.click("#view label:has-text('Cut-out')")
    result.next()
    page.click("#background label:has-text('White')")
    picture = result.next()
    assert picture[2, 2].min() > 250 and picture[100, 150, 0] > 200 and picture[100, 150, 1] < 50
    assert download(page, "#one", tmp_path).name == "car_background.jpg"
    page.click("#background label:has-text('Picture')")
    result.next()
    page.set_input_files(OWN, save_photo(tmp_path / "wall.png", 60, 40, background=(9, 8, 200)))
    assert result.next()[2, 2, 2] > 180
    page.click("#crop input")
    height, width = result.next().shape[:2]
    assert 120 < height < 170 and 180 < width < 220  # the car is 120 high and 180 wide, and has a shadow
    size = "image => [image.naturalHeight, image.naturalWidth]"
    assert page.locator(".compare img").first.evaluate(size) == [height, width]  # the photo beside it

    share = lambda: float(re.search(r"([\d.]+)% of", page.locator("#details").text_content())[1])
    before = share()
    page.fill("#threshold input[type=number]", "0.95")
    page.press("#threshold input[type=number]", "Tab")
    result.next()
    wait_until(lambda: share() < before)  # picture and words reach the page one after the other
    assert seconds in page.locator("#details").text_content()


def test_several_photos_come_as_one_archive_and_each_can_be_looked_at(visit, tmp_path):
    page = visit()
    names = ("a.jpg", "b.png", "other/a.png", "A.webp")
    upload(page, *(save_photo(tmp_path / name, 90 + 10 * number, 60) for number, name in enumerate(names)))
    expect(page.locator(".strip button")).to_have_count(4, timeout=PATIENCE)
    expect_details(page, "90 × 60 pixels")
    page.get_by_alt_text("Show b").click()
    expect_details(page, "100 × 60 pixels")
    with zipfile.ZipFile(download(page, "#every", tmp_path)) as content:
        stems = ("a", "b", "a (2)", "A (3)")
        assert sorted(content.namelist()) == sorted(f"{stem}_cutout.png" for stem in stems)
        with content.open("b_cutout.png") as file:
            assert load(file).shape == (60, 100, 4)


def test_what_is_no_photo_is_said_in_a_sentence_and_the_others_are_done(visit, tmp_path):
    page = visit()
    (tmp_path / "<b>bad.jpg").write_text("not a photo")
    Image.new("1", (9000, 6000)).save(tmp_path / "huge.png")
    upload(page, tmp_path / "<b>bad.jpg", tmp_path / "huge.png", save_photo(tmp_path / "good.png", 90, 60))
    expect_details(page, "90 × 60 pixels")
    text = "\n".join(page.locator(".toast-body").all_inner_texts())
    assert "bad.jpg must be a JPEG, PNG, WebP, BMP or TIFF photo" in text
    assert "huge.png must have at most 50 million pixels, got 54 million" in text
    assert "tmp" not in text  # no path of the server


def test_two_visitors_at_once_see_their_own_photos(visit, tmp_path):
    first, second = visit(), visit()
    same = save_photo(tmp_path / "same.png", 150, 100)
    upload(first, save_photo(tmp_path / "1/mine.png", 90, 60), same)
    upload(second, save_photo(tmp_path / "2/mine.png", 60, 90), same)
    expect_details(first, "90 × 60 pixels")
    expect_details(second, "60 × 90 pixels")
    assert load(download(first, "#one", tmp_path / "1")).shape == (60, 90, 4)
    assert load(download(second, "#one", tmp_path / "2")).shape == (90, 60, 4)
    expect(second.locator(".strip button")).to_have_count(2, timeout=PATIENCE)
    # When one leaves, the photo that both uploaded stays for the other.
    first.context.close()
    second.get_by_alt_text("Show same").click()
    expect_details(second, "150 × 100 pixels")
    assert load(download(second, "#one", tmp_path / "2")).shape == (100, 150, 4)


def test_nothing_is_kept_of_a_closed_page_though_another_visitor_stays(visit, server, tmp_path):
    other, page, busy = visit(), visit(), visit()
    upload(other, save_photo(tmp_path / "stays.png", 60, 90))
    expect_details(other, "60 × 90 pixels")
    before = server.files()
    upload(page, save_photo(tmp_path / "secret.png", 90, 60))
    expect_details(page, "90 × 60 pixels")
    page.click("#background label:has-text('Picture')")
    page.set_input_files(OWN, save_photo(tmp_path / "secret wall.png", 80, 80))
    wait_until(lambda: sum("secret wall" in path for path in server.files()) == 2)
    download(page, "#one", tmp_path)
    # One more is closed while its photos are worked on.
    upload(busy, *(save_photo(tmp_path / f"secret {number}.png", 1200 + number, 800) for number in range(20)))
    wait_until(lambda: sum("secret" in Path(path).name for path in server.files()) >= 40)
    page.context.close()
    busy.context.close()
    wait_until(lambda: server.files() <= before)
    assert "Traceback" not in (server.folder / "stderr.txt").read_text()


def test_nothing_is_asked_of_other_machines(visit, server):
    page, asked = visit(), []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.click("#sample")
    expect_details(page, "1200 × 800 pixels")
    assert len(asked) > 10
    own = (server.url, "data:", "blob:", server.url.replace("http", "ws"))
    assert [url for url in asked if not url.startswith(own)] == []
    hosts = set(server.addresses.read_text().split())
    assert hosts <= {"127.0.0.1", "localhost", "::1", "0.0.0.0", "local", "None"}, hosts


# ------------------------------------------------------------------------------------------------ without the browser


def test_no_file_of_the_server_is_given_out(server):
    outside = ["/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "/proc/self/environ", "/dev/zero"]
    for path in [SCRIPT_DIR / "app.py", SCRIPT_DIR / "../.git/config", server.weights, *outside]:
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/gradio_api/stream/"):
            status, content = server.ask("GET", f"{prefix}{path}")
            assert status in (307, 400, 403, 404, 405), (prefix, path, status)
            assert "root:" not in content and "import" not in content


def test_a_forged_upload_is_refused(server):
    config = json.loads(server.ask("GET", "/config")[1])
    event = next(one for one in config["dependencies"] if any(kind == "upload" for _, kind in one["targets"]))
    values = {component["id"]: component["props"].get("value") for component in config["components"]}
    data = [values[number] for number in event["inputs"]]  # visit, uploads, look
    for path, is_taken in ((server.send_file("sent.jpg"), True), ("/etc/passwd", False)):
        data[1] = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
        body = dict(data=data, fn_index=event["id"], session_hash="forged", event_data=None)
        assert server.ask("POST", "/gradio_api/queue/join", json.dumps(body))[0] == 200
        answer = server.ask("GET", "/gradio_api/queue/data?session_hash=forged")[1]
        assert ('"success":true' in answer.replace(" ", "").split('"process_completed"')[-1]) == is_taken
    assert not any("passwd" in path for path in server.files())


def test_an_upload_that_no_page_asks_for_is_deleted_and_ctrl_c_leaves_no_file(tmp_path):
    server = Server(tmp_path, seconds_on_disk=1)
    server.send_file("secret.jpg")
    wait_until(lambda: not any("secret.jpg" in path for path in server.files()))
    assert server.stop() == 0
    assert server.files() == set()


def test_taken_port_is_said_in_one_line(server, run_script):
    options = ["--weights", server.weights, "--port", server.port]
    result = run_script("app.py", *options, env=dict(TMPDIR=str(server.folder)))
    assert result.returncode == 1
    error = f"error: host and port must be this machine's and free, got 127.0.0.1 and {server.port}. "
    assert result.stderr == error + "Name another --port.\n"


def test_missing_gradio_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    segmenter = Segmenter(save_red_weights(tmp_path / "red.safetensors"), "cpu")
    with pytest.raises(RuntimeError, match="gradio must be installed for the web page. Run `pip install -r"):
        app.make_app(segmenter)


def test_picked_colours_are_understood():
    assert app.read_colour("#a1b2c3").tolist() == [[[0xA1, 0xB2, 0xC3]]]
    assert app.read_colour("rgba(255, 0.4, 128, 1)").tolist() == [[[255, 0, 128]]]
