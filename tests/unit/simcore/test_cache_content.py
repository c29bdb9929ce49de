from __future__ import annotations

import random

from simcore.cache_content import CacheContent
from simcore.cache_summary import is_told
from simcore.cost.shipped import load_shipped
from simcore.node import SimNode, SimRequest
from simcore.prefix import block_hashes
from simcore.types import EngineConfig

CONFIG = EngineConfig(model="m", max_num_seqs=8, max_num_batched_tokens=256, num_blocks=200)


def test_the_looks_add_up_to_what_prompts_find() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    node = SimNode("n", CONFIG, load_shipped("a30/llama-2-7b"))
    content = CacheContent(node)
    assert content.look(1) == ([], [])
    prompts = [tuple(rng.randrange(1000) for _ in range(400)) for _ in range(12)]
    named = [block_hashes(ids, 16) for ids in prompts]
    followed, one_in = set[int](), 1
    for i in range(300):
        which, tokens = rng.randrange(12), rng.randrange(17, 400)
        names = named[which][: tokens // 16]
        request = SimRequest(
            request_id=f"r{i}", prompt_tokens=tokens, output_tokens=40, max_output_tokens=40, block_hashes=names
        )
        node.add(request, node.free_at_s)
        for _ in range(rng.randrange(30)):
            if node.has_work:
                node.step(node.next_step_s)
        if i == 150:
            one_in = 4
            followed = {name for name in content.names() if is_told(name, one_in)}
        stored, evicted = content.look(one_in)
        assert not followed & set(stored)
        assert set(evicted) <= followed
        followed = (followed - set(evicted)) | set(stored)
        assert followed == {name for name in content.names() if is_told(name, one_in)}, f"seed {seed}"
        if one_in == 1:
            for chain in named:
                blocks = next((i for i, name in enumerate(chain) if name not in followed), len(chain))
                assert node.cached_blocks(chain, 10_000)[0] == blocks, f"seed {seed}"
    assert followed
