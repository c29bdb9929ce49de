"""The scheduler as machine code (numba): flat arrays in, flat arrays out, no Python objects, no allocation in a step.

`layout` names the cells, `kv` keeps the free queue, `step` runs one step, `jump` many decoding steps at once, `future`
a whole what-if, `entry` is what Python calls. Equal to `simcore.reference`, which says the rules in words.
"""
