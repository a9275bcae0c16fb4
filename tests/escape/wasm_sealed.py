"""Every attack, as a program for the zygote whose workers have sealed themselves as a Wasm sandbox does."""

from engines.wasm import profile
from tests.escape import attacks

PROFILE = profile.LOADING

_seal = b""


def preload() -> None:
    global _seal
    _seal = profile.compile_seal()


def serve(descriptor: int) -> None:
    profile.seal(_seal)
    attacks.serve(descriptor)
