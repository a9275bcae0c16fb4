"""`python -m server reset`: delete what the embedded stack has made."""

import sys

from server.settings import Settings
from server.stack import orphans
from server.stack.lock import AlreadyRunning, locked
from server.stack.places import PlaceError, places


def reset(settings: Settings) -> int:
    """Delete databases, streams, keys, functions and stored objects; refused while the stack runs. The exit status.

    With a database elsewhere its data is left alone, and the artifacts and contents to which it refers, as well.
    """
    home = places(settings)
    if not home.state.is_dir():
        print("Nothing to reset.")
        return 0
    try:
        with locked(home.state):
            orphans.end(home.mark, home.data / "postgres")
            home.delete(*(() if settings.database_url else (settings.functions_dir, settings.storage_dir)))
            (home.state / "lock").unlink()
    except (AlreadyRunning, PlaceError, OSError) as why:
        print(f"Nothing was reset: {why}. Stop it first.", file=sys.stderr)
        return 1
    print(f"The state in {home.state} is deleted.")
    return 0
