"""Everything a daemon calls is compiled by `warm`, once, for one set of types."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import msgspec
import numpy as np
import pytest

from simcore import compiled
from simcore.compiled import block_pool, headroom, layout
from simcore.compiled.entry import ENTRIES
from simcore.compiled.fingerprint import fingerprint_of
from simcore.compiled.future import drawing, forecasts
from simcore.cost import step_time
from simcore.kernel_cache import _CachedKernel
from simcore.lookahead import WhatIf
from simcore.node import SimNode
from simcore.types import Candidate, EngineConfig, LengthBelief
from simcore.warmup import warm
from tests.helpers.kernels import callable_from_python
from tests.helpers.step_time import SECOND
from tests.unit.simcore.test_node import node, request

OF_CLUSTERS = ("keep", "run", "store")
"""What only simulated clusters need, which compile it with their first node."""


def signatures() -> dict[str, int]:
    entries: dict[str, Any] = ENTRIES._asdict()
    return {name: len(function.signatures) for name, function in entries.items() if name not in OF_CLUSTERS}


def test_warm_compiles_every_entry_point_and_use_compiles_nothing_more() -> None:
    warm(shared_prefixes=True)
    # Some are compiled for plain engines and once more for all others.
    warmed = signatures()
    assert set(warmed.values()) == {1, 2}
    twice = {"step", "complete_state", "advance", "remove", "take_node", "forecast"}
    assert {name for name, n in warmed.items() if n == 2} == twice
    config = EngineConfig(model="m", max_num_seqs=200, scheduling_policy="priority", enable_prefix_caching=False)
    simulated = node(config)
    for i in range(100):
        simulated.add(request(f"r{i}", 30, 5), i)
    simulated.step(100)
    simulated.abort("r7")
    simulated.advance(103)
    what_if = WhatIf("n", config, SECOND, scenarios=3)
    beliefs = {i: LengthBelief((5, 9)) for i in simulated.requests}
    candidates = [Candidate(request_id=i, prompt_tokens=9, max_output_tokens=9, belief=beliefs["r1"]) for i in "abc"]
    what_if.rebase_node(simulated, beliefs, 103)
    what_if.forecast(candidates)
    shown = SimNode.from_snapshot(simulated.snapshot(103), "n", SECOND, output_tokens=lambda _: 5, free_at_s=104)
    what_if.rebase_node(shown, beliefs, 103)
    what_if.forecast(candidates[1:])
    simulated.copy().load(103)
    simulated.add(msgspec.structs.replace(request("s", 30, 5), block_hashes=(1 << 63, 2)), 103)
    simulated.advance(104)
    assert signatures() == warmed


def kernels() -> dict[str, Any]:
    """All compiled functions that the entry points may call, by module and name."""
    names = [m.name for m in pkgutil.walk_packages(compiled.__path__, f"{compiled.__name__}.")]
    modules = [importlib.import_module(name) for name in (*names, step_time.__name__)]
    found = {f"{m.__name__}.{n}": f for m in modules for n, f in vars(m).items() if hasattr(f, "py_func")}
    assert len(found) > 50
    return found


def fingerprints() -> dict[str, str]:
    """Of what is kept on disk."""
    return {name: fingerprint_of(f.py_func) for name, f in kernels().items() if isinstance(f, _CachedKernel)}


def test_no_kernel_changes_behind_the_files_of_those_that_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is taken for the code of today runs that of yesterday."""

    def changed() -> int:
        return 1

    before = fingerprints()
    assert before == fingerprints()
    for name, kernel in kernels().items():
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "py_func", changed)
            assert fingerprints() != before, name


def test_no_number_of_the_layout_changes_behind_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprints()
    named = {name for kernel in kernels().values() for name in kernel.py_func.__code__.co_names}
    numbers = {n: v for n, v in vars(layout).items() if n in named and isinstance(v, int)}
    assert len(numbers) > 90
    for name, number in numbers.items():
        with monkeypatch.context() as patch:
            patch.setattr(layout, name, number + 1)
            assert fingerprints() != before, name


def test_nor_do_numbers_of_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprints()
    for module, name, value in (
        (headroom, "HEADROOM_HORIZONS_S", (1.0, 3.0)),
        (drawing, "OVERDUE_TOKENS", 11),
        (block_pool, "_ODD_1", 3),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert fingerprints() != before, name


def test_summaries_are_those_of_numpy() -> None:
    rng = np.random.default_rng(3)
    summarise = callable_from_python(forecasts.summarise)
    for n in (1, 2, 3, 8, 17):
        values = rng.exponential(size=n)
        out = np.zeros(6)
        summarise(values.copy(), n, out, 2)
        expected = [np.mean(values), np.quantile(values, 0.5), np.quantile(values, 0.9)]
        np.testing.assert_allclose(out[2:5], expected, rtol=1e-12)
