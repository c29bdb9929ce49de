"""vLLM's own tests of its server, run against it and against a gateway before it: what passes there passes here.

They are not part of this tree: ASTROLABE_VLLM_SOURCE names the folder of an unpacked source distribution of the release
that is installed, and ASTROLABE_SMOLLM2 one with the small model:

    pip download --no-deps --no-binary :all: vllm==0.32.0 && tar xf vllm-0.32.0.tar.gz
    .venv-vllm/bin/python -m bench.vllm_checks.smollm2 results/smollm2

ASTROLABE_SUITE_TESTS picks tests of the modules, as `-k` does; ASTROLABE_SUITE_REPORTS names a folder for what came of
each.

Whatever model a test asks for, it gets the small one by that name. All share one server, save those with options of a
kind of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from bench.vllm_checks.server import Server, free_port
from engine_adapters.vllm.launch import server_launch
from gateway.intake.callers import KeyEntry, KeyFile, digest, new_key, write_keys
from tests.vllm.chains import chain
from tests.vllm.conftest import REPORT
from tests.vllm.servers import QUIET, ROOT, make_adapter

OPENAI = "tests/entrypoints/openai"
MODULES = (
    f"{OPENAI}/chat_completion/test_chat.py",
    f"{OPENAI}/chat_completion/test_chat_completion.py",
    f"{OPENAI}/chat_completion/test_chat_echo.py",
    f"{OPENAI}/chat_completion/test_chat_logit_bias_validation.py",
    f"{OPENAI}/chat_completion/test_logprob_token_ids.py",
    f"{OPENAI}/chat_completion/test_batched_chat_completions.py",
    f"{OPENAI}/chat_completion/test_completion_with_function_calling.py",
    f"{OPENAI}/chat_completion/test_enable_force_include_usage.py",
    f"{OPENAI}/chat_completion/test_include_reasoning.py",
    f"{OPENAI}/chat_completion/test_thinking_token_budget.py",
    f"{OPENAI}/chat_completion/test_root_path.py",
    f"{OPENAI}/completion/test_completion.py",
    f"{OPENAI}/completion/test_prompt_validation.py",
    f"{OPENAI}/completion/test_token_in_token_out.py",
    f"{OPENAI}/models/test_models.py",
    f"{OPENAI}/responses/test_simple.py",
    f"{OPENAI}/responses/test_parsable_context.py",
    f"{OPENAI}/test_chunked_prompt.py",
    f"{OPENAI}/test_return_token_ids.py",
    f"{OPENAI}/test_return_tokens_as_ids.py",
    "tests/entrypoints/anthropic/test_messages.py",
    "tests/entrypoints/serve/tokenize/test_tokenization.py",
    "tests/entrypoints/serve/instrumentator/test_basic.py",
    "tests/entrypoints/serve/instrumentator/test_orca_metrics.py",
    "tests/entrypoints/serve/lora/test_lora_adapters.py",
    "tests/entrypoints/generate/structured_decisions/test_structured_decisions_e2e.py",
    "tests/entrypoints/generate/generative_scoring/test_generative_scoring_e2e.py",
    "tests/entrypoints/scale_out/token_in_token_out/test_serving_tokens.py",
    "tests/entrypoints/scale_out/render/test_render.py",
    "tests/entrypoints/scale_out/derender/test_derender.py",
)
KNOWN: Mapping[str, str] = {
    "test_tokenizer_info": "what describes an engine is never handed on",
    "test_server_load": "how busy a node's server is, its clients are not told: the gateway's metrics speak of all",
    "test_abort_requests": "whoever may end requests by name could end those of others",
    "test_stream_delivers_abort_finish_chunk": "the same",
    "test_dynamic_lora_lineage": "the list of models is one for all nodes: where one has an adapter is left out",
}
"""Beginnings of the names of tests that pass at the server and are known not to through the gateway, and why."""

MACHINE = ("--gpu-memory-utilization", "--attention-backend", "--port", "--host", "--seed")
"""Options of the tests' own machine, each with a value."""
COMMON = {
    **dict.fromkeys(("--dtype", "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens"), 1),
    **dict.fromkeys(("--lora-modules", "--max-lora-rank", "--max-cpu-loras", "--tool-call-parser"), 1),
    **dict.fromkeys(("--enforce-eager", "--enable-chunked-prefill", "--enable-lora", "--enable-auto-tool-choice"), 0),
    "--structured-outputs-config.backend": 1,
}
"""Options that the common server has or whose value is all the same to it, and how many values each has."""
OWN_CHATS = (
    "--chat-template",
    "--default-chat-template-kwargs",
    "--enable-force-include-usage",
    "--response-role",
    "--return-tokens-as-token-ids",
)
"""Options of the server's HTTP part that change what chats say; no engine tells them, so the daemon is told."""
CHANGED_BY = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""Servers with this in their environment are changed by those who ask them."""
ADAPTERS = ("zephyr-lora", "qwen3-lora")
KEPT = 2
"""Servers that run at a time."""


@dataclass
class Pair:
    """A server, and what tells its options; a gateway before it once somebody asks."""

    server: Server
    folder: Path
    gateway_options: dict[str, Any]
    daemon_options: dict[str, Any]
    admin_key: str = ""
    """What opens the gateway to those who start it, where it wants keys."""
    stack: ExitStack = field(default_factory=ExitStack)
    gateway: str = ""

    def url(self, side: str) -> str:
        if side == "plain":
            return self.server.url
        if not self.gateway:
            both = chain(self.server, self.folder / "chain", gateway=self.gateway_options, **self.daemon_options)
            with patch.dict(os.environ, {"ASTROLABE_API_KEY": self.admin_key} if self.admin_key else {}):
                self.gateway = self.stack.enter_context(both).url
        return self.gateway


class Broker:
    """Gives tests the servers that they ask for, each started once; the oldest makes room for the next."""

    def __init__(self, python: str, model: Path, adapter: Path, names: Sequence[str], folder: Path) -> None:
        self._python, self._model, self._adapter, self._folder = python, model, adapter, folder
        self._names = names
        self._pairs: dict[str, Pair] = {}
        self._failed: dict[str, str] = {}
        self._lock = threading.Lock()

    def url(self, *, side: str, model: str, arguments: Sequence[str], environ: Mapping[str, str]) -> str:
        kept = list(_without(arguments, dict.fromkeys(MACHINE, 1)))
        if model in self._names and not environ and not list(_without(kept, COMMON)):
            kept = self._common()
        elif "--served-model-name" not in kept:
            kept += ["--served-model-name", model]
        key = json.dumps([kept, dict(environ)])
        with self._lock:
            if key in self._failed:
                raise RuntimeError(self._failed[key])
            if CHANGED_BY in environ and key in self._pairs:
                # What one side has loaded the other could not load again.
                self._pairs.pop(key).stack.close()
            if key not in self._pairs:
                self._make_room()
                try:
                    self._pairs[key] = self._started(kept, environ)
                except AssertionError as failed:
                    self._failed[key] = f"no server with {kept}: {failed}"
                    raise RuntimeError(self._failed[key]) from failed
            return self._pairs[key].url(side)

    def close(self) -> None:
        with self._lock:
            self._make_room(0)

    def _make_room(self, kept: int = KEPT - 1) -> None:
        while len(self._pairs) > kept:
            self._pairs.pop(next(iter(self._pairs))).stack.close()

    def _common(self) -> list[str]:
        adapters = [f"{name}={self._adapter}" for name in ADAPTERS]
        return [
            *("--served-model-name", *self._names, "--max-model-len", "4096", "--max-num-seqs", "32"),
            *("--enable-lora", "--max-lora-rank", "64", "--max-cpu-loras", "2", "--lora-modules", *adapters),
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        ]

    def _started(self, arguments: list[str], environ: Mapping[str, str]) -> Pair:
        folder = self._folder / f"server-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        port = free_port()
        launch = server_launch(
            self._python,
            model=str(self._model),
            host="127.0.0.1",
            port=port,
            extra=["--enforce-eager", *arguments],
            environ={**os.environ, **QUIET, **environ},
        )
        server = Server(launch.command, launch.environment, port=port, folder=folder)
        own_chats = any(argument.partition("=")[0] in OWN_CHATS for argument in arguments)
        tokenizer = {"tokenizer": str(self._model)}
        pair = Pair(server, folder, dict(tokenizer), {**tokenizer, "engine_own_chats": own_chats})
        if key := environ.get("VLLM_API_KEY"):
            pair.admin_key = new_key()
            client = KeyEntry(name="client", sha256=digest(key).hex())
            admin = KeyEntry(name="admin", sha256=digest(pair.admin_key).hex(), role="admin")
            write_keys(folder / "keys.toml", KeyFile(keys=(client, admin)))
            pair.gateway_options["keys"] = str(folder / "keys.toml")
            (folder / "engine.key").write_text(key)
            (folder / "engine.key").chmod(0o600)
            pair.daemon_options["engine_api_key_file"] = str(folder / "engine.key")
        pair.stack.callback(server.stop)
        try:
            server.start().wait_ready()
        except AssertionError:
            pair.stack.close()
            raise
        return pair


def _without(arguments: Sequence[str], options: Mapping[str, int]) -> Iterator[str]:
    """What is left without these options and as many values of each as stand there."""
    several = iter(arguments)
    for argument in several:
        name, has_value, _ = argument.partition("=")
        if name not in options:
            yield argument
            continue
        for _ in range(0 if has_value else options[name]):
            next(several)


@contextmanager
def listening(broker: Broker) -> Iterator[str]:
    """The broker's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                _, host, port = broker.url(**asked).replace("//", "").split(":")
                told: dict[str, Any] = {"host": host, "port": int(port)}
            except RuntimeError as error:
                told = {"error": str(error)}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    # Servers end with the thread that started them: one does all.
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        broker.close()


@pytest.fixture(scope="session")
def model() -> Path:
    folder = Path(os.environ.get("ASTROLABE_SMOLLM2", "") or ROOT / "results" / "smollm2")
    if not (folder / "config.json").exists():
        pytest.skip(f"no small model in {folder} (ASTROLABE_SMOLLM2): see the head of {__file__}")
    return folder.resolve()


@pytest.fixture(scope="session")
def work(vllm_python: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the release's tests and a hub's cache in which all models that they name are the small one."""
    source = Path(os.environ.get("ASTROLABE_VLLM_SOURCE", "nowhere"))
    if not (source / "tests" / "utils.py").exists():
        pytest.skip(f"ASTROLABE_VLLM_SOURCE names no source distribution of vLLM: see the head of {__file__}")
    folder = tmp_path_factory.mktemp("suite")
    # The sources themselves must not stand beside them: they would be taken for the package.
    shutil.copytree(source / "tests", folder / "tests")
    (folder / "examples").symlink_to(source / "examples")
    (folder / "pytest.ini").write_text("[pytest]\ntimeout = 60\ntimeout_func_only = true\n")
    shutil.copy(ROOT / "tests" / "vllm" / "suite_driver.py", folder)
    make_adapter(vllm_python, model, folder / "adapter")
    shared = (folder / "tests" / "entrypoints" / "conftest.py").read_text()
    adapters = re.findall(r'def \w*lora_files\(.*?"([\w-]+/[\w.-]+)"', shared, re.DOTALL)
    for name in names_in(folder):
        cached = folder / "hub" / "hub" / f"models--{name.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        (cached / "snapshots").mkdir()
        is_adapter = "lora" in name.lower() or name in adapters
        (cached / "snapshots" / ("0" * 40)).symlink_to(folder / "adapter" if is_adapter else model)
    # Where one test keeps what it downloads.
    (folder / "tmp").mkdir()
    (folder / "tmp" / "qwen3_06b").symlink_to(folder / "hub" / "hub")
    return folder


def names_in(work: Path) -> list[str]:
    """Names of models, and of much else with a slash, in all tests of servers."""
    texts = [path.read_text() for path in sorted((work / "tests" / "entrypoints").rglob("*.py"))]
    return list(dict.fromkeys(name for text in texts for name in re.findall(r'"([\w-]+/[\w.-]+)"', text)))


class Run:
    """The modules of this session, one after another in one process; what came of each as soon as it is through."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log
        self._told: dict[str, dict[str, Any]] = {}

    def of(self, module: str) -> dict[str, Any]:
        """Of each side (plain, gateway) what came of each test and why."""
        assert self._process.stdout is not None
        while module not in self._told:
            line = self._process.stdout.readline()
            assert line, f"the driver ended with {self._process.wait()}: {self._log.read_text()[-3000:]}"
            told = json.loads(line)
            self._told[told.pop("module")] = told
        return self._told[module]


@pytest.fixture(scope="session")
def run(
    vllm_python: str, work: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Run]:
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    modules = [str(item.callspec.params["module"]) for item in items if "module" in item.fixturenames]
    texts = [(work / module).read_text() for module in modules]
    names = [n for n in names_in(work) if any(f'"{n}"' in text for text in texts) and "lora" not in n.lower()]
    broker = Broker(vllm_python, model, work / "adapter", names, tmp_path_factory.mktemp("servers"))
    with listening(broker) as url, (work / "driver.log").open("w") as log:
        process = subprocess.Popen(
            [vllm_python, "-W", "ignore", "suite_driver.py", url, *modules],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={
                **os.environ,
                **QUIET,
                "HF_HOME": str(work / "hub"),
                "TMPDIR": str(work / "tmp"),
                "NO_PROXY": "*",
                "no_proxy": "*",
            },
        )
        try:
            yield Run(process, work / "driver.log")
        finally:
            process.kill()
            process.communicate()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", MODULES)
def test_what_passes_at_the_server_passes_through_the_gateway(
    run: Run, module: str, request: pytest.FixtureRequest
) -> None:
    told = run.of(module)
    lost = [name for name, how in told["plain"].items() if how[0] == "passed" and _of(told, name) != "passed"]
    gained = [name for name, how in told["plain"].items() if how[0] != "passed" and _of(told, name) == "passed"]
    lines = [f"{module}: server {_counts(told['plain'])}; gateway {_counts(told['gateway'])}"]
    lines += [f"  only through the gateway: {name}" for name in gained]
    request.config.stash[REPORT] = "\n".join(filter(None, [request.config.stash.get(REPORT, ""), *lines]))
    if folder := os.environ.get("ASTROLABE_SUITE_REPORTS"):
        name = re.sub(r"\W+", "-", module.removeprefix("tests/entrypoints/").removesuffix(".py"))
        (Path(folder) / f"{name}.json").write_text(json.dumps(told, indent=1))
    unknown = [
        f"{name}\n    {told['gateway'].get(name)}" for name in lost if not any(_is(name, known) for known in KNOWN)
    ]
    mended = [
        k for k in KNOWN if any(_is(name, k) for name in told["plain"]) and not any(_is(name, k) for name in lost)
    ]
    assert not mended, f"take them off the list of what is known: {mended}"
    if unknown:
        pytest.fail(f"{len(unknown)} pass at the server alone:\n" + "\n".join(unknown), pytrace=False)
    if not any(how[0] == "passed" for how in told["plain"].values()):
        reasons = {str(how[1])[-300:] for how in told["plain"].values()}
        pytest.skip(f"nothing of it passes at the server with this model: {reasons}"[:1500])


def _is(name: str, known: str) -> bool:
    return name.rpartition("::")[2].startswith(known)


def _of(told: Mapping[str, Any], name: str) -> str:
    return str(told["gateway"].get(name, ("absent", ""))[0])


def _counts(outcomes: Mapping[str, Sequence[str]]) -> str:
    kinds = [how[0] for how in outcomes.values()]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds)))
