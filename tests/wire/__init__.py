"""Wire compatibility one release apart: what the releases before have said, kept and said again.

`python -m tests.wire.record` writes `recorded/RELEASE/`: the contract, and the messages of a real run.
"""
