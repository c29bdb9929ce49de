"""The command line and environment with which a stock vLLM server is started. Starts nothing itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from engine_adapters.token_pieces import byte_characters
from simcore.types import EngineConfig

SCHEDULER = "engine_adapters.vllm.scheduler.TraceScheduler"
EXECUTOR = "engine_adapters.vllm_emulated_device.EmulatedDevice"
VOCABULARY = 32_000
TINY_LLAMA: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
"""For a server that computes nothing. What the user has set stays."""


class Launch(msgspec.Struct, frozen=True):
    """What to execute."""

    command: tuple[str, ...]
    environment: dict[str, str]


def server_launch(
    python: str,
    *,
    model: str,
    host: str,
    port: int,
    extra: Sequence[str],
    environ: Mapping[str, str],
) -> Launch:
    """A stock server with the trace flag. `vllm serve` would do as well where the distribution is called vllm."""
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", host, "--port", str(port), "--scheduler-cls", SCHEDULER, *extra]
    return Launch(tuple(command), {**environ, **_import_path(environ)})


def emulated_launch(
    python: str,
    *,
    folder: Path,
    config: EngineConfig,
    device: Mapping[str, object],
    host: str,
    port: int,
    extra: Sequence[str],
    environ: Mapping[str, str],
) -> Launch:
    """A stock server on the emulated device. Writes a model directory without weights into `folder`."""
    write_model(folder, max_model_len_tokens=config.max_model_len_tokens)
    limits = {
        "--served-model-name": config.model,
        "--distributed-executor-backend": EXECUTOR,
        "--max-model-len": config.max_model_len_tokens,
        "--max-num-seqs": config.max_num_seqs,
        "--max-num-batched-tokens": config.max_num_batched_tokens,
        "--block-size": config.block_size_tokens,
        # One more: vLLM keeps a null block for itself.
        "--num-gpu-blocks-override": config.num_blocks + 1,
        "--scheduling-policy": config.scheduling_policy,
        "--generation-config": "vllm",
    }
    options = [text for name, value in limits.items() for text in (name, str(value))]
    options += ["--enforce-eager", "--enable-prompt-tokens-details"]
    if not config.enable_prefix_caching:
        options.append("--no-enable-prefix-caching")
    if not config.async_scheduling:
        options.append("--no-async-scheduling")
    launch = server_launch(python, model=str(folder), host=host, port=port, extra=[*options, *extra], environ=environ)
    settings = {"ASTROLABE_EMULATED_DEVICE": json.dumps({**device, "async_scheduling": config.async_scheduling})}
    quiet = {k: v for k, v in _QUIET.items() if k not in environ}
    return Launch(launch.command, {**launch.environment, **quiet, **settings})


def special_ids(vocabulary: int) -> dict[str, int]:
    """The last ids of a vocabulary of so many: those that stand for no text."""
    return {"<unk>": vocabulary - 3, "<s>": vocabulary - 2, "</s>": vocabulary - 1}


def write_model(
    folder: Path,
    *,
    max_model_len_tokens: int,
    vocabulary: int = VOCABULARY,
    architecture: Mapping[str, object] = TINY_LLAMA,
) -> None:
    """Configuration and tokenizer of a model without weights. Ids 0 to 255 are bytes; the others stand for nothing.

    `architecture`: keys of the model's `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    special = special_ids(vocabulary)
    config = {
        **architecture,
        "max_position_embeddings": max_model_len_tokens,
        "vocab_size": vocabulary,
        "bos_token_id": special["<s>"],
        "eos_token_id": special["</s>"],
        "torch_dtype": "bfloat16",
    }
    bytes_as_text = byte_characters()
    ids = {bytes_as_text[b]: b for b in range(256)}
    ids |= {f"<t{i}>": i for i in range(256, vocabulary - len(special))} | special
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text, i in special.items()
        ],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": ids, "merges": [], "unk_token": "<unk>"},
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": chat, **names}
    for name, content in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", kind)):
        (folder / f"{name}.json").write_text(json.dumps(content))


def _import_path(environ: Mapping[str, str]) -> dict[str, str]:
    """Lets the server import these modules from a checkout; an installed distribution it must have itself."""
    root = Path(__file__).resolve().parents[2]
    if root.name in ("site-packages", "dist-packages"):
        return {}
    before = environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{root}:{before}" if before else str(root)}


def this_python_has_vllm() -> bool:
    """Whether vLLM is installed beside this interpreter; does not import it."""
    import importlib.util

    return importlib.util.find_spec("vllm") is not None


def default_python(environ: Mapping[str, str]) -> str:
    """Interpreter for the server: ASTROLABE_VLLM_PYTHON, else this one if it has vLLM, else empty."""
    return environ.get("ASTROLABE_VLLM_PYTHON", "") or (sys.executable if this_python_has_vllm() else "")
