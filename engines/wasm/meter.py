"""One run's store, what it may use, and how running out of each thing is told: fuel, memory, stack, time.

Fuel is exact and the same on every machine. Time is not, so what is left to the clocks ends a run only when fuel was
plentiful. A limit that the module reached is a Failure; nothing here raises anything else for what a module does.
"""

from collections.abc import Callable
from time import perf_counter_ns, thread_time_ns
from typing import TypeVar

from wasmtime import Engine, Memory, Store, Trap, TrapCode, WasmtimeError

from engines.wasm import alarm
from engines.wasm.call import NO_LOGS
from engines.wasm.configuration import STACK_BYTES

T = TypeVar("T")

_TABLE_ELEMENTS = 100_000
_FULL = 0.75


class Failure(Exception):
    """A run ends with this ERROR frame. `used` is in the unit of the limit, `logs` are what was said before."""

    def __init__(
        self,
        outcome: str,
        name: str,
        message: str,
        stack: str = "",
        code: str | None = None,
        *,
        used: float | None = None,
        logs: str = NO_LOGS,
    ) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.error = {"name": name, "message": message, "stack": stack, **({} if code is None else {"code": code})}
        self.used = used
        self.logs = logs


class Meter:
    """Made at the beginning of a run, closed at its end. `memory` is the module's, once there is one."""

    def __init__(self, engine: Engine, *, fuel: int, memory_bytes: int, wall_ms: float, cpu_ms: float) -> None:
        self.store = Store(engine)
        self.memory: Memory | None = None
        self.fuel = fuel
        self.memory_limit_bytes = memory_bytes
        self._wall_ms, self._cpu_ms = wall_ms, cpu_ms
        self._wall_ns, self._cpu_ns = perf_counter_ns(), thread_time_ns()
        self.store.set_limits(
            memory_size=memory_bytes, table_elements=_TABLE_ELEMENTS, instances=2, tables=8, memories=1
        )
        self.store.set_fuel(fuel)
        self.store.set_epoch_deadline(1)

    def run(self, work: Callable[[], T]) -> T:
        """Let the module run. Raises Failure, or what a function of the host raised."""
        alarm.arm(max(self._wall_ms - self.wall_us / 1000, 0.01), max(self._cpu_ms - self.cpu_us / 1000, 0.01))
        try:
            return work()
        except Trap as trap:
            raise self._trapped(trap) from trap
        except WasmtimeError as error:
            raise self._refused(str(error)) from error
        finally:
            alarm.disarm()

    def charge(self, fuel: int) -> None:
        """Take fuel for what the host does while the module waits. Raises Failure when there is not so much left."""
        left = self.store.get_fuel()
        self.store.set_fuel(max(left - fuel, 0))
        if left < fuel:
            raise self.out_of_fuel()

    def close(self) -> None:
        self.store.close()

    @property
    def wall_us(self) -> int:
        return (perf_counter_ns() - self._wall_ns) // 1000

    @property
    def cpu_us(self) -> int:
        return (thread_time_ns() - self._cpu_ns) // 1000

    @property
    def fuel_used(self) -> int:
        """Of a run that was interrupted by a clock: what it had used when it last called a function."""
        return self.fuel - self.store.get_fuel()

    @property
    def memory_bytes(self) -> int:
        """A linear memory never shrinks: this is the most there was."""
        return self.memory.data_len(self.store) if self.memory is not None else 0

    @property
    def is_full(self) -> bool:
        """Whether a module that gave up did so for memory, by all one can see."""
        return self.memory_bytes >= _FULL * self.memory_limit_bytes

    def out_of_fuel(self) -> Failure:
        return Failure("fuel_limit", "FuelLimit", f"Fuel limit of {self.fuel} exceeded", used=self.fuel)

    def out_of_memory(self) -> Failure:
        message = f"Memory limit of {self.memory_limit_bytes} bytes exceeded"
        return Failure("memory_limit", "MemoryLimit", message, used=self.memory_limit_bytes)

    def out_of_stack(self) -> Failure:
        return Failure("stack_limit", "StackLimit", "The call stack is exhausted", used=STACK_BYTES)

    def _trapped(self, trap: Trap) -> Failure:
        match trap.trap_code:
            case TrapCode.OUT_OF_FUEL:
                return self.out_of_fuel()
            case TrapCode.STACK_OVERFLOW:
                return self.out_of_stack()
            case TrapCode.INTERRUPT:
                return self._late()
            case TrapCode.ALLOCATION_TOO_LARGE:
                return self.out_of_memory()
        reason = trap.message.partition("Caused by:")[2].partition("wasm trap:")[2].strip() or "trap"
        return Failure("exception", "Trap", reason.splitlines()[0], stack=_frames(trap))

    def _late(self) -> Failure:
        cpu_ms, wall_ms = self.cpu_us / 1000, self.wall_us / 1000
        if wall_ms < self._wall_ms:  # the wall's timer is exact, the other's is not
            used_ms = max(cpu_ms, self._cpu_ms)  # its timer counts in ticks, which may be a millisecond early
            return Failure("cpu_limit", "CpuLimit", f"CPU time limit of {self._cpu_ms:g} ms exceeded", used=used_ms)
        return Failure("wall_limit", "WallLimit", f"Time limit of {self._wall_ms:g} ms exceeded", used=wall_ms)

    def _refused(self, message: str) -> Failure:
        if "exceeds memory limits" in message:
            return self.out_of_memory()
        return Failure("load_failed", "LinkError", message.splitlines()[0][:500])


def _frames(trap: Trap) -> str:
    names = [frame.func_name or f"function {frame.func_index}" for frame in trap.frames[:50]]
    return "\n".join(f"    at {name}" for name in names)
