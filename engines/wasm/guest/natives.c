/* What JavaScript asks of C: the request, as far as it is looked at, random numbers, digests, the clock. */
#include "natives.h"

#include <string.h>

#include "shim.h"

static uint64_t random_state;
static uint64_t random_blocks;

static JSValue request_context(JSContext *ctx, JSValueConst this, int count, JSValueConst *arguments) {
    char *bytes = atlas_request.context;
    bytes[atlas_request.context_bytes] = 0;
    return JS_ParseJSON(ctx, bytes, atlas_request.context_bytes, "context");
}

/* Random bytes: SHA-512 of the request's entropy and a counter, block after block. */
static JSValue fill_random(JSContext *ctx, JSValueConst this, int count, JSValueConst *arguments) {
    size_t length;
    uint8_t *bytes = JS_GetUint8Array(ctx, &length, arguments[0]);
    if (!bytes && length) return JS_EXCEPTION;
    for (size_t at = 0; at < length; at += 64) {
        uint8_t from[40], sum[64];
        memcpy(from, atlas_request.entropy, 32);
        memcpy(from + 32, &random_blocks, 8);
        random_blocks++;
        sha(512, from, sizeof from, sum);
        memcpy(bytes + at, sum, length - at < 64 ? length - at : 64);
    }
    return JS_DupValue(ctx, arguments[0]);
}

static JSValue wait_until(JSContext *ctx, JSValueConst this, int count, JSValueConst *arguments) {
    double due_ms;
    if (JS_ToFloat64(ctx, &due_ms, arguments[0])) return JS_EXCEPTION;
    return JS_NewBool(ctx, clock_wait_until(due_ms));
}

static JSValue digest(JSContext *ctx, JSValueConst this, int count, JSValueConst *arguments) {
    int32_t bits;
    size_t length;
    uint8_t sum[64];
    if (JS_ToInt32(ctx, &bits, arguments[0])) return JS_EXCEPTION;
    const uint8_t *data = JS_GetUint8Array(ctx, &length, arguments[1]);
    if (!data && length) return JS_EXCEPTION;
    return JS_NewUint8ArrayCopy(ctx, sum, sha(bits, data, length, sum));
}

/* Math.random, by xorshift64*, from the seed of the request: the context's own state is part of the image. */
static JSValue math_random(JSContext *ctx, JSValueConst this, int count, JSValueConst *arguments) {
    if (!random_state) random_state = atlas_request.seed | 1;
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return JS_NewFloat64(ctx, (double)((random_state * 0x2545F4914F6CDD1D) >> 11) * 0x1p-53);
}

static const JSCFunctionListEntry functions[] = {
    JS_CFUNC_DEF("context", 0, request_context),
    JS_CFUNC_DEF("fillRandom", 1, fill_random),
    JS_CFUNC_DEF("waitUntil", 1, wait_until),
    JS_CFUNC_DEF("digest", 2, digest),
};

JSValue natives(JSContext *ctx) {
    JSValue global = JS_GetGlobalObject(ctx);
    JSValue Math = JS_GetPropertyStr(ctx, global, "Math");
    JS_DefinePropertyValueStr(ctx, Math, "random", JS_NewCFunction(ctx, math_random, "random", 0),
                              JS_PROP_WRITABLE | JS_PROP_CONFIGURABLE);
    JS_FreeValue(ctx, Math);
    JS_FreeValue(ctx, global);
    JSValue native = JS_NewObject(ctx);
    JS_SetPropertyFunctionList(ctx, native, functions, sizeof functions / sizeof *functions);
    return native;
}
