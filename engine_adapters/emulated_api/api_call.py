"""One call while it is answered: what came, who computes, where the answer goes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from engine_adapters.base import EngineError
from engine_adapters.emulated_api.bodies import AnyCall, read_body
from engine_adapters.emulated_api.checks import BodyChecks
from engine_adapters.emulated_api.errors import ApiError, invalid, unknown_model
from engine_adapters.emulated_api.pieces import Segment
from engine_adapters.emulated_api.reply import Reply
from engine_adapters.emulated_api.work import AnswerWish, Listener, TokenEngine, Work
from engine_adapters.forwarding import ForwardCall
from engine_adapters.tokenizer import Tokenizer
from simcore.types import EngineConfig


class ApiCall:
    """What a handler gets: it reads the body, starts work, and answers by `reply` at once or as the work proceeds."""

    def __init__(
        self,
        call: ForwardCall,
        body: bytes,
        reply: Reply,
        *,
        engine: TokenEngine,
        tokenizer: Tokenizer,
        checks: BodyChecks,
        path: Mapping[str, str],
        query: Mapping[str, str],
    ) -> None:
        """`path`: what the path's placeholders stand for."""
        self.call = call
        self.body = body
        self.reply = reply
        self.tokenizer = tokenizer
        self.path = path
        self.query = query
        self.created = int(time.time())
        self.work = Work(engine, tokenizer, call.request_id)
        self.detached = False
        """Whether the work goes on when the client leaves."""
        self._engine = engine
        self._checks = checks

    @property
    def config(self) -> EngineConfig:
        return self._engine.config()

    def header(self, name: str) -> str:
        """A header's first value; empty if it is absent."""
        return next((value for key, value in self.call.headers if key == name), "")

    def answer_id(self, prefix: str) -> str:
        """The answer's id: with the client's own, where it sent one."""
        return f"{prefix}-{self.header('x-request-id') or uuid.uuid4().hex}"

    def read(self, kind: type[AnyCall]) -> AnyCall:
        """The body. Raises ApiError."""
        if self.header("content-type").split(";", 1)[0].strip().lower() != "application/json":
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise ApiError(message, kind="Bad Request")
        self._checks.check_body(kind.__name__, self.body)
        return read_body(self.body, kind)

    def model(self, asked: str | None) -> str:
        """The name under which the answer is given. Raises ApiError for a model that is not served."""
        if not asked:
            return self.config.model
        if asked not in self.config.names:
            raise unknown_model(asked)
        return asked

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: AnswerWish,
        listener: Listener,
        *,
        n: int = 1,
        scripts: Sequence[Sequence[Segment]] = (),
        failed: Callable[[EngineError], None] | None = None,
    ) -> None:
        """As `Work.generate`, with failures told to the client's side unless `failed` is given."""
        if sampling.priority and self.config.scheduling_policy != "priority":
            raise ApiError(f"Got priority {sampling.priority} but Priority scheduling is not enabled.")
        self.work.generate(prompts, sampling, listener, failed or self.reply.fail, n=n, scripts=scripts)

    def compute(self, prompts: Sequence[tuple[int, ...]], done: Callable[[], None]) -> None:
        """As `Work.read`, with failures told to the client's side. Raises ApiError for nothing to compute."""
        if not prompts:
            raise invalid("give at least one input")
        self.work.read(prompts, done, self.reply.fail)

    def answer(self, kind: str, tree: dict[str, object]) -> None:
        """A whole answer, as vLLM's model `kind` writes it where that is here."""
        made = self._checks.completed(kind, tree)
        self.reply.json(200, made, end=self.work.end())
