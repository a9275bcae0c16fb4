/* The standalone form: a WASI preview 1 command. JSON comes on stdin, JSON goes to stdout, logs and errors to stderr;
 * it exits with 1 when the function did not return a value. Nothing on stdin is null. */
#include "shim.h"

#include <stdlib.h>
#include <string.h>

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))

struct vector {
    char *bytes;
    size_t length;
};

WASI(fd_read) int32_t wasi_read(int32_t fd, const struct vector *vectors, size_t count, size_t *got);
WASI(fd_write) int32_t wasi_write(int32_t fd, const struct vector *vectors, size_t count, size_t *put);
WASI(clock_time_get) int32_t wasi_clock(int32_t clock, int64_t precision, int64_t *time);
WASI(random_get) int32_t wasi_random(void *bytes, size_t length);
WASI(proc_exit) _Noreturn void wasi_exit(int32_t code);

/* Where the bytecode is: engines/wasm/artifact.py writes it behind the image, and this. */
__attribute__((visibility("default"))) struct {
    const uint8_t *bytecode;
    size_t length;
} atlas_program;

static void put(int32_t fd, const char *text, size_t length) {
    while (length) {
        struct vector rest = {(char *)text, length};
        size_t done = 0;
        if (wasi_write(fd, &rest, 1, &done) || !done) wasi_exit(1);
        text += done;
        length -= done;
    }
}

static _Noreturn void give_up(const char *why) {
    put(2, why, strlen(why));
    wasi_exit(1);
}

static void read_input(struct request *request) {
    size_t room = 64 * 1024, length = 0, got;
    char *bytes = malloc(room);
    while (bytes) {
        struct vector rest = {bytes + length, room - length - 1};
        if (wasi_read(0, &rest, 1, &got)) give_up("stdin cannot be read\n");
        if (!got) break;
        length += got;
        if (length == room - 1) bytes = realloc(bytes, room *= 2);
    }
    if (!bytes) give_up("out of memory\n");
    if (!length) length = strlen(strcpy(bytes, "null"));
    request->input = bytes;
    request->input_bytes = length;
}

/* A text of the result as people read it. */
static void show(int32_t fd, char what, const struct result *result) {
    const char *text = what == 'l' ? result->logs : result->text;
    size_t length = what == 'l' ? result->logs_bytes : result->text_bytes, printed;
    const char *shown = text ? atlas_print(what, text, length, result->body, result->body_bytes, &printed) : "";
    if (!shown) give_up("out of memory\n");
    if (*shown) put(fd, shown, printed);
}

EXPORT("_start") void command(void) {
    struct request *request = &atlas_request;
    if (wasi_clock(0, 1000, &request->now_ns)) give_up("no clock\n");
    if (wasi_random(&request->seed, 8) || wasi_random(request->entropy, 32)) give_up("no random bytes\n");
    request->input_kind = JSON;
    request->context_bytes = strlen(strcpy(request->context, "{}"));
    request->log_bytes = request->result_bytes = 1 << 30;
    read_input(request);

    const struct result *result = atlas_load(atlas_program.bytecode, atlas_program.length);
    if (result->status == RETURNED) result = atlas_invoke();
    if (result->logs) show(2, 'l', result);
    switch (result->status) {
    case RETURNED: put(1, result->text, result->text_bytes); break;
    case RESPONDED: show(1, 'r', result); break;
    case NEVER_SETTLES: give_up("the function's promise never settles\n");
    case TOO_LONG: give_up("the result is too long\n");
    case OUT_OF_MEMORY: give_up("out of memory\n");
    default: show(2, 'e', result); wasi_exit(1);
    }
    put(1, "\n", 1);
}
