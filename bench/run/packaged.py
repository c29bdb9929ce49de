"""Files that come with the experiments, named `experiments/NAME`; every other path is the user's and stays as it is."""

from __future__ import annotations

from pathlib import Path

PREFIX = "experiments/"
_FOLDER = Path(__file__).resolve().parents[1] / "experiments"
_KINDS = {".py": "policies", ".json": "profiles"}


def packaged_path(name: str) -> str:
    """Where the file lies, if it is one of ours; else `name`."""
    kind = _KINDS.get(Path(name).suffix)
    if kind is None or not name.startswith(PREFIX):
        return name
    return str(_FOLDER / kind / name.removeprefix(PREFIX))
