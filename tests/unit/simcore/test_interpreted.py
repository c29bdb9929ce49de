"""Which form of a kernel is run."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from simcore.compiled import layout as at
from simcore.interpreted import interpreted
from simcore.kernel_cache import cached, compiling, interpreting, is_interpreting, kernel

_ODD = 0x1E3779B97F4A7C15


@kernel
def _scrambled(number: int) -> int:
    return (number + at.FINAL) * _ODD


@cached
def scrambled(number: int) -> int:
    return _scrambled(number) ^ _ODD


def test_a_kernel_is_interpreted_until_it_is_compiled() -> None:
    entry: Any = scrambled
    with interpreting():
        assert is_interpreting()
        first = scrambled(7)
        assert not entry.signatures

        def compile_it() -> None:
            with compiling():
                assert scrambled(7) == first

        aside = threading.Thread(target=compile_it)
        aside.start()
        aside.join()
        assert len(entry.signatures) == 1
        assert scrambled(7) == first
    assert not is_interpreting()
    assert scrambled(7) == first


def test_numbers_wrap_as_in_machine_code() -> None:
    by_python = interpreted(scrambled)
    for number in (1, 2, 3, -5, 2**40):
        assert by_python(np.int64(number)) == by_python(number) == scrambled(number)


def test_it_holds_until_the_last_who_wants_it_has_left() -> None:
    with interpreting():
        with interpreting():
            pass
        assert is_interpreting()
        assert scrambled.stand_in is not None  # type: ignore[attr-defined]
    assert not is_interpreting()
    assert scrambled.stand_in is None  # type: ignore[attr-defined]
