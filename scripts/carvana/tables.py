"""Tables that grow row by row and survive being killed, and Kaggle's run-length rows."""

import csv
import io
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import filelock
from extra import write_file


class Table:
    """A CSV file that grows by whole rows, goes on after a kill, and may be shared by several processes.

    A JSON file of the same name beside it holds the settings that its rows were made with.

    Args:
        path: The .csv file.
        header: Names of the columns, of which the first tells rows apart. Cells must not hold line breaks.
    """

    def __init__(self, path: Path, header: list[str]):
        self.path, self.header = Path(path), header
        self.lock = filelock.FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def start(self, made_with: dict, keep: Callable[[str], bool], overwrite: bool) -> set[str]:
        """Drop rows that are to be made anew and a last row that was cut.

        Args:
            made_with: Settings that all rows must share; None goes with any value.
            keep: Tells from a row's first cell whether the row stays.
            overwrite: Allow other settings than those of the rows that are there; none of these then stays.

        Returns:
            First cells of the rows that stay.

        Raises:
            ValueError: If the rows that are there were made with other settings, or the file is no such table.
            OSError: If the file cannot be written.
        """
        with self.locked():
            settings, fit = self.compare_settings(made_with, overwrite)
            if not self.path.exists():
                write_file(self.path, to_line(self.header))
            with open(self.path, "rb") as file:
                first = file.readline(5000)
            if not to_line(self.header).startswith(first):  # it may have been cut, too
                got = first.decode("utf-8", "replace").strip()[:80]
                raise ValueError(
                    f"{self.path} must begin with {','.join(self.header)}, got {got!r}. Name another file."
                )
            self.drop_cut_row()
            partial = self.path.with_name(self.path.name + ".tmp")
            names, n_dropped = set(), 0
            # Line by line: a submission has 100,064 rows of some 20 kB.
            with (
                open(self.path, newline="", encoding="utf-8") as rows,
                open(partial, "w", newline="", encoding="utf-8") as kept,
            ):
                kept.write(rows.readline())
                for line in rows:
                    name, *_ = next(csv.reader([line[:5000]])) or [""]  # an editor may leave a blank line
                    if not (fit and name) or name in names or not keep(name):
                        n_dropped += 1
                    else:
                        names.add(name)
                        kept.write(line)
            if n_dropped:
                os.replace(partial, self.path)
            else:
                partial.unlink()
            write_file(self.path.with_suffix(".json"), json.dumps(settings, indent=1).encode())
            return names

    def append(self, row: list) -> None:
        """Add a row."""
        with self.locked():
            self.drop_cut_row()  # another process may have been killed while it wrote
            with open(self.path, "ab") as file:
                file.write(to_line(row))

    @contextmanager
    def locked(self):
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.lock:
                yield
        except OSError as error:
            if error.errno is None:  # says already what was the matter
                raise
            raise OSError(
                error.errno, f"{self.path} could not be written ({error.strerror}). Free some space, or name another"
            ) from error

    def drop_cut_row(self) -> None:
        """Cut off what stands behind the last line's end."""
        with open(self.path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - 2**16)
                file.seek(start)
                place = file.read(end - start).rfind(b"\n")
                if place >= 0:
                    file.truncate(start + place + 1)
                    return
                end = start
            file.truncate(0)
            file.write(to_line(self.header))

    def compare_settings(self, made_with: dict, overwrite: bool) -> tuple[dict, bool]:
        """Give the settings to note for the table from now on, and whether the rows that are there were made with them."""
        path = self.path.with_suffix(".json")
        settings = {key: value for key, value in made_with.items() if value is not None}
        if not path.exists():
            return settings, True
        try:
            before = dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError):
            raise ValueError(
                f"{path} is damaged. Delete it with {self.path}, or name another place for the results."
            ) from None
        if not before.keys() <= made_with.keys():
            raise ValueError(
                f"{path} must hold the settings of {self.path}, got other things. Name another place for the results."
            )
        if not self.path.exists():
            return settings, True
        for key, value in settings.items():
            if before.get(key) not in (None, value):
                if overwrite:
                    return settings, False
                raise ValueError(
                    f"{key} must be {before[key]}, as for the results in {self.path}, got {value}. Use --overwrite to make them anew, "
                    "or name another place for the results."
                )
        return {**before, **settings}, True


def to_line(row: list) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue().encode()
