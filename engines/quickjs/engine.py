"""The QuickJS engine: one jailed interpreter a child, a warm realm for each function version."""

from engines.keeper import Launch
from engines.kind import Kind
from engines.supervisor import Supervisor
from engines.zygote import Zygote


class QuickJS(Supervisor):
    """`spares` blank children are kept ready (cores + 2 is good); requests wait at most `queue_ms` for a free child."""

    def __init__(
        self,
        *,
        spares: int = 4,
        max_children: int = 512,
        max_children_per_project: int = 64,
        queue_ms: int = 5_000,
        unsafe: bool = False,
        launch: Launch = Zygote.launch,
        cores: int | None = None,
    ) -> None:
        super().__init__(
            "engines.quickjs.child",
            spares=spares,
            max_children=max_children,
            max_children_per_project=max_children_per_project,
            queue_ms=queue_ms,
            unsafe=unsafe,
            launch=launch,
            kind=Kind(takes_ahead=True),
            cores=cores,
        )
