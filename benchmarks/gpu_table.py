"""What the parts of gpu.sh measured, as one table in Markdown, and as one JSON file.

python benchmarks/gpu_table.py FOLDER [FOLDER ...]
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

COLUMNS = ("work", "contender", "time", "a second", "ratio", "memory", "more")
# Of a contender, what has a column of its own, or says no more than it.
SHOWN = {"median_s", "min_s", "max_s", "ratio", "peak_mb"}
WHERE = ("device", "versions", "commit")
# What the work is, the number that it must reach, and whether that is the least or the most.
TARGETS = [
    ("training step, batch 16, 800x1344, bf16", "ratio", 2.5, "least"),
    ("training step, batch 16, 800x1344, bf16", "images_per_s", 100, "least"),
    ("training step, batch 16, 800x1344, bf16", "images_per_s", 180, "least"),
    ("training step, batch 16, 800x1344, bf16", "host_syncs", 2, "most"),
    ("prediction, batch 8, 640x480 at 800/1333", "ratio", 2, "least"),
    ("prediction, batch 8, 640x480 at 800/1333", "images_per_s", 210, "least"),
]


def lines_of(folders: list[Path]) -> list[dict[str, Any]]:
    """What was measured, in the order of the parts; a line that was cut short is left out."""
    found = []
    for file in sorted(file for folder in folders for file in folder.glob("part_*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                found.append(json.loads(line) | {"part": file.stem.removeprefix("part_")})
            except json.JSONDecodeError:
                print(f"{file}: a line was cut short: {line[:80]}")
    return found


def rows_of(line: dict[str, Any]) -> Iterator[list[str]]:
    """The table's rows of a measurement, one a contender."""
    for name, found in line.get("results", {}).items():
        rates = [key for key in found if key.endswith("_per_s") and "slowest" not in key]
        more = [f"{key} {value}" for key, value in found.items() if key not in {*SHOWN, *rates}]
        yield [
            line["benchmark"],
            name,
            f"{found['median_s'] * 1000:.2f} ms" if "median_s" in found else "",
            ", ".join(f"{found[key]} {key.removesuffix('_per_s')}" for key in rates),
            str(found.get("ratio", "")),
            f"{found['peak_mb']} MB" if found.get("peak_mb") else "",
            ", ".join(more),
        ]
    if "error" in line:
        said = line["error"].strip().splitlines()
        last = ([each for each in said if "rror" in each] or said)[-1]
        yield [line["benchmark"], "failed", "", "", "", "", last.replace("|", "/")[-200:]]


def breakdowns(lines: list[dict[str, Any]]) -> Iterator[str]:
    """A table of each work of which it is known where its time goes."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["benchmark"], {}).update(line.get("breakdown", {}))
    for benchmark, contenders in found.items():
        if contenders:
            parts = dict.fromkeys(part for shares in contenders.values() for part in shares)
            yield from ("", f"Where the time goes: {benchmark}", "")
            yield f"| part | {' | '.join(contenders)} |"
            yield "|---" * (1 + len(contenders)) + "|"
            for part in parts:
                cells = [_share(shares.get(part, "")) for shares in contenders.values()]
                yield f"| {part} | {' | '.join(cells)} |"


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def targets(lines: list[dict[str, Any]]) -> Iterator[str]:
    """What the best of our contenders reaches of TARGETS."""
    for benchmark, key, wanted, kind in TARGETS:
        values = {
            name: found[key]
            for line in lines
            if line["benchmark"] == benchmark
            for name, found in line.get("results", {}).items()
            if name != line.get("peer") and key in found
        }
        what = f"{benchmark}: {key} at {kind} {wanted}"
        if not values:
            yield f"not measured: {what}"
            continue
        best = (max if kind == "least" else min)(values, key=lambda name: values[name])
        reached = values[best] >= wanted if kind == "least" else values[best] <= wanted
        yield f"{'reached' if reached else 'missed'}: {what}; {best} has {values[best]}"


def main(
    folders: Annotated[list[Path], typer.Argument(help="With part_1.jsonl and so on.")],
) -> None:
    """Write gpu.md and gpu.json into the first folder, and print the table."""
    lines = lines_of(folders)
    if not lines:
        raise typer.BadParameter(f"no part_*.jsonl in {', '.join(map(str, folders))}")
    where = [{key: line[key] for key in WHERE} for line in lines]
    places = [each for number, each in enumerate(where) if each not in where[:number]]
    table = ["| " + " | ".join(row) + " |" for line in lines for row in rows_of(line)]
    text = [
        *(f"{place['device']}, {place['versions']}, commit {place['commit']}" for place in places),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
        *table,
        *breakdowns(lines),
        "",
        *(f"- {target}" for target in targets(lines)),
    ]
    measured = [{key: value for key, value in line.items() if key not in WHERE} for line in lines]
    folders[0].joinpath("gpu.md").write_text("\n".join(text) + "\n")
    content = {"places": places, "targets": list(targets(lines)), "measured": measured}
    folders[0].joinpath("gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    typer.run(main)
