"""What the engine's prefix cache holds, as the trace tells it, and how much of a prompt is found there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simcore.trace import CacheDelta


class PrefixContent:
    """Names of blocks (`simcore.prefix`). Begins empty, which is also what an engine that tells nothing looks like."""

    def __init__(self, *, block_size_tokens: int, most_blocks: int) -> None:
        """An engine has `most_blocks` blocks; names beyond that many are not kept, whatever a trace says."""
        self.version = 0
        """Grows with every change."""
        self._block_size_tokens = block_size_tokens
        self._most_blocks = most_blocks
        self._names: set[int] = set()
        self._number: int | None = None
        """Number of the last change; None until a trace has given the whole content."""

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> Iterable[int] | None:
        """All that are known; None while the content is not."""
        return None if self._number is None else self._names

    def begin(self) -> None:
        """A trace has begun, or begun again: its first change tells the whole content."""
        self._names.clear()
        self._number = None
        self.version += 1

    def apply(self, delta: CacheDelta) -> bool:
        """Takes in a change. True: one before it was lost, and the trace must be read anew."""
        if self._number is None:
            if not delta.cleared:
                return True
        elif delta.number != self._number + 1:
            return True
        self._number = delta.number
        self.version += 1
        if delta.cleared:
            self._names.clear()
        self._names.difference_update(delta.evicted)
        room = self._most_blocks - len(self._names)
        self._names.update(delta.stored[:room])
        return False

    def cached_tokens(self, block_hashes: Sequence[int], prompt_tokens: int) -> int:
        """Tokens of a prompt that need no computing: its leading blocks that are here, but never its last token, for
        which the engine computes a whole block (`KVCacheManager.get_computed_blocks`)."""
        size = self._block_size_tokens
        usable = min(len(block_hashes), (prompt_tokens - 1) // size)
        blocks = 0
        while blocks < usable and block_hashes[blocks] in self._names:
            blocks += 1
        return blocks * size
