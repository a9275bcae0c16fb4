// A function that walks everything it can get hold of, and names what should be out of its reach: for Node and Deno.
// Its input is the names of the modules it may import. It calls every getter; what a getter throws is no way out.
const MOST = 100_000;
const POWERS = new Set([
  "require", "createRequire", "internalBinding", "process.binding", "dlopen", "reallyExit", "spawn", "execSync", "execve", "Worker",
  "SourceTextModule", "SyntheticModule", "Script", "compileFunction", "runInThisContext", "Session", "setFlagsFromString",
  "Socket", "Pipe", "TCP", "readFileSync", "openSync", "readSync",
]);

function describe(value) {
  const own = (key) => { try { return Object.getOwnPropertyDescriptor(value, key); } catch { return undefined; } };
  if (typeof value === "function") return POWERS.has(own("name")?.value) ? own("name").value : "";
  if (own("_rawDebug") || own("_channel")) return "process";
  if (own("ops") || own("permissions")) return "Deno";
  if (own("primordials") || own("internals")) return "internals";
  return own("_handle") ? "handle" : "";
}

// Whoever is called by the engine sees its frames: their `this` and their functions.
function frames(found, where) {
  Error.prepareStackTrace = (error, sites) => {
    for (const site of sites) found.push({ where, self: site.getThis(), callee: site.getFunction(), origin: site.getEvalOrigin() });
    return "";
  };
  void new Error().stack;
  Error.prepareStackTrace = undefined;
}

async function gather(names) {
  const roots = { globalThis, frames: [], made: [] };
  for (const name of names) roots["node:" + name] = await import("node:" + name);
  const seen = (where) => function (...args) { frames(roots.frames, where); roots.made.push(this, args); };
  const when = (where, begin) => new Promise((resolve) => begin(function (...args) { seen(where).apply(this, args); resolve(); }));
  const { crypto, zlib, events, stream } = Object.fromEntries(["crypto", "zlib", "events", "stream"].map((name) => [name, roots["node:" + name]]));
  seen("call")();
  await null;
  seen("await")();
  await when("timer", (step) => setTimeout(step, 1));
  await when("immediate", (step) => setImmediate(step));
  await when("tick", (step) => process.nextTick(step));
  await when("microtask", (step) => queueMicrotask(step));
  await when("zlib", (step) => zlib.deflate("x", step));
  await when("random", (step) => crypto.randomBytes(4, step));
  await when("pbkdf2", (step) => crypto.pbkdf2("a", "b", 1, 8, "sha1", step));
  await when("event", (step) => { const emitter = new events.EventEmitter(); emitter.on("x", step); emitter.emit("x"); });
  await when("stream", (step) => stream.Readable.from(["x"]).on("data", step));
  JSON.stringify({ toJSON: seen("toJSON") });
  const signal = new AbortController();
  signal.signal.addEventListener("abort", seen("abort"));
  signal.abort();
  roots.made.push(zlib.createGzip(), crypto.createHash("sha256"), new Blob(["x"]), new ReadableStream(), new Response("x"),
    new Request("http://x/"), new URL("http://x/"), new TextDecoder(), signal, new DOMException("x"));
  return roots;
}

export default async function (names) {
  const roots = await gather(names);
  const paths = new Map(), powers = new Set();
  const queue = Object.entries(roots);
  while (queue.length > 0 && paths.size < MOST) {
    const [path, value] = queue.shift();
    if (value === null || (typeof value !== "object" && typeof value !== "function") || paths.has(value)) continue;
    paths.set(value, path);
    const what = describe(value);
    if (what !== "") powers.add(`${path}: ${what}`);
    if (ArrayBuffer.isView(value)) continue;
    try { queue.push([path + ".prototype", Object.getPrototypeOf(value)]); } catch {}
    for (const key of Reflect.ownKeys(value).slice(0, 500)) {
      const own = Object.getOwnPropertyDescriptor(value, key);
      queue.push([`${path}.${String(key)}`, own.value], [path + ".get", own.get], [path + ".set", own.set]);
      if (own.get) try { queue.push([`${path}.${String(key)}`, value[key]]); } catch {}
    }
  }
  return { objects: paths.size, powers: [...powers].sort(), frames: roots.frames.length, places: [...new Set(roots.frames.map((one) => one.where))] };
}
