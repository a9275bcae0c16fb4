// Eager. The outbox: host calls and digests queued for the host, and the promises that wait for their answers.
const CALLS_IN_FLIGHT = 64;
const LONGEST_ARGUMENTS = 7 * 1024 * 1024;
let acceptingCalls = false;
let nextCall = 0;
let callsInFlight = 0;
let callPromises = { __proto__: null };
let outbox = "";
let digestOutbox = "";
let digestsInFlight = 0;
let firstWaiting;
let lastWaiting;

// `error` was made where the call was, so that its stack shows the program's own line: 2 µs of a call's 40.
function hostError(code, message, error) {
  defineProperty(error, "message", { __proto__: null, value: message, writable: true, configurable: true });
  defineProperty(error, "name", { __proto__: null, value: "AtlasError", writable: true, configurable: true });
  defineProperty(error, "code", { __proto__: null, value: code, writable: true, enumerable: true, configurable: true });
  return error;
}

function send(entry) {
  callsInFlight++;
  outbox += (outbox === "" ? "[" : ",[") + entry + "]";
}

// Queue one host call; a promise of what the host answers, rejected with an AtlasError.
function hostCall(op, args) {
  return new NativePromise((resolve, reject) => {
    const error = new NativeError();
    if (!acceptingCalls) throw hostError("no_invocation", op + " can be called only while an invocation runs", error);
    const text = stringify(args);
    if (text.length > LONGEST_ARGUMENTS) throw hostError("too_large", "The arguments of " + op + " are too large", error);
    const id = ++nextCall;
    callPromises[id] = { __proto__: null, resolve, reject, error };
    const entry = id + "," + stringify(op) + "," + stringify(text);
    if (callsInFlight < CALLS_IN_FLIGHT) return send(entry);
    const waiting = { __proto__: null, entry, next: undefined };
    if (lastWaiting === undefined) firstWaiting = waiting; else lastWaiting.next = waiting;
    lastWaiting = waiting;
  });
}

// Queue one digest, which the child computes itself; a promise of its bytes in base64.
function digest(algorithm, base64) {
  return new NativePromise((resolve, reject) => {
    const id = ++nextCall;
    callPromises[id] = { __proto__: null, resolve, reject };
    digestsInFlight++;
    digestOutbox += (digestOutbox === "" ? "[" : ",[") + id + "," + stringify(algorithm) + "," + stringify(base64) + "]";
  });
}

// An answer from the host: [call, ok, value or {code, message}].
function settleCall(answer) {
  const id = answer[0];
  const promise = callPromises[id];
  if (promise === undefined) return;
  delete callPromises[id];
  if (answer[3] === true) digestsInFlight--; else callsInFlight--;
  if (firstWaiting !== undefined && callsInFlight < CALLS_IN_FLIGHT) {
    send(firstWaiting.entry);
    firstWaiting = firstWaiting.next;
    if (firstWaiting === undefined) lastWaiting = undefined;
  }
  if (answer[1] === 1) promise.resolve(answer[2]);
  else promise.reject(hostError(answer[2].code, answer[2].message, promise.error));
}

function clearCalls() {
  callPromises = { __proto__: null };
  callsInFlight = digestsInFlight = 0;
  outbox = digestOutbox = "";
  firstWaiting = lastWaiting = undefined;
}
core.hostCall = hostCall;
core.hostError = hostError;
core.digest = digest;
