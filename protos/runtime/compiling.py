"""The process that compiles kernels for one that serves: `python -m protos.runtime.compiling FUNCTION`, of those of
`simcore.warmup`.

It gives way to all who serve, and ends with the process that started it, however that ends: its input ends then.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading

NICENESS = 5
WARMING = "simcore.warmup"


def main(of: str) -> None:
    """Compiles what that function uses, or finds it compiled."""
    os.nice(NICENESS)
    threading.Thread(target=_end_with_input, name="input", daemon=True).start()
    getattr(importlib.import_module(WARMING), of)()


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
