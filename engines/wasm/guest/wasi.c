/* What the C library would import from WASI, so that it does not. A run has no files and no arguments, and its clock
 * stands still: it moves only when nothing is left to do but to wait, straight to when the next timer is due. */
#include "shim.h"

#include <wasi/api.h>

#define STANDS_FOR(name) int32_t __imported_wasi_snapshot_preview1_##name

static int64_t waited_ns;

bool clock_wait_until(double ms) {
    if (!(ms < 9e12)) return false; /* some 285 years */
    int64_t until_ns = (int64_t)(ms * 1e6);
    while ((double)until_ns / 1e6 < ms) until_ns++;
    if (until_ns > waited_ns) waited_ns = until_ns;
    return true;
}

STANDS_FOR(clock_time_get)(int32_t clock, int64_t precision, int32_t time) {
    *(int64_t *)time = waited_ns + (clock == __WASI_CLOCKID_REALTIME ? atlas_request.now_ns : 0);
    return __WASI_ERRNO_SUCCESS;
}

STANDS_FOR(fd_close)(int32_t fd) { return __WASI_ERRNO_BADF; }
STANDS_FOR(fd_fdstat_get)(int32_t fd, int32_t stat) { return __WASI_ERRNO_BADF; }
STANDS_FOR(fd_seek)(int32_t fd, int64_t offset, int32_t whence, int32_t at) { return __WASI_ERRNO_BADF; }
STANDS_FOR(fd_write)(int32_t fd, int32_t vectors, int32_t count, int32_t written) { return __WASI_ERRNO_BADF; }
_Noreturn void __imported_wasi_snapshot_preview1_proc_exit(int32_t code) { __builtin_trap(); }
