"""A web page that cuts cars out of photos, on this machine alone.

    python scripts/app.py                     then open the address that it prints
    python scripts/app.py --share             also a public address, for 72 hours, through Gradio's servers

In a notebook:

    from app import Segmenter, make_app
    make_app(Segmenter()).launch()

The page loads nothing from the internet and reports to nobody. What a visitor uploads is deleted when the page is closed;
an upload that was still on its way then, when nobody has the page open any more.
"""

import atexit
import functools
import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from carvana.cutout import cover, encode_picture, warn
from carvana.pictures import IMAGE_SUFFIXES, load_image
from carvana.segmenter import DEFAULT_WEIGHTS, Segmenter, measure_uncertainty
from carvana.visitors import Visitors, choose_background, draw_view, segment_upload, write_files
from extra import run_command
from PIL import Image

from data import PROJECT_DIR

WELCOME = "Drop one or several photos on the left; then drag the line between photo and result."
MAX_FILE_MB = 40
MAX_PHOTOS = 50  # of a visitor
BACKGROUNDS = ["transparent", "white", "grey", "colour", "photo"]
CSS = """
.gradio-container, .gradio-container .main {width: 100% !important; max-width: 1240px !important; margin: 0 auto !important}
#title h1 {font-size: 1.7rem; margin: 0.4rem 0 0} #title p {opacity: 0.75; margin: 0.2rem 0 0.4rem}
#facts {min-height: 2.6rem; padding: 0 0.2rem} #facts p {margin: 0.1rem 0}
#view label, #background label {padding: 0.35rem 0.5rem}
#photos, #photos .grid-wrap {height: auto !important; min-height: 0 !important}
#photos .grid-container {grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)) !important}
#photos .thumbnail-lg {aspect-ratio: 3 / 2; min-width: 0; width: 100%}
"""
# Should anything in the page ask for an address elsewhere, the browser refuses.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


@dataclass(frozen=True)
class Settings:
    """The web page; each field is an option of the command line."""

    port: int | None = None  # of the page's address; None for the first free one from 7860
    host: str = "127.0.0.1"  # 0.0.0.0 lets other machines of the network open the page
    share: bool = False  # ask Gradio's servers for a public address
    weights: Path = DEFAULT_WEIGHTS  # .safetensors
    device: str = "auto"  # cuda, mps, cpu, or auto for the first of these that is there


def make_app(segmenter: Segmenter):
    """Build the page.

    Args:
        segmenter: The network that it uses; visitors share it.

    Returns:
        gradio.Blocks; its `launch()` starts the page with the settings that keep it private, which may be overridden.

    Raises:
        RuntimeError: If Gradio is not installed.
    """
    root = Path(tempfile.mkdtemp(prefix="carvana-unet-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    # Before the import, which makes folders already.
    os.environ.update(GRADIO_TEMP_DIR=str(root), GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        import gradio as gr
        from starlette.middleware import Middleware
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{error.name} must be installed for the web page. Run `pip install -r requirements-app.txt`."
        ) from None

    visitors = Visitors(root)

    def for_visitor(handler):
        """Delete what comes of a handler's work when the visitor left meanwhile: it cannot be stopped half-way."""

        @functools.wraps(handler)
        def handle(*args):
            [visitor] = (arg.session_hash for arg in args if isinstance(arg, gr.Request))
            try:
                return handler(*args)
            finally:
                if visitor in visitors.gone:
                    visitors.leave(visitor)
                    raise gr.Error("The page was closed.", print_exception=False)

        return handle

    size = f"{segmenter.description.image_width}x{segmenter.description.image_height}"
    machine = f"{segmenter.device.type}, {segmenter.runtime.name}"

    @for_visitor
    def render(photos, index, view, threshold, choice, colour, own, request: gr.Request):
        """Show a photo anew: the network does not run."""
        if not photos:
            return None, WELCOME
        started = time.perf_counter()
        shown = photos[min(index, len(photos) - 1)]
        before, after, size, share = draw_view(shown, view, read_choice(choice, colour, own), threshold)
        folder = visitors.folder(request.session_hash, passing=True)
        paths = folder / "before.jpg", folder / "after.jpg"
        for path, picture in zip(paths, (before, after)):
            path.write_bytes(encode_picture(picture.convert("RGB"), ".jpg"))
        drawn = time.perf_counter() - started
        facts = f"**{escape(shown.name)}**: car **{share:.1%}** of the photo, {size[1]} × {size[0]} pixels; "
        facts += f"network {shown.seconds:.2f} s, pictures {drawn:.2f} s ({machine})"
        warning = warn(share, measure_uncertainty(shown.logits))
        return tuple(map(str, paths)), facts + (f"\n\n⚠️ {warning}" if warning else "")

    def read_choice(choice, colour, own):
        try:
            return choose_background(choice, colour, own)
        except ValueError as error:
            raise gr.Error(escape(str(error)), title="This background cannot be used", print_exception=False) from None

    @for_visitor
    def claim(files, request: gr.Request):
        """Note whose the photos are, without waiting in the queue, which forgets a visitor who leaves."""
        visitors.claim(request.session_hash, [files] if isinstance(files, str) else files or [])

    @for_visitor
    def receive(files, photos, request: gr.Request, progress=gr.Progress()):
        """Run the network on newly uploaded photos."""
        photos, files = list(photos), files or []
        for path in progress.tqdm([Path(file) for file in files], desc="finding cars"):
            if request.session_hash in visitors.gone:
                break
            if len(photos) == MAX_PHOTOS:
                gr.Warning(
                    f"Only the first {MAX_PHOTOS} photos were taken. Clear them, or use scripts/predict.py for a folder."
                )
                break
            try:
                photos.append(segment_upload(path, segmenter))
            except ValueError as error:
                gr.Warning(escape(str(error)), title="Not a photo that can be used", duration=20)
        return photos, max(0, len(photos) - 1), None, draw_gallery(photos, request), gr.update(visible=bool(photos))

    def draw_gallery(photos, request):
        folder = visitors.folder(request.session_hash)
        thumbnails = []
        for number, shown in enumerate(photos):
            path = folder / f"{number}.jpg"
            path.write_bytes(encode_picture(Image.fromarray(cover(load_image(shown.path), 120, 180)), ".jpg"))
            thumbnails.append((str(path), shown.name))
        return gr.update(value=thumbnails, visible=len(photos) > 1)

    def clear():
        return [], 0, gr.update(value=None, visible=False), gr.update(visible=False)

    def kinds_of(view, background) -> list[str]:
        return ["cutout" if background is None else "background"] if view == "cut-out" else [view]

    @for_visitor
    def download_one(photos, index, view, threshold, choice, colour, own, request: gr.Request):
        shown, background = photos[min(index, len(photos) - 1)], read_choice(choice, colour, own)
        folder = visitors.folder(request.session_hash, passing=True)
        [path] = write_files(shown, folder, shown.name, threshold, kinds_of(view, background), background)
        return str(path)

    @for_visitor
    def download_all(photos, index, view, threshold, choice, colour, own, request: gr.Request):
        background = read_choice(choice, colour, own)
        kinds = ["mask", "cutout", "overlay"] + (["background"] if background is not None else [])
        folder, used = visitors.folder(request.session_hash, passing=True), set()
        with zipfile.ZipFile(folder / "cars.zip", "w") as archive:  # PNG and JPEG are packed already
            for shown in photos:
                names = (shown.name if count == 1 else f"{shown.name} ({count})" for count in itertools.count(1))
                name = next(name for name in names if name.casefold() not in used)
                used.add(name.casefold())
                for path in write_files(shown, folder, name, threshold, kinds, background):
                    archive.write(path, path.name)
                    path.unlink()
        return str(folder / "cars.zip")

    with gr.Blocks(title="Cut cars out of photos", analytics_enabled=False, delete_cache=(600, 24 * 3600)) as page:
        about = f"U-Net trained at {size} pixels, running on this machine ({machine}). Photos stay here."
        gr.Markdown(f"# Cut cars out of photos\n{about}", elem_id="title")
        photos, index = gr.State([]), gr.State(0)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                upload = gr.Files(label="Photos", file_types=sorted(IMAGE_SUFFIXES), height=170, elem_id="upload")
                view = gr.Radio(["cut-out", "mask", "overlay"], value="cut-out", label="Show", elem_id="view")
                choice = gr.Radio(BACKGROUNDS, value="transparent", label="New background", elem_id="background")
                colour = gr.ColorPicker("#2f6f4f", label="Colour", visible=False)
                own = gr.File(
                    label="Background photo",
                    file_types=sorted(IMAGE_SUFFIXES),
                    height=110,
                    visible=False,
                    elem_id="own",
                )
                threshold = gr.Slider(
                    0.05,
                    0.95,
                    round(segmenter.threshold, 2),
                    step=0.01,
                    label="Threshold",
                    elem_id="threshold",
                    info="Probability from which a pixel is car. Lower keeps more, higher less.",
                )
            with gr.Column(scale=5, min_width=480):
                slider = gr.ImageSlider(
                    show_label=False, interactive=False, height=500, buttons=["fullscreen"], elem_id="result"
                )
                facts = gr.Markdown(WELCOME, elem_id="facts")
                with gr.Row(visible=False) as actions:
                    one = gr.Button("Download picture", variant="primary", elem_id="one")
                    every = gr.Button("Download all (ZIP)", elem_id="every")
                    empty = gr.Button("Clear", elem_id="clear")
                gallery = gr.Gallery(
                    show_label=False,
                    allow_preview=False,
                    fit_columns=False,
                    visible=False,
                    buttons=[],
                    elem_id="photos",
                )
                file = gr.DownloadButton(visible="hidden", elem_id="file")

        private = dict(api_visibility="private", show_progress="hidden")
        look = [photos, index, view, threshold, choice, colour, own]
        own.upload(claim, own, None, queue=False, **private)
        upload.upload(claim, upload, None, queue=False, **private).then(
            receive,
            [upload, photos],
            [photos, index, upload, gallery, actions],
            api_visibility="private",
            show_progress_on=slider,
        ).then(render, look, [slider, facts], **private)
        for control in (view.change, threshold.change, colour.change, own.change):
            control(render, look, [slider, facts], trigger_mode="always_last", **private)
        reveal = lambda kind: (gr.update(visible=kind == "colour"), gr.update(visible=kind == "photo"))
        choice.change(reveal, choice, [colour, own], **private)
        choice.change(render, look, [slider, facts], trigger_mode="always_last", **private)
        empty.click(clear, None, [photos, index, gallery, actions], **private).then(
            render, look, [slider, facts], **private
        )

        def select(event: gr.SelectData):
            return event.index

        gallery.select(select, None, index, **private).then(render, look, [slider, facts], **private)
        press = "() => document.querySelector('#file a, a#file, #file').click()"
        one.click(download_one, look, file, api_visibility="private").success(None, js=press)
        every.click(download_all, look, file, api_visibility="private").success(None, js=press)

        def arrive(request: gr.Request):
            visitors.arrive(request.session_hash)

        def leave(request: gr.Request):
            visitors.leave(request.session_hash)

        page.load(arrive, **private)
        page.unload(leave)

    plain = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    page.queue(default_concurrency_limit=4)
    page.launch = functools.partial(
        page.launch,
        theme=plain,
        css=CSS,
        footer_links=[],
        run_history=False,
        share=False,
        server_name="127.0.0.1",
        ssr_mode=False,
        quiet=True,
        max_file_size=MAX_FILE_MB * 10**6,
        allowed_paths=[],
        blocked_paths=[str(PROJECT_DIR)],
        enable_monitoring=False,
        app_kwargs=dict(middleware=[Middleware(AddPolicy)], docs_url=None, redoc_url=None, openapi_url=None),
    )
    return page


def escape(text: str) -> str:
    """Show text as it is where Markdown is read."""
    return "".join(f"&#{ord(char)};" if not (char.isalnum() or char == " ") else char for char in text)


class AddPolicy:
    """Send the content security policy with each answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def serve(settings: Settings) -> int:
    """Start the page and keep it until Ctrl-C."""
    page = make_app(Segmenter(settings.weights, settings.device))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        _, address, public = page.launch(
            server_name=settings.host,
            server_port=settings.port,
            share=settings.share,
            inline=False,
            prevent_thread_lock=True,
        )
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise OSError(
            f"port must be free, got {settings.port}, which another program uses. Name another --port, or none."
        ) from error
    print(f"The page is at {public or address} and ends with Ctrl-C.", flush=True)
    while not stop.wait(0.5):  # with a timeout, since Windows otherwise does not notice Ctrl-C
        pass
    page.close(verbose=False)
    return 0


if __name__ == "__main__":
    run_command(lambda args: serve(tyro.cli(Settings, args=args, description=__doc__)))
