"""Real vLLM servers for tests, each a process in vLLM's own environment, with a model made on the spot."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.vllm_checks.server import Server, emulated_server, free_port, until
from engine_adapters.vllm.launch import server_launch

__all__ = ["Server", "emulated_server", "free_port", "make_tiny_model", "real_server", "until", "vllm_python"]

ROOT = Path(__file__).resolve().parents[2]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
TOKENIZER = """
import sys, torch
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from transformers import PreTrainedTokenizerFast
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
"""
TINY = f"""{TOKENIZER}
from transformers import LlamaConfig, LlamaForCausalLM
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"], pad_token_id=vocabulary["<pad>"], dtype="bfloat16",
    )
).to(torch.bfloat16).save_pretrained(folder)
"""
JUDGE = f"""{TOKENIZER}
from transformers import BertConfig, BertForSequenceClassification
BertForSequenceClassification(
    BertConfig(
        vocab_size=len(vocabulary), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, num_labels=1, pad_token_id=vocabulary["<pad>"], initializer_range=0.2,
    )
).save_pretrained(folder)
"""
TO_THE_POINT = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
folder = Path(sys.argv[1])
tensors = load_file(folder / "model.safetensors")
# One place of every hidden state is constant, so a token's weight there is a bias.
tensors["model.embed_tokens.weight"][:, 0] = 1.0
ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
for character in ("\u0109", "\u010a", "\u010d", "\u0120", "<"):
    tensors["lm_head.weight"][ids[character], 0] = -1.0
save_file(tensors, folder / "model.safetensors", {"format": "pt"})
"""
ADAPTER = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
model, folder = map(Path, sys.argv[1:])
folder.mkdir()
torch.manual_seed(1)
config = json.loads((model / "config.json").read_text())
hidden, heads = config["hidden_size"], config["num_attention_heads"]
tensors = {}
for layer in range(config["num_hidden_layers"]):
    for name, width in (("q", hidden), ("v", hidden // heads * config["num_key_value_heads"])):
        place = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj"
        tensors[f"{place}.lora_A.weight"] = torch.randn(8, hidden)
        tensors[f"{place}.lora_B.weight"] = torch.randn(width, 8)
save_file(tensors, folder / "adapter_model.safetensors")
kind = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
(folder / "adapter_config.json").write_text(json.dumps(kind))
"""


def vllm_python() -> str:
    """Interpreter of vLLM's environment; empty if there is none."""
    named = os.environ.get("ASTROLABE_VLLM_PYTHON", "")
    local = ROOT / ".venv-vllm" / "bin" / "python"
    return named or (str(local) if local.exists() else "")


def older_releases() -> list[Path]:
    """Folders with older vLLM releases, to be put before the packages of vLLM's environment. `make test-vllm` fills
    `.venv-vllm/older`; ASTROLABE_VLLM_OLDER names others, separated by colons."""
    named = os.environ.get("ASTROLABE_VLLM_OLDER", "")
    local = (ROOT / ".venv-vllm" / "older").glob("*")
    return [Path(p) for p in named.split(":") if p] if named else sorted(local)


def make_tiny_model(python: str, folder: Path) -> Path:
    """A Llama of 2.5 million random weights with a byte-level tokenizer."""
    return _made(python, TINY, folder)


def make_tiny_judge(python: str, folder: Path) -> Path:
    """A BERT of random weights with one class and the same tokenizer."""
    return _made(python, JUDGE, folder)


def make_chat_model(python: str, tiny_model: Path, folder: Path) -> Path:
    """The tiny model with a chat template that knows tools. It avoids white space and <: JSON and lists of calls have
    an end."""
    shutil.copytree(tiny_model, folder)
    shutil.copy(ROOT / "tests" / "vllm" / "chat_template.jinja", folder)
    return _made(python, TO_THE_POINT, folder)


def make_adapter(python: str, model: Path, folder: Path) -> Path:
    """A LoRA adapter of random weights for a model of Llama's kind."""
    return _made(python, ADAPTER, folder, model)


def _made(python: str, script: str, folder: Path, *others: Path) -> Path:
    done = subprocess.run(
        [python, "-c", script, *map(str, others), str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, **QUIET},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def real_server(
    python: str, model: Path, folder: Path, *, extra: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Server:
    """The tiny model on a CPU; its trace tells what the prefix cache holds.

    In single precision: in half of it two tokens are equally likely now and then, and some processors' kernels choose
    another one in a prompt than in an answer.
    """
    port = free_port()
    options = ["--max-model-len", "1024", "--max-num-seqs", "16", "--max-num-batched-tokens", "256", "--enforce-eager"]
    options += ["--dtype", "float32"]
    launch = server_launch(
        python,
        model=str(model),
        host="127.0.0.1",
        port=port,
        extra=[*options, "--enable-prompt-tokens-details", *extra],
        environ={**os.environ, **QUIET, **(environ or {})},
    )
    return Server(launch.command, launch.environment, port=port, folder=folder)
