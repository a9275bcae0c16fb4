"""The one configuration of Wasmtime: what compiles a module and what runs it must agree on every line of it.

Metered by fuel, interrupted by epochs, and deterministic: NaNs are canonical, and there are no threads, no shared
memory and no relaxed instructions. Memories are reserved whole, so that growing one moves nothing and bounds cost
nothing; a reservation is address space alone, what is used of it counts as data and against the store's limit.
"""

from typing import Final

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
