"""A web page that cuts cars out of photos.

    python scripts/app.py                     then open the address that it prints
    python scripts/app.py --share             also a public address, for 72 hours, through Gradio's servers

In a notebook:

    from app import Segmenter, make_app
    make_app(Segmenter()).launch()

The page loads nothing from the internet. A visitor's photos are deleted when the page is closed; an upload that was
still on its way then, a few minutes later.
"""

import atexit
import base64
import dataclasses
import functools
import html
import io
import itertools
import os
import re
import shutil
import signal
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from carvana.cutout import ENDINGS, cover, crop_picture, encode_picture, find_crop, keep_main_car, make_pictures, warn
from carvana.files import PROJECT_DIR, run_command
from carvana.pictures import IMAGE_FORMATS, IMAGE_SUFFIXES, load_image, open_picture, upsample
from carvana.segmenter import Segmenter, measure_uncertainty, to_logit
from carvana.settings import PathSetting, parse_settings, settings_class
from PIL import Image

SAMPLE = PROJECT_DIR / "assets/sample-car.jpg"  # a synthetic car
MAX_FILE_MB = 40
MAX_MEGAPIXELS = 50
MAX_PHOTOS = 30  # of a visitor
DISPLAY_SIDE = 1280  # pixels of the longer side of what the page shows; downloads have the photo's own size
CLEANING = 60, 120  # seconds after which Gradio looks for its copies of uploads and downloads, and that it keeps them

INTRODUCTION = """# Cut cars out of photos
Get the car without its background. Photos stay on the computer that runs this page,
and are deleted when you close it."""
BACKGROUNDS = {"Transparent": None, "White": "#ffffff", "Grey": "#d9d9d9", "Colour": None, "Picture": None}
VIEWS = {"Cut-out": "cutout", "Outline": "overlay", "Mask": "mask"}


@settings_class
class Settings:
    """The web page; each field is an option of the command line."""

    port: int | None = None  # of the page's address; None for the first free one from 7860
    host: str = "127.0.0.1"  # 0.0.0.0 lets other machines of the network open the page
    share: bool = False  # ask Gradio's servers for a public address
    weights: PathSetting = PROJECT_DIR / "checkpoints/carvana-unet-street.safetensors"  # of the network
    device: str = "auto"  # cuda, mps, cpu, or auto for the first of these that is there


@dataclass
class Photo:
    """A visitor's photo, and what the network found in it."""

    path: Path  # the visit's own copy; its stem is the name of the results
    preview: np.ndarray  # RGB (h, w, 3), uint8, at most DISPLAY_SIDE pixels wide and high
    logits: np.ndarray  # float32, of any size: a change of the look does not run the network
    uncertainty: tuple[float, float]  # of the network, and the limit of its weights
    facts: str  # for the curious

    def measure(self, threshold: float) -> float:
        """Return the fraction of the photo that is car."""
        return float((self.logits > to_logit(threshold)).mean())


@dataclass
class Visit:
    """What the page keeps of one visitor, from the first photo until the page is closed."""

    folder: Path
    photos: list[Photo] = field(default_factory=list)
    current: int = 0  # number of the photo that is shown
    background: np.ndarray | None = None  # RGB (h, w, 3), uint8, the visitor's own
    uploads: list[Path] = field(default_factory=list)  # Gradio's copies

    def receive(self, upload: str | Path) -> Path:
        """Copy an upload, which another visitor may share, under a name that no other photo of the visit has."""
        upload, numbers = Path(upload), itertools.count(2)
        self.uploads.append(upload)
        stem, taken = upload.stem, {path.stem.casefold() for path in self.folder.iterdir()}
        while stem.casefold() in taken:
            stem = f"{upload.stem} ({next(numbers)})"
        return Path(shutil.copyfile(upload, self.folder / (stem + upload.suffix)))

    def close(self) -> None:
        """Delete all photos."""
        self.photos.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.uploads:
            if path != SAMPLE:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Look:
    """What a visitor chose for the results, in the order of the page's controls."""

    view: str
    background: str
    colour: str
    shadow: bool
    crop: bool
    main_car: bool
    threshold: float

    def draw(self, photo: Photo, image: np.ndarray, own_background: np.ndarray | None) -> tuple[str, np.ndarray]:
        """Make the result at the size of `image`, the photo as RGB (H, W, 3), uint8.

        Returns:
            Its kind, a key of `ENDINGS`, and the picture, see `make_pictures`.
        """
        logits = keep_main_car(photo.logits, self.threshold) if self.main_car else photo.logits
        logits = upsample(logits, *image.shape[:2])
        background = own_background if self.background == "Picture" else None
        if colour := self.colour if self.background == "Colour" else BACKGROUNDS[self.background]:
            background = read_colour(colour)
        kind = "background" if self.view == "Cut-out" and background is not None else VIEWS[self.view]
        crop = 0 if self.crop else None  # 0 for the car's own shape
        return next(make_pictures(image, logits, self.threshold, [kind], background, self.shadow, crop))

    def frame(self, photo: Photo) -> np.ndarray:
        """Crop the photo's preview as `draw` crops the result: RGB (h, w, 3), uint8."""
        if not self.crop or self.view != "Cut-out":
            return photo.preview
        whole = dataclasses.replace(self, crop=False, background="Transparent").draw(photo, photo.preview, None)[1]
        return crop_picture(photo.preview, find_crop(whole[..., 3], 0))


def read_colour(text: str) -> np.ndarray:
    """Read what Gradio's colour picker returns, #rrggbb or rgba(r, g, b, a): RGB (1, 1, 3), uint8."""
    levels = bytes.fromhex(text[1:7]) if text.startswith("#") else map(float, re.findall(r"[\d.]+", text)[:3])
    return np.array([[[round(level) for level in levels]]], np.uint8)


def segment(path: Path, segmenter: Segmenter) -> Photo:
    """Read a photo and find the car.

    Raises:
        OSError, ValueError: If it is no photo or too large; the message holds no path of this machine.
    """
    image = read_upload(path)
    started = time.perf_counter()
    logits = segmenter.logits(image)
    seconds = time.perf_counter() - started
    height, width = image.shape[:2]
    scale, description = min(1, DISPLAY_SIDE / max(height, width)), segmenter.description
    preview = cover(image, max(1, round(height * scale)), max(1, round(width * scale)))
    facts = (
        f"{width} × {height} pixels, found in {seconds:.2f} s by a U-Net trained at "
        f"{description.image_width} × {description.image_height} ({segmenter.device.type}, {segmenter.runtime.name})"
    )
    return Photo(path, preview, logits, (measure_uncertainty(logits), description.max_uncertainty), facts)


def read_upload(path: Path) -> np.ndarray:
    """Read an uploaded photo, RGB (h, w, 3), uint8; errors as in `segment`."""
    try:
        with open_picture(path, IMAGE_FORMATS, "a JPEG, PNG, WebP, BMP or TIFF photo") as picture:
            got, limit = picture.width * picture.height / 1e6, f"at most {MAX_MEGAPIXELS} million pixels"
        if got > MAX_MEGAPIXELS:
            raise ValueError(f"{path} must have {limit}, got {got:.0f} million. Save it smaller.")
        return load_image(path)
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None


def draw_viewer(visit: Visit, look: Look, note: str = "") -> str:
    """Show the visitor's current photo beside its result, and small copies of all, as HTML."""
    if not visit.photos:
        return f'<p role="status">{note}</p>'
    photo = visit.photos[visit.current]
    name, warning = html.escape(photo.path.stem), warn(photo.measure(look.threshold), *photo.uncertainty)
    before, (_, result) = look.frame(photo), look.draw(photo, photo.preview, visit.background)
    strip = "".join(
        f'<button data-number="{number}"{" aria-current=true" * (number == visit.current)}>'
        f'<img src="{to_url(cover(other.preview, 128, 192))}" alt="Show {html.escape(other.path.stem)}"></button>'
        for number, other in enumerate(visit.photos)
    )
    return f"""
    <div class="compare" style="--ratio: {before.shape[1] / before.shape[0]:.4f}">
      <img src="{to_url(before)}" alt="{name}, the photo">
      <img class="after" src="{to_url(result)}" alt="{name}, {look.view.lower()}">
      <input type="range" value="50" aria-label="Line between photo and result">
      <div class="line"></div>
    </div>
    <p role="status">{name}<strong>{f" ⚠️ {warning}" if warning else ""}</strong><br>{note}</p>
    <div class="strip">{strip if len(visit.photos) > 1 else ""}</div>"""


def to_url(image: np.ndarray) -> str:
    """Encode a picture as a data URL: what the page shows is in no file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=85, method=0)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def save(visit: Visit, photos: list[Photo], look: Look) -> str:
    """Write results at the photos' own size, a picture or an archive of several; return the file."""
    folder, paths = Path(tempfile.mkdtemp(dir=visit.folder)), []
    for photo in photos:
        kind, picture = look.draw(photo, load_image(photo.path), visit.background)
        paths.append(folder / (photo.path.stem + ENDINGS[kind]))
        paths[-1].write_bytes(encode_picture(picture, paths[-1].suffix))
    if len(paths) == 1:
        return str(paths[0])
    with zipfile.ZipFile(folder / "cars.zip", "w") as archive:  # the pictures are compressed already
        for path in paths:
            archive.write(path, path.name)
            path.unlink()
    return archive.filename


def make_app(segmenter: Segmenter):
    """Build the page, whose visitors share a network.

    Returns:
        gradio.Blocks; its `launch()` starts the page with the settings that keep it private, which may be overridden.

    Raises:
        RuntimeError: If Gradio is not installed.
    """
    root = Path(tempfile.mkdtemp(prefix="carvana-unet-")).resolve()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    # Before the import, which makes folders already.
    os.environ.update(GRADIO_TEMP_DIR=str(root), GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{error.name} must be installed for the web page. Run `pip install -r requirements-app.txt`."
        ) from None

    def work(visit, uploads, *choices):
        """Take uploads over and find the cars, showing each result as it comes."""
        room, first = MAX_PHOTOS - len(visit.photos), len(visit.photos)
        if len(uploads) > room:
            gr.Warning(f"At most {MAX_PHOTOS} photos fit here. For folders there is scripts/predict.py.")
        paths = [visit.receive(upload) for upload in uploads[:room]]
        for number, path in enumerate(paths):
            shown = draw_viewer(visit, Look(*choices), f"Looking for the car … {len(paths) - number} to go")
            yield visit, None, shown, "", gr.update(visible=True)
            try:
                visit.photos.append(segment(path, segmenter))
            except (OSError, ValueError) as error:
                gr.Warning(html.escape(str(error)), duration=20)
            visit.current = max(0, min(first, len(visit.photos) - 1))
        yield visit, None, *render(visit, *choices), gr.update(visible=bool(visit.photos))

    def render(visit, *choices):
        """Show the current photo; the network does not run."""
        look = Look(*choices)
        if not visit.photos:
            return draw_viewer(visit, look), ""
        photo = visit.photos[visit.current]
        return draw_viewer(visit, look), f"{photo.measure(look.threshold):.1%} of the photo is car. {photo.facts}"

    def select(visit, event: gr.EventData):
        visit.current = int(event.index)

    def choose_background(visit, upload):
        try:
            visit.background = read_upload(visit.receive(upload))
        except (OSError, ValueError) as error:
            gr.Warning(html.escape(str(error)), duration=20)

    def leave(request: gr.Request):
        page.state_holder.delete_state(request.session_hash)

    kinds = sorted(IMAGE_SUFFIXES)
    with gr.Blocks(title="Cut cars out of photos", analytics_enabled=False, delete_cache=CLEANING) as page:
        visit = gr.State(lambda: Visit(Path(tempfile.mkdtemp(dir=root))), delete_callback=Visit.close)
        gr.Markdown(INTRODUCTION, elem_id="title")
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="start"):
                upload = gr.Files(show_label=False, file_types=kinds, height=150, elem_id="upload")
                sample = gr.Button("Try a sample car", icon=SAMPLE, elem_id="sample")
            with gr.Row(visible=False, elem_id="work") as desk:
                with gr.Column(elem_id="results"):
                    viewer = gr.HTML(js_on_load=Path(__file__).with_suffix(".js").read_text(), elem_id="viewer")
                    with gr.Row():
                        one = gr.Button("Download", variant="primary", elem_id="one")
                        every = gr.Button("Download all", elem_id="every")
                        again = gr.Button("Start over", elem_id="again")
                with gr.Column(elem_id="controls"):
                    view = gr.Radio(list(VIEWS), value="Cut-out", label="Show", elem_id="view")
                    background = gr.Radio(
                        list(BACKGROUNDS), value="Transparent", label="Background", elem_id="background"
                    )
                    colour = gr.ColorPicker("#2f6f4f", label="Colour", visible=False)
                    own = gr.UploadButton("Choose a picture", file_types=kinds, visible=False, elem_id="own")
                    shadow = gr.Checkbox(False, label="Keep the car's shadow", elem_id="shadow")
                    crop = gr.Checkbox(False, label="Crop to the car", elem_id="crop")
                    main_car = gr.Checkbox(True, label="Only the largest car", elem_id="main")
                    threshold = gr.Slider(
                        0.05,
                        0.95,
                        round(segmenter.threshold, 2),
                        step=0.01,
                        label="Fine-tune the edge",
                        info="Is some of the car missing? Move left. Is background left? Move right.",
                        elem_id="threshold",
                    )
                    with gr.Accordion("Details", open=False, elem_id="details"):
                        details = gr.Markdown()
        file = gr.DownloadButton(visible="hidden", elem_id="file")

        private = dict(api_visibility="private", show_progress="hidden")
        look = [view, background, colour, shadow, crop, main_car, threshold]
        show = dict(fn=render, inputs=[visit, *look], outputs=[viewer, details], **private)
        outputs = [visit, upload, viewer, details, desk]
        upload.upload(work, [visit, upload, *look], outputs, trigger_mode="multiple", **private)  # more may be dropped
        sample.click(work, [visit, gr.State([SAMPLE]), *look], outputs, **private)
        for control in look:
            control.change(**show, trigger_mode="always_last")
        reveal = lambda choice: (gr.update(visible=choice == "Colour"), gr.update(visible=choice == "Picture"))
        background.change(reveal, background, [colour, own], **private)
        own.upload(choose_background, [visit, own], None, **private).then(**show)
        viewer.select(select, visit, None, **private).then(**show)
        again.click(None, js="() => location.reload()")
        press = "() => document.querySelector('#file a, a#file, #file').click()"
        save_one = lambda visit, *choices: save(visit, [visit.photos[visit.current]], Look(*choices))
        save_all = lambda visit, *choices: save(visit, visit.photos, Look(*choices))
        for button, saver in ((one, save_one), (every, save_all)):
            button.click(saver, [visit, *look], file, api_visibility="private").success(None, js=press)
        page.unload(leave)

    fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.queue(default_concurrency_limit=2)
    page.launch = functools.partial(
        page.launch,
        theme=gr.themes.Default(primary_hue="blue", **fonts),
        css_paths=Path(__file__).with_suffix(".css"),
        footer_links=[],
        share=False,
        server_name="127.0.0.1",
        ssr_mode=False,
        quiet=True,
        max_file_size=MAX_FILE_MB * 10**6,
    )
    return page


def serve(settings: Settings) -> None:
    """Start the page and keep it until Ctrl-C or SIGTERM."""
    page = make_app(Segmenter(settings.weights, settings.device))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = dict(server_name=settings.host, server_port=settings.port, share=settings.share)
    try:
        _, address, public = page.launch(**options, inline=False, prevent_thread_lock=True)
    except OSError as error:
        got = f"{settings.host} and {settings.port}"
        raise OSError(f"host and port must be this machine's and free, got {got}. Name another --port.") from error
    print(f"The page is at {public or address} and ends with Ctrl-C.", flush=True)
    page.block_thread()


if __name__ == "__main__":
    run_command(lambda args: serve(parse_settings(Settings, args, __doc__)))
