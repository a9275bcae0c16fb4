"""The C and JavaScript of the Wasm guest.

The guest's prelude is the one of QuickJS (engines/quickjs/prelude) with files of this folder in place of what only a
host could answer. So a program sees the same globals, logs the same lines and throws the same errors in both engines.
"""

import json
from pathlib import Path
from typing import Final

from engines.quickjs import prelude

_EAGER = ("core", "logs", "timers", "calls", "bridge")
_OWN = ("context", "run", "globals")
_HOST_ONLY = ("atlas", "fetch")
_HERE = Path(__file__).parent

C_SOURCES: Final = {path.name: path for path in sorted(_HERE.glob("*.[ch]"))}


def prelude_script() -> str:
    """One line of JavaScript, a function of the shim's natives that gives the bridge's functions."""
    shared, own = prelude.texts(), prelude.texts(_HERE)
    eager = [shared.pop(name) for name in _EAGER] + [own[name] for name in _OWN[:-1]]
    lazy = {name: text for name, text in shared.items() if name not in (*_HOST_ONLY, "globals")}
    units = "; ".join(f"sources.{name} = {json.dumps(f'({text})')}" for name, text in lazy.items())
    return f'(function (native) {{ "use strict"; {" ".join(eager)} {units}; {own["globals"]} return bridge; }})'
