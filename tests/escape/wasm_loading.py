"""Every attack, as a program for the zygote whose workers may still load compiled code, as a compiler always may."""

from engines.wasm import profile
from tests.escape.attacks import preload, serve

__all__ = ["PROFILE", "preload", "serve"]

PROFILE = profile.LOADING
