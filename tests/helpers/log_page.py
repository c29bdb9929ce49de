"""What deploy/logs.md says of each line of the logs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[2] / "deploy" / "logs.md"
EVERYWHERE = {"timestamp", "level", "event"}


class LineFields(NamedTuple):
    """Names of one event's fields."""

    always: set[str]
    sometimes: set[str]


def described(section: str) -> dict[str, LineFields]:
    """Events of a section (Gateway, Daemon) of the page."""
    text = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    found: dict[str, LineFields] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 3 or not cells[0].startswith("`"):
            continue
        optional = "".join(re.findall(r"\(([^)]*)\)", cells[2]))
        sometimes = set(re.findall(r"`(\w+)`", optional))
        fields = LineFields(set(re.findall(r"`(\w+)`", cells[2])) - sometimes, sometimes)
        for event in re.findall(r"`([^`]+)`", cells[0]):
            found[event] = fields
    return found
