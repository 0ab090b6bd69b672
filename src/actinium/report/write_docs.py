"""Write what follows from the code: the table of findings in `docs/scan.md`, and `schema.json`.

Run it from the root of the repository: `python -m actinium.report.write_docs`.
"""

from __future__ import annotations

import json
from pathlib import Path

from actinium.report.measurements import MEASUREMENTS
from actinium.report.rules.rule import SEVERITIES
from actinium.report.rules.table import RULES
from actinium.report.schema import json_schema

__all__ = ["measurements_table", "rules_table", "schema_text", "with_tables"]

SCHEMA = Path(__file__).with_name("schema.json")
PAGE = Path("docs") / "scan.md"


def rules_table() -> str:
    """Every rule, ordered as findings are."""
    rows = ["| finding | severity | reported when | source of the limits | why it matters |", "|---|---|---|---|---|"]
    for rule in sorted(RULES, key=lambda r: SEVERITIES.index(r.severity)):
        rows.append(f"| `{rule.name}` | {rule.severity} | {rule.threshold} | {rule.source} | {rule.why} |")
    return "\n".join(rows)


def measurements_table() -> str:
    """Every measurement, in the order in which they are made."""
    rows = ["| name | title | how to read it |", "|---|---|---|"]
    rows += [f"| `{m.name}` | {m.title} | {m.about} |" for m in MEASUREMENTS]
    return "\n".join(rows)


def schema_text() -> str:
    """The JSON schema as its file holds it."""
    return json.dumps(json_schema(), indent=1) + "\n"


def with_tables(page: str) -> str:
    """A page with the text between its markers `<!-- rules -->` ... `<!-- end -->` made anew."""
    for name, table in (("rules", rules_table()), ("measurements", measurements_table())):
        before, marker, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        page = f"{before}{marker}\n{table}\n\n{end}{after}"
    return page


def main() -> None:
    """Write both files."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
