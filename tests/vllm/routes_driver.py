# mypy: disable-error-code="import-not-found"
"""Runs inside a vLLM environment: every route that the installed release can have, whatever model it serves and however
it is started.

Prints one JSON object: path to methods; of a WebSocket `WEBSOCKET`, of a mounted application `MOUNT`.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from typing import Any, get_args

os.environ.update(
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_SERVER_DEV_MODE="1",
    VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
    VLLM_ENABLE_COHERE_API="1",
)


class Anything:
    """Stands for the configuration of a model that can do everything."""

    def __getattr__(self, name: str) -> Anything:
        return Anything()

    def __call__(self, *args: object) -> Anything:
        return Anything()


def main() -> None:
    import vllm.entrypoints
    from fastapi import APIRouter
    from vllm import tasks
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--enable-tokenizer-info-endpoint"])
    args.enable_fault_tolerance = args.enable_scale_out = True
    groups = (tasks.GenerationTask, tasks.PoolingTask, tasks.FrontendTask)
    seen: list[Any] = list(build_app(args, tuple(t for g in groups for t in get_args(g)), Anything()).routes)
    # And those of routers that this start would leave out.
    for module in pkgutil.walk_packages(vllm.entrypoints.__path__, "vllm.entrypoints."):
        if module.name.rpartition(".")[2] == "api_router":
            found = vars(importlib.import_module(module.name)).values()
            seen += [route for router in found if isinstance(router, APIRouter) for route in router.routes]
    routes: dict[str, set[str]] = {}
    for route in seen:
        kind = "WEBSOCKET" if "WebSocket" in type(route).__name__ else "MOUNT"
        routes.setdefault(route.path, set()).update(getattr(route, "methods", None) or {kind})
    sys.stdout.write(json.dumps({path: sorted(methods) for path, methods in sorted(routes.items())}) + "\n")


if __name__ == "__main__":
    main()
