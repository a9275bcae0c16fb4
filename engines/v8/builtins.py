"""Modules a function on Node or Deno may import: those of the standard library that need no privilege."""

from typing import Final

BUILTINS: Final = frozenset(
    {
        *("assert", "assert/strict", "async_hooks", "buffer", "crypto", "events", "path", "path/posix", "path/win32"),
        *("process", "punycode", "querystring", "stream", "stream/consumers", "stream/promises", "stream/web"),
        *("string_decoder", "timers", "timers/promises", "url", "util", "util/types", "zlib"),
    }
)
"""Without `node:`, which may stand before each. modules.js has the same list, and links no other."""
