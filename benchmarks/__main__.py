"""Run the benchmarks, print the ratios and write the pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import (
    acdc,
    dictionaries,
    edge_attribution,
    edit_generate,
    functions,
    heads,
    import_time,
    patching,
    record,
    steering,
    store,
)
from benchmarks.page import show, write
from benchmarks.paired import Row
from benchmarks.settings import PAGE, parser, read

PAGES = {
    PAGE.name: {"record": record, "patching": patching, "import_time": import_time, "edit_generate": edit_generate},
    "benchmarks-store.md": {"store": store},
    "benchmarks-features.md": {"dictionaries": dictionaries},
    "benchmarks-functions.md": {"functions": functions},
    "benchmarks-steering.md": {"steering": steering},
    "benchmarks-circuits.md": {"heads": heads, "edge_attribution": edge_attribution, "acdc": acdc},
}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks of the pages that are asked for, all by default."""
    options = parser(__doc__ or "")
    options.add_argument("--page", choices=list(PAGES), action="append", help="only this page")
    options.add_argument("--out", type=Path, default=PAGE.parent, help="folder of the pages")
    given = vars(options.parse_args(arguments))
    wanted = given.pop("page") or list(PAGES)
    settings = read(given)
    for page in wanted:
        rows: list[Row] = []
        for name, module in PAGES[page].items():
            print(name, flush=True)
            rows += module.rows(settings)
        show(rows)
        print(f"written: {write(rows, replace(settings, out=settings.out / page))}")


if __name__ == "__main__":
    main()
