"""Real vLLM servers for tests, each a process in vLLM's own environment, with a model made on the spot."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_adapters.vllm.launch import server_launch

ROOT = Path(__file__).resolve().parents[2]
START_S = 300.0
STOP_S = 20.0
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
TINY = """
import sys, torch
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
folder = sys.argv[1]
vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
for s in ("<s>", "</s>", "<unk>", "<pad>"):
    vocabulary[s] = len(vocabulary)
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
).save_pretrained(folder)
torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"], pad_token_id=vocabulary["<pad>"], dtype="bfloat16",
    )
).to(torch.bfloat16).save_pretrained(folder)
"""


def vllm_python() -> str:
    """Interpreter of vLLM's environment; empty if there is none."""
    named = os.environ.get("ASTROLABE_VLLM_PYTHON", "")
    local = ROOT / ".venv-vllm" / "bin" / "python"
    return named or (str(local) if local.exists() else "")


def older_pythons() -> list[str]:
    """Interpreters with older releases, separated by colons in ASTROLABE_VLLM_OLDER; their schedulers are driven."""
    return [p for p in os.environ.get("ASTROLABE_VLLM_OLDER", "").split(":") if p]


def make_tiny_model(python: str, folder: Path) -> Path:
    """A Llama of 2.5 million random weights with a byte-level tokenizer."""
    done = subprocess.run(
        [python, "-c", TINY, str(folder)], capture_output=True, text=True, timeout=120, env={**os.environ, **QUIET}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One vLLM server. `start`, `wait_ready`, ..., `stop`; may be started again."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, port: int, folder: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = folder / f"vllm-{port}.log"
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
            )
        return self

    def wait_ready(self) -> Server:
        until(self.is_ready, deadline_s=START_S, what=f"{self.url} serves")
        return self

    def is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.last_words()
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One completion, not streamed."""
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60.0) as answer:
            return dict(json.loads(answer.read()))

    def metric(self, name: str) -> float:
        """Sum of a metric's samples."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10.0) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def last_words(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]

    def signal(self, number: int) -> None:
        """To the server and its engine process alike."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_S)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()


def real_server(python: str, model: Path, folder: Path, *, extra: Sequence[str] = ()) -> Server:
    """The tiny model on a CPU."""
    port = free_port()
    options = ["--max-model-len", "1024", "--max-num-seqs", "16", "--max-num-batched-tokens", "256", "--enforce-eager"]
    launch = server_launch(
        python,
        model=str(model),
        host="127.0.0.1",
        port=port,
        extra=[*options, "--enable-prompt-tokens-details", *extra],
        environ={**os.environ, **QUIET},
    )
    return Server(launch.command, launch.environment, port=port, folder=folder)


def emulated_server(python: str, folder: Path, **options: object) -> Server:
    """As a user starts it: `astrolabe engine vllm --device emulated`."""
    port = free_port()
    command = [sys.executable, "-m", "bench.cli", "engine", "vllm", "--device", "emulated"]
    command += ["--python", python, "--port", str(port)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return Server(command, {**os.environ, "PYTHONPATH": str(ROOT)}, port=port, folder=folder)


def until(condition: Callable[[], bool], *, deadline_s: float = 30.0, what: str = "the condition") -> None:
    """Polls until it holds; fails when it does not in time."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.1)


def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="astrolabe-vllm-"))
