"""What a module exports, taken hold of with care: things of the kind they must be, and memory within its bounds."""

import ctypes
from typing import TypeVar

from wasmtime import Func, Global, Memory, Store, WasmtimeError
from wasmtime._instance import InstanceExports

Thing = TypeVar("Thing", Func, Global, Memory)


def exported(exports: InstanceExports, name: str, kind: type[Thing]) -> Thing:
    """The export of that name and kind. Raises WasmtimeError when there is none."""
    thing = exports.get(name)
    if not isinstance(thing, kind):
        raise WasmtimeError(f"the module has no export {name} of kind {kind.__name__.lower()}")
    return thing


class OutOfBounds(Exception):
    """A pointer leads out of the module's memory."""


class Window:
    """A module's memory as the host reads and writes it. Addresses and lengths are hostile, and not negative."""

    def __init__(self, memory: Memory, store: Store) -> None:
        self._memory, self._store = memory, store

    def read(self, address: int, length: int) -> bytes:
        """Raises OutOfBounds."""
        return ctypes.string_at(self.checked(address, length), length)

    def write(self, address: int, data: bytes) -> None:
        """Raises OutOfBounds, and then nothing was written."""
        ctypes.memmove(self.checked(address, len(data)), data, len(data))

    def checked(self, address: int, length: int) -> int:
        """Where these bytes lie in this process. Good until the module runs again."""
        if address + length > self._memory.data_len(self._store):
            raise OutOfBounds(address)
        return ctypes.addressof(self._memory.data_ptr(self._store).contents) + address
