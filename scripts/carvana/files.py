"""The project's folder, files that are whole or not there, a lock on a folder, and one way for commands to fail."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import filelock
from PIL import Image

PROJECT_DIR = Path(__file__).resolve().parents[2]
LOCK_SECONDS = 10  # the data workers of a killed run hold its lock, too, and notice its end after five


def write_file(path: Path | str, content: bytes) -> None:
    """Write a file under a temporary name, then rename it: its name always stands for whole content.

    Raises:
        OSError: If it cannot be written; the file that was there is still whole.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder is gone or read-only: the first error says so
            temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error.strerror or error}); what was saved before is whole. Free some space, "
            "or name another folder."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make a renaming in a folder outlive a power cut, where the system lets folders be opened."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path):
    """Keep a second training out of a folder while this one lives; the lock dies with its processes.

    Raises:
        RuntimeError: If another training has the folder.
        OSError: If the folder cannot be written to.
    """
    lock = filelock.FileLock(folder / ".lock", timeout=LOCK_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise RuntimeError(
            f"{folder} is in use by another training. Wait for it, or name another --checkpoint-dir."
        ) from error
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}). Name another --checkpoint-dir.") from error
    try:
        yield
    finally:
        lock.release()


def run_command(main: Callable, args: list[str] | None = None) -> None:
    """Run a command and exit: a user's mistake prints one line on stderr and exits with 1; --debug shows the traceback.

    Args:
        main: Takes the arguments; what it returns is the exit code, None for 0.
        args: The arguments; None takes those of the process.
    """
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # twice that many pixels are an error
    try:
        sys.exit(main(args) or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        if debug:
            raise
        # One line, whatever a file's name or a library's message holds.
        print(f"error: {' '.join(str(error).split()) or 'memory ran out'}", file=sys.stderr)
        sys.exit(1)
