"""The scheduler as machine code (numba): flat arrays in, flat arrays out, no Python objects, no allocation in a step.

`layout` names the cells. `step` runs one step, `decode_sync` and `decode_async` many decoding steps at once, `future` a
whole what-if. `kv_cache_manager` keeps KV blocks, as `block_counts` or in a `block_pool`. `entry` is what Python calls.
Equal to `simcore.reference`, which says the rules in words.
"""
