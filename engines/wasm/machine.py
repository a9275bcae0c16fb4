"""The one configuration of Wasmtime: what compiles a module and what runs it must agree on every line of it.

Metered by fuel, interrupted by epochs, and deterministic: NaNs are canonical, and there are no threads, no shared
memory and no relaxed instructions. Memories are reserved whole, so that growing one moves nothing and bounds cost
nothing; a reservation is address space alone, what is used of it counts as data and against the store's limit.
"""

import contextlib
from typing import Final

from wasmtime import Config, Engine, Instance, Module, Store, Trap

from engines.wasm import alarm

STACK_BYTES: Final = 2 * 1024 * 1024
"""Of native stack for a module; the main thread has 8 MiB. JavaScript's own limit is reached first, but for parsers."""

SETTINGS: Final[dict[str, bool | int]] = {
    "consume_fuel": True,
    "epoch_interruption": True,
    "cranelift_nan_canonicalization": True,
    "parallel_compilation": False,  # no thread before a fork, none in a jail
    "max_wasm_stack": STACK_BYTES,
    "memory_init_cow": False,  # needs files in memory, which a jail does not have
    "wasm_threads": False,
    "shared_memory": False,
    "wasm_memory64": False,
    "wasm_multi_memory": False,
    "wasm_relaxed_simd": False,
    "wasm_gc": False,
    "wasm_function_references": False,
    "wasm_exceptions": False,
    "wasm_stack_switching": False,
    "wasm_component_model": False,
}


# (module (memory 1) (func unreachable) (start 0))
_TRAP: Final = b"\0asm\1\0\0\0\1\4\1\x60\0\0\3\2\1\0\5\3\1\0\1\x08\1\0\x0a\5\1\3\0\0\x0b"


def make_engine() -> Engine:
    """One a process, before it forks and before its jail closes. 1 ms.

    It has run, and trapped, already: signal handlers and their stack are in place, which a jail would refuse.
    """
    config = Config()
    for name, value in SETTINGS.items():
        setattr(config, name, value)
    engine = Engine(config)
    alarm.prepare(engine)
    with Store(engine) as store, contextlib.suppress(Trap):
        store.set_fuel(1000)
        store.set_epoch_deadline(1)
        Instance(store, Module(engine, _TRAP), [])
    return engine
