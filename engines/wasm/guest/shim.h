/* What the parts of the guest share. Layouts are those of engines/wasm/abi.py: 32-bit little-endian. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define VISIBLE __attribute__((visibility("default")))

enum status {
    RETURNED = 0,      /* text: the value's JSON; of atlas_compile the bytecode */
    THREW = 1,         /* text of this and of 2, 3, 5, 6: {"name","message","stack","code"?} */
    NOT_COMPILED = 2,  /* a syntax error, or bytecode of another engine */
    LOAD_FAILED = 3,   /* the top level threw, or there is no default function */
    NEVER_SETTLES = 4, /* text: empty */
    BAD_INPUT = 5,     /* the input is not one JSON value */
    OUT_OF_MEMORY = 6,
    RESPONDED = 7, /* text: {"status","headers"}; body: "t" and text, or "b" and base64 */
    TOO_LONG = 8,  /* text: a length in bytes that the result has at least, in decimal */
};

enum input_kind { JSON = 0, TEXT = 1, BYTES = 2 };

/* The host may write input and context into the areas, so that their lengths cost no fuel, or point elsewhere. Each
 * text needs a spare byte behind it. */
struct request {
    int64_t now_ns; /* since 1970 */
    uint64_t seed;  /* of Math.random */
    uint8_t entropy[32];
    uint32_t input_kind;
    char *input;
    uint32_t input_bytes;
    char *context; /* JSON */
    uint32_t context_bytes;
    uint32_t log_bytes;    /* kept of logs */
    uint32_t result_bytes; /* the longest result */
    uint32_t reserved;
    char input_area[INPUT_AREA_BYTES];
    char context_area[CONTEXT_AREA_BYTES];
};

struct result {
    uint32_t status;
    const char *text;
    size_t text_bytes;
    const char *logs; /* [[level, text, at_us], …],"truncated":true | false; NULL when they were lost for memory */
    size_t logs_bytes;
    const char *body;
    size_t body_bytes;
};

VISIBLE extern struct request atlas_request;
extern struct result atlas_result;

void *atlas_alloc(size_t length);
struct result *atlas_load(const uint8_t *bytecode, size_t length);
struct result *atlas_invoke(void);
const char *atlas_print(char what, const char *text, size_t length, const char *body, size_t body_length,
                        size_t *printed);

/* wasi.c: the clock of a run stands still but for this. False: so far that it will never be. */
bool clock_wait_until(double ms);

/* sha.c: SHA-1, 256, 384 or 512 by `bits` (1 for SHA-1); the length of the sum in bytes. */
size_t sha(int bits, const uint8_t *data, size_t length, uint8_t sum[64]);
