// setTimeout and its family: the engine's own timers, known by the run that set them and cleared with it.
const nextTick = platform.nextTick;
const microtask = queueMicrotask;
const native = { __proto__: null, setTimeout, setInterval, setImmediate, clearTimeout, clearInterval, clearImmediate };
const addTo = uncurry(Set.prototype.add);
const deleteFrom = uncurry(Set.prototype.delete);
const emptySet = uncurry(Set.prototype.clear);
const forEachOf = uncurry(Set.prototype.forEach);
const timers = new Set();
const immediates = new Set();
const PROMISIFY = Symbol.for("nodejs.util.promisify.custom");

function guarded(callback, what) {
  if (typeof callback !== "function") throw new TypeError(what + " must be a function");
  return function (...args) {
    if (isLate()) return;
    try { apply(callback, this, args); } catch (error) { if (run !== undefined) uncaught(error); }
    if (run !== undefined) isOverBudget(false);
  };
}

function startTimer(callback, delay, args, repeat) {
  const step = guarded(callback, "The callback of a timer");
  const ms = +delay;
  const wait = ms >= 1 ? ms : repeat ? 1 : 0;
  if (repeat) return track(native.setInterval(function () { apply(step, this, args); }, wait));
  const timer = native.setTimeout(function () { deleteFrom(timers, timer); apply(step, this, args); }, wait);
  return track(timer);
}

// One that comes of an answered run must not keep a later one waiting.
function track(timer) {
  if (run === undefined || isLate()) native.clearTimeout(timer);
  else addTo(timers, timer);
  return timer;
}

function clearTimers() {
  forEachOf(timers, native.clearTimeout);
  forEachOf(immediates, native.clearImmediate);
  emptySet(timers);
  emptySet(immediates);
}

function sleeper(start) {
  return (ms, value, options) => new NativePromise((resolve, reject) => {
    const signal = options?.signal;
    signal?.throwIfAborted();
    const timer = start(() => resolve(value), ms);
    signal?.addEventListener("abort", () => { clearTimeouts(timer); reject(signal.reason); }, { once: true });
  });
}

function clearTimeouts(timer) {
  deleteFrom(timers, timer);
  native.clearTimeout(timer);
}

function setTimers() {
  hidden("setTimeout", function setTimeout(callback, delay, ...args) { return startTimer(callback, delay, args, false); });
  hidden("setInterval", function setInterval(callback, delay, ...args) { return startTimer(callback, delay, args, true); });
  hidden("setImmediate", function setImmediate(callback, ...args) {
    const step = guarded(callback, "The callback of setImmediate");
    const immediate = native.setImmediate(function () { deleteFrom(immediates, immediate); apply(step, this, args); });
    if (run === undefined || isLate()) native.clearImmediate(immediate);
    else addTo(immediates, immediate);
    return immediate;
  });
  hidden("clearTimeout", function clearTimeout(timer) { clearTimeouts(timer); });
  hidden("clearInterval", function clearInterval(timer) { clearTimeouts(timer); });
  hidden("clearImmediate", function clearImmediate(immediate) { deleteFrom(immediates, immediate); native.clearImmediate(immediate); });
  hidden("queueMicrotask", function queueMicrotask(callback) {
    if (typeof callback !== "function") throw new TypeError("queueMicrotask needs a function");
    microtask(guarded(callback));
  });
  const sleep = sleeper((callback, ms) => startTimer(callback, ms, [], false));
  const soon = (value, options) => sleep(0, value, options);
  defineProperty(global.setTimeout, PROMISIFY, { __proto__: null, value: sleep });
  defineProperty(global.setImmediate, PROMISIFY, { __proto__: null, value: soon });
  const promises = { __proto__: null, setTimeout: sleep, setImmediate: soon, scheduler: { __proto__: null, wait: sleep, yield: soon } };
  const { setTimeout, setInterval, setImmediate, clearTimeout, clearInterval, clearImmediate } = global;
  builtins["timers/promises"] = promises;
  builtins.timers = { __proto__: null, setTimeout, setInterval, setImmediate, clearTimeout, clearInterval, clearImmediate, promises };

  // The engine's own would not keep the loop alive.
  const { AbortController } = global;
  hiddenOn(global.AbortSignal, "timeout", function timeout(ms) {
    if (!(ms >= 0)) throw new TypeError("AbortSignal.timeout needs a number of milliseconds");
    const controller = new AbortController();
    startTimer(() => controller.abort(new DOMException("The operation timed out", "TimeoutError")), ms, [], false);
    return controller.signal;
  });
}

function hiddenOn(object, name, value) {
  defineProperty(object, name, { __proto__: null, value, writable: true, enumerable: false, configurable: true });
}
