"""WASI preview 1 for modules made elsewhere: a command reads stdin and writes stdout, and that is its whole world.

There are no files, arguments, environment variables or sockets. The clock stands where the host set it and moves only
when the module sleeps, by as much; random bytes come from a seed. So a run is a function of module, input, time and
seed. Every pointer is hostile: what lies outside the module's memory is EFAULT, whatever lies inside is its own.

What a call makes the host do costs fuel, by its arguments alone: about what the module could have done in that time.
"""

from _random import Random
from collections.abc import Callable

from wasmtime import FuncType, Linker, Module, ValType

from engines.wasm.exported import OutOfBounds, Window

NAMESPACE = "wasi_snapshot_preview1"

SUCCESS, BADF, FAULT, INVAL, NOSYS, SPIPE, NOTSOCK = 0, 8, 21, 28, 52, 70, 57
MAX_VECTORS = 1024
MAX_RANDOM_BYTES = 1024 * 1024
MAX_SUBSCRIPTIONS = 256
CALL_FUEL, ITEM_FUEL, BYTE_FUEL = 10_000, 1_000, 4  # an item is a vector or a subscription
_FAR_NS = 2**62

# Every function of preview 1 by its parameters: i an i32, I an i64. All but proc_exit answer an errno.
SIGNATURES = {
    "args_get": "ii", "args_sizes_get": "ii", "environ_get": "ii", "environ_sizes_get": "ii",
    "clock_res_get": "ii", "clock_time_get": "iIi", "random_get": "ii", "sched_yield": "", "poll_oneoff": "iiii",
    "proc_exit": "i", "proc_raise": "i",
    "fd_read": "iiii", "fd_write": "iiii", "fd_close": "i", "fd_seek": "iIii", "fd_tell": "ii", "fd_sync": "i",
    "fd_datasync": "i", "fd_fdstat_get": "ii", "fd_filestat_get": "ii", "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII", "fd_advise": "iIIi", "fd_allocate": "iII", "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi", "fd_pread": "iiiIi", "fd_pwrite": "iiiIi", "fd_prestat_get": "ii",
    "fd_prestat_dir_name": "iii", "fd_readdir": "iiiIi", "fd_renumber": "ii",
    "path_create_directory": "iii", "path_filestat_get": "iiiii", "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii", "path_open": "iiiiiIIii", "path_readlink": "iiiiii", "path_remove_directory": "iii",
    "path_rename": "iiiiii", "path_symlink": "iiiii", "path_unlink_file": "iii",
    "sock_accept": "iii", "sock_recv": "iiiiii", "sock_send": "iiiii", "sock_shutdown": "ii",
}  # fmt: skip


class Exit(Exception):
    """The module has ended itself by proc_exit."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class OutputTooLong(Exception):
    """It wrote more to stdout than a result may have."""


class World:
    """What one run of a command sees and says. It has no `memory` before the module is instantiated.

    `charge` takes fuel from the module, or raises what ends the run.
    """

    def __init__(
        self,
        stdin: bytes,
        *,
        now_ns: int,
        seed: bytes,
        stdout_bytes: int,
        stderr_bytes: int,
        charge: Callable[[int], None],
    ) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.stderr_truncated = False
        self._charge = charge
        self._stdin, self._read_bytes = stdin, 0
        self._stdout_bytes, self._stderr_bytes = stdout_bytes, stderr_bytes
        self._started_ns = self._now_ns = now_ns
        self._random = Random(int.from_bytes(seed, "little"))
        self.memory: Window | None = None

    def call(self, name: str, arguments: tuple[int, ...]) -> int:
        """The errno of one call. Raises Exit, OutputTooLong and what `charge` raises, which end the run."""
        self._charge(CALL_FUEL)
        function: Callable[..., int] | None = getattr(self, f"_{name}", None)
        try:
            if function is not None:
                return function(*arguments)
        except OutOfBounds:
            return FAULT
        if name.startswith("path_"):
            return BADF  # there is no directory to begin at
        if name.startswith("sock_"):
            return NOTSOCK if _is_stdio(arguments[0]) else BADF
        if name.startswith("fd_") and not _is_stdio(arguments[0]):
            return BADF
        return NOSYS

    # The module's memory

    def _window(self) -> Window:
        if self.memory is None:
            raise OutOfBounds
        return self.memory

    def _load(self, pointer: int, length: int) -> bytes:
        return self._window().read(pointer & 0xFFFFFFFF, length)

    def _store(self, pointer: int, data: bytes) -> int:
        self._window().write(pointer & 0xFFFFFFFF, data)
        return SUCCESS

    def _check(self, pointer: int, length: int) -> None:
        self._window().checked(pointer & 0xFFFFFFFF, length)

    def _number(self, pointer: int, value: int, length: int = 4) -> int:
        return self._store(pointer, value.to_bytes(length, "little"))

    def _vectors(self, pointer: int, count: int) -> list[tuple[int, int]]:
        self._charge(count * ITEM_FUEL)
        table = memoryview(self._load(pointer, 8 * count)).cast("I")
        return list(zip(table[::2], table[1::2], strict=True))

    # Arguments, environment: none

    def _args_sizes_get(self, count: int, size: int) -> int:
        return self._number(count, 0) or self._number(size, 0)

    def _args_get(self, pointers: int, texts: int) -> int:
        return SUCCESS

    _environ_sizes_get, _environ_get = _args_sizes_get, _args_get

    # Time and chance

    def _clock_time_get(self, clock: int, precision: int, pointer: int) -> int:
        if clock not in (0, 1, 2, 3):
            return INVAL
        return self._number(pointer, self._clock_ns(clock), 8)

    def _clock_res_get(self, clock: int, pointer: int) -> int:
        return self._number(pointer, 1, 8) if clock in (0, 1, 2, 3) else INVAL

    def _clock_ns(self, clock: int) -> int:
        return self._now_ns if clock == 0 else self._now_ns - self._started_ns

    def _random_get(self, pointer: int, length: int) -> int:
        length &= 0xFFFFFFFF
        self._check(pointer, length)
        if length > MAX_RANDOM_BYTES:
            return INVAL
        self._charge(length * BYTE_FUEL)
        return self._store(pointer, self._random.getrandbits(8 * length).to_bytes(length, "little")) if length else 0

    def _sched_yield(self) -> int:
        return SUCCESS

    def _poll_oneoff(self, subscriptions: int, events: int, count: int, written: int) -> int:
        """Standard streams are ready at once; when there are clocks only, the earliest is due at once."""
        count &= 0xFFFFFFFF
        if not 0 < count <= MAX_SUBSCRIPTIONS:
            return INVAL
        self._charge(count * ITEM_FUEL)
        table = self._load(subscriptions, 48 * count)
        asked = [table[at : at + 48] for at in range(0, len(table), 48)]
        ready = [one for one in asked if one[8] in (1, 2)]
        if not ready:
            due_ns = [self._due_ns(one) for one in asked]
            self._now_ns = max(self._now_ns, min(*due_ns, _FAR_NS))
            ready = [one for one, at_ns in zip(asked, due_ns, strict=True) if at_ns <= self._now_ns]
        told = b"".join(_event(one) for one in ready)
        return self._store(events, told) or self._number(written, len(ready))

    def _due_ns(self, subscription: bytes) -> int:
        clock = int.from_bytes(subscription[16:20], "little")
        timeout_ns = int.from_bytes(subscription[24:32], "little")
        if not subscription[40] & 1:
            return self._now_ns + timeout_ns
        return timeout_ns if clock == 0 else self._started_ns + timeout_ns

    def _proc_exit(self, code: int) -> int:
        raise Exit(code & 0xFFFFFFFF)

    # The standard streams

    def _fd_read(self, fd: int, vectors: int, count: int, read: int) -> int:
        if fd != 0:
            return BADF
        if not 0 <= count <= MAX_VECTORS:
            return INVAL
        total = 0
        for pointer, length in self._vectors(vectors, count):
            chunk = self._stdin[self._read_bytes : self._read_bytes + length]
            self._charge(len(chunk) * BYTE_FUEL)
            self._store(pointer, chunk)
            self._read_bytes += len(chunk)
            total += len(chunk)
        return self._number(read, total)

    def _fd_write(self, fd: int, vectors: int, count: int, written: int) -> int:
        if fd not in (1, 2):
            return BADF
        if not 0 <= count <= MAX_VECTORS:
            return INVAL
        total = 0
        for pointer, length in self._vectors(vectors, count):
            self._check(pointer, length)
            if fd == 1:
                self._write_out(pointer, length)
            else:
                self._write_err(pointer, length)
            total += length
        return self._number(written, total & 0xFFFFFFFF)

    def _write_out(self, pointer: int, length: int) -> None:
        if len(self.stdout) + length > self._stdout_bytes:
            raise OutputTooLong(len(self.stdout) + length)
        self._charge(length * BYTE_FUEL)
        self.stdout += self._load(pointer, length)

    def _write_err(self, pointer: int, length: int) -> None:
        kept = min(length, self._stderr_bytes - len(self.stderr))
        self._charge(kept * BYTE_FUEL)
        self.stderr += self._load(pointer, kept)
        self.stderr_truncated = self.stderr_truncated or kept < length

    def _fd_fdstat_get(self, fd: int, pointer: int) -> int:
        rights = {0: 1 << 1, 1: 1 << 6, 2: 1 << 6}.get(fd)
        if rights is None:
            return BADF
        return self._store(pointer, bytes(8) + rights.to_bytes(8, "little") + bytes(8))

    def _fd_filestat_get(self, fd: int, pointer: int) -> int:
        return self._store(pointer, bytes(64)) if _is_stdio(fd) else BADF

    def _fd_close(self, fd: int) -> int:
        return SUCCESS if _is_stdio(fd) else BADF

    _fd_sync = _fd_datasync = _fd_close

    def _fd_seek(self, fd: int, offset: int, whence: int, pointer: int) -> int:
        return SPIPE if _is_stdio(fd) else BADF

    def _fd_tell(self, fd: int, pointer: int) -> int:
        return SPIPE if _is_stdio(fd) else BADF

    def _fd_prestat_get(self, fd: int, pointer: int) -> int:
        return BADF  # the end of the list of directories, which is empty


def _is_stdio(fd: int) -> bool:
    return fd in (0, 1, 2)


def _event(subscription: bytes) -> bytes:
    """That what was asked for has happened: {userdata, errno, type, nbytes, flags}."""
    return subscription[:8] + bytes(2) + subscription[8:9] + bytes(21)


def link(linker: Linker, module: Module, world: Callable[[], World]) -> None:
    """Define what the module imports of WASI; each call goes to the `world()` of the moment."""
    for imported in module.imports:
        name = imported.name or ""
        if imported.module == NAMESPACE and name in SIGNATURES:
            kinds = [ValType.i64() if kind == "I" else ValType.i32() for kind in SIGNATURES[name]]
            results = [] if name == "proc_exit" else [ValType.i32()]
            linker.define_func(NAMESPACE, name, FuncType(kinds, results), _function(name, world))


def _function(name: str, world: Callable[[], World]) -> Callable[..., int]:
    def function(*arguments: int) -> int:
        return world().call(name, arguments)

    return function
