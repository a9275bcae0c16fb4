// Eager. setTimeout and its family: a binary heap by due time, which the host runs one timer at a time with `tick`.
const LONGEST_DELAY_MS = 2147483647;
let timers = { __proto__: null };
let timerHeap = { __proto__: null };
let timerCount = 0;
let timerSeq = 0;

function before(a, b) { return a.due < b.due || (a.due === b.due && a.seq < b.seq); }

function pushTimer(timer) {
  let i = timerCount++;
  while (i > 0) {
    const parent = (i - 1) >> 1;
    if (!before(timer, timerHeap[parent])) break;
    timerHeap[i] = timerHeap[parent];
    i = parent;
  }
  timerHeap[i] = timer;
}

function popTimer() {
  const top = timerHeap[0];
  const last = timerHeap[--timerCount];
  delete timerHeap[timerCount];
  if (timerCount > 0) {
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= timerCount) break;
      if (child + 1 < timerCount && before(timerHeap[child + 1], timerHeap[child])) child++;
      if (!before(timerHeap[child], last)) break;
      timerHeap[i] = timerHeap[child];
      i = child;
    }
    timerHeap[i] = last;
  }
  return top;
}

// Cancelled timers stay in the heap until they surface; this drops them there.
function nextTimer() {
  while (timerCount > 0 && !timerHeap[0].live) popTimer();
  return timerCount > 0 ? timerHeap[0] : undefined;
}

function startTimer(callback, delay, args, repeat) {
  if (typeof callback !== "function") throw new TypeError("The callback of a timer must be a function");
  let ms = +delay;
  if (!(ms >= 1)) ms = repeat ? 1 : 0;
  if (ms > LONGEST_DELAY_MS) ms = 1;
  const seq = ++timerSeq;
  const timer = { __proto__: null, callback, args, due: now() + ms, seq, id: seq, live: true, every: repeat ? ms : -1 };
  timers[timer.id] = timer;
  pushTimer(timer);
  return timer.id;
}

function stopTimer(id) {
  const timer = typeof id === "number" || typeof id === "string" ? timers[id] : undefined;
  if (timer === undefined) return;
  timer.live = false;
  delete timers[timer.id];
}

function clearTimers() {
  timers = { __proto__: null };
  timerHeap = { __proto__: null };
  timerCount = 0;
}

// Run the earliest timer if it is due.
function tick() {
  const timer = nextTimer();
  if (timer === undefined || timer.due > now()) return;
  popTimer();
  if (timer.every < 0) delete timers[timer.id];
  try { apply(timer.callback, global, timer.args); } catch (error) { uncaught(error); }
  if (timer.every >= 0 && timer.live && timers[timer.id] === timer) {
    timer.due = now() + timer.every;
    timer.seq = ++timerSeq;
    pushTimer(timer);
  }
}

hidden("setTimeout", function setTimeout(callback, delay, ...args) { return startTimer(callback, delay, args, false); });
hidden("setInterval", function setInterval(callback, delay, ...args) { return startTimer(callback, delay, args, true); });
hidden("clearTimeout", function clearTimeout(id) { stopTimer(id); });
hidden("clearInterval", function clearInterval(id) { stopTimer(id); });
const nativeQueueMicrotask = queueMicrotask;
function guarded(callback) {
  return (...args) => { try { apply(callback, undefined, args); } catch (error) { uncaught(error); } };
}
hidden("queueMicrotask", function queueMicrotask(callback) {
  if (typeof callback !== "function") throw new TypeError("queueMicrotask needs a function");
  nativeQueueMicrotask(guarded(callback));
});
core.startTimer = startTimer;
core.stopTimer = stopTimer;

// A job that throws reaches the host as text made outside of every limit, so callbacks of the collector are guarded too.
const NativeRegistry = FinalizationRegistry;
function Registry(callback) {
  if (new.target === undefined) throw new TypeError("FinalizationRegistry must be called with new");
  if (typeof callback !== "function") throw new TypeError("FinalizationRegistry needs a function");
  return Reflect.construct(NativeRegistry, [guarded(callback)], new.target);
}
defineProperty(Registry, "name", { value: "FinalizationRegistry" });
defineProperty(Registry, "prototype", { value: NativeRegistry.prototype, writable: false });
defineProperty(NativeRegistry.prototype, "constructor", { value: Registry });
hidden("FinalizationRegistry", Registry);
