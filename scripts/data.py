"""From photos and masks on disk to batches: pairs, check, split by car, cache, augmentation, download.

python scripts/data.py check       goes through your files and says what must be mended
python scripts/data.py download    brings the competition's photos and masks through Kaggle
"""

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import filelock
import numpy as np
import torch
from carvana.pictures import IMAGE_SUFFIXES, MASK_SUFFIXES, area_average, load_mask, read_image
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

# albumentations asks the internet for a newer release when it is imported; a laptop on a train need not wait for that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

PROJECT_DIR = Path(__file__).resolve().parent.parent
COMPETITION = "carvana-image-masking-challenge"
N_COMPETITION_PAIRS = 5088
CACHE_VERSION = 2  # part of each cache's key: raise it when cached pixels change meaning


# ----------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Pair:
    """A photo, its true mask, and the car and view that the photo shows."""

    name: str  # the photo's stem, which predictions carry on
    image_path: Path
    mask_path: Path
    car: str  # photos of one car are never split; a photo not named like Carvana's is a car of its own
    view: int  # 1 to 16, or 0 where the name does not tell


def list_files(folder: Path | str, suffixes: set[str]) -> list[Path]:
    """List the files of a folder that end in one of `suffixes`, sorted by name; hidden files and folders are ignored.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder. Name the folder of your files, or bring the competition's with "
            "`python scripts/data.py download`, or make some with `python scripts/studio.py`."
        )
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and not path.is_dir()
    )


def split_name(stem: str) -> tuple[str, int]:
    """Tell car and view from a photo's stem.

    Example:
        >>> split_name("0123456789ab_07")
        ('0123456789ab', 7)
        >>> split_name("my car")
        ('my car', 0)
    """
    match = re.fullmatch(r"([0-9a-f]{12})_(0[1-9]|1[0-6])", stem)
    return (match[1], int(match[2])) if match else (stem, 0)


def find_pairs(image_dir: Path | str, mask_dir: Path | str) -> tuple[list[Pair], list[Path]]:
    """Match photos and masks by exact stem: `x.jpg` belongs to `x_mask.gif` or, failing that, to `x.png` or `x.gif`.

    Returns:
        The pairs, sorted by name, and the photos and masks left over.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If two files of one folder share a stem.
    """
    images = index_by_stem(list_files(image_dir, IMAGE_SUFFIXES))
    masks = index_by_stem(list_files(mask_dir, MASK_SUFFIXES))
    if Path(image_dir).resolve() == Path(mask_dir).resolve():  # one folder for both: a mask is not also a photo
        images = {stem: path for stem, path in images.items() if path not in masks.values() or f"{stem}_mask" in masks}
    pairs = []
    for stem, image_path in images.items():
        mask_path = masks.get(f"{stem}_mask") or masks.get(stem)
        if mask_path is not None and mask_path != image_path:
            pairs.append(Pair(stem, image_path, mask_path, *split_name(stem)))
    used = {pair.image_path for pair in pairs} | {pair.mask_path for pair in pairs}
    return pairs, [path for path in [*images.values(), *masks.values()] if path not in used]


def index_by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise ValueError(
                f"{path} and {stems[path.stem].name} share one stem, so it is not clear which belongs to the pair. "
                "Move one of them away."
            )
        stems[path.stem] = path
    return stems


def require_pairs(image_dir: Path | str, mask_dir: Path | str) -> list[Pair]:
    """Find pairs for training, naming on stderr what is left out.

    Raises:
        ValueError: If no photo has a mask.
    """
    pairs, unmatched = find_pairs(image_dir, mask_dir)
    if not pairs:
        raise ValueError(
            f"{image_dir} and {mask_dir} must hold at least one photo with its mask, got {len(unmatched)} files without "
            "a partner. A photo x.jpg belongs to a mask x_mask.gif, x_mask.png, x.gif or x.png."
        )
    if unmatched:
        names = ", ".join(path.name for path in unmatched[:5])
        print(f"{len(unmatched)} files have no partner and are left out: {names}", file=sys.stderr)
    return pairs


def limit_cars(pairs: list[Pair], limit: int | None) -> list[Pair]:
    """Keep whole cars, in the order of their names, while they are at most `limit` photos together."""
    if limit is None:
        return pairs
    kept: list[Pair] = []
    for car in sorted({pair.car for pair in pairs}):
        views = [pair for pair in pairs if pair.car == car]
        if len(kept) + len(views) > limit:
            break
        kept += views
    if not kept:
        raise ValueError(f"limit must leave room for a whole car, got {limit}. The first car has {len(views)} photos.")
    return kept


def split_cars(cars: Sequence[str], validation_share: float, seed: int) -> set[str]:
    """Choose the validation cars: a function of the cars' names and the seed alone.

    Each car is ranked by a hash of its own, so one car more or less does not reshuffle the others.

    Raises:
        ValueError: If there are not at least two cars to divide.
    """
    cars = sorted(set(cars))
    if len(cars) < 2:
        raise ValueError(
            f"training must have at least 2 cars, one of them to validate on, got {len(cars)}. Add photos of another "
            "car, raise limit, or name test_image_dir and test_mask_dir."
        )
    n_validation = min(max(1, round(validation_share * len(cars))), len(cars) - 1)
    return set(sorted(cars, key=lambda car: hashlib.sha256(f"{seed}/{car}".encode()).digest())[:n_validation])


def read_pair(pair: Pair, width: int, height: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int], float]:
    """Read a pair at training size.

    Returns:
        Photo (height, width, 3), uint8; coverage (height, width), uint8, 255 where a pixel is all car; the photo's own
        (height, width); the car's share of the photo in [0, 1].

    Raises:
        ValueError: If a file is broken, the two differ in size, or the mask is grey.
    """
    image, native_size = read_image(pair.image_path, target_size=lambda *_: (height, width))
    mask = load_mask(pair.mask_path)
    if mask.shape != native_size:
        raise ValueError(
            f"{pair.mask_path} must have the size of its photo, {native_size[1]}x{native_size[0]}, got "
            f"{mask.shape[1]}x{mask.shape[0]}. Save the mask at the photo's size."
        )
    coverage = area_average(mask.view(np.uint8) * np.uint8(255), width, height)
    return area_average(image, width, height), coverage, native_size, np.count_nonzero(mask) / mask.size


# ------------------------------------------------------------------------------------------------------------ cache


@dataclass(frozen=True)
class Cache:
    """Photos and coverage of `pairs` at training size, decoded once, memory-mapped.

    images: (n, height, width, 3), uint8. coverage: (n, height, width), uint8, 255 = all car.
    """

    path: Path
    pairs: list[Pair]
    stats: list[list[int]]  # for each pair: bytes and time in ns of photo and of mask, as they were when read

    @property
    def images(self) -> np.ndarray:
        return np.load(self.path / "images.npy", mmap_mode="r")

    @property
    def coverage(self) -> np.ndarray:
        return np.load(self.path / "coverage.npy", mmap_mode="r")

    @property
    def fingerprint(self) -> str:
        """Names and sizes of the files in a hash; times are left out, since a fresh copy of the data has new ones."""
        rows = [[pair.name, stat[0], stat[2]] for pair, stat in zip(self.pairs, self.stats)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def check_whole(self) -> None:
        """Raise a ValueError if the cache's files are gone or cut short."""
        try:
            lengths = len(self.images), len(self.coverage)
        except (OSError, ValueError, EOFError) as error:
            lengths = error
        if lengths != (len(self.pairs), len(self.pairs)):
            raise ValueError(
                f"{self.path} must hold {len(self.pairs)} photos and masks, got {lengths}. Delete it: it is made anew."
            )

    def check_unchanged(self, row: int) -> None:
        """Raise a RuntimeError if the files of a pair are no longer those that were cached."""
        pair = self.pairs[row]
        if stat_pair(pair) != self.stats[row]:
            raise RuntimeError(
                f"{pair.image_path} or its mask changed since training began, so they no longer belong to what was "
                "learnt. Put the old files back and go on with --load-model, or train anew."
            )


def stat_pair(pair: Pair) -> list[int]:
    numbers = []
    for path in (pair.image_path, pair.mask_path):
        try:
            stat = path.stat()
        except OSError as error:  # gone, or a link that leads nowhere or in a circle
            raise OSError(
                f"{path} cannot be read ({error.strerror}). Put it back, or move its partner away too."
            ) from error
        numbers += [stat.st_size, stat.st_mtime_ns]
    return numbers


def build_cache(pairs: list[Pair], width: int, height: int, cache_dir: Path | str, quiet: bool = False) -> Cache:
    """Open the cache of these pairs at this size, building it first where it is missing or a file has changed.

    The folder gets its name only when it is whole, so that an interrupted build is never taken for one.

    Raises:
        ValueError: If files are broken; each is named.
        OSError: If the disk is too full.
    """
    stats = [stat_pair(pair) for pair in pairs]
    key = json.dumps([CACHE_VERSION, width, height, [[str(p.image_path), str(p.mask_path)] for p in pairs], stats])
    path = Path(cache_dir) / f"{width}x{height}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    cache = Cache(path, pairs, stats)
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(".lock")):
            if not path.is_dir():  # unless another process made it while this one waited
                fill_cache(cache, width, height, quiet)
    cache.check_whole()
    return cache


def fill_cache(cache: Cache, width: int, height: int, quiet: bool) -> None:
    """Decode the pairs into a folder of another name, which gets its own when all is done."""
    path, pairs = cache.path, cache.pairs
    for leftover in path.parent.glob("*.partial"):  # of processes that were killed: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.mkdir()
    try:
        n = len(pairs)
        reserve_array(partial / "images.npy", (n, height, width, 3))
        reserve_array(partial / "coverage.npy", (n, height, width))
        images = np.load(partial / "images.npy", mmap_mode="r+")
        coverage = np.load(partial / "coverage.npy", mmap_mode="r+")
        problems = []

        def fill(row: int) -> None:
            try:
                images[row], coverage[row], _, _ = read_pair(pairs[row], width, height)  # noqa: F821  (deleted below)
            except (OSError, ValueError) as error:
                problems.append(str(error))

        for _ in map_threads(fill, range(n), f"caching at {width}x{height}", quiet):
            pass
        if problems:
            raise ValueError(
                f"{len(problems)} of {n} pairs cannot be read, the first: {sorted(problems)[0]} "
                "`python scripts/data.py check` names them all."
            )
        images.flush(), coverage.flush()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def reserve_array(path: Path, shape: tuple[int, ...]) -> None:
    """Make an .npy file of uint8 with its disk space taken at once: a full disk is then an error here and not a crash
    of the process when a page of the mapped file cannot be written."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    n_bytes = int(np.prod(shape))
    try:
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        elif shutil.disk_usage(path.parent).free < n_bytes:
            raise OSError("too little space")
    except OSError as error:
        raise OSError(
            f"{path.parent.parent} must have {n_bytes / 2**20:.0f} MiB free for the cache ({error.strerror or error}). "
            "Free some space, or lower image_width and image_height."
        ) from error


def map_threads(function, items: Sequence, label: str, quiet: bool = False) -> Iterator:
    """Map over the machine's cores with a progress bar. Threads do: Pillow and OpenCV decode outside Python's lock."""
    # The bar first: a signal that reaches tqdm while it makes one, here beside busy threads, leaves a half-made bar that complains at exit.
    bar = tqdm(desc=label, total=len(items), disable=quiet, leave=False, file=sys.stderr)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(function, items):
            bar.update()
            yield result


# ---------------------------------------------------------------------------------------------------------- batches


class CarDataset(Dataset):
    """Samples of a cache, augmented as a function of (seed, epoch, row) alone: no worker count or resume changes them.

    Args:
        cache: The cached pairs.
        seed: The run's seed.
        augment: Flip, move, recolour; off for validation.
        background: Share of the samples that get letters and boxes behind the car, half of them another wall, too.
    """

    def __init__(self, cache: Cache, seed: int = 0, augment: bool = False, background: float = 0.0):
        self.cache, self.seed, self.augment, self.background = cache, seed, augment, background
        self.arrays = self.transform = None  # opened where they are used: a worker process has its own

    def __len__(self) -> int:
        return len(self.cache.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
        """Give photo (height, width, 3), uint8; coverage (height, width), uint8; row, for `key` = (epoch, row)."""
        epoch, row = key
        if self.arrays is None:
            self.arrays = self.cache.images, self.cache.coverage
        image, coverage = (np.array(array[row]) for array in self.arrays)
        if self.augment:
            rng = np.random.default_rng((self.seed, epoch, row))
            if rng.random() < self.background:
                image = replace_background(image, coverage, rng)
            if self.transform is None:
                self.transform = make_transform()
            self.transform.set_random_seed(int(rng.integers(2**31)))
            augmented = self.transform(image=image, mask=coverage)
            image, coverage = augmented["image"], augmented["mask"]
        return image, coverage, row


def make_transform():
    """Compose the augmentations, on uint8 photo and coverage together."""
    import albumentations

    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(
                scale=(0.9, 1.1),
                translate_percent=(-0.05, 0.05),
                rotate=(-4, 4),
                mask_interpolation=cv2.INTER_LINEAR,  # coverage is a share, not a class: its nearest pixel may be half a pixel off
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.7,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.7),
            albumentations.RGBShift(12, 12, 12, p=0.5),
        ]
    )


def replace_background(image: np.ndarray, coverage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put letters and boxes behind the car, on its own wall or on coloured noise, from plain to foliage.

    Args:
        image: Photo (height, width, 3), uint8.
        coverage: Coverage (height, width), uint8, 255 = all car.
        rng: Source of randomness.

    Returns:
        Photo (height, width, 3), uint8.
    """
    height, width = coverage.shape
    if rng.random() < 0.5:
        background = image.copy()
    else:
        noisy = np.empty((height, width, 3), np.float32)
        noisy[:] = rng.uniform(0, 255, 3)
        for cells in (2, int(rng.integers(3, 12)), int(rng.integers(12, 64))):
            noise = rng.normal(0, rng.uniform(5, 45), (cells, cells, 3)).astype(np.float32)
            noisy += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        background = noisy.clip(0, 255).astype(np.uint8)
    # Things with sharp edges that are no car: a network that has seen one studio alone takes strange letters for car.
    for _ in range(rng.integers(1, 9)):
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        x, y = int(rng.integers(-width // 8, width)), int(rng.integers(0, height))
        size = int(rng.integers(max(1, height // 16), max(2, height // 2)))
        if rng.random() < 0.7:
            text = "".join(chr(rng.integers(ord("A"), ord("Z") + 1)) for _ in range(rng.integers(1, 7)))
            font = int(rng.choice((cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)))
            thickness = max(1, size // int(rng.integers(4, 12)))
            scale = cv2.getFontScaleFromHeight(font, size, thickness)
            cv2.putText(background, text, (x, y), font, scale, colour, thickness, cv2.LINE_AA)
        else:
            corner = x + int(rng.integers(1, width)), y + size
            cv2.rectangle(background, (x, y), corner, colour, int(rng.choice((-1, max(1, size // 12)))), cv2.LINE_AA)
    alpha = (coverage.astype(np.float32) / 255)[..., None]
    return (image * alpha + background * (1 - alpha)).astype(np.uint8)


class EpochBatches(Sampler):
    """Batches of (epoch, row) keys; the order of an epoch is a function of (seed, epoch) alone.

    The rows are divided into batches of nearly equal size, at most `batch_size` each: every row is seen once an epoch
    and no small batch is left at the end, whose batch norm statistics would be poor. Process `rank` of `world_size` gets
    its share of each batch, so that all processes together see what one alone would see.
    """

    def __init__(
        self,
        rows: Sequence[int],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(rows) == 0:
            raise ValueError("there must be at least one photo to make batches of, got none.")
        self.n_batches = -(-len(rows) // batch_size)
        if world_size > len(rows) // self.n_batches:
            raise ValueError(
                f"batch_size must give each of {world_size} processes a photo, got {batch_size} for {len(rows)} photos. "
                "Raise batch_size or start fewer processes."
            )
        self.rows, self.seed, self.shuffle, self.rank, self.world_size = np.array(rows), seed, shuffle, rank, world_size
        self.start(epoch=0)

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Choose where the next iteration begins: a resumed run leaves out the batches that it has seen."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return self.n_batches

    def batch_length(self, batch: int) -> int:
        """Count the photos of a batch over all processes."""
        return len(self.rows) // self.n_batches + (batch < len(self.rows) % self.n_batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.rows
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        for batch in np.array_split(order, self.n_batches)[self.first_batch :]:
            yield [(self.epoch, int(row)) for row in np.array_split(batch, self.world_size)[self.rank]]


def make_loader(dataset: CarDataset, batches: EpochBatches, workers: int, pin_memory: bool = False) -> DataLoader:
    """Load batches of photos (batch, height, width, 3) and coverage (batch, height, width), both uint8, and rows."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
    )


def start_worker(worker: int) -> None:
    """Give each worker process one thread: they share the machine with each other and with the network."""
    # Ctrl-C, `timeout` and torchrun signal the whole group of processes, but it is for the trainer to answer, which needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def colour_statistics(images: np.ndarray, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and standard deviation of each channel, (3,) each in [0, 1], on some 256 to 511 photos spread evenly."""
    rows = sorted(rows)[:: max(1, len(rows) // 256)]
    sums = np.zeros((2, 3))
    for row in rows:
        pixels = images[row].reshape(-1, 3) / 255.0
        sums += pixels.mean(axis=0), (pixels**2).mean(axis=0)
    mean, square = sums / len(rows)
    return mean, np.sqrt(np.maximum(square - mean**2, 1e-6))


# -------------------------------------------------------------------------------------------- commands: check, download


def check(
    train_image_dir: Path = PROJECT_DIR / "data/train", train_mask_dir: Path = PROJECT_DIR / "data/train_masks"
) -> int:
    """Go through photos and masks and report what must be mended; give 1 if anything must, else 0.

    Args:
        train_image_dir: Folder of photos.
        train_mask_dir: Folder of masks.
    """
    pairs, unmatched = find_pairs(train_image_dir, train_mask_dir)
    problems = [f"{path} has no partner. Add the missing photo or mask, or move it away." for path in unmatched]
    sizes, shares = {}, []

    def read(pair: Pair):
        try:
            return read_pair(pair, 240, 160)
        except (OSError, ValueError) as error:
            return str(error)

    for pair, result in zip(pairs, map_threads(read, pairs, "checking")):
        if isinstance(result, str):
            problems.append(result)
            continue
        _, _, size, share = result
        sizes[size] = sizes.get(size, 0) + 1
        shares.append(share)
        if share in (0, 1):
            problems.append(
                f"{pair.mask_path} must show a car and its background, got all {'car' if share else 'background'}. "
                "Draw the mask anew, or move photo and mask away."
            )
    cars = {pair.car for pair in pairs}
    print(f"pairs:    {len(pairs)} of {len(cars)} cars, {len(unmatched)} files without a partner")
    for (height, width), count in sorted(sizes.items(), key=lambda item: -item[1])[:5]:
        print(f"size:     {width}x{height}, {count} pairs")
    if shares:
        print(
            f"car:      {100 * min(shares):.1f} to {100 * max(shares):.1f} % of the photo, mean {100 * np.mean(shares):.1f} %"
        )
    print(f"to mend:  {len(problems)}")
    for problem in problems:
        print(f"  {problem}")
    if not pairs and not problems:
        raise ValueError(f"{train_image_dir} must hold photos, got none.")
    return 1 if problems else 0


def download(output: Path = PROJECT_DIR / "data") -> int:
    """Bring the competition's training photos and masks (only these, 430 MB) through Kaggle; go on where it stopped.

    Args:
        output: Folder that gets train/ and train_masks/.
    """
    try:
        import kagglehub
    except ModuleNotFoundError:
        raise RuntimeError("kagglehub must be installed to download. Run `pip install kagglehub`.") from None

    rules = f"https://www.kaggle.com/c/{COMPETITION}/rules"
    for archive in ("train.zip", "train_masks.zip"):
        folder = Path(output) / archive.removesuffix(".zip")
        if folder.is_dir() and len(list(folder.iterdir())) >= N_COMPETITION_PAIRS:
            continue
        try:
            archive_path = Path(kagglehub.competition_download(COMPETITION, path=archive))
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status == 403 or "403" in str(error):
                raise RuntimeError(
                    f"Kaggle wants the competition's rules accepted first: open {rules}, click, try again."
                ) from error
            if status == 401 or "401" in str(error) or "credential" in str(error).lower():
                raise RuntimeError(
                    "Kaggle does not know you: make a token at https://www.kaggle.com/settings, put it into the environment variable "
                    "KAGGLE_API_TOKEN (or a kaggle.json into ~/.kaggle), and try again."
                ) from error
            raise RuntimeError(
                f"{archive} could not be downloaded ({error}). Try again: it goes on where it stopped."
            ) from error
        extract(archive_path, Path(output))
    for name, suffixes in (("train", IMAGE_SUFFIXES), ("train_masks", MASK_SUFFIXES)):
        count = len(list_files(Path(output) / name, suffixes))
        if count != N_COMPETITION_PAIRS:
            raise RuntimeError(
                f"{Path(output) / name} must hold {N_COMPETITION_PAIRS} files, got {count}. Delete the folder and try again."
            )
        print(f"{Path(output) / name}: {count} files")
    return 0


def extract(archive_path: Path, output: Path) -> None:
    """Unpack an archive into `output`, file by file, leaving what is there already; nothing lands outside `output`."""
    try:
        if archive_path.is_dir():  # kagglehub has unpacked it itself
            shutil.copytree(archive_path, output, dirs_exist_ok=True)
            return
        with zipfile.ZipFile(archive_path) as archive:
            for member in tqdm(archive.infolist(), archive_path.name, leave=False):
                target = output / member.filename
                if not target.resolve().is_relative_to(output.resolve()):
                    raise RuntimeError(
                        f"{archive_path} holds a path outside its folder: {member.filename!r}. Do not use it."
                    )
                if member.is_dir() or target.name.startswith(".") or "__MACOSX" in member.filename:
                    continue
                if target.exists() and target.stat().st_size == member.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(target.name + ".partial")
                with archive.open(member) as source, open(partial, "wb") as sink:
                    shutil.copyfileobj(source, sink)
                partial.replace(target)
    except zipfile.BadZipFile as error:
        raise RuntimeError(f"{archive_path} is damaged ({error}). Delete it and try again.") from error


if __name__ == "__main__":
    import tyro
    from extra import run_command

    run_command(lambda args: tyro.extras.subcommand_cli_from_dict({"check": check, "download": download}, args=args))
