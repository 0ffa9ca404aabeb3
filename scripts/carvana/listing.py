"""Which files of a folder are photos, masks, or neither; whose mask is whose."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from carvana.masks import count, name_some
from carvana.pictures import IMAGE_SUFFIXES, MASK_SUFFIXES

NAMING_RULE = "A photo x.jpg belongs to the mask x_mask.png (.gif, .tif, .bmp) or, failing that, to x.png."
NAMING = (
    "Photos are .jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff files, masks .png .gif .tif .tiff .bmp files of two "
    f"values (JPEG is refused, since it smears the edge). {NAMING_RULE}"
)
# What predict.py and train.py write: never photos again, wherever they lie.
OWN_RESULT = re.compile(r".+_(mask|cutout|overlay|background|shadow)|epoch_\d{3}|curves|worst|views")
OWN_ENDINGS = "_mask, _cutout, _overlay, _background"


GroupBy = Literal["name", "folder", "prefix"]


@dataclass(frozen=True)
class Pair:
    """A photo, its true mask, and the car and view that the photo shows."""

    name: str  # the photo's name without its ending, with its sub-folder; predictions carry it on
    image_path: Path
    mask_path: Path
    car: str  # photos of one car are never split
    view: int  # 1 to 16, or 0 where the name is not Carvana's


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
    folders = [path.name for path in walk(folder, recursive) if path.is_dir() and not recursive]
    files = [path for path in walk(folder, recursive) if path.suffix.lower() not in suffixes and not path.is_dir()]
    said = []
    if folders:
        said.append(
            f"{folder}: {count(len(folders), 'sub-folder')} not searched: {name_some(folders)}. "
            "--group-by folder reads sub-folders."
        )
    return [*said, say_unread(files, f"{folder}: ", what)] if files else said


def say_unread(files: list[Path], where: str, what: str) -> str:
    """Say which files are not read, since their format is none of those of `what`."""
    why = f"{what} are {' '.join(sorted(IMAGE_SUFFIXES if what == 'photos' else MASK_SUFFIXES))}"
    if what == "masks" and any(path.suffix.lower() in IMAGE_SUFFIXES - MASK_SUFFIXES for path in files):
        why += "; JPEG and WebP smear the edge, so save masks as PNG from the original, or threshold them at one half"
    return f"{where}{count(len(files), 'file')} not read: {name_some(path.name for path in files)} ({why})."


def say_own_results(files: list[Path]) -> str:
    return (
        f"{count(len(files), 'file')} left out, named like results of this program ({OWN_ENDINGS}): "
        f"{name_some(path.name for path in files)}. Rename what is a photo."
    )


def describe_files(
    image_dir: Path, mask_dir: Path, pairs: list[Pair], photos: list[Path], masks: list[Path], group_by: GroupBy
) -> tuple[list[str], list[str]]:
    """Say, a sentence each, what is not read and how photos are grouped; which `photos` and `masks` have no partner."""
    recursive = group_by == "folder"
    n_unnamed = sum(not pair.view for pair in pairs) if group_by == "name" else 0
    if image_dir.resolve() == mask_dir.resolve():
        notes = say_left_out(image_dir, IMAGE_SUFFIXES | MASK_SUFFIXES, recursive, "photos")
    else:
        notes = say_left_out(image_dir, IMAGE_SUFFIXES, recursive, "photos")
        notes += say_left_out(mask_dir, MASK_SUFFIXES, recursive, "masks")
        own = [path for path in list_files(image_dir, IMAGE_SUFFIXES, recursive) if is_own_result(path)]
        notes += [say_own_results(own)] if own else []
    if n_unnamed:
        notes.append(
            f"{count(n_unnamed, 'photo')} not named like Carvana's (<12 hex digits>_<01 to 16>): each counts as a car "
            "of its own. If several show one car, keep them together: --group-by prefix (film1_0001, film1_0002) or "
            "--group-by folder."
        )
    lonely = [
        f"{count(len(paths), what)} without a {partner}, left out: {name_some(path.name for path in paths)}."
        for what, partner, paths in (("photo", "mask", photos), ("mask", "photo", masks))
        if paths
    ]
    return notes, lonely + hint_partner(photos, masks)


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


def hint_partner(photos: list[Path], masks: list[Path]) -> list[str]:
    """Name the mask whose name comes nearest to that of a photo, if there is one."""
    for photo in photos[:5]:
        stem = photo.stem.casefold()
        near = [mask for mask in masks if stem in mask.stem.casefold() or mask.stem.casefold() in stem]
        if near:
            mask = min(near, key=lambda mask: abs(len(mask.name) - len(photo.name)))
            return [f"{mask.name} looks like the mask of {photo.name}: rename it {photo.stem}_mask{mask.suffix}."]
    return []


def print_report(facts: Sequence, notes: list[str], warnings: list[str], problems: list[str]) -> None:
    """Print what `data.py check` found."""
    for (height, width), number in Counter(fact.size for fact in facts).most_common(5):
        print(f"size:     {width}x{height}, {count(number, 'pair')}")
    if facts:
        shares = [100 * fact.share for fact in facts]
        mean = sum(shares) / len(shares)
        print(f"car:      {min(shares):.1f} to {max(shares):.1f} % of the photo, mean {mean:.1f} %")
    more = [f"and {len(problems) - 100} more"] if len(problems) > 100 else []
    lines = [f"note:     {note}" for note in notes] + [f"warning:  {warning}" for warning in warnings]
    lines += [f"to mend:  {len(problems)}", *(f"  {problem}" for problem in problems[:100] + more)]
    print("\n".join(lines))
