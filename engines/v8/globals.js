// The globals a program sees: the engine's, without those that reach outside, and with ours in the place of some.
const ABSENT = [
  "BroadcastChannel", "Cache", "CacheStorage", "EventSource", "SharedWorker", "Storage", "WebSocket", "WebSocketStream",
  "WebSocketError", "Window", "Worker", "XMLHttpRequest", "alert", "caches", "close", "closed", "confirm", "gc", "localStorage",
  "location", "Location", "name", "navigator", "Navigator", "NavigatorUAData", "onbeforeunload", "onerror", "onload", "onunhandledrejection", "onunload", "prompt",
  "sessionStorage", "reportError", "addEventListener", "removeEventListener", "dispatchEvent",
];

// What libraries ask `process` for. It tells nothing of this machine, and ends nothing.
function processFacade(real) {
  const same = (object) => (object === undefined ? undefined : { ...object });
  const cannot = (what) => () => { throw new Error("process." + what + " is not available in a function"); };
  const writer = (level) => ({ isTTY: false, columns: 80, write(chunk) { core.writeLog(level, toText(chunk)); return true; } });
  const hrtime = (since) => {
    const ns = BigInt(trunc(now() * 1e6));
    const parts = [Number(ns / 1000000000n), Number(ns % 1000000000n)];
    if (since === undefined) return parts;
    const seconds = parts[0] - since[0], rest = parts[1] - since[1];
    return rest < 0 ? [seconds - 1, rest + 1e9] : [seconds, rest];
  };
  hrtime.bigint = () => BigInt(trunc(now() * 1e6));
  const facade = {
    env: {}, argv: [], execArgv: [], title: "function", pid: 1, ppid: 0, exitCode: undefined,
    version: real.version, versions: same(real.versions), release: { name: real.release.name }, arch: real.arch, platform: real.platform,
    features: {}, config: {}, stdout: writer("log"), stderr: writer("error"), hrtime,
    uptime() { return now() / 1000; },
    cwd() { return "/"; },
    cpuUsage() { return { user: platform.cpuUs(), system: 0 }; },
    memoryUsage() { const heapUsed = platform.memoryBytes(); return { rss: heapUsed, heapTotal: heapUsed, heapUsed, external: 0, arrayBuffers: 0 }; },
    nextTick(callback, ...args) {
      const step = guarded(callback, "The callback of process.nextTick");
      nextTick(() => apply(step, undefined, args));
    },
    emitWarning(warning) { core.writeLog("warn", toText(warning)); },
    emit() { return false; }, listeners() { return []; }, listenerCount() { return 0; },
    getBuiltinModule() { return undefined; },
  };
  for (const name of ["on", "once", "off", "addListener", "removeListener", "removeAllListeners", "prependListener", "setMaxListeners"]) {
    facade[name] = function () { return this; };
  }
  for (const name of ["exit", "abort", "kill", "reallyExit", "chdir", "binding", "dlopen"]) facade[name] = cannot(name);
  return facade;
}

function setGlobals() {
  for (const name of ABSENT) delete global[name];
  for (const name of getOwnPropertyNames(global)) {
    if (startsWith(name, "GPU")) delete global[name];
    else quiet(name);
  }
  const facade = processFacade(platform.process);
  hidden("process", facade);
  builtins.process = facade;
  builtins.async_hooks = { __proto__: null, AsyncLocalStorage: platform.AsyncLocalStorage, AsyncResource: platform.AsyncResource };
  setTimers();
  hidden("console", core.need("console").console);
  hidden("fetch", core.need("fetch").fetch);
  hidden("self", global);
  const { atlas } = core.need("atlas");
  defineProperty(global, "atlas", { __proto__: null, get() { return atlas; }, enumerable: true, configurable: false });
}

// Nothing of the engine's is enumerable, so that `Object.keys(globalThis)` names what a program has made.
function quiet(name) {
  const own = Object.getOwnPropertyDescriptor(global, name);
  if (own !== undefined && own.enumerable && own.configurable) defineProperty(global, name, { ...own, __proto__: null, enumerable: false });
}

core.fromBase64 = fromBase64;
setGlobals();
platform.start({ __proto__: null, receive, onIdle, onRejection, onException });
