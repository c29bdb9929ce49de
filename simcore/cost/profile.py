"""A shipped profile: the step-time coefficients of one (GPU, model, tensor parallel) triple, with the origin of each.

Owns the record and its strict decoding. A profile is what `astrolabe bench profile fit` writes and what people read;
`step_time_model` turns it into what the simulator runs on.
"""

from __future__ import annotations

import msgspec

from simcore.cost.step_time import StepTimeModel


class Coefficient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number and where it comes from."""

    value: float
    source: str


class DenseCurve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of everything that depends on the number of tokens only, as knots of a piecewise linear curve."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    source: str


NOT_MODELLED = Coefficient(0.0, "not modelled")


class AsyncHost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The host's part of a step where the engine schedules asynchronously: it prepares a step while the device runs the
    one before. Seconds."""

    gap_s: Coefficient
    """What the device waits for between any two steps all the same."""
    gap_prefill_s: Coefficient
    """What it waits for besides before a step that prefills: launches that no captured graph replays."""
    beside_s: Coefficient = NOT_MODELLED
    """What the host does while the device works: no step is shorter than this and the next two together."""
    beside_seq_s: Coefficient = NOT_MODELLED
    """Per sequence of the step."""
    beside_new_s: Coefficient = NOT_MODELLED
    """Per sequence that prefills."""


class KvHint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Default KV capacity of one engine of this kind; an engine that says otherwise is right."""

    num_blocks: int
    block_size_tokens: int = 16
    source: str


class FitReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How well the coefficients reproduce rows of the tables that the fit did not see."""

    rows_fitted: int
    rows_held_out: int
    rows_refused: int
    """Rows left out because they break physics or hold no value."""
    median_error: dict[str, float]
    """Relative error (a share of 1) of the GPU's part of a step, by kind of batch: `dense` (no attention), `decode`,
    `prefill`, `mixed`, `all`. Measured by a fit that left a fifth of the rows out."""
    p90_error: dict[str, float]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Coefficients of one GPU, model and tensor parallel degree. All times in seconds."""

    name: str
    """`gpu/model`, or `gpu/model-tpN`: the name users give."""
    gpu: str
    model: str
    """As on the model hub, e.g. `meta-llama/Llama-2-7b-hf`."""
    tensor_parallel: int = 1
    expert_parallel: int = 1
    """Replicas that share the experts out among them; the profile is that of one of them, all equally loaded."""
    aliases: tuple[str, ...] = ()
    quality: str
    """`measured`: every part from tables of this GPU; `composed`: some part from a sister GPU or a rule; `roofline`:
    from peaks alone."""
    note: str = ""
    constant_s: Coefficient
    """Constant part of the GPU's time: head and launches."""
    prefill_work_s_per_token2: Coefficient
    decode_kv_s_per_token: Coefficient
    per_seq_s: Coefficient
    mixed_decode_kv_s_per_token: Coefficient
    mixed_seq_s: Coefficient
    host_s: Coefficient
    """Host work that the GPU waits for in every step, unless the engine schedules asynchronously."""
    host_seq_s: Coefficient
    """Host work that the GPU waits for, per sequence of the batch."""
    host_new_s: Coefficient = NOT_MODELLED
    """Host work that the GPU waits for, per sequence that prefills."""
    async_host: AsyncHost | None = None
    """What takes the place of the three above in an engine that schedules asynchronously; None: all is hidden."""
    dense: DenseCurve
    shared: DenseCurve | None = None
    """The part of `dense` that replicas do for each other at equal loads: experts, what is sent to them and back."""
    kv: KvHint
    fit: FitReport

    @property
    def suffix(self) -> str:
        """What the name carries behind the model: `-tp4`, `-ep2`, nothing for one GPU on its own."""
        tensor = f"-tp{self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        return tensor + (f"-ep{self.expert_parallel}" if self.expert_parallel > 1 else "")

    @property
    def served_name(self) -> str:
        """What clients call the model unless an engine says otherwise: the same on however many GPUs it runs."""
        return self.name.partition("/")[2].removesuffix(self.suffix)

    def step_time_model(self, *, async_scheduling: bool = False) -> StepTimeModel:
        """The coefficients as the simulator takes them.

        With asynchronous scheduling the host prepares a step while the GPU runs the one before: a step takes as long as
        the slower of the two, and what is left between two steps.
        """
        beside = self.async_host if async_scheduling else None
        if async_scheduling:
            step_s, seq_s, new_s = beside.gap_s.value if beside else 0.0, 0.0, 0.0
        else:
            step_s, seq_s, new_s = self.host_s.value, self.host_seq_s.value, self.host_new_s.value
        return StepTimeModel(
            name=self.name,
            constant_s=self.constant_s.value + step_s,
            prefill_work_s_per_token2=self.prefill_work_s_per_token2.value,
            decode_kv_s_per_token=self.decode_kv_s_per_token.value,
            per_seq_s=self.per_seq_s.value + seq_s,
            mixed_decode_kv_s_per_token=self.mixed_decode_kv_s_per_token.value,
            mixed_seq_s=self.mixed_seq_s.value,
            prefill_step_s=beside.gap_prefill_s.value if beside else 0.0,
            prefill_seq_s=new_s,
            host_s=beside.beside_s.value if beside else 0.0,
            host_seq_s=beside.beside_seq_s.value if beside else 0.0,
            host_prefill_seq_s=beside.beside_new_s.value if beside else 0.0,
            dense_knots_tokens=self.dense.tokens,
            dense_knots_s=self.dense.seconds,
            source=self.dense.source,
        )


def decode_profile(text: bytes) -> Profile:
    """Profile from its JSON. Raises `msgspec.ValidationError` naming the field that is missing, unknown or mistyped."""
    return msgspec.json.decode(text, type=Profile)


def encode_profile(profile: Profile) -> bytes:
    """Indented JSON, one newline at the end. Parts that few profiles have stand in it only where they are."""
    fields = msgspec.to_builtins(profile)
    for name, absent in (("host_new_s", NOT_MODELLED), ("async_host", None), ("shared", None)):
        if getattr(profile, name) == absent:
            del fields[name]
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"
