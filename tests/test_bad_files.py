"""Photos and masks that are broken, odd or hostile: the right pixels, or one sentence that names the file."""

import io
import os
import re
import shutil
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from carvana.masks import load_mask
from carvana.pictures import IMAGE_SUFFIXES, area_average, load_image, read_image
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


# ------------------------------------------------------------------------------------------------ photos that are right

READABLE = {
    "jpeg": lambda: encoded(scene(), "JPEG", quality=95),
    "progressive jpeg": lambda: encoded(scene(), "JPEG", quality=95, progressive=True),
    "cmyk jpeg": lambda: encoded(scene().convert("CMYK"), "JPEG", quality=95),
    "ycbcr tiff": lambda: encoded(scene().convert("YCbCr"), "TIFF", compression="jpeg", quality=95),
    "cmyk tiff": lambda: encoded(scene().convert("CMYK"), "TIFF"),
    "png": lambda: encoded(scene(), "PNG"),
    "png with opaque alpha": lambda: encoded(scene().convert("RGBA"), "PNG"),
    "palette png": lambda: encoded(scene().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "palette png with transparency": lambda: encoded(
        scene().convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=255
    ),
    "webp": lambda: encoded(scene(), "WEBP", quality=95),
    "lossless webp with alpha": lambda: encoded(scene().convert("RGBA"), "WEBP", lossless=True),
    "bmp": lambda: encoded(scene(), "BMP"),
    "tiff": lambda: encoded(scene(), "TIFF"),
    "lzw tiff": lambda: encoded(scene(), "TIFF", compression="tiff_lzw"),
    "rgba tiff": lambda: encoded(scene().convert("RGBA"), "TIFF"),
    "16-bit rgb png": lambda: png_of_16_bits(),
    "png called jpg": lambda: encoded(scene(), "PNG"),
    "jpeg with a colour profile": lambda: encoded(scene(), "JPEG", quality=95, icc_profile=b"no profile at all"),
    "jpeg with rubbish after it": lambda: encoded(scene(), "JPEG", quality=95) + b"rubbish" * 99,
    "jpeg with a broken exif block": lambda: encoded(
        scene(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    ),
    "phone jpeg with a preview": lambda: encoded(
        scene(), "MPO", save_all=True, append_images=[scene(32, 24)], quality=95
    ),
}
GREY = {
    "grey jpeg": lambda: encoded(scene().convert("L"), "JPEG", quality=95),
    "grey png": lambda: encoded(scene().convert("L"), "PNG"),
    "grey png with alpha": lambda: encoded(scene().convert("LA"), "PNG"),
    "16-bit grey png": lambda: encoded(
        Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257), "PNG"
    ),
    "16-bit grey tiff": lambda: encoded(
        Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257), "TIFF"
    ),
    "big-endian 16-bit grey tiff": lambda: big_endian_tiff(),
}


def png_of_16_bits() -> bytes:
    rows = (np.asarray(scene()).astype(np.uint16) * 257).astype(">u2").reshape(48, -1)
    return png(64, 48, 16, b"".join(b"\0" + row.tobytes() for row in rows))


def big_endian_tiff() -> bytes:
    """A TIFF whose 16-bit numbers have their high byte first."""
    pixels = (np.asarray(scene().convert("L")).astype(np.uint16) * 257).astype(">u2").tobytes()
    tags = (
        (256, 3, 64),
        (257, 3, 48),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 200),
        (277, 3, 1),
        (278, 3, 48),
        (279, 4, len(pixels)),
    )
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    head = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    return head.ljust(200, b"\0") + pixels


@pytest.mark.parametrize("kind", READABLE)
def test_a_photo_of_this_kind_is_read_in_its_colours(tmp_path, kind):
    path = tmp_path / "x.jpg"
    path.write_bytes(READABLE[kind]())
    if kind == "jpeg with a broken exif block":  # the pixels are sound: right pixels or a sentence, never a crash
        try:
            assert_scene(load_image(path))
        except ValueError:
            refused(path)
    else:
        assert_scene(load_image(path))


@pytest.mark.parametrize("kind", GREY)
def test_a_grey_photo_is_read_as_three_equal_channels(tmp_path, kind):
    path = tmp_path / "x.png"
    path.write_bytes(GREY[kind]())
    assert_scene(load_image(path), grey=True, tolerance=6)


def test_a_colour_profile_becomes_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = (
        srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    )  # a space whose red looks blue
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_any_way_gives_an_upright_photo(tmp_path, orientation, kind):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions
    stored = scene()
    if orientation in undo:
        stored = stored.transpose(
            {
                2: Image.Transpose.FLIP_LEFT_RIGHT,
                3: Image.Transpose.ROTATE_180,
                4: Image.Transpose.FLIP_TOP_BOTTOM,
                5: Image.Transpose.TRANSPOSE,
                6: Image.Transpose.ROTATE_90,
                7: Image.Transpose.TRANSVERSE,
                8: Image.Transpose.ROTATE_270,
            }[orientation]
        )
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(stored, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 95})))
    assert_scene(load_image(path))
    # Half of it, 24x32, is a third more than 18x24; a line or a column more would not leave as much.
    for least, decoded in (((18, 24), (24, 32)), ((19, 24), (48, 64)), ((18, 25), (48, 64))):
        reduced, native_size = read_image(
            path, target_size=lambda height, width: least if (height, width) == (48, 64) else None
        )
        assert native_size == (48, 64)
        assert reduced.shape[:2] == (decoded if kind == "JPEG" else (48, 64))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_a_tiff_taken_sideways_is_not_scrambled(tmp_path, mode):
    # Pillow 12 maps such a file into memory with height and width exchanged, when it opens it by its name.
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x.tif").write_bytes(
        encoded(scene().transpose(Image.Transpose.ROTATE_90).convert(mode), "TIFF", exif=exif)
    )
    assert_scene(load_image(tmp_path / "x.tif"), grey=mode == "L")


def test_a_16_bit_photo_taken_sideways_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = scene().convert("L").transpose(Image.Transpose.ROTATE_90)
    path = tmp_path / "x.png"
    path.write_bytes(encoded(Image.fromarray(np.asarray(stored).astype(np.uint16) * 257), "PNG", exif=exif))
    photo, size = read_image(path)
    assert_scene(photo, grey=True, tolerance=6)
    assert size == photo.shape[:2] == (48, 64)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_is_left_alone(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "x.png").write_bytes(encoded(scene(), "PNG", exif=exif))
    photo, size = read_image(tmp_path / "x.png")
    assert size == photo.shape[:2]
    assert_scene(photo)


@pytest.mark.parametrize("width, height", [(1, 1), (1, 50), (50, 1), (20_000, 20), (20, 20_000), (3, 7)])
def test_photos_of_any_shape_are_read_and_resized(tmp_path, width, height):
    pair = data.Pair("x", tmp_path / "x.jpg", tmp_path / "x.png", "x", 0)
    scene(width, height).save(pair.image_path, quality=95)
    Image.new("1", (width, height), 1).save(pair.mask_path)
    image, coverage, _, facts = data.read_pair(pair, 48, 32)
    assert image.shape == (32, 48, 3) and (coverage == 255).all() and facts.size == (height, width) and facts.share == 1


# --------------------------------------------------------------------------------------------- photos that are refused


def chunked_png(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than its few bytes hold."""
    return png(width, height, 8, b"")


def png(width: int, height: int, bits: int, content: bytes) -> bytes:
    """Put an RGB PNG together, which Pillow writes with 8 bits only."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


BROKEN = {
    "nothing": (lambda: b"", "is empty"),
    "one byte": (lambda: b"\xff", "must be a JPEG"),
    "text": (lambda: b"This is a text file, renamed.", "must be a JPEG"),
    "a web page": (lambda: b"<!doctype html><title>404 Not Found</title>", "must be a JPEG"),
    "zeros": (lambda: bytes(5000), "must be a JPEG"),
    "an svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "must be a JPEG"),
    "a pdf": (lambda: b"%PDF-1.7\n", "must be a JPEG"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "must be a JPEG"),
    "a zip archive": (lambda: zip_of_a_photo(), "must be a JPEG"),
    "a gif": (lambda: encoded(scene(), "GIF"), "must be a JPEG"),
    "an animated gif": (
        lambda: encoded(scene(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        "must be a JPEG",
    ),
    "an animated webp": (
        lambda: encoded(scene(), "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        "one picture, got 2 frames",
    ),
    "an animated png": (
        lambda: encoded(scene(), "PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        "one picture, got 2 frames",
    ),
    "a tiff of two pages": (
        lambda: encoded(scene(), "TIFF", save_all=True, append_images=[scene()]),
        "one picture, got 2 frames",
    ),
    "a jpeg cut in half": (lambda: cut(encoded(scene(640, 480), "JPEG"), 0.5), "damaged or cut short"),
    "a jpeg without its end": (lambda: cut(encoded(scene(640, 480), "JPEG"), 0.95), "damaged or cut short"),
    "a jpeg's header alone": (lambda: encoded(scene(), "JPEG")[:200], "damaged or cut short|must be a JPEG"),
    "a png cut in half": (lambda: cut(encoded(scene(), "PNG"), 0.5), "damaged or cut short"),
    "a webp cut in half": (lambda: cut(encoded(scene(), "WEBP"), 0.5), "damaged or cut short|must be a JPEG"),
    "a bmp cut in half": (lambda: cut(encoded(scene(), "BMP"), 0.5), "damaged or cut short"),
    "a tiff cut in half": (lambda: cut(encoded(scene(), "TIFF"), 0.5), "damaged or cut short|must be a JPEG"),
    "a png with a wrong checksum": (
        lambda: flipped(encoded(scene(), "PNG"), 20),
        "damaged or cut short|must be a JPEG",
    ),
    "a png of a terapixel": (lambda: chunked_png(10**6, 10**6), "at most 179 million pixels"),
    "a png of no width": (lambda: chunked_png(0, 10), "damaged or cut short|must be a JPEG"),
    "a bmp of negative width": (
        lambda: encoded(scene(), "BMP")[:18] + struct.pack("<i", -5) + encoded(scene(), "BMP")[22:],
        "damaged|must be a JPEG|at most",
    ),
    "a png whose text unpacks to a gigabyte": (lambda: text_bomb(), "damaged or cut short|must be a JPEG"),
    "32-bit numbers": (lambda: encoded(Image.new("I", (4, 4)), "TIFF"), "8 or 16 bits"),
    "floating point": (lambda: encoded(Image.new("F", (4, 4)), "TIFF"), "8 or 16 bits"),
}


def cut(content: bytes, share: float) -> bytes:
    return content[: int(share * len(content))]


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :]


def zip_of_a_photo() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.jpg", encoded(scene(), "JPEG"))
    return buffer.getvalue()


def text_bomb() -> bytes:
    body = b"comment\0\0" + zlib.compress(bytes(2**28), 1)[: 2**20]
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    content = encoded(scene(), "PNG")
    return content[:33] + chunk + content[33:]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_whole_photo_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "x.jpg"
    make, reason = BROKEN[kind]
    path.write_bytes(make())
    assert re.search(reason, refused(path))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_that_is_whole_is_refused_before_it_takes_memory(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")  # 25 kB of file, 200 million pixels
    for name, read in (("bomb.png", load_image), ("bomb.png", load_mask)):
        assert "at most 179 million pixels" in refused(tmp_path / name, read)


def test_things_that_are_not_files_are_refused(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    os.symlink("nowhere.jpg", tmp_path / "dangling.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening one waits for a writer, for ever
    os.symlink("/dev/zero", tmp_path / "zero.jpg")
    reasons = {
        "folder.jpg": "got a folder",
        "loop.jpg": "cannot be read",
        "dangling.jpg": "cannot be read (No such file",
        "pipe.jpg": "got a folder, a pipe or a device",
        "zero.jpg": "device",
    }
    for name, reason in reasons.items():
        for read in (load_image, load_mask):
            assert reason in refused(tmp_path / name, read)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_photo_without_the_right_to_read_it_is_refused(tmp_path):
    scene().save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").chmod(0)
    assert "cannot be read (Permission denied)" in refused(tmp_path / "x.jpg")


NAMES = (
    "with space.jpg",
    "two  spaces .jpg",
    "quote'.jpg",
    'double"quote.jpg',
    "line\nbreak.jpg",
    "tab\t.jpg",
    "автомобиль.jpg",
    "自動車.jpg",
    "voiture-é.jpg",
    "e\u0301 combining.jpg",
    "🚗.jpg",
    "percent%20.jpg",
    "brackets[0-9]*.jpg",
    "$(touch x).jpg",
    "-rf.jpg",
    "semi;colon.jpg",
    "back\\slash.jpg",
    "a.b.c.jpg",
    "UPPER.JPG",
    "x" * 240 + ".jpg",
)


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


def test_a_name_that_is_no_text_is_found_and_read(tmp_path):
    (tmp_path / "photos").mkdir(), (tmp_path / "masks").mkdir()
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos/\xff\xfe.jpg")).write_bytes(
            encoded(scene(), "JPEG", quality=95)
        )
    except OSError:
        pytest.skip("this file system takes names of text only")
    Image.new("1", (64, 48), 1).save(os.fsencode(tmp_path) + b"/masks/\xff\xfe.png")
    pairs, *_ = data.find_pairs(tmp_path / "photos", tmp_path / "masks")
    assert_scene(load_image(pairs[0].image_path))
    assert len(data.build_cache(pairs, 48, 32, tmp_path / "cache", quiet=True).images) == 1


def test_a_file_cut_short_while_it_is_read_is_named(tmp_path, monkeypatch):
    scene(640, 480).save(tmp_path / "x.jpg")
    real_open = Image.open

    def open_then_cut(file, **keywords):
        image = real_open(file, **keywords)
        os.truncate(file.name, 1000)
        return image

    monkeypatch.setattr(Image, "open", open_then_cut)
    assert "damaged or cut short" in refused(tmp_path / "x.jpg")


# ------------------------------------------------------------------------------------------------------------- masks

HALF = np.zeros((48, 64), np.uint8)
HALF[:, 32:] = 1


def palette_mask(values: np.ndarray, palette: list[int], kind: str = "GIF", **keywords) -> bytes:
    picture = Image.fromarray(values).convert("P")
    picture.putpalette(palette)
    return encoded(picture, kind, **keywords)


GOOD_MASKS = {
    "carvana's gif": lambda: palette_mask(HALF, [0, 0, 0, 255, 255, 255]),
    "a gif of reversed palette": lambda: palette_mask(1 - HALF, [255, 255, 255, 0, 0, 0]),
    "a gif of two colours": lambda: palette_mask(HALF, [128, 0, 0, 0, 255, 0]),
    "a gif with a transparent background": lambda: palette_mask(HALF, [0, 0, 0, 255, 255, 255], transparency=0),
    "a palette png": lambda: palette_mask(HALF, [0, 0, 0, 255, 255, 255], "PNG"),
    "a png of 0 and 255": lambda: encoded(Image.fromarray(HALF * 255), "PNG"),
    "a png of 0 and 1": lambda: encoded(Image.fromarray(HALF), "PNG"),
    "a png of two greys": lambda: encoded(Image.fromarray(HALF * 190 + 10), "PNG"),
    "a png of one bit": lambda: encoded(Image.fromarray(HALF * 255).convert("1"), "PNG"),
    "a png of three channels": lambda: encoded(Image.fromarray(HALF * 255).convert("RGB"), "PNG"),
    "a png with opaque alpha": lambda: encoded(Image.fromarray(HALF * 255).convert("RGBA"), "PNG"),
    "a 16-bit png": lambda: encoded(Image.fromarray(HALF.astype(np.uint16) * 65535), "PNG"),
    "a gif called png": lambda: palette_mask(HALF, [0, 0, 0, 255, 255, 255]),
}
BAD_MASKS = {
    "nothing": (lambda: b"", "is empty"),
    "text": (lambda: b"not a mask", "must be a GIF, PNG, TIFF or BMP mask"),
    "a jpeg": (lambda: encoded(Image.fromarray(HALF * 255), "JPEG"), "must be a GIF, PNG, TIFF or BMP mask"),
    "a grey picture": (lambda: encoded(Image.linear_gradient("L"), "PNG"), "must hold two values"),
    "a colour photo": (lambda: encoded(scene(), "PNG"), "must hold two values"),
    "an animated gif": (
        lambda: encoded(Image.fromarray(HALF * 255), "GIF", save_all=True, append_images=[Image.new("L", (64, 48))]),
        "2 frames",
    ),
    "a gif cut in half": (lambda: cut(encoded(Image.effect_noise((64, 48), 99), "GIF"), 0.7), "damaged or cut short"),
    "a png cut in half": (lambda: cut(encoded(Image.effect_noise((64, 48), 99), "PNG"), 0.5), "damaged or cut short"),
    "a gif's header alone": (
        lambda: encoded(Image.fromarray(HALF * 255), "GIF")[:12],
        "damaged or cut short|must be a GIF",
    ),
    "a png of a terapixel": (lambda: chunked_png(10**6, 10**6), "at most 179 million pixels"),
    "a gif of 65535x65535": (
        lambda: b"GIF89a" + b"\xff\xff\xff\xff" + bytes(3) + b";",
        "at most 179 million pixels|damaged|must be a GIF",
    ),
}


@pytest.mark.parametrize("kind", GOOD_MASKS)
def test_a_mask_of_this_kind_is_read_as_what_is_seen(tmp_path, kind):
    path = tmp_path / "x_mask.gif"
    path.write_bytes(GOOD_MASKS[kind]())
    mask = load_mask(path)
    assert mask.dtype == bool and np.array_equal(mask, HALF == 1)


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_file_that_is_no_mask_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "x_mask.gif"
    make, reason = BAD_MASKS[kind]
    path.write_bytes(make())
    assert re.search(reason, refused(path, load_mask))


# ------------------------------------------------------------------------------------- one bad file among good ones


def test_all_broken_pairs_are_named_and_the_good_ones_still_read(tiny_set, tmp_path, run_script):
    shutil.copytree(tiny_set, tmp_path / "set")
    photos, masks = tmp_path / "set" / "train", tmp_path / "set" / "train_masks"
    names = sorted(path.stem for path in photos.iterdir())
    (photos / f"{names[0]}.jpg").write_bytes(b"")
    (photos / f"{names[1]}.jpg").write_text("text")
    (photos / f"{names[2]}.jpg").unlink(), os.symlink(f"{names[2]}.jpg", photos / f"{names[2]}.jpg")
    (masks / f"{names[3]}_mask.gif").unlink(), os.symlink("nowhere", masks / f"{names[3]}_mask.gif")
    (photos / "folder.jpg").mkdir()
    (photos / "line\nbreak.jpg").write_bytes(b"GIF89a")
    shutil.copy(masks / f"{names[4]}_mask.gif", masks / "line\nbreak_mask.gif")
    before = sorted(path for path in (tmp_path / "set").rglob("*"))
    result = run_script("data.py", "check", "--train-image-dir", photos, "--train-mask-dir", masks, cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "pairs:    13\n" in result.stdout and "96x64, 8 pairs" in result.stdout and "to mend:  5" in result.stdout
    for part in (
        f"{names[0]}.jpg is empty",
        f"{names[1]}.jpg must be a JPEG",
        f"{names[2]}.jpg cannot be read",
        f"{names[3]}_mask.gif cannot be read",
    ):
        assert part in result.stdout
    assert sorted(path for path in (tmp_path / "set").rglob("*")) == before  # nothing is written where photos are read

    args = (
        "--image-width",
        48,
        "--image-height",
        32,
        "--cache-dir",
        tmp_path / "c",
        "--checkpoint-dir",
        tmp_path / "k",
        "--prediction-dir",
        tmp_path / "p",
    )
    (
        (photos / f"{names[2]}.jpg").unlink(),
        (masks / f"{names[3]}_mask.gif").unlink(),
    )  # without these training gets as far as reading
    (photos / "line\nbreak.jpg").unlink()
    result = run_script("train.py", "--train-image-dir", photos, "--train-mask-dir", masks, *args, cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and f"{names[0]}.jpg is empty" in last and "check` names 1 more." in last
    assert "Traceback" not in result.stderr and not list((tmp_path / "c").glob("48x32*"))


@pytest.mark.parametrize("kind", ["loop", "dangling"])
def test_a_link_that_leads_nowhere_stops_the_cache_with_a_sentence(tmp_path, kind):
    (tmp_path / "photos").mkdir(), (tmp_path / "masks").mkdir()
    os.symlink("x.jpg" if kind == "loop" else "nowhere", tmp_path / "photos" / "x.jpg")
    Image.new("1", (64, 48), 1).save(tmp_path / "masks" / "x.png")
    pairs, *_ = data.find_pairs(tmp_path / "photos", tmp_path / "masks")
    with pytest.raises(ValueError, match=r"x\.jpg cannot be read"):
        data.build_cache(pairs, 48, 32, tmp_path / "cache", quiet=True)


@pytest.mark.parametrize("damage", ["cut", "missing", "text"])
def test_a_damaged_cache_is_made_anew(tiny_set, tmp_path, damage):
    pairs = data.require_pairs(tiny_set / "train", tiny_set / "train_masks")
    file = data.build_cache(pairs, 48, 32, tmp_path, quiet=True).path / "images.npy"
    content = file.read_bytes()
    if damage == "cut":
        os.truncate(file, 5000)
    elif damage == "missing":
        file.unlink()
    else:
        file.write_text("text")
    data.build_cache(pairs, 48, 32, tmp_path, quiet=True)
    assert file.read_bytes() == content


def test_a_build_that_was_killed_leaves_nothing_behind(tiny_set, tmp_path):
    (tmp_path / "48x32-0123456789abcdef.partial").mkdir()
    (tmp_path / "48x32-0123456789abcdef.partial" / "images.npy").write_bytes(bytes(10**6))
    pairs = data.require_pairs(tiny_set / "train", tiny_set / "train_masks")
    cache = data.build_cache(pairs, 48, 32, tmp_path, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} <= {cache.path.name, ".lock"}


# --------------------------------------------------------------------------------------------------------- properties

MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "P", "1", "I;16"),
}
KINDS = [(kind, mode) for kind, modes in MODES.items() for mode in modes]


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    kind=st.sampled_from(KINDS),
    orientation=st.integers(0, 9),
    seed=st.integers(0, 99),
    suffix=st.sampled_from(sorted(IMAGE_SUFFIXES)),
)
def test_any_sound_photo_is_read_upright_with_its_size(tmp_path, width, height, kind, orientation, seed, suffix):
    form, mode = kind
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    picture = (
        Image.fromarray(rng.integers(0, 2**16, (height, width), np.uint16)) if mode == "I;16" else picture.convert(mode)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x{suffix}"
    path.write_bytes(encoded(picture, form, **({} if form == "BMP" else {"exif": exif})))
    turned = form != "BMP" and 5 <= orientation <= 8
    photo, size = read_image(path)
    assert photo.dtype == np.uint8 and photo.shape == ((width, height, 3) if turned else (height, width, 3))
    assert size == photo.shape[:2]
    if (
        form in ("PNG", "BMP", "TIFF") and mode in ("RGB", "L") and not 2 <= orientation <= 8
    ):  # lossless: the very pixels
        assert np.array_equal(photo, np.asarray(picture.convert("RGB")))
    assert area_average(photo, 32, 16).shape == (16, 32, 3)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from([kind for kind in KINDS if kind[1] != "I;16"]),
    seed=st.integers(0, 10**6),
    how=st.sampled_from(["cut", "flip", "splice", "zero"]),
)
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
    for name, read in (("x.jpg", load_image), ("x_mask.gif", load_mask)):
        path = tmp_path / name
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged tags; training does not stop for that
            try:
                picture = read(path)
            except (ValueError, OSError) as error:
                assert str(path) in str(error) and "\n" not in str(error)
            else:
                assert picture.dtype in (np.uint8, bool) and picture.size > 0
