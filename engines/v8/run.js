// One program, one invocation at a time: BIND, then INVOKE after INVOKE, each answered by one RESULT or ERROR.
//
//   blank ─BIND─▶ loading ─▶ idle ─INVOKE─▶ running ─▶ answers ─▶ idle
//                                 HOSTCALL ─┘   └─ HOSTRES, timers, the engine's own threads
//
// What the program does comes in turns: a macrotask and all the microtasks behind it. After a turn that settled the run,
// or queued host calls, `endOfTurn` tells the supervisor. While nothing is asked of the supervisor, its stream does not
// keep the event loop alive; so if the loop runs dry under a run, nothing is left that could ever settle it.
//
// Whatever a run starts, promises and timers and callbacks of the engine's threads, carries the run in its async context.
// When the run has been answered, what still comes of it can neither call the host nor log, settle or start anything.
const LOAD_CPU_MS = 2000;
const CHECK_EVERY_MS = 1;
const SAMPLE_AT_MOST = 50;

// Exceptions of one run that reach nobody; a program that has broken the engine's own library makes them without end.
const MOST_STRAYS = 64;

const TOO_LARGE = { __proto__: null, code: "too_large", message: "The arguments of a host call are too large" };
let options;
let handler;
let loadFailure;
let spent = false;
let run;
let status = "";
let detail = "";
let used = "";
let responseBody;
let turnQueued = false;
let strays = 0;
let attached = true;
let checkedAt = 0;
let sampledBytes = 0;
let nextSample = 0;
const context = new platform.AsyncLocalStorage();
const inContext = uncurry(context.run).bind(undefined, context);
const currentContext = context.getStore.bind(context);

// Whether what runs now belongs to a run that has been answered.
function isLate() { const of = currentContext(); return of !== undefined && of.over; }

function begin(inv, cpuMs) {
  run = { __proto__: null, inv, cpuMs, cpuStart: platform.cpuUs(), start: now(), over: false };
  checkedAt = run.start;
  strays = 0;
  status = detail = used = "";
  responseBody = undefined;
  clearCalls();
  resetLogs();
}

// The first end is the end.
function end(kind, text) {
  if (run === undefined || status !== "") return;
  status = kind;
  detail = text;
  if (kind !== "response") responseBody = undefined;
  queueTurn();
}

function fail(kind, error) {
  if (isOutOfMemory(error)) return end("memory_limit", "");
  let text;
  try { text = describe(error); } catch { text = told("Error", "(an error that cannot be shown)", ""); }
  end(kind, text);
}

function tooLong(bytes) {
  used = toText(bytes);
  end("result_limit", told("ResultLimit", "The result is larger than " + options.result_bytes + " bytes", ""));
}

function succeed(value) {
  if (status !== "") return undefined;
  if (isResponse(value)) return outgoing(value);
  let json;
  try { json = stringify(value); } catch (error) { return fail("exception", unserializable(error)); }
  if (json === undefined) return end("value", "null");
  return json.length > options.result_bytes ? tooLong(json.length) : end("value", json);
}

async function whenSettled(of, promise) {
  try {
    const value = await promise;
    if (run === of) succeed(value);
  } catch (error) { if (run === of) fail("exception", error); }
}

function deepFreeze(value) {
  if (typeof value !== "object" || value === null) return value;
  const keys = ownKeys(value);
  for (let i = 0; i < keys.length; i++) deepFreeze(value[keys[i]]);
  return freeze(value);
}

function bind(bytes, start, endAt) {
  const codeAt = start + 4 + u32(bytes, start);
  options = parse(textOf(bytes, start + 4, codeAt));
  logBytesAllowed = options.log_bytes;
  begin(0, LOAD_CPU_MS);
  const code = textOf(bytes, codeAt, endAt);
  inContext(run, () => load(code));
  queueTurn();
}

function invoke(inv, bytes, start, endAt) {
  if (spent) return platform.exit(1);
  spent = options.isolation === "fresh";
  const headEnd = start + 4 + u32(bytes, start);
  const contextEnd = headEnd + 4 + u32(bytes, headEnd);
  const head = parse(textOf(bytes, start + 4, headEnd));
  begin(inv, head.cpu_ms);
  if (loadFailure !== undefined) return end(loadFailure.status, loadFailure.detail);
  let ctx, input;
  try {
    ctx = deepFreeze(parse(textOf(bytes, headEnd + 4, contextEnd)));
    if (head.kind === "json") input = parse(textOf(bytes, contextEnd, endAt));
    else if (head.kind === "text") input = textOf(bytes, contextEnd, endAt);
    else { input = new NativeUint8Array(endAt - contextEnd); copy(bytes, contextEnd, endAt, input, 0); }
  } catch (error) {
    return fail("exception", isOutOfMemory(error) ? error : new NativeTypeError("The input is not one JSON value"));
  }
  acceptingCalls = true;
  inContext(run, call, input, ctx);
  queueTurn();
}

function call(input, ctx) {
  try {
    const value = handler(input, ctx);
    if (typeof value === "object" && value !== null && typeof value.then === "function") whenSettled(run, value);
    else succeed(value);
  } catch (error) { fail("exception", error); }
}

// Turns

function queueTurn() {
  if (turnQueued) return;
  turnQueued = true;
  microtask(afterMicrotasks);
}
function afterMicrotasks() { nextTick(endOfTurn); }

function endOfTurn() {
  turnQueued = false;
  if (run === undefined) return;
  if (!run.over && isOverBudget(true)) return;
  if (status !== "" && responseBody !== pendingBody) return answer();
  if (outbox !== "") sendCalls();
  attach(callsInFlight > 0);
}

function attach(wanted) {
  if (attached === wanted) return;
  attached = wanted;
  platform.attach(wanted);
}

// The event loop has nothing left to do, and the supervisor has nothing to answer.
function onIdle() {
  if (run === undefined || turnQueued) return;
  if (status !== "" && responseBody !== pendingBody) return;
  status = "";
  if (run.inv === 0) end("load_failed", told("NeverSettles", "A top-level await waits for something that cannot happen", ""));
  else end("never_settles", told("NeverSettles", "The function's promise is pending and nothing is in flight that could settle it", ""));
}

function cpuUsedUs() { return platform.cpuUs() - run.cpuStart; }

// V8 cannot be interrupted from inside: this sees a budget that was passed between two turns, the supervisor any other.
function isOverBudget(always) {
  const at = now();
  if (!always && at - checkedAt < CHECK_EVERY_MS) return false;
  checkedAt = at;
  const usedUs = cpuUsedUs();
  if (usedUs < run.cpuMs * 1000) return false;
  status = "";
  run.over = true;
  used = toText(usedUs / 1000);
  end("cpu_limit", told("CpuLimit", "CPU time limit of " + run.cpuMs + " ms exceeded", ""));
  return true;
}

// Answers

function sendCalls() {
  const calls = "[" + outbox + "]";
  outbox = "";
  if (calls.length * 3 <= MAX_PAYLOAD_BYTES || byteLength(calls) <= MAX_PAYLOAD_BYTES) return sendFrame(HOSTCALL, run.inv, calls);
  const each = parse(calls);
  for (let i = 0; i < each.length; i++) {
    const one = stringify([each[i]]);
    if (byteLength(one) <= MAX_PAYLOAD_BYTES) sendFrame(HOSTCALL, run.inv, one);
    else { settleCall([each[i][0], 0, TOO_LARGE]); queueTurn(); }
  }
}

function metaText(kind) {
  return '{"wall_us":' + trunc((now() - run.start) * 1000) + ',"cpu_us":' + cpuUsedUs() + ',"memory_bytes":' + memoryBytes() +
    ',"kind":' + kind + ',"logs":[' + logText + '],"truncated":' + (logsTruncated ? "true" : "false");
}

function memoryBytes() {
  const start = now();
  if (start < nextSample) return sampledBytes;
  sampledBytes = platform.memoryBytes();
  const finish = now();
  nextSample = finish + SAMPLE_AT_MOST * (finish - start);
  return sampledBytes;
}

function answer() {
  const { inv } = run;
  if (status === "value" && detail.length * 3 > options.result_bytes) {
    const bytes = byteLength(detail);
    if (bytes > options.result_bytes) { status = ""; tooLong(bytes); }
  }
  if (status === "value") sendFrame(RESULT, inv, metaText('"json"') + "}", detail);
  else if (status === "response") sendFrame(RESULT, inv, metaText('"response",' + detail) + "}", responseBody);
  else if (status === "ready") sendFrame(READY, 0, '{"memory_bytes":' + memoryBytes() + ',"boot_us":' + trunc((now() - run.start) * 1000) + "}");
  else sendError(inv);
  run.over = true;
  run = undefined;
  acceptingCalls = false;
  clearTimers();
  clearCalls();
  attach(true);
}

function sendError(inv) {
  if (status === "memory_limit") {
    detail = told("MemoryLimit", "Memory limit of " + options.memory_bytes + " bytes exceeded", "");
    used = toText(options.memory_bytes);
  }
  if (inv === 0 && loadFailure === undefined) loadFailure = { __proto__: null, status, detail };
  sendFrame(ERROR, inv, metaText('"json"') + ',"outcome":"' + status + '","error":' + detail + (used === "" ? "" : ',"used":' + used) + "}");
}

// What arrives. Frames of an invocation that is over are stale.
function handle(type, inv, id, bytes, start, endAt) {
  if (type === BIND) return bind(bytes, start, endAt);
  if (type === INVOKE) return invoke(inv, bytes, start, endAt);
  if (run === undefined || inv !== run.inv || inv === 0) return undefined;
  if (type === CANCEL) { status = ""; run.over = true; return end("cancelled", told("Cancelled", "The caller went away", "")); }
  if (type !== HOSTRES) return undefined;
  inContext(run, settleCall, [id, bytes[start], parse(textOf(bytes, start + 1, endAt))]);
  return queueTurn();
}

// Nobody waits for these: a promise rejected with no handler ends its run, an exception of a callback is logged.
function onRejection(error) {
  if (run === undefined || isLate()) return;
  fail(run.inv === 0 ? "load_failed" : "exception", error);
}
function onException(error) {
  if (++strays > MOST_STRAYS) platform.exit(1);
  if (run !== undefined && !isLate()) uncaught(error);
}

const queueHostCall = core.hostCall;
core.hostCall = (op, args) => {
  if (isLate()) return new NativePromise((resolve, reject) => reject(hostError("no_invocation", "The invocation of this " + op + " is over", new NativeError())));
  const promise = queueHostCall(op, args);
  queueTurn();
  return promise;
};
const writeLine = core.writeLog;
core.writeLog = (level, line) => { if (run !== undefined && !isLate()) writeLine(level, line); };
