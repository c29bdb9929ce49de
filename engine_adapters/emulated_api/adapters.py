"""LoRA adapters of an emulated engine: names that come and go while it runs. They change no word of its answers."""

from __future__ import annotations

from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.bodies import AdapterCall
from engine_adapters.emulated_api.errors import ApiError
from engine_adapters.emulated_api.plain import model_card
from engine_adapters.emulated_api.work import TokenEngine


class AdapterBook:
    """The adapters of one engine, with `/v1/models`, which lists them."""

    def __init__(self, engine: TokenEngine) -> None:
        self._engine = engine
        self._paths: dict[str, str] = {}

    def load(self, call: ApiCall) -> None:
        """`/v1/load_lora_adapter`. Raises ApiError."""
        body = call.read(AdapterCall)
        name = body.lora_name
        if not name or not body.lora_path:
            raise _refused("Both 'lora_name' and 'lora_path' must be provided.")
        if name in call.config.names and name not in self._paths:
            raise _refused(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self._paths and not body.load_inplace:
            said = "If you want to load the adapter in place, set 'load_inplace' to True."
            raise _refused(f"The lora adapter '{name}' has already been loaded. {said}")
        self._paths[name] = body.lora_path
        self._engine.offer(name, True)
        call.reply.whole(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), ())

    def unload(self, call: ApiCall) -> None:
        """`/v1/unload_lora_adapter`. Raises ApiError."""
        name = call.read(AdapterCall).lora_name
        if not name:
            raise _refused("'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self._paths:
            raise ApiError(f"The lora adapter '{name}' cannot be found.", status=404, kind="NotFoundError")
        del self._paths[name]
        self._engine.offer(name, False)
        call.reply.whole(200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), ())

    def list_models(self, call: ApiCall) -> None:
        """`/v1/models`."""
        model, paths = call.config.model, self._paths
        cards = [
            model_card(
                name,
                root=paths.get(name, model),
                parent=model if name in paths else None,
                max_model_len=None if name in paths else call.config.max_model_len_tokens,
                created=call.created,
            )
            for name in call.config.names
        ]
        call.answer("models", {"object": "list", "data": cards})


def _refused(message: str) -> ApiError:
    return ApiError(message, kind="InvalidUserInput")
