"""How kernels are compiled, and when one that was compiled before is taken instead.

numba's own cache is of a path, a time and the CPU at hand, and looks at the file of the cached function alone. Here a
compiled kernel has a name that says all that it was made of: its code and that of all kernels under it, the types of
its arguments, compiler, Python, CPU. So what was compiled once serves every checkout, environment and machine where it
would come out the same, and can be shipped; and nothing stale is ever found.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import pickle
import sysconfig
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar, TypeVar, cast

import llvmlite
import numba
from llvmlite import binding
from numba.core import types
from numba.core.caching import _Cache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult, Flags
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.registry import CPUDispatcher
from numba.core.serialize import dumps

from simcore import kernel_files
from simcore.compiled.fingerprint import fingerprint_of
from simcore.interpreted import interpreted

F = TypeVar("F", bound=Callable[..., Any])

BASELINE = "x86-64-v3"
"""The generation of CPUs that kernels are compiled for wherever the CPU is of it or newer (Haswell, 2013; Zen), so that
machines of different makes can share them, and compute the same. Others get code of their own."""
BASELINE_FEATURES = ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")

_KERNELS: list[_CachedKernel] = []
"""Those that Python calls."""
_interpreting: list[None] = []
"""One of each that is `interpreting`."""
_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


def kernel(function: F) -> F:
    """A kernel that others call: it becomes machine code only as a part of those that Python calls."""
    return _made(_InnerKernel, function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def cached(function: F) -> F:
    """A kernel that Python calls: compiled, or found compiled. It runs without the interpreter's lock."""
    return _made(_CachedKernel, function, no_cfunc_wrapper=True)


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Meanwhile kernels that are not compiled yet are run by Python, in all threads but those that are `compiling`.
    Each is taken compiled as soon as it is. Several may be in here at once: it holds until the last has left."""
    _interpreting.append(None)
    for each in _KERNELS:
        each.stand_in = each.stand_in or interpreted(each)
    try:
        yield
    finally:
        _interpreting.pop()
        for each in _KERNELS if not _interpreting else ():
            each.stand_in = None


def is_interpreting() -> bool:
    """Whether kernels may be run by Python now."""
    return bool(_interpreting)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Meanwhile kernels that this thread calls are compiled, or found compiled, whatever others do."""
    before = _compiling.set(True)
    try:
        yield
    finally:
        _compiling.reset(before)


def made_by() -> tuple[object, ...]:
    """What compiled code hangs on besides what it says: compiler, settings, Python, CPU."""
    config: Any = numba.config
    settings = (config.OPT, config.LOOP_VECTORIZE, config.SLP_VECTORIZE, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT)
    cpu = config.CPU_NAME or binding.get_host_cpu_name(), config.CPU_FEATURES
    features = _host_features() if config.CPU_FEATURES is None else ()
    python = sysconfig.get_config_var("SOABI")
    return (numba.__version__, llvmlite.__version__, settings, config.USING_SVML, python, *cpu, features)


def _made(kind: type[Dispatcher], function: F, **options: bool) -> F:
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return function
    targetoptions = {"nopython": True, "nogil": True, "boundscheck": None, **options}
    return cast(F, kind(py_func=function, targetoptions=targetoptions))


class _Flags(Flags):
    """Compared by those that are set. For every call that it types numba looks its flags up, and would compare all
    forty: a tenth of the time that compiling takes."""

    def __hash__(self) -> int:
        return hash(tuple(self._values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Flags) and bool(self._values == other._values)


class _Compiler(Compiler):
    def compile_extra(self, function: Any) -> Any:
        self.state.flags = _Flags(self.state.flags)  # type: ignore[no-untyped-call]
        return super().compile_extra(function)  # type: ignore[no-untyped-call]


class _InnerCompiler(_Compiler):
    def compile_extra(self, function: Any) -> Any:
        self.state.library = _InnerLibrary(self.state.targetctx.codegen(), function.__qualname__)  # type: ignore[no-untyped-call]
        self.state.flags.no_compile = True
        return super().compile_extra(function)


class _InnerLibrary(JITCodeLibrary):
    """Code that is only linked into other code. numba would make machine code of each kernel with all under it, which
    nobody runs. (It is optimised with all under it all the same: done in the callers alone, what-ifs take 3 to 7 %
    longer.)"""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._finalized = True


class _Kernel(CPUDispatcher):
    """Compiled for types only. numba takes a constant argument for a type of its own, and would compile a kernel, and
    all under it, once more for each `0`, `True` and `False`."""

    compiler: ClassVar[type[Compiler]] = _Compiler

    def __init__(self, py_func: Callable[..., Any], targetoptions: dict[str, Any]) -> None:
        super().__init__(py_func, targetoptions=targetoptions, pipeline_class=self.compiler)

    def compile(self, sig: Any) -> Any:
        return super().compile(tuple(map(types.unliteral, sig)))


class _InnerKernel(_Kernel):
    compiler = _InnerCompiler

    def add_overload(self, compiled: Any) -> None:
        # Callers find it by what Python would call.
        compiled = compiled._replace(entry_point=object())
        self.targetctx.insert_user_function(compiled.entry_point, compiled.fndesc, [compiled.library])
        self.overloads[tuple(compiled.signature.args)] = compiled

    def __call__(self, *_: object) -> None:
        raise TypeError(
            f"{self.py_func.__name__} is for other kernels; a test compiles it anew: numba.njit(it.py_func)"
        )


class _CachedKernel(_Kernel):
    """Of processes that need it at the same time one compiles it, the others wait for that."""

    def __init__(self, py_func: Callable[..., Any], targetoptions: dict[str, Any]) -> None:
        super().__init__(py_func, targetoptions)
        self._cache = _Kept(py_func, targetoptions)
        self.stand_in: Callable[..., Any] | None = None
        """What is called in its place where it is not compiled."""
        _KERNELS.append(self)

    def _compile_for_args(self, *args: Any, **kws: Any) -> Any:
        # numba asks for this where it has no machine code for such arguments, and calls what it is given.
        if self.stand_in is not None and not _compiling.get():
            return self.stand_in
        return super()._compile_for_args(*args, **kws)  # type: ignore[misc]

    def compile(self, sig: Any) -> Any:
        sig = tuple(map(types.unliteral, sig))
        # In this order, so that threads of one process do not wait for each other in a circle.
        with global_compiler_lock:
            if sig in self.overloads or self._cache.has(sig, self.targetctx):
                return super().compile(sig)
            with kernel_files.alone(self._cache.name(sig, self.targetctx)), _without_collections():
                return super().compile(sig)


class _Kept(_Cache):
    """The compiled forms of one function, as numba asks for them and gives them."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function = function
        self._options = options
        self._fingerprint = ""

    @property
    def cache_path(self) -> str:
        return str(kernel_files.folder())

    def name(self, sig: tuple[Any, ...], target_context: Any) -> str:
        """Of the file: whose kernel it is, and a digest of all that it is made of."""
        self._fingerprint = self._fingerprint or fingerprint_of(self._function)
        target = target_context.codegen().magic_tuple()
        made_of = self._fingerprint, sorted(self._options.items()), tuple(map(str, sig)), target, made_by()
        digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]
        return f"{self._function.__module__.rpartition('.')[2]}.{self._function.__name__}-{digest}"

    def has(self, sig: tuple[Any, ...], target_context: Any) -> bool:
        return kernel_files.find(self.name(sig, target_context)) is not None

    def load_overload(self, sig: tuple[Any, ...], target_context: Any) -> Any:
        target_context.refresh()
        data = kernel_files.load(self.name(sig, target_context))
        # A machine that loses its power may leave half a file behind.
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            return None if data is None else CompileResult._rebuild(target_context, *pickle.loads(data))
        return None

    def save_overload(self, sig: tuple[Any, ...], data: Any) -> None:
        assert not data.library.has_dynamic_globals, f"{self._function} holds addresses of this process"
        kernel_files.save(self.name(sig, data.target_context), dumps(data._reduce()))

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """A compiler makes millions of objects that live to its end; to look through them again and again takes a tenth of
    its time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _host_features() -> tuple[str, ...]:
    return tuple(sorted(name for name, has in binding.get_host_cpu_features().items() if has))


def _use_baseline() -> None:
    """Unless the environment names another CPU (`NUMBA_CPU_NAME`), or a user of numba before us has."""
    config: Any = numba.config
    is_x86 = binding.get_process_triple().startswith("x86_64")
    if config.CPU_NAME is None and is_x86 and set(BASELINE_FEATURES) <= set(_host_features()):
        config.CPU_NAME, config.CPU_FEATURES = BASELINE, ""


_use_baseline()
