"""Wasmtime as it is configured here, for the processes that compile modules or run them."""

import contextlib
from typing import Final

from wasmtime import Config, Engine, Instance, Module, Store, Trap

from engines.wasm import alarm
from engines.wasm.configuration import SETTINGS

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
