"""Makes the stubs under `protos/v1` from the `.proto` files beside them.

    python -m protos.generate           write them
    python -m protos.generate --check   compare only; exit 1 if they are stale

The generator is pinned (grpcio-tools 1.72.1, extra `dev`): newer stubs refuse the older protobuf runtimes that
engines still carry. Stubs are checked in, so that installing needs no compiler.
"""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("protos/v1")
PINNED_GENERATOR = "1.72.1"
HEADER = "# Made by `python -m protos.generate`; do not edit.\n"


def generate(into: Path) -> None:
    """Writes all stubs below `into`. Raises RuntimeError when the generator is another version or fails."""
    from grpc_tools import protoc  # only needed by developers

    version = importlib.metadata.version("grpcio-tools")
    if version != PINNED_GENERATOR:
        raise RuntimeError(
            f"grpcio-tools is {version}, the pinned generator is {PINNED_GENERATOR}: pip install -e .[dev]"
        )
    include = Path(protoc.__file__).parent / "_proto"
    files = sorted(str(p.relative_to(ROOT)) for p in (ROOT / FOLDER).glob("*.proto"))
    with_services = [f for f in files if "\nservice " in (ROOT / f).read_text()]
    scripts = Path(sysconfig.get_path("scripts"))
    common = ["protoc", f"-I{ROOT}", f"-I{include}"]
    common += [f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    if protoc.main([*common, f"--python_out={into}", f"--mypy_out=quiet:{into}", *files]) != 0:
        raise RuntimeError("protoc failed for the messages")
    if protoc.main([*common, f"--grpc_python_out={into}", f"--mypy_grpc_out=quiet:{into}", *with_services]) != 0:
        raise RuntimeError("protoc failed for the services")
    for stub in (into / FOLDER).iterdir():
        stub.write_text(HEADER + stub.read_text())


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        made = {p.name: p.read_text() for p in (Path(folder) / FOLDER).iterdir()}
    target = ROOT / FOLDER
    have = {p.name: p.read_text() for p in target.glob("*_pb2*")}
    if "--check" in sys.argv[1:]:
        stale = sorted(name for name in made.keys() | have.keys() if made.get(name) != have.get(name))
        if stale:
            print(f"stale stubs: {', '.join(stale)}; run: python -m protos.generate", file=sys.stderr)
            return 1
        return 0
    for name in have.keys() - made.keys():
        (target / name).unlink()
    for name, text in made.items():
        (target / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
