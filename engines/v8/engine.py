"""What the engines made of V8 have in common: a program of their own, jailed, whose memory is limited from birth."""

import signal
from typing import ClassVar, Final

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
    """A subclass names the zygote's program module, and says where the engine's executable is.

    `spares` blank children are kept once it is in use; requests wait at most `queue_ms` for a free child.
    """

    MODULE: ClassVar[str]

    @staticmethod
    def executable() -> str:
        """Its path. Raises FileNotFoundError or ModuleNotFoundError without one."""
        raise NotImplementedError

    def __init__(
        self,
        *,
        spares: int = 1,
        max_children: int = 16,
        max_children_per_project: int = 8,
        queue_ms: int = 5_000,
        unsafe: bool = False,
        module: str | None = None,
    ) -> None:
        async def launch(module: str, *, unsafe: bool) -> Zygote:
            try:
                path = self.executable()
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
            module or self.MODULE,
            spares=spares,
            max_children=max_children,
            max_children_per_project=max_children_per_project,
            queue_ms=queue_ms,
            unsafe=unsafe,
            launch=launch,
            kind=KIND,
        )
