"""What the engines made of V8 have in common: a program of their own, jailed, whose memory is limited from birth."""

import signal
from collections.abc import Callable
from typing import Final

from engines.kind import MIB, Kind
from engines.supervisor import Supervisor
from engines.v8.memory import idle_data_bytes
from engines.zygote import Zygote, ZygoteError

KIND: Final = Kind(
    base_bytes=56 * MIB,
    is_sized=True,
    renews_itself=False,
    keeps_cpu_limit=False,
    dies_of_memory=frozenset({signal.SIGABRT, signal.SIGTRAP}),
)


class V8(Supervisor):
    """`program()` is the path of the engine's executable; FileNotFoundError or ModuleNotFoundError without one."""

    def __init__(
        self,
        module: str,
        program: Callable[[], str],
        *,
        spares: int,
        max_children: int,
        max_children_per_project: int,
        queue_ms: int,
        unsafe: bool,
    ) -> None:
        async def launch(module: str, *, unsafe: bool) -> Zygote:
            try:
                path = program()
            except (FileNotFoundError, ModuleNotFoundError) as why:
                raise ZygoteError(f"its program is not installed: {why}") from why
            zygote = await Zygote.launch(module, unsafe=unsafe, argument=path)
            try:
                zygote.idle_data_bytes = await idle_data_bytes(zygote)
            except BaseException:
                await zygote.close()
                raise
            return zygote

        super().__init__(
            module,
            spares=spares,
            max_children=max_children,
            max_children_per_project=max_children_per_project,
            queue_ms=queue_ms,
            unsafe=unsafe,
            launch=launch,
            kind=KIND,
        )
