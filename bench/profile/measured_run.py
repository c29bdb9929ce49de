"""Real vLLM runs, as LLMServingSim lays them out: `vllm/requests.jsonl` (packed or not), `vllm/meta.json`,
`validation/summary.txt` with its authors' own errors, and the workload that `meta.json` names: the prompts' tokens.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec

from protos.runtime.text_files import TextFileError, read_text
from simcore.cost.hardware import GPUS, UnknownHardwareError, find_gpu
from simcore.cost.profile import Profile
from simcore.cost.shipped import UnknownProfileError, load_or_estimate, shipped_names
from simcore.node import SimRequest
from simcore.prefix import block_hashes
from simcore.types import EngineConfig

_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
_NEAREST = 4


class MeasuredRunError(ValueError):
    """A run that cannot be replayed. The message names file, line and reason."""


class MeasuredRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the engine logged it. Times in seconds of the engine's clock."""

    request_id: str
    input_toks: int
    output_toks: int
    queued_ts: float
    """When the engine took it in: between two steps."""
    first_token_ts: float
    last_token_ts: float
    arrival_time: float | None = None
    """On the clock of whoever sent it."""
    arrived_ts: float | None = None
    """When it came to the engine, as far as that is known; else it came when it was taken in."""
    block_hashes: tuple[int, ...] = ()
    """Names of the prompt's full KV blocks, where its tokens are known."""

    @property
    def came_ts(self) -> float:
        return self.queued_ts if self.arrived_ts is None else self.arrived_ts

    def simulated(self) -> SimRequest:
        """The same request to a simulated node."""
        return SimRequest(
            request_id=self.request_id,
            prompt_tokens=self.input_toks,
            output_tokens=self.output_toks,
            max_output_tokens=self.output_toks,
            block_hashes=self.block_hashes,
        )

    def __post_init__(self) -> None:
        if self.input_toks < 1 or self.output_toks < 1:
            raise ValueError(f"{self.input_toks} prompt and {self.output_toks} output tokens; each must be >= 1")
        if not self.queued_ts <= self.first_token_ts <= self.last_token_ts:
            raise ValueError("times run backwards: queued, first token and last token must follow each other")


class MeasuredRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run and the engine's settings."""

    requests: list[MeasuredRequest]
    """In the order in which they came."""
    config: EngineConfig
    tensor_parallel: int
    replicas: int
    shares_experts: bool
    """Whether the replicas share the experts of a mixture out among them."""
    engine_version: str
    num_blocks_known: bool
    device_name: str
    """The GPU as its driver calls it; empty where the run does not say."""
    prompts_known: bool
    """Whether the tokens of the prompts are at hand, so that those that begin alike find each other's KV."""
    authors_error: dict[tuple[str, str], float]
    """Relative error of the authors' own simulator by (metric, statistic), where the run brings it."""

    @property
    def profile_name(self) -> str:
        """What a profile of one of its engines is called behind the GPU."""
        tensor = f"-tp{self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        shared = f"-ep{self.replicas}" if self.shares_experts and self.replicas > 1 else ""
        return f"{self.config.model}{tensor}{shared}"


def read_run(folder: Path, workload: Path | None = None) -> MeasuredRun:
    """The run in `folder`. Its prompts are those of `workload`, or of the file that its settings name where that lies
    below a folder above. Raises `MeasuredRunError`."""
    requests = _arrived(_read_requests(folder / "vllm"))
    meta_path = folder / "vllm" / "meta.json"
    try:
        meta: dict[str, Any] = msgspec.json.decode(meta_path.read_bytes())
        arguments, cache = meta["engine_kwargs"], meta.get("kv_cache", {})
        scheduler = meta.get("resolved_config", {}).get("scheduler_config", {})
        longest = max(r.input_toks + r.output_toks for r in requests)
        config = EngineConfig(
            model=meta["model"],
            max_num_seqs=arguments["max_num_seqs"],
            max_num_batched_tokens=arguments["max_num_batched_tokens"],
            block_size_tokens=cache.get("block_size", 16),
            num_blocks=cache["num_gpu_blocks"] - 1 if cache else 1,
            max_model_len_tokens=max(arguments.get("max_model_len") or 0, longest),
            # The engines of these runs schedule asynchronously unless they say otherwise (vLLM 0.19's default).
            async_scheduling=scheduler.get("async_scheduling", True),
            enable_prefix_caching=cache.get("enable_prefix_caching", True),
            long_prefill_token_threshold_tokens=scheduler.get("long_prefill_token_threshold") or 0,
            scheduling_policy=scheduler.get("policy", "fcfs"),
            engine="vllm",
            engine_version=meta.get("vllm_version", ""),
        )
    except OSError as error:
        raise MeasuredRunError(f"{meta_path}: {error.strerror}") from None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise MeasuredRunError(f"{meta_path}: not the settings of a run ({type(error).__name__}: {error})") from None
    prompts = workload or _workload_of(folder, str(meta.get("dataset_path") or ""))
    if prompts is not None:
        requests = _with_prompts(requests, prompts, str(meta.get("dataset_hash") or ""), config.block_size_tokens)
    return MeasuredRun(
        requests=sorted(requests, key=lambda r: (r.came_ts, r.request_id)),
        config=config,
        tensor_parallel=arguments.get("tensor_parallel_size") or 1,
        replicas=arguments.get("data_parallel_size") or 1,
        shares_experts=bool(arguments.get("enable_expert_parallel", False)),
        engine_version=config.engine_version,
        num_blocks_known=bool(cache),
        device_name=str((meta.get("hardware") or {}).get("device_name") or ""),
        prompts_known=prompts is not None,
        authors_error=_authors_error(folder / "validation" / "summary.txt"),
    )


def _read_requests(folder: Path) -> list[MeasuredRequest]:
    path = next((p for packed in _PACKED if (p := folder / f"requests.jsonl{packed}").exists()), None)
    if path is None:
        raise MeasuredRunError(f"{folder}: neither requests.jsonl nor requests.jsonl.gz; name the folder above `vllm/`")
    try:
        lines = read_text(path).split("\n")
    except TextFileError as error:
        raise MeasuredRunError(str(error)) from None
    requests = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            requests.append(msgspec.json.decode(line, type=MeasuredRequest))
        except msgspec.DecodeError as error:
            raise MeasuredRunError(f"{path}: line {number}: {error}") from None
    if len(requests) < 2:
        raise MeasuredRunError(f"{path}: {len(requests)} request(s); a run has two or more")
    if len({r.request_id for r in requests}) != len(requests):
        raise MeasuredRunError(f"{path}: a request id occurs twice")
    return sorted(requests, key=lambda r: (r.queued_ts, r.request_id))


def _arrived(requests: list[MeasuredRequest]) -> list[MeasuredRequest]:
    """The same with the times at which they came to the engine.

    An engine takes requests in between two steps. Of all of a run some came while it idled, so the shortest time from
    its sender's clock to `queued_ts` is the way there.
    """
    ways_s = [r.queued_ts - r.arrival_time for r in requests if r.arrival_time is not None]
    if len(ways_s) < len(requests):
        return requests
    way_s = min(ways_s)
    return [
        msgspec.structs.replace(r, arrived_ts=min(r.queued_ts, r.arrival_time + way_s))
        for r in requests
        if r.arrival_time is not None
    ]


def _workload_of(folder: Path, name: str) -> Path | None:
    if not name:
        return None
    above = (folder.resolve(), *folder.resolve().parents)
    return next((p for root in above for packed in _PACKED if (p := root / f"{name}{packed}").is_file()), None)


class _Prompt(msgspec.Struct, frozen=True):
    input_tok_ids: tuple[int, ...] = ()
    sub_requests: tuple[msgspec.Raw, ...] = ()
    """Sessions, which such runs leave out."""


def _with_prompts(
    requests: list[MeasuredRequest], path: Path, sha256: str, block_size_tokens: int
) -> list[MeasuredRequest]:
    """The same with the names of their prompts' blocks; request `bench-N` is the N-th of the workload."""
    try:
        text = read_text(path)
    except TextFileError as error:
        raise MeasuredRunError(str(error)) from None
    if sha256 and hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise MeasuredRunError(f"{path}: not the workload of this run, whose SHA-256 is {sha256}")
    prompts = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(msgspec.json.decode(line, type=_Prompt))
        except msgspec.DecodeError as error:
            raise MeasuredRunError(f"{path}: line {number}: {error}") from None
    flat = {f"bench-{i}": p.input_tok_ids for i, p in enumerate(p for p in prompts if not p.sub_requests)}
    named = []
    for request in requests:
        tokens = flat.get(request.request_id, ())
        if len(tokens) != request.input_toks:
            raise MeasuredRunError(
                f"{path}: request {request.request_id} has {len(tokens)} prompt tokens here and {request.input_toks} "
                "in the run: another workload"
            )
        named.append(msgspec.structs.replace(request, block_hashes=block_hashes(tokens, block_size_tokens)))
    return named


def profile_of(folder: Path, run: MeasuredRun) -> Profile:
    """Step times of the GPU that the run or the name of its folder tells, for its model.

    Raises `MeasuredRunError` when neither tells one, or nobody has measured that pair.
    """
    gpu = _gpu_of(run.device_name, folder.resolve().parent.name)
    if gpu is None:
        raise MeasuredRunError(
            f"{folder}: which GPU? Neither its settings nor the folder {folder.resolve().parent.name!r} say. Name a "
            f"profile with --profile, for example {_nearest(run)}"
        )
    try:
        return load_or_estimate(f"{gpu}/{run.profile_name}")
    except (UnknownProfileError, UnknownHardwareError):
        raise MeasuredRunError(
            f"{folder}: no step times of {run.config.model} on {gpu}. Name a profile with --profile, for example "
            f"{_nearest(run)}, or fit one with `astrolabe bench profile fit`"
        ) from None


def _gpu_of(device_name: str, folder_name: str) -> str | None:
    words = re.findall(r"[a-z0-9]+", device_name.lower())
    joined = {"".join(words[a:b]) for a in range(len(words)) for b in range(a + 1, len(words) + 1)}
    named = [gpu for gpu in GPUS if joined.issuperset(gpu.split("-"))]
    if named:
        return max(named, key=len)
    try:
        return find_gpu(folder_name).name
    except UnknownHardwareError:
        return None


def _nearest(run: MeasuredRun) -> str:
    """Shipped profiles of this model, else of models with a like name."""
    wanted = run.profile_name.lower().rpartition("/")[2]
    names = shipped_names()
    tails = sorted({name.partition("/")[2] for name in names})
    close = difflib.get_close_matches(wanted, tails, n=2, cutoff=0.3) or tails[:1]
    return " or ".join([name for tail in close for name in names if name.endswith(f"/{tail}")][:_NEAREST])


def _authors_error(path: Path) -> dict[tuple[str, str], float]:
    """From lines such as `TTFT Mean   65456.6   65820.2   +0.6%`; empty without the file."""
    if not path.exists():
        return {}
    names = {"TTFT": "ttft_s", "TPOT": "tpot_s", "Latency": "e2e_s"}
    statistics = {"Mean": "mean", "Median": "p50", "P90": "p90", "P99": "p99"}
    found = {}
    for metric, statistic, percent in re.findall(r"(TTFT|TPOT|Latency) (\w+)\s.*?([+-][\d.]+)%", path.read_text()):
        if statistic in statistics:
            found[names[metric], statistics[statistic]] = float(percent) / 100.0
    return found
