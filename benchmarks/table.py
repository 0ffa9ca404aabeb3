"""Print the latest rows as Markdown tables, for the README: of each question those of the machine that measured it last.

python benchmarks/table.py
"""

import csv
import re
import sys
from pathlib import Path

HEADER = ("question", "setting", "textbook", "ours", "unit", "ratio", "spread", "load", "commit")


def latest_rows(path: Path) -> list[dict]:
    """Keep the last row of each setting, of the machine that measured its question last: rows of two machines do not compare.

    On a CPU and on a GPU a question is not the same.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    asked = lambda row: (row["question"], "cuda" in row["setting"])
    machine = {asked(row): row["hardware"] for row in rows}
    latest = {}
    for row in rows:
        if row["hardware"] == machine[asked(row)]:
            latest[row["question"], row["setting"]] = row
    kinds = [re.split("[:,]| --", question)[0] for question, _ in latest]  # rows of one kind stand together
    return [row for _, row in sorted(zip(kinds, latest.values()), key=lambda pair: kinds.index(pair[0]))]


def format_table(rows: list[dict]) -> str:
    """Lay rows out in Markdown, a table for each machine under its name and versions."""
    lines = []
    for hardware in dict.fromkeys(row["hardware"] for row in rows):
        ours = [row for row in rows if row["hardware"] == hardware]
        lines += [f"{hardware}; Python {ours[-1]['python']}, PyTorch {ours[-1]['torch']}, {ours[-1]['versions']}:", ""]
        lines += ["| " + " | ".join(HEADER) + " |", "|---|---|--:|--:|---|--:|---|--:|---|"]
        for row in ours:
            spread = (
                f"{row['ratio_low']} to {row['ratio_high']}, {row['pairs']} pairs"
                if row["ratio"]
                else f"median of {row['pairs']}"
            )
            cells = {
                **row,
                "textbook": row["textbook"] or "-",
                "ratio": row["ratio"] or "-",
                "spread": spread,
                "load": row["load"] or "-",
            }
            lines.append("| " + " | ".join(re.sub(r"\|", "/", cells[name]) for name in HEADER) + " |")
        lines.append("")
    if not any("NVIDIA" in row["hardware"] or "cuda" in row["setting"] for row in rows):
        lines.append(
            "On a GPU: not measured. `python benchmarks/gpu.py` fills those rows in less than 10 minutes, without network."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("results.csv")
    if not path.is_file():
        sys.exit(f"error: {path} does not exist. Run a benchmark first, such as `python benchmarks/cache.py`.")
    print(format_table(latest_rows(path)))
