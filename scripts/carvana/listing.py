"""Which files of a folder are photos, masks, or neither; whose mask is whose."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from carvana.masks import count, name_some
from carvana.pictures import IMAGE_SUFFIXES, MASK_SUFFIXES

NAMING_RULE = "A photo x.jpg belongs to the mask x_mask.png (.gif, .tif, .bmp) or, failing that, to x.png."
NAMING = f"""Photos are .jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff files, masks .png .gif .tif .tiff .bmp files of
two values (JPEG is refused, since it smears the edge). {NAMING_RULE}"""
# What predict.py and train.py write: never photos again, wherever they lie.
OWN_RESULT = re.compile(r".+_(mask|cutout|overlay|background|shadow)|epoch_\d{3}|curves|worst|views")
OWN_ENDINGS = "_mask, _cutout, _overlay, _background"


def list_files(folder: Path | str, suffixes: set[str], recursive: bool = False) -> list[Path]:
    """List the files of a folder that end in one of `suffixes`, sorted; hidden files and folders are ignored.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    return [path for path in walk(folder, recursive) if path.suffix.lower() in suffixes and not path.is_dir()]


def walk(folder: Path | str, recursive: bool) -> Iterator[Path]:
    """Yield what lies in a folder and is not hidden, sorted, folders included."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder. Name the folder of your files, or bring the competition's with "
            "`python scripts/data.py download`, or make some with `python scripts/studio.py`."
        )
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            yield path
            if recursive and path.is_dir() and not path.is_symlink():
                yield from walk(path, recursive)


def is_own_result(path: Path) -> bool:
    """Tell whether a file is named like one that this program writes."""
    return OWN_RESULT.fullmatch(path.stem) is not None


def say_left_out(folder: Path, suffixes: set[str], recursive: bool, what: str) -> list[str]:
    """Say, a sentence for each kind, what lies in a folder and is not read as `what`: photos or masks."""
    others = [path for path in walk(folder, recursive) if path.suffix.lower() not in suffixes or path.is_dir()]
    folders = [path for path in others if path.is_dir()]
    files = [path for path in others if not path.is_dir()]
    said = []
    if folders and not recursive:
        said.append(
            f"{folder}: {count(len(folders), 'sub-folder')} not searched: {name_some(path.name for path in folders)}. "
            "--group-by folder reads sub-folders."
        )
    if files:
        said.append(say_unread(files, f"{folder}: ", what))
    return said


def say_unread(files: list[Path], where: str, what: str) -> str:
    """Say which files are not read, since their format is none of those of `what`."""
    jpegs = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")]
    why = f"{what} are {' '.join(sorted(IMAGE_SUFFIXES if what == 'photos' else MASK_SUFFIXES))}"
    if what == "masks" and jpegs:
        why += "; JPEG smears the edge, so save masks as PNG from the original, or threshold them at one half"
    return f"{where}{count(len(files), 'file')} not read: {name_some(path.name for path in files)} ({why})."


def say_own_results(files: list[Path]) -> str:
    return (
        f"{count(len(files), 'file')} left out, named like results of this program ({OWN_ENDINGS}): "
        f"{name_some(path.name for path in files)}. Rename what is a photo."
    )


def describe_files(
    image_dir: Path, mask_dir: Path, photos: list[Path], masks: list[Path], recursive: bool
) -> tuple[list[str], list[str]]:
    """Say, a sentence each, what in a set's folders is not read, and which of `photos` and `masks` have no partner."""
    if image_dir.resolve() == mask_dir.resolve():
        unread = say_left_out(image_dir, IMAGE_SUFFIXES | MASK_SUFFIXES, recursive, "photos")
    else:
        unread = say_left_out(image_dir, IMAGE_SUFFIXES, recursive, "photos")
        unread += say_left_out(mask_dir, MASK_SUFFIXES, recursive, "masks")
        own = [path for path in list_files(image_dir, IMAGE_SUFFIXES, recursive) if is_own_result(path)]
        unread += [say_own_results(own)] if own else []
    lonely = []
    for what, partner, paths in (("photo", "mask", photos), ("mask", "photo", masks)):
        if paths:
            names = name_some(path.name for path in paths)
            lonely.append(f"{count(len(paths), what)} without a {partner}, left out: {names}.")
    hint = hint_partner(photos, masks)
    return unread, lonely + [hint] if hint else lonely


def index_by_name(paths: Sequence[Path], folder: Path | str) -> dict[str, Path]:
    """Index files by their name below `folder`, without its ending."""
    names: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in names:
            raise ValueError(
                f"{path} and {names[name].name} share one name, so it is not clear which belongs to the pair. "
                "Move one of them away."
            )
        names[name] = path
    return names


def match_names(photos: Iterable[str], masks: dict[str, Path]) -> dict[str, Path]:
    """Find the mask of each photo: that of the same name with `_mask`, or else of the same name."""
    found = {photo: masks.get(f"{photo}_mask") or masks.get(photo) for photo in photos}
    return {photo: mask for photo, mask in found.items() if mask is not None}


def hint_partner(photos: list[Path], masks: list[Path]) -> str:
    """Name the mask whose name comes nearest to that of a photo, or return an empty string."""
    for photo in photos[:5]:
        stem = photo.stem.casefold()
        near = [mask for mask in masks if stem in mask.stem.casefold() or mask.stem.casefold() in stem]
        if near:
            mask = min(near, key=lambda mask: abs(len(mask.name) - len(photo.name)))
            return f"{mask.name} looks like the mask of {photo.name}: rename it {photo.stem}_mask{mask.suffix}."
    return ""


def describe_groups(n_unnamed: int) -> list[str]:
    """Say what counts as a car where `n_unnamed` photos have no name that tells."""
    if not n_unnamed:
        return []
    return [
        f"{count(n_unnamed, 'photo')} not named like Carvana's (<12 hex digits>_<01 to 16>): each counts as a car of "
        "its own. If several show one car, keep them together: --group-by prefix (film1_0001, film1_0002) or "
        "--group-by folder."
    ]


def print_report(facts: list, notes: list[str], warnings: list[str], problems: list[str]) -> None:
    """Print what `data.py check` found."""
    for (height, width), number in Counter(fact.size for fact in facts).most_common(5):
        print(f"size:     {width}x{height}, {count(number, 'pair')}")
    if facts:
        shares = [100 * fact.share for fact in facts]
        print(
            f"car:      {min(shares):.1f} to {max(shares):.1f} % of the photo, mean {sum(shares) / len(shares):.1f} %"
        )
    for kind, sentences in (("note:     ", notes), ("warning:  ", warnings)):
        for sentence in sentences:
            print(f"{kind}{sentence}")
    print(f"to mend:  {len(problems)}")
    for problem in problems[:100]:
        print(f"  {problem}")
    if len(problems) > 100:
        print(f"  and {len(problems) - 100} more")
