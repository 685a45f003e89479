"""The page of the documentation that shows the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cri.rpc.fields.table import ROOTS, TABLE, Entry, Fate, Row

_HEAD = """# What is done about every field

Made by `scripts/generate-fields` from `cri/rpc/fields/table.py`, to which every request is held: a field that is refused here is
refused by the daemon, with what stands here. A row for a message that is ignored or refused is about all that is in it.
A field that a newer release of the CRI has is passed over, as protobuf has it. "Must be" is what a value is refused for
that is not.

"""


def text() -> str:
    """The page, as Markdown."""
    return _HEAD + "\n".join(line for root in ROOTS for line in _section(root)) + "\n"


def _section(root: str) -> Iterator[str]:
    rows: Mapping[str, Row] = {
        path.removeprefix(f"{root}."): row for path, row in TABLE.items() if path.startswith(f"{root}.")
    }
    yield f"## {root}\n"
    yield "| field | Linux | FreeBSD | must be |"
    yield "|---|---|---|---|"
    for path, row in rows.items():
        freebsd = "the same" if row.freebsd == row.linux else _shown(row.freebsd)
        yield f"| `{path}` | {_shown(row.linux)} | {freebsd} | {_rules(row)} |"
    yield ""


def _shown(entry: Entry) -> str:
    said = entry.text.replace("|", "\\|")
    return said if entry.fate is Fate.DONE else f"**{entry.fate.value}**: {said}"


def _rules(row: Row) -> str:
    values = row.rule.says if row.rule is not None else ""
    if row.keys is None or row.keys == row.rule:
        return values
    return f"keys: {row.keys.says}" + (f"; values: {values}" if values else "")
