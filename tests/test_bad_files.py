"""Photos and masks that are broken, odd or hostile: the right pixels, or one sentence that names the file."""

import io
import os
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from carvana.masks import load_mask
from carvana.pictures import load_image, read_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import data

# A scene that tells its four corners apart: red, green, blue, white.
CORNERS = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [245, 245, 245]]], np.uint8)


def scene(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(CORNERS).resize((width, height), Image.Resampling.NEAREST)


def assert_scene(photo: np.ndarray, width: int = 64, height: int = 48, tolerance: int = 40, grey: bool = False) -> None:
    """Compare the middles of the four quarters."""
    assert photo.shape == (height, width, 3) and photo.dtype == np.uint8
    seen = photo[height // 4 :: max(1, height // 2), width // 4 :: max(1, width // 2)][:2, :2].astype(int)
    wanted = np.repeat(np.asarray(Image.fromarray(CORNERS).convert("L"))[..., None], 3, axis=2) if grey else CORNERS
    assert np.abs(seen - wanted).max() <= tolerance


def refused(path: Path, read=load_image) -> str:
    """The sentence with which a file is refused: one line, the file's name in it, no error of a library left bare."""
    with pytest.raises((ValueError, OSError)) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message.replace(str(path), "") and message.endswith(".")
    return message


def encoded(picture: Image.Image, kind: str, **keywords) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **keywords)
    return buffer.getvalue()


def jpeg(picture: Image.Image, **keywords) -> bytes:
    return encoded(picture, "JPEG", quality=95, **keywords)


def frames(kind: str, **keywords) -> bytes:
    return encoded(scene(), kind, save_all=True, append_images=[Image.new("RGB", (64, 48))], **keywords)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png(width: int, height: int, content: bytes, bits: int = 8) -> bytes:
    """Put an RGB PNG together, which Pillow writes with 8 bits only."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# ------------------------------------------------------------------------------------------------ photos that are right

GREY_16 = np.asarray(scene().convert("L")).astype(np.uint16) * 257
COLOUR_16 = (np.asarray(scene()).astype(np.uint16) * 257).astype(">u2").reshape(48, -1)
PALETTE = scene().convert("P", palette=Image.Palette.ADAPTIVE)


READABLE = {
    "jpeg": jpeg(scene()),
    "progressive jpeg": jpeg(scene(), progressive=True),
    "cmyk jpeg": jpeg(scene().convert("CMYK")),
    "ycbcr tiff": encoded(scene().convert("YCbCr"), "TIFF", compression="jpeg", quality=95),
    "cmyk tiff": encoded(scene().convert("CMYK"), "TIFF"),
    "png": encoded(scene(), "PNG"),
    "png with opaque alpha": encoded(scene().convert("RGBA"), "PNG"),
    "palette png": encoded(PALETTE, "PNG"),
    "palette png with transparency": encoded(PALETTE, "PNG", transparency=255),
    "webp": encoded(scene(), "WEBP", quality=95),
    "lossless webp with alpha": encoded(scene().convert("RGBA"), "WEBP", lossless=True),
    "bmp": encoded(scene(), "BMP"),
    "tiff": encoded(scene(), "TIFF"),
    "lzw tiff": encoded(scene(), "TIFF", compression="tiff_lzw"),
    "rgba tiff": encoded(scene().convert("RGBA"), "TIFF"),
    "16-bit rgb png": png(64, 48, b"".join(b"\0" + row.tobytes() for row in COLOUR_16), bits=16),
    "jpeg with a profile that is none": jpeg(scene(), icc_profile=b"no profile at all"),
    "jpeg with rubbish after it": jpeg(scene()) + b"rubbish" * 99,
    "phone jpeg with a preview": frames("MPO", quality=95),
}
GREY = {
    "grey jpeg": jpeg(scene().convert("L")),
    "grey png": encoded(scene().convert("L"), "PNG"),
    "grey png with alpha": encoded(scene().convert("LA"), "PNG"),
    "16-bit grey png": encoded(Image.fromarray(GREY_16), "PNG"),
    "16-bit grey tiff": encoded(Image.fromarray(GREY_16), "TIFF"),
    "big-endian 16-bit grey tiff": encoded(Image.frombytes("I;16B", (64, 48), GREY_16.astype(">u2").tobytes()), "TIFF"),
}


@pytest.mark.parametrize("kind", [*READABLE, *GREY])
def test_a_photo_of_this_kind_is_read_in_its_colours(tmp_path, kind):
    path = tmp_path / "x.jpg"
    path.write_bytes({**READABLE, **GREY}[kind])
    assert_scene(load_image(path), grey=kind in GREY)


def test_a_colour_profile_becomes_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A space whose red looks blue.
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    for name, picture in {"plain": scene(), "alpha": scene().convert("RGBA")}.items():
        (tmp_path / name).write_bytes(encoded(picture, "PNG", icc_profile=swapped))
        photo = load_image(tmp_path / name)
        assert np.abs(photo[..., ::-1].astype(int) - np.asarray(scene())).max() <= 3
    (tmp_path / "srgb").write_bytes(encoded(scene(), "PNG", icc_profile=srgb))
    assert np.array_equal(load_image(tmp_path / "srgb"), np.asarray(scene()))


def test_transparent_pixels_become_white(tmp_path):
    picture = scene().convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 0))
    picture.save(tmp_path / "x.png")
    assert (load_image(tmp_path / "x.png") == 255).all()


# Pillow 12 maps a plain TIFF into memory with height and width exchanged, when it opens it by its name.
FORMS = "JPEG RGB, PNG RGB, PNG I;16, WEBP RGB, TIFF RGB, TIFF RGBA, TIFF CMYK, TIFF L".split(", ")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255])
def test_a_camera_held_any_way_gives_an_upright_photo(tmp_path, orientation, form):
    ways = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270".split()
    kind, mode = form.split()
    stored = Image.fromarray(GREY_16) if mode == "I;16" else scene().convert(mode)
    if 2 <= orientation <= 8:
        stored = stored.transpose(Image.Transpose[ways[orientation - 2]])
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(stored, kind, exif=turned(orientation), quality=95))
    assert_scene(load_image(path), grey=mode in ("I;16", "L"))
    # Half of it, 24x32, is a third more than 18x24; a line or a column more would not leave as much.
    for least, decoded in (((18, 24), (24, 32)), ((19, 24), (48, 64)), ((18, 25), (48, 64))):
        reduced, native_size = read_image(path, target_size=lambda *size: least if size == (48, 64) else None)
        assert native_size == (48, 64)
        assert reduced.shape[:2] == (decoded if kind == "JPEG" else (48, 64))


@pytest.mark.parametrize("width, height", [(1, 1), (1, 50), (50, 1), (20_000, 20), (20, 20_000), (3, 7)])
def test_photos_of_any_shape_are_read_and_resized(tmp_path, width, height):
    pair = data.Pair("x", tmp_path / "x.jpg", tmp_path / "x.png", "x", 0)
    scene(width, height).save(pair.image_path, quality=95)
    Image.new("1", (width, height), 1).save(pair.mask_path)
    image, coverage, _, facts = data.read_pair(pair, 48, 32)
    assert image.shape == (32, 48, 3) and (coverage == 255).all() and facts.size == (height, width) and facts.share == 1


# --------------------------------------------------------------------------------------------- photos that are refused


def cut_short(content: bytes, share: float) -> bytes:
    return content[: int(share * len(content))]


def zip_of_a_photo() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.jpg", jpeg(scene()))
    return buffer.getvalue()


PNG, BMP = encoded(scene(), "PNG"), encoded(scene(), "BMP")
BROKEN = {
    "nothing": (b"", "is empty"),
    "one byte": (b"\xff", "must be a JPEG"),
    "text": (b"This is a text file, renamed.", "must be a JPEG"),
    "zeros": (bytes(5000), "must be a JPEG"),
    "an svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "must be a JPEG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "must be a JPEG"),
    "a zip archive": (zip_of_a_photo(), "must be a JPEG"),
    "a gif": (encoded(scene(), "GIF"), "must be a JPEG"),
    "an animated webp": (frames("WEBP"), "one picture, got 2 frames"),
    "an animated png": (frames("PNG"), "one picture, got 2 frames"),
    "a tiff of two pages": (frames("TIFF"), "one picture, got 2 frames"),
    "a jpeg cut in half": (cut_short(jpeg(scene(640, 480)), 0.5), "damaged or cut short"),
    "a jpeg without its end": (cut_short(jpeg(scene(640, 480)), 0.95), "damaged or cut short"),
    "a jpeg's header alone": (jpeg(scene())[:200], "damaged or cut short|must be a JPEG"),
    "a png cut in half": (cut_short(PNG, 0.5), "damaged or cut short"),
    "a webp cut in half": (cut_short(encoded(scene(), "WEBP"), 0.5), "damaged or cut short|must be a JPEG"),
    "a bmp cut in half": (cut_short(BMP, 0.5), "damaged or cut short"),
    "a tiff cut in half": (cut_short(encoded(scene(), "TIFF"), 0.5), "damaged or cut short|must be a JPEG"),
    "a png with a wrong checksum": (PNG[:20] + b"\x99" + PNG[21:], "damaged or cut short|must be a JPEG"),
    "a png of a terapixel": (png(10**6, 10**6, b""), "at most 179 million pixels"),
    "a png of no width": (png(0, 10, b""), "damaged or cut short|must be a JPEG"),
    "a bmp of negative width": (BMP[:18] + struct.pack("<i", -5) + BMP[22:], "damaged|must be a JPEG|at most"),
    "a png whose text unpacks to 16 megabytes": (
        PNG[:33] + chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**24))) + PNG[33:],
        "damaged or cut short|must be a JPEG",
    ),
    "32-bit numbers": (encoded(Image.new("I", (4, 4)), "TIFF"), "8 or 16 bits"),
    "floating point": (encoded(Image.new("F", (4, 4)), "TIFF"), "8 or 16 bits"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_whole_photo_is_refused_by_name(tmp_path, kind):
    content, reason = BROKEN[kind]
    (tmp_path / "x.jpg").write_bytes(content)
    assert re.search(reason, refused(tmp_path / "x.jpg"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_that_is_whole_is_refused_before_it_takes_memory(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")  # 25 kB of file, 200 million pixels
    for read in (load_image, load_mask):
        assert "at most 179 million pixels" in refused(tmp_path / "bomb.png", read)


def test_things_that_are_not_files_are_refused(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening one waits for a writer, for ever
    os.symlink("/dev/zero", tmp_path / "zero.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    os.symlink("nowhere.jpg", tmp_path / "dangling.jpg")
    reasons = dict.fromkeys(["folder.jpg", "pipe.jpg", "zero.jpg"], "must be a file, got a folder, a pipe or a device")
    reasons |= dict.fromkeys(["loop.jpg", "dangling.jpg"], "cannot be read")
    for name, reason in reasons.items():
        for read in (load_image, load_mask):
            assert reason in refused(tmp_path / name, read)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_photo_without_the_right_to_read_it_is_refused(tmp_path):
    scene().save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").chmod(0)
    assert "cannot be read (Permission denied)" in refused(tmp_path / "x.jpg")


NAMES = (
    "with space.jpg|two  spaces .jpg|quote'.jpg|double\"quote.jpg|line\nbreak.jpg|tab\t.jpg|автомобиль.jpg|自動車.jpg|"
    "e\u0301 combining.jpg|🚗.jpg|percent%20.jpg|brackets[0-9]*.jpg|$(touch x).jpg|-rf.jpg|back\\slash.jpg|a.b.c.jpg|"
    "UPPER.JPG|" + "x" * 240 + ".jpg|" + os.fsdecode(b"no text \xff\xfe.jpg")
).split("|")


@pytest.mark.parametrize("name", NAMES)
def test_a_photo_of_any_name_is_found_paired_and_read(tmp_path, name):
    (tmp_path / "photos").mkdir(), (tmp_path / "masks").mkdir()
    scene().save(tmp_path / "photos" / name, "JPEG", quality=95)
    stem = Path(name).stem
    Image.new("1", (64, 48), 1).save(tmp_path / "masks" / f"{stem}.png")
    pairs, *unmatched = data.find_pairs(tmp_path / "photos", tmp_path / "masks")
    assert [pair.name for pair in pairs] == [stem] and unmatched == [[], []]
    cache = data.build_cache(pairs, 48, 32, tmp_path / "cache", quiet=True)
    assert_scene(cache.images[0], 48, 32)


# ------------------------------------------------------------------------------------------------------------- masks

HALF = np.zeros((48, 64), np.uint8)
HALF[:, 32:] = 1


def palette_mask(values: np.ndarray, palette: list[int], kind: str = "GIF", **keywords) -> bytes:
    picture = Image.fromarray(values).convert("P")
    picture.putpalette(palette)
    return encoded(picture, kind, **keywords)


BLACK_WHITE = [0, 0, 0, 255, 255, 255]
WHITE = Image.fromarray(HALF * 255)
NOISE = Image.effect_noise((64, 48), 99)
GOOD_MASKS = {
    "carvana's gif": palette_mask(HALF, BLACK_WHITE),
    "a gif of reversed palette": palette_mask(1 - HALF, [255, 255, 255, 0, 0, 0]),
    "a gif of two colours": palette_mask(HALF, [128, 0, 0, 0, 255, 0]),
    "a gif with a transparent background": palette_mask(HALF, BLACK_WHITE, transparency=0),
    "a palette png": palette_mask(HALF, BLACK_WHITE, "PNG"),
    "a png of 0 and 255": encoded(WHITE, "PNG"),
    "a png of 0 and 1": encoded(Image.fromarray(HALF), "PNG"),
    "a png of two greys": encoded(Image.fromarray(HALF * 190 + 10), "PNG"),
    "a png of one bit": encoded(WHITE.convert("1"), "PNG"),
    "a png of three channels": encoded(WHITE.convert("RGB"), "PNG"),
    "a png with opaque alpha": encoded(WHITE.convert("RGBA"), "PNG"),
    "a 16-bit png": encoded(Image.fromarray(HALF.astype(np.uint16) * 65535), "PNG"),
    "a tiff of floating point": encoded(Image.fromarray(HALF.astype(np.float32)), "TIFF"),
}
BAD_MASKS = {
    "nothing": (b"", "is empty"),
    "text": (b"not a mask", "must be a GIF, PNG, TIFF or BMP mask"),
    "a jpeg": (encoded(WHITE, "JPEG"), "must be a GIF, PNG, TIFF or BMP mask, got a JPEG, which smears the edge"),
    "a grey picture": (encoded(Image.linear_gradient("L"), "PNG"), "must hold two values"),
    "a colour photo": (encoded(Image.merge("RGB", (NOISE, WHITE, NOISE)), "PNG"), "must hold two values"),
    "probabilities": (encoded(Image.fromarray(HALF / np.float32(3)), "TIFF"), "whole numbers from 0 to 65535"),
    "an animated gif": (frames("GIF"), "2 frames"),
    "a gif cut in half": (cut_short(encoded(NOISE, "GIF"), 0.7), "damaged or cut short"),
    "a png cut in half": (cut_short(encoded(NOISE, "PNG"), 0.5), "damaged or cut short"),
    "a gif's header alone": (encoded(WHITE, "GIF")[:12], "damaged or cut short|must be a GIF"),
    "a png of a terapixel": (png(10**6, 10**6, b""), "at most 179 million pixels"),
    "a gif of 65535x65535": (b"GIF89a\xff\xff\xff\xff\0\0\0;", "at most 179 million pixels|damaged|must be a GIF"),
}


@pytest.mark.parametrize("kind", GOOD_MASKS)
def test_a_mask_of_this_kind_is_read_as_what_is_seen(tmp_path, kind):
    (tmp_path / "x_mask.gif").write_bytes(GOOD_MASKS[kind])
    mask = load_mask(tmp_path / "x_mask.gif")
    assert mask.dtype == bool and np.array_equal(mask, HALF == 1)


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_file_that_is_no_mask_is_refused_by_name(tmp_path, kind):
    content, reason = BAD_MASKS[kind]
    (tmp_path / "x_mask.gif").write_bytes(content)
    assert re.search(reason, refused(tmp_path / "x_mask.gif", load_mask))


# ------------------------------------------------------------------------------------- one bad file among good ones


def test_check_and_training_name_the_files_to_mend_and_the_good_ones_are_still_read(tiny_set, tmp_path, run_script):
    shutil.copytree(tiny_set, tmp_path / "set")
    photos, masks = tmp_path / "set/train", tmp_path / "set/train_masks"
    photo = lambda number: photos / f"{number // 4 + 1:012x}_{number % 4 + 1:02d}.jpg"
    mask = lambda number: masks / f"{photo(number).stem}_mask.gif"
    photo(0).write_bytes(b"")
    photo(1).write_text("text")
    os.truncate(photo(2), 700)
    photo(3).unlink(), os.symlink(photo(3).name, photo(3))
    mask(4).unlink(), os.symlink("nowhere", mask(4))
    mask(5).unlink()
    Image.new("L", (20, 20)).save(mask(6))
    Image.new("L", (96, 64)).save(mask(7))
    Image.linear_gradient("L").rotate(90).resize((96, 64)).save(mask(8))
    (photos / "folder.jpg").mkdir()
    (photos / "line\nbreak.jpg").write_bytes(b"GIF89a")
    shutil.copy(mask(9), masks / "line\nbreak_mask.gif")
    before = sorted((tmp_path / "set").rglob("*"))
    folders = "--train-image-dir", photos, "--train-mask-dir", masks
    result = run_script("data.py", "check", *folders, cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    lines = result.stdout.splitlines()
    for file, words in {
        photo(0): "is empty",
        photo(1): "must be a JPEG",
        photo(2): "is damaged or cut short",
        photo(3): "cannot be read",
        mask(4): "cannot be read",
        photo(5): "1 photo without a mask",
        mask(6): "must have the size of its photo, 96x64, got 20x20",
        mask(7): "1 of 4 photos without a car, which is fine",
        mask(8): "must hold two values, background and car, got",
    }.items():
        assert any(file.name in line and words in line for line in lines), result.stdout
    assert {"pairs:    12", "to mend:  10"} <= set(lines) and "96x64, 4 pairs" in result.stdout
    assert sorted((tmp_path / "set").rglob("*")) == before  # nothing is written where photos are read

    places = "--cache-dir", tmp_path / "c", "--checkpoint-dir", tmp_path / "k", "--prediction-dir", tmp_path / "p"
    result = run_script("train.py", *folders, "--image-width", 48, "--image-height", 32, *places, cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and f"{photo(0)} is empty" in last and "check` names 7 more." in last
    assert not list((tmp_path / "c").glob("48x32*"))


@pytest.mark.parametrize(
    "damage", [lambda path: os.truncate(path, 5000), Path.unlink, lambda path: path.write_text("x")]
)
def test_a_damaged_cache_is_made_anew(pairs, tmp_path, damage):
    file = data.build_cache(pairs, 48, 32, tmp_path, quiet=True).path / "images.npy"
    content = file.read_bytes()
    damage(file)
    data.build_cache(pairs, 48, 32, tmp_path, quiet=True)
    assert file.read_bytes() == content


def test_a_build_that_was_killed_leaves_nothing_behind(pairs, tmp_path):
    (tmp_path / "48x32-0123456789abcdef.partial").mkdir()
    (tmp_path / "48x32-0123456789abcdef.partial" / "images.npy").write_bytes(bytes(10**6))
    cache = data.build_cache(pairs, 48, 32, tmp_path, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} <= {cache.path.name, ".lock"}


# --------------------------------------------------------------------------------------------------------- properties

MODES = dict(JPEG="RGB L CMYK", PNG="RGB RGBA L LA P 1", WEBP="RGB RGBA", BMP="RGB L P 1", TIFF="RGB RGBA L CMYK P 1")


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=150)
@given(
    kind=st.sampled_from([(form, mode) for form, modes in MODES.items() for mode in modes.split()]),
    seed=st.integers(0, 10**6),
    how=st.sampled_from(["cut", "flip", "splice", "zero"]),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged tags; training does not stop for that
def test_any_damaged_photo_gives_pixels_or_a_sentence(tmp_path, kind, seed, how):
    form, mode = kind
    rng = np.random.default_rng(seed)
    content = bytearray(encoded(scene(40, 30).convert(mode), form))
    start, stop = sorted(rng.integers(0, len(content), 2).tolist())
    if how == "cut":
        content = content[:start]
    elif how == "flip":
        for position in rng.integers(0, len(content), 5):
            content[position] ^= 1 << rng.integers(8)
    elif how == "splice":
        content = content[:start] + content[stop:]
    else:
        content[start:stop] = bytes(stop - start)
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for read in (load_image, load_mask):
        try:
            picture = read(path)
        except (ValueError, OSError) as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert picture.dtype in (np.uint8, bool) and picture.size > 0
