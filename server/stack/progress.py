"""What `up` tells the person at the terminal."""

import os
import shlex
from typing import Final

from server.stack.bootstrap import Env
from server.stack.places import Places

BANNER: Final = """
Ready in {took_s:.1f} s: {url}

  Keys            {keys}   (use them with: source {keys})
  Logs            {logs}
  All well?       curl {url}/healthz
  First function  source {keys}
                  curl -X POST $ATLAS_URL/v1/projects/$PROJECT_ID/functions/deploy \\
                    -H "Authorization: Bearer $SERVICE_KEY" -H "Content-Type: application/json" \\
                    -d '{{"name": "Hello", "slug": "hello", "runtime": "quickjs",
                         "source": "export default (input) => `Hello, ${{input.name}}!`"}}'
                  curl -X POST $ATLAS_URL/functions/v1/invoke/hello -H "apikey: $ANON_KEY" -d '{{"name": "world"}}'

Ctrl-C stops everything; the state is kept.
"""


def say(text: str) -> None:
    print(text, flush=True)


def ready(name: str, took_s: float, note: str = "") -> None:
    say(f"· {name:<10} ready in {took_s:.2f} s{f' ({note})' if note else ''}")


def banner(home: Places, env: Env, took_s: float) -> None:
    relative = os.path.relpath(home.env_file)
    keys = relative if len(relative) < len(str(home.env_file)) else str(home.env_file)
    say(BANNER.format(took_s=took_s, url=env.ATLAS_URL, keys=shlex.quote(keys), logs=home.logs))
