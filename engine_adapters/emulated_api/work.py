"""The part of a call that its engine computes: one request in the scheduler per answer, or per text to be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import structlog

from engine_adapters.base import EngineError, EngineOutput, EngineRequest, FinishReason, OutputSink, RequestRefused
from engine_adapters.emulated_answer import natural_length
from engine_adapters.emulated_api.errors import ApiError, refused
from engine_adapters.emulated_api.pieces import CallBegun, CallWords, Part, SaidText, Segment, Voice
from engine_adapters.forwarding import ReplyEnd
from engine_adapters.tokenizer import Tokenizer, tokenizer_info
from simcore.trace import child_id
from simcore.types import EngineConfig

log = structlog.get_logger("engine_adapters.emulated_api")


class TokenEngine(Protocol):
    """What the API needs of its engine."""

    def config(self) -> EngineConfig: ...

    def offer(self, name: str, offered: bool) -> None: ...

    def submit(self, request: EngineRequest, sink: OutputSink, prompt: Sequence[int]) -> None: ...

    def submit_script(
        self, request: EngineRequest, script: Sequence[int], sink: OutputSink, prompt: Sequence[int]
    ) -> None: ...

    def drop(self, request_id: str) -> bool: ...


class AnswerWish(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are made."""

    max_tokens: int
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    keep_stop: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    seed: int = 0
    priority: int = 0
    emulated_output_tokens: int = 0


class MadeCall(msgspec.Struct):
    """A call of a tool that an answer makes."""

    call_id: str
    name: str
    arguments: str = ""


class Choice(msgspec.Struct, kw_only=True):
    """One answer as far as it has come."""

    index: int
    prompt: tuple[int, ...]
    token_ids: list[int] = []
    text: str = ""
    raw: str = ""
    """All that was said, calls of tools spelled out, when it has ended."""
    calls: list[MadeCall] = []
    calls_tools: bool = False
    """Whether it will call tools, though it may not have begun to."""
    finish: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int = 0
    """Of its prompt, found in the prefix cache; told in the end."""


class Listener(Protocol):
    """Makes an API's answer of what comes."""

    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        """New tokens of one answer, which `choice` holds already."""

    def done(self) -> None:
        """All answers are complete."""


class Work:
    """The requests of one call in the scheduler."""

    def __init__(self, engine: TokenEngine, tokenizer: Tokenizer, request_id: str) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._text_ids = tokenizer_info(tokenizer.name).text_ids
        self._request_id = request_id
        self._open: dict[str, tuple[Choice, Voice]] = {}
        self._begun = 0
        self._listener: Listener | None = None
        self._failed: Callable[[EngineError], None] | None = None
        self.choices: list[Choice] = []

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts together; one that gets several answers counts once."""
        return sum(len(prompt) for prompt in {id(c.prompt): c.prompt for c in self.choices}.values())

    @property
    def output_tokens(self) -> int:
        """Of all answers together; prompts that are only read have none."""
        return 0 if isinstance(self._listener, _Read) else sum(len(c.token_ids) for c in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Of all prompts together, found in the prefix cache by the first answer to each."""
        return sum({id(c.prompt): c.cached_tokens for c in reversed(self.choices)}.values())

    def end(self, *, says_usage: bool = True) -> ReplyEnd:
        """How the answer ends, when all of it is made. `says_usage`: whether it tells its numbers of tokens."""
        at_limit = self.output_tokens > 0 and any(choice.finish == "length" for choice in self.choices)
        if not says_usage:
            return ReplyEnd(at_limit=at_limit)
        return ReplyEnd(
            at_limit=at_limit,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
        )

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: AnswerWish,
        listener: Listener,
        failed: Callable[[EngineError], None],
        *,
        n: int = 1,
        scripts: Sequence[Sequence[Segment]] = (),
    ) -> None:
        """`n` answers to each prompt. `scripts`: their words, by answer, where they are given; an empty one is not.
        Raises ApiError if the engine refuses one of them; then none is made. Raises EngineError."""
        self._listener, self._failed = listener, failed
        self.choices = [Choice(index=i, prompt=prompt) for i, prompt in enumerate(p for p in prompts for _ in range(n))]
        try:
            for choice in self.choices:
                script = scripts[choice.index] if choice.index < len(scripts) else ()
                self._submit(choice, choice.index % n, sampling, script)
        except (ApiError, EngineError) as error:
            self.drop()
            if isinstance(error, RequestRefused):
                raise refused(str(error), "input_tokens", len(self.choices[0].prompt)) from None
            raise

    def read(
        self, prompts: Sequence[tuple[int, ...]], done: Callable[[], None], failed: Callable[[EngineError], None]
    ) -> None:
        """Computes prompts and nothing behind them (embeddings, scores). As `generate`."""
        sampling = AnswerWish(max_tokens=1, ignore_eos=True)
        self.generate(prompts, sampling, _Read(done), failed)

    def drop(self) -> None:
        """Takes out of the scheduler what is still there; nothing more is told."""
        left, self._open = list(self._open), {}
        for name in left:
            self._engine.drop(name)

    def _submit(self, choice: Choice, variant: int, sampling: AnswerWish, script: Sequence[Segment]) -> None:
        # The trace knows the first by the call's own name.
        name = self._request_id if not choice.index else child_id(self._request_id, str(choice.index))
        # What is said hangs on the prompt's tokens alone: another last one makes another answer.
        varied = (*choice.prompt[:-1], choice.prompt[-1] + variant + 1_000_003 * sampling.seed) if choice.prompt else ()
        wanted = sampling.emulated_output_tokens
        if sampling.min_tokens:
            wanted = max(sampling.min_tokens, natural_length(varied, self._text_ids, wanted_tokens=wanted))
        request = EngineRequest(
            request_id=name,
            prompt_token_ids=varied,
            max_tokens=sampling.max_tokens,
            stop=() if script else sampling.stop,
            stop_token_ids=() if script else sampling.stop_token_ids,
            ignore_eos=sampling.ignore_eos,
            emulated_output_tokens=wanted,
            priority=sampling.priority,
        )
        choice.calls_tools = any(segment.kind == "arguments" for segment in script)
        if script:
            lengths = [(s, self._tokenizer.encode(s.text)) for s in script]
            voice = Voice(self._tokenizer, [(s, len(ids)) for s, ids in lengths if ids])
            self._open[name] = (choice, voice)
            self._engine.submit_script(request, [i for _, ids in lengths for i in ids], self._came, choice.prompt)
        else:
            voice = Voice(
                self._tokenizer,
                stops=sampling.stop,
                stop_token_ids=sampling.stop_token_ids,
                keep_stop=sampling.keep_stop,
            )
            self._open[name] = (choice, voice)
            self._engine.submit(request, self._came, choice.prompt)

    def _came(self, name: str, output: EngineOutput | EngineError) -> None:
        known = self._open.get(name)
        if known is None or self._listener is None or self._failed is None:
            return
        if isinstance(output, EngineError) or output.finish == "aborted":
            self._open = {}
            self._failed(output if isinstance(output, EngineError) else EngineError("the engine was closed"))
            return
        choice, voice = known
        parts = voice.take(output.token_ids, last=output.finish is not None)
        choice.token_ids.extend(output.token_ids)
        for part in parts:
            if isinstance(part, SaidText):
                choice.text += part.text
            elif isinstance(part, CallBegun):
                choice.calls.append(MadeCall(part.call_id, part.name))
            elif isinstance(part, CallWords):
                choice.calls[part.index].arguments += part.text
        if output.finish is not None:
            del self._open[name]
            choice.finish, choice.stop_reason = output.finish, voice.stop_reason
            choice.cached_tokens = output.cached_tokens
            choice.raw = self._tokenizer.decode(choice.token_ids) if choice.calls_tools else choice.text
        try:
            self._listener.step(choice, output.token_ids, parts)
            if not self._open:
                self._listener.done()
        except Exception as defect:
            # The engine must not fall for the words of one answer.
            log.exception("emulated call failed", request=self._request_id)
            self.drop()
            self._failed(EngineError(f"the emulated engine failed: {defect!r}"))


class _Read:
    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done

    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        pass

    def done(self) -> None:
        self._done()
