// Eager. What the child calls. Every function here answers a primitive and throws only what the engine itself throws.
//
//   status   "P" flags delay   pending; flags: c calls to take, d digests to take, w waiting for the host; "-" if not
//            "V" l json        returned a value        l: "l" when there are logs to take, else "-"
//            "S" l json        returned a Response: {"status","headers"}; its body is to be taken
//            "R" l length      the result is too long: its length in UTF-16 units, of which a byte each is the least
//            "E" l json        threw: {"name","message","stack","code"?}
//            "L" l json        the module cannot be used: the same
//            "N" l json        threw null, as the engine also does when it has no memory left for an error: the same
//            "M" l             ran out of memory
const LONGEST = { __proto__: null, name: 128, message: 8192, stack: 16384, code: 128 };
let status = "";
let detail = "";
let handler;
let resultLength = 0;
let responseBody;
let seedText = "";

function text(value, field) {
  const whole = typeof value === "string" ? value : toText(value);
  const most = LONGEST[field];
  return toWellFormed(whole.length > most ? slice(whole, 0, most) + "…" : whole);
}

function property(object, key) {
  try { return object[key]; } catch { return undefined; }
}

function describe(error) {
  let name = "Error", message = "", stack = "", code;
  if (isNativeError(error) || (typeof error === "object" && error !== null && typeof property(error, "message") === "string")) {
    const own = property(error, "name");
    if (typeof own === "string" && own !== "") name = text(own, "name");
    const said = property(error, "message");
    if (typeof said === "string") message = text(said, "message");
    const trace = property(error, "stack");
    if (typeof trace === "string") stack = text(trace, "stack");
    const given = property(error, "code");
    if (typeof given === "string" || typeof given === "number") code = text(given, "code");
  } else {
    try { message = text(core.need("inspect").inspect(error), "message"); } catch { message = "(a value that cannot be shown)"; }
    message = "Thrown value: " + message;
  }
  return '{"name":' + stringify(name) + ',"message":' + stringify(message) + ',"stack":' + stringify(stack) +
    (code === undefined ? "" : ',"code":' + stringify(code)) + "}";
}

function isOutOfMemory(error) {
  return isNativeError(error) && getPrototypeOf(error) === InternalErrorPrototype && error.message === "out of memory";
}

function end(kind, text) { status = kind; detail = text; }

function fail(kind, error) {
  if (isOutOfMemory(error)) return end("M", "");
  try { end(error === null && kind === "E" ? "N" : kind, describe(error)); } catch (second) {
    if (second === null || isOutOfMemory(second)) end("M", "");
    else end(kind, '{"name":"Error","message":"(an error that cannot be shown)","stack":""}');
  }
}

// The engine's own two complaints, told in terms of the result; what a toJSON threw stays as it is.
function unserializable(error) {
  const said = isNativeError(error) ? property(error, "message") : undefined;
  if (said === "circular reference") return new NativeTypeError("The result cannot be JSON: it contains itself");
  if (said === "BigInt are forbidden in JSON.stringify") return new NativeTypeError("The result cannot be JSON: it contains a BigInt");
  return error;
}

function succeed(value) {
  if (status !== "") return;
  try {
    const fetched = loaded.response;
    if (fetched !== undefined && fetched.isResponse(value)) {
      const answer = fetched.outgoing(value, resultLength);
      responseBody = answer.body;
      return answer.tooLong ? end("R", answer.length) : end("S", answer.head);
    }
    let json;
    try { json = stringify(value); } catch (error) { return fail("E", unserializable(error)); }
    if (json === undefined) end("V", "null");
    else if (json.length > resultLength) end("R", json.length);
    else end("V", json);
  } catch (error) { fail("E", error); }
}

function deepFreeze(value) {
  if (typeof value !== "object" || value === null) return value;
  const keys = ownKeys(value);
  for (let i = 0; i < keys.length; i++) deepFreeze(value[keys[i]]);
  return freeze(value);
}

async function whenSettled(promise) {
  try { succeed(await promise); } catch (error) { if (status === "") fail("E", error); }
}

// Call the default export with what `take` gives; whatever either throws ends the invocation.
function call(take) {
  try {
    const given = take();
    const value = handler(given.input, given.context);
    if (typeof value === "object" && value !== null && typeof value.then === "function") whenSettled(value);
    else succeed(value);
  } catch (error) { fail("E", error); }
}

function begin() {
  clearTimers();
  clearCalls();
  resetLogs();
  responseBody = undefined;
  end("", "");
}

function report() {
  if (status !== "") return flat(status + (logText !== "" || logsTruncated ? "l" : "-") + detail);
  const timer = nextTimer();
  let delay = "";
  if (timer !== undefined) { const ms = timer.due - now(); delay = ms > 0 ? toText(ms) : "0"; }
  return flat("P" + (outbox === "" ? "-" : "c") + (digestOutbox === "" ? "-" : "d") + (callsInFlight > 0 ? "w" : "-") + delay);
}

const bridge = {
  __proto__: null,
  tick,
  settle: settleCall,
  report,

  configure(options) {
    logBytesAllowed = options[0];
    resultLength = options[1];
    seedText = options[2];
    begin();
  },

  // After the module's evaluation has begun: the default export, when it is there.
  load() {
    (async () => {
      try {
        const module = await import("<input>");
        const candidate = module.default;
        if (typeof candidate === "function") { handler = candidate; end("V", ""); return; }
        const what = candidate === undefined ? "no default export" : "a default export that is not a function";
        fail("L", new NativeTypeError("The module has " + what + "; it needs `export default function (input, ctx) { … }`"));
      } catch (error) { fail("L", error); }
    })();
  },

  // args: [ctx, kind, seed, input]
  start(args) {
    begin();
    seedText = args[2];
    if (args.length !== 4) { fail("E", new NativeTypeError("The input is not one JSON value")); return report(); }
    acceptingCalls = true;
    call(() => ({ __proto__: null, input: args[1] === "bytes" ? fromBase64(args[3]) : args[3], context: deepFreeze(args[0]) }));
    return report();
  },

  takeCalls() { const taken = outbox; outbox = ""; return flat("[" + taken + "]"); },
  takeDigests() { const taken = digestOutbox; digestOutbox = ""; return flat("[" + taken + "]"); },
  takeLogs() { const taken = logText; logText = ""; return flat("[" + taken + '],"truncated":' + (logsTruncated ? "true" : "false")); },
  takeBody() { const taken = responseBody; responseBody = undefined; return flat(taken); },
};
core.hasEntropy = () => seedText !== "";
core.entropy = () => { const taken = seedText; seedText = ""; return taken; };
