"""Run every benchmark, print the ratios and write the page."""

from __future__ import annotations

from pathlib import Path

from benchmarks import edit_generate, import_time, patching, record
from benchmarks.page import show, write
from benchmarks.paired import Row
from benchmarks.settings import PAGE, parser, read

ROOMS = {"record": record, "patching": patching, "import_time": import_time, "edit_generate": edit_generate}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks that are asked for, all by default."""
    options = parser(__doc__ or "")
    options.add_argument("--out", type=Path, default=PAGE, help="where the page is written")
    settings = read(options.parse_args(arguments))
    rows: list[Row] = []
    for name, module in ROOMS.items():
        print(name, flush=True)
        rows += module.rows(settings)
    show(rows)
    print(f"written: {write(rows, settings)}")


if __name__ == "__main__":
    main()
