"""Whatever a cache does and whatever gets lost on the way, a gateway's index is the node's content or unknown."""

from __future__ import annotations

import random

import pytest

from gateway.core.nodes.prefix_index import PrefixIndex
from predictor.core.cache_teller import TELL_EVERY_S, CacheTeller
from protos import codec
from simcore.cache_summary import CacheSummary, is_told, told_name


class Gateway:
    """One reader of a node's summaries over a lossy way."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self.number: int | None = None
        """Of the last summary that was sent to it."""

    def read(self, teller: CacheTeller, now_s: float, *, lost: bool) -> None:
        while (summary := teller.after(self.number)) is not None:
            self.number = summary.number
            if not lost and self.index.hear(codec.cache_from_wire(codec.cache_to_wire(summary)), now_s):
                self.number = None
                return


@pytest.mark.parametrize("most_names", [1000, 40])
def test_an_index_is_the_node_s_content_or_unknown(most_names: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    chains = [[rng.getrandbits(64) for _ in range(30)] for _ in range(8)]
    content: set[int] = set()
    known = True
    teller = CacheTeller(lambda: content if known else None, most_names=most_names)
    gateways = [Gateway() for _ in range(3)]
    now_s, told = 0.0, 0
    for _ in range(3000):
        now_s += rng.choice((0.01, TELL_EVERY_S))
        what = rng.random()
        if what < 0.02:
            # The trace begins anew: what happened meanwhile was not seen.
            content = {name for chain in chains if rng.random() < 0.5 for name in chain[: rng.randrange(30)]}
            known = rng.random() < 0.8
            teller.changed_wholly()
        elif what < 0.6 and known:
            chain = rng.choice(chains)
            keep = rng.randrange(31)
            stored = [name for name in chain[:keep] if name not in content or rng.random() < 0.05]
            evicted = [name for name in chain[keep:] if name in content or rng.random() < 0.05]
            content = (content - set(evicted)) | set(stored)
            teller.changed(stored, evicted)
        elif what < 0.62:
            # A session ends; the next one asks anew.
            gateway = rng.choice(gateways)
            gateway.index.session_ended()
            gateway.number = None
        made = teller.make(now_s)
        for gateway in gateways:
            gateway.read(teller, now_s, lost=rng.random() < 0.02)
        if not (made or not teller.has_news):
            continue
        for gateway in gateways:
            index = gateway.index
            if not index.is_told:
                assert index.cached_blocks(chains[0]) == 0
                continue
            if gateway.number != teller.number:
                continue
            one_in = index._one_in
            expected = {told_name(name) for name in content if is_told(name, one_in)}
            if index._number == teller.number:
                assert index._told == expected, f"seed {seed}"
                told += 1
            for chain in chains:
                blocks = next((i for i, name in enumerate(chain) if name not in content), len(chain))
                if index._number == teller.number:
                    assert index.cached_blocks(chain) <= blocks
                    if one_in == 1:
                        assert index.cached_blocks(chain) == blocks
    assert told > 1000


def test_summaries_stay_small() -> None:
    rng = random.Random(1)
    content = {rng.getrandbits(64) for _ in range(50_000)}
    teller = CacheTeller(lambda: content)
    assert teller.make(0.0)
    summary = teller.after(None)
    assert summary is not None
    assert summary.one_in == 4
    assert 11_000 < len(summary.stored) < 14_000
    assert codec.cache_to_wire(summary).ByteSize() < 64 * 1024
    assert summary == codec.cache_from_wire(codec.cache_to_wire(summary))


def test_what_nobody_reads_is_not_kept() -> None:
    teller = CacheTeller(list, most_names=10)
    teller.make(0.0)
    for i in range(1000):
        teller.changed([i], [])
    assert len(teller._touched) <= 20
    with pytest.raises(ValueError, match="names are more than"):
        codec.cache_from_wire(codec.cache_to_wire(CacheSummary(number=1, stored=tuple(range(40_000)))))
