"""JavaScript as WebAssembly: QuickJS-NG compiled once to an engine module, and functions as small modules beside it.

guest/        C and JavaScript of the engine module
toolchain     compiles them, by the pinned zig
snapshot      runs their set-up once, and makes what came of it the module's beginning
image         the finished engine, built once a checkout and found again by the hash of all that went in
abi           what host and guest say to each other
artifact      a function's own module, and its self-contained form
binary        the WebAssembly binary format, as far as these need it
"""
