"""Which of our modules run inside vLLM, and how they read as one package of their own. Reads the checkout.

The package's name is its own: two distributions that bring the same files take them away from each other when one is
removed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "astrolabe_trace"
WHAT_VLLM_LOADS = ("engine_adapters.vllm.plugin", "engine_adapters.vllm.scheduler")
HOMES = ("engine_adapters.vllm", "simcore")
"""Packages whose modules may come along. Of their `__init__` nothing is needed."""
GIVEN = frozenset({"vllm", "msgspec"})
"""What is there wherever vLLM is."""
ABOUT = (
    '"""Traces the scheduler of a stock vLLM server for Astrolabe: `scheduler` is for a flag, `plugin` for none."""\n'
)


class TraceModulesError(Exception):
    """A module cannot run inside vLLM. The message names it and what it imports."""


def trace_modules(root: Path) -> dict[str, str]:
    """File name in the package to its text. Raises TraceModulesError."""
    sources: dict[str, str] = {}
    wanted = list(WHAT_VLLM_LOADS)
    while wanted:
        name = wanted.pop()
        if name in sources:
            continue
        sources[name] = (root / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        for imported in _imports(sources[name]):
            if imported.rpartition(".")[0] in HOMES:
                wanted.append(imported)
            elif imported.partition(".")[0] not in GIVEN | sys.stdlib_module_names:
                raise TraceModulesError(
                    f"{name} imports {imported}, which vLLM's environment does not have; keep it out of what runs there"
                )
    stems = [name.rpartition(".")[2] for name in sources]
    if len(set(stems)) < len(stems):
        raise TraceModulesError(f"two modules have one name: {', '.join(sorted(sources))}; rename one")
    names = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(sources, key=len, reverse=True)))
    files = {
        f"{name.rpartition('.')[2]}.py": names.sub(lambda found: f"{PACKAGE}.{found[0].rpartition('.')[2]}", text)
        for name, text in sources.items()
    }
    return {"__init__.py": ABOUT, **dict(sorted(files.items()))}


def _imports(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
