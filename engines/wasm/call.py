"""One call as it reaches a module, and how it ended well. How it failed is a Failure of engines/wasm/meter.py."""

NO_LOGS = '[],"truncated":false'
"""Logs are the inside of a JSON object from the value of its key "logs" on."""


class Call:
    """`seed` is for chance that may be foretold, `secret_seed` and `entropy` (32 bytes each) for what may not."""

    __slots__ = ("body", "context", "entropy", "kind", "log_bytes", "now_ns", "result_bytes", "secret_seed", "seed")

    def __init__(
        self,
        *,
        kind: str = "json",
        body: bytes = b"null",
        context: bytes = b"{}",
        now_ns: int,
        seed: int,
        secret_seed: bytes,
        entropy: bytes,
        log_bytes: int,
        result_bytes: int,
    ) -> None:
        self.kind, self.body, self.context = kind, body, context
        self.now_ns, self.seed, self.secret_seed, self.entropy = now_ns, seed, secret_seed, entropy
        self.log_bytes, self.result_bytes = log_bytes, result_bytes


class Answer:
    """`value` is JSON text, or the body of a Response whose `head` is the JSON of {"status","headers"}."""

    __slots__ = ("head", "logs", "value")

    def __init__(self, value: bytes, *, logs: str = NO_LOGS, head: str = "") -> None:
        self.value = value
        self.logs = logs
        self.head = head
