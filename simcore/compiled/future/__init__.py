"""One what-if: a copy of the base state, perhaps with a candidate, run until everybody has finished.

base    the node compacted: slots 0..n-1 are its requests, in the order running, waiting from front to back
finals  int64 (scenarios, n)       total output tokens of each request in each scenario
ends    float64 (scenarios, n)     finish times without the candidate: the memoised baseline
"""
