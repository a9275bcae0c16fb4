/* The Wasm guest: QuickJS-NG behind a handful of exports. ABI version 1; engines/wasm/abi.py is its other side.
 *
 * atlas_boot runs once, when the image is built: it makes the context that every instance then starts from.
 * An instance serves one run: the host fills `atlas_request`, the function's module calls atlas_alloc and atlas_load
 * with its bytecode, and the host calls atlas_invoke. Nothing here asks the host for anything: there are no imports.
 *
 * What JavaScript may observe or throw is decided in prelude.js; C drives it, and knows of running out of memory.
 */
#include "shim.h"

#include <malloc.h>
#include <string.h>

#include "natives.h"

#define MODULE_NAME "<input>"
#define JS_STACK_BYTES (512 * 1024)
#define GC_THRESHOLD_BYTES (4 * 1024 * 1024)

struct request atlas_request;
struct result atlas_result;

static char prelude_source[] = {
#embed "prelude.js"
    , 0};

static JSRuntime *runtime;
static JSContext *context;
static JSValue program = JS_UNDEFINED; /* the module as it was read */
static bool starved;                   /* an allocation has failed */
static bool booted;

/* The bridge's functions, in the order of their names in `bridge_names`. */
enum { OPEN, LOAD, CALL, REPORT, WAIT, REFUSE, TAKE_TEXT, TAKE_LOGS, TAKE_BODY, PRINT, BRIDGE_FUNCTIONS };
static const char *const bridge_names[BRIDGE_FUNCTIONS] = {
    "open", "load", "call", "report", "wait", "refuse", "takeText", "takeLogs", "takeBody", "print",
};
static JSValue bridge[BRIDGE_FUNCTIONS];

/* Memory: the C library's, and a note of every refusal. */

static void *noted(void *taken) {
    if (!taken) starved = true;
    return taken;
}
static void *take(void *opaque, size_t size) { return noted(malloc(size)); }
static void *take_zeroed(void *opaque, size_t count, size_t size) { return noted(calloc(count, size)); }
static void *take_again(void *opaque, void *old, size_t size) { return noted(realloc(old, size)); }
static void give_back(void *opaque, void *old) {
    if (old && !booted) memset(old, 0, malloc_usable_size(old)); /* zeros take no room in an image */
    free(old);
}
static size_t usable(const void *taken) { return malloc_usable_size((void *)taken); }
static const JSMallocFunctions memory = {take_zeroed, take, give_back, take_again, usable};

/* Results. Their texts stay where QuickJS put them: an instance is dropped when its result has been read. */

static struct result *end(enum status status, const char *text, size_t length) {
    atlas_result.status = status;
    atlas_result.text = text;
    atlas_result.text_bytes = length;
    return &atlas_result;
}

static struct result *out_of_memory(void) {
    static const char said[] = "{\"name\":\"MemoryLimit\",\"message\":\"out of memory\",\"stack\":\"\"}";
    return end(OUT_OF_MEMORY, said, sizeof said - 1);
}

/* The UTF-8 of a string, or NULL. Consumes `value`. */
static const char *text_of(JSValue value, size_t *length) {
    *length = 0;
    return JS_IsString(value) ? JS_ToCStringLen(context, length, value) : NULL;
}

static JSValue ask(int function, int count, JSValue *arguments) {
    JSValue answer = JS_Call(context, bridge[function], JS_UNDEFINED, count, (JSValueConst *)arguments);
    if (JS_IsException(answer)) JS_FreeValue(context, JS_GetException(context));
    return answer;
}

static enum status status_of(char kind) {
    switch (kind) {
    case 'V': return RETURNED;
    case 'S': return RESPONDED;
    case 'R': return TOO_LONG;
    case 'L': return LOAD_FAILED;
    case 'P': return NEVER_SETTLES;
    case 'M': return OUT_OF_MEMORY;
    case 'N': return starved ? OUT_OF_MEMORY : THREW;
    default: return THREW;
    }
}

/* A report of the bridge, the first letter of a status in engines/quickjs/prelude/bridge.js, as a result. */
static struct result *told(char report) {
    enum status status = status_of(report);
    if (status == NEVER_SETTLES && starved) status = OUT_OF_MEMORY; /* QuickJS drops a job it cannot queue */
    size_t length = 0, body_length = 0;
    const char *text = text_of(ask(TAKE_TEXT, 0, NULL), &length);
    const char *body = status == RESPONDED ? text_of(ask(TAKE_BODY, 0, NULL), &body_length) : "";
    if (text && body && status != OUT_OF_MEMORY) end(status, text, length);
    else out_of_memory();
    atlas_result.body = body;
    atlas_result.body_bytes = body_length;
    atlas_result.logs = text_of(ask(TAKE_LOGS, 0, NULL), &atlas_result.logs_bytes);
    return &atlas_result;
}

/* Until none is left. What a job throws was lost for memory: the prelude catches all else. */
static void run_jobs(void) {
    JSContext *ran;
    for (int done; (done = JS_ExecutePendingJob(runtime, &ran)) != 0;) {
        if (done < 0) JS_FreeValue(context, JS_GetException(context));
    }
}

/* Run jobs, and timers when nothing else is left, until the bridge has something to report: that. */
static char settle(void) {
    for (;;) {
        run_jobs();
        size_t length;
        const char *report = text_of(ask(REPORT, 0, NULL), &length);
        if (!report) return 'M';
        if (report[0] != 'P') return report[0];
        JSValue went_on = ask(WAIT, 0, NULL);
        if (JS_IsException(went_on)) return 'M';
        if (!JS_VALUE_GET_BOOL(went_on)) return 'P';
    }
}

/* The pending exception as the bridge tells it. */
static char refused(void) {
    JSValue error = JS_GetException(context);
    return JS_IsException(ask(REFUSE, 1, &error)) ? 'M' : settle();
}

/* Run the module's top level: a report, V when there is a default function. */
static char evaluate(void) {
    JSValue limits[] = {
        JS_NewUint32(context, atlas_request.log_bytes),
        JS_NewUint32(context, atlas_request.result_bytes),
    };
    if (JS_IsException(ask(OPEN, 2, limits))) return 'M';
    if (JS_ResolveModule(context, program) < 0) return refused();
    JSValue evaluated = JS_EvalFunction(context, program);
    if (JS_IsException(evaluated)) return refused();
    return JS_IsException(ask(LOAD, 0, NULL)) ? 'M' : settle();
}

/* The pending exception of a module that cannot be had. */
static struct result *not_compiled(void) {
    told(refused());
    if (atlas_result.status == LOAD_FAILED) atlas_result.status = NOT_COMPILED;
    return &atlas_result;
}

/* The exports. */

EXPORT("atlas_alloc") void *atlas_alloc(size_t length) { return malloc(length); }

/* Compile one module, UTF-8 with a spare byte behind it, to bytecode that atlas_load takes. */
EXPORT("atlas_compile") struct result *atlas_compile(char *source, size_t length) {
    source[length] = 0;
    JSValue module =
        JS_Eval(context, source, length, MODULE_NAME, JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
    if (JS_IsException(module)) return not_compiled();
    size_t size;
    uint8_t *bytecode =
        JS_WriteObject(context, &size, module, JS_WRITE_OBJ_BYTECODE | JS_WRITE_OBJ_STRIP_SOURCE);
    if (!bytecode) return not_compiled();
    return end(RETURNED, (const char *)bytecode, size);
}

/* Take a module as atlas_compile of this same engine made it; it is not yet run. */
EXPORT("atlas_load") struct result *atlas_load(const uint8_t *bytecode, size_t length) {
    program = JS_ReadObject(context, bytecode, length, JS_READ_OBJ_BYTECODE);
    if (JS_IsException(program)) return not_compiled();
    return end(RETURNED, "", 0);
}

/* Run the module's top level, and find its default export. */
EXPORT("atlas_evaluate") struct result *atlas_evaluate(void) { return told(evaluate()); }

static JSValue input(void) {
    const struct request *request = &atlas_request;
    char *bytes = request->input;
    switch (request->input_kind) {
    case BYTES: return JS_NewUint8ArrayCopy(context, (uint8_t *)bytes, request->input_bytes);
    case TEXT: return JS_NewStringLen(context, bytes, request->input_bytes);
    default: bytes[request->input_bytes] = 0; return JS_ParseJSON(context, bytes, request->input_bytes, "input");
    }
}

/* The input as a value; a copy, so that the room of a large one can be used again. */
static JSValue take_input(void) {
    JSValue value = input();
    if (atlas_request.input != atlas_request.input_area) free(atlas_request.input);
    return value;
}

/* Evaluate the module, call its default export with the request's input, and wait for what it answers. */
EXPORT("atlas_invoke") struct result *atlas_invoke(void) {
    char report = evaluate();
    if (report != 'V') return told(report);
    JSValue argument = take_input();
    bool is_input = !JS_IsException(argument);
    if (!is_input) {
        JS_FreeValue(context, JS_GetException(context));
        if (starved) return told('M');
    }
    if (JS_IsException(ask(CALL, is_input, &argument))) return told('M');
    if (is_input) JS_FreeValue(context, argument);
    told(settle());
    if (!is_input && atlas_result.status == THREW) atlas_result.status = BAD_INPUT;
    return &atlas_result;
}

/* For people: what a run wrote and how it ended, as text. `what`: l logs, e error, r Response. NULL: no memory. */
const char *atlas_print(char what, const char *text, size_t length, const char *body, size_t body_length,
                        size_t *printed) {
    JSValue arguments[] = {
        JS_NewStringLen(context, &what, 1),
        JS_NewStringLen(context, text, length),
        JS_NewStringLen(context, body, body_length),
    };
    return text_of(ask(PRINT, 3, arguments), printed);
}

/* Make the context. Traps when it cannot: the image is then not built. */
EXPORT("atlas_boot") void atlas_boot(void) {
    runtime = JS_NewRuntime2(&memory, NULL);
    JS_SetMaxStackSize(runtime, JS_STACK_BYTES);
    JS_SetGCThreshold(runtime, GC_THRESHOLD_BYTES);
    context = JS_NewContext(runtime);

    JSValue native = natives(context);
    JSValue open = JS_Eval(context, prelude_source, sizeof prelude_source - 1, MODULE_NAME, JS_EVAL_TYPE_GLOBAL);
    JSValue door = JS_Call(context, open, JS_UNDEFINED, 1, (JSValueConst *)&native);
    for (int i = 0; i < BRIDGE_FUNCTIONS; i++) {
        bridge[i] = JS_GetPropertyStr(context, door, bridge_names[i]);
        if (!JS_IsFunction(context, bridge[i])) __builtin_trap();
    }
    run_jobs();
    JS_FreeValue(context, door);
    JS_FreeValue(context, open);
    JS_FreeValue(context, native);
    JS_RunGC(runtime);

    memset(prelude_source, 0, sizeof prelude_source);
    atlas_request.input = atlas_request.input_area;
    atlas_request.context = atlas_request.context_area;
    starved = false;
    booted = true;
}
