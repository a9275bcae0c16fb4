// The program as a module named "<input>", and the few modules of the standard library that it may import.
const ALLOWED = [
  "assert", "assert/strict", "async_hooks", "buffer", "crypto", "events", "path", "path/posix", "path/win32", "process",
  "punycode", "querystring", "stream", "stream/consumers", "stream/promises", "stream/web", "string_decoder", "timers",
  "timers/promises", "url", "util", "util/types", "zlib",
];
const { SourceTextModule, SyntheticModule, importBuiltin } = platform;
const linked = { __proto__: null };
let sealed = false;

// Where the engine's own would give more than a program should have; filled by timers.js and globals.js.
const builtins = { __proto__: null };

function refused(specifier) {
  const named = startsWith(specifier, "./") ? slice(specifier, 2) : specifier;
  return new NativeReferenceError("could not load module '" + slice(named, 0, 200) + "'");
}

async function imported(specifier) {
  const name = startsWith(specifier, "node:") ? slice(specifier, 5) : specifier;
  let known = false;
  for (let i = 0; i < ALLOWED.length; i++) if (ALLOWED[i] === name) known = true;
  if (!known || (sealed && linked[name] === undefined)) throw refused(specifier);
  if (linked[name] === undefined) linked[name] = synthetic(builtins[name] ?? await importBuiltin(name), name);
  return linked[name];
}

function synthetic(source, name) {
  const keys = getOwnPropertyNames(source);
  const names = [];
  let hasDefault = false;
  for (let i = 0; i < keys.length; i++) {
    if (keys[i] === "default") hasDefault = true;
    defineProperty(names, i, { __proto__: null, value: keys[i], enumerable: true, writable: true, configurable: true });
  }
  if (!hasDefault) defineProperty(names, keys.length, { __proto__: null, value: "default", enumerable: true, writable: true, configurable: true });
  const module = new SyntheticModule(names, () => {
    for (let i = 0; i < keys.length; i++) setExport(module, keys[i], source[keys[i]]);
    if (!hasDefault) setExport(module, "default", source);
  }, { __proto__: null, identifier: "node:" + name });
  return module;
}

const setExport = uncurry(SyntheticModule.prototype.setExport);
const linkModule = uncurry(SourceTextModule.prototype.link);
const evaluateModule = uncurry(SourceTextModule.prototype.evaluate);
const namespaceOf = uncurry(Object.getOwnPropertyDescriptor(getPrototypeOf(SourceTextModule.prototype), "namespace").get);
const statusOf = uncurry(Object.getOwnPropertyDescriptor(getPrototypeOf(SourceTextModule.prototype), "status").get);

async function importedLater(specifier) {
  const module = await imported(toText(specifier));
  if (statusOf(module) === "unlinked") await linkModule(module, refused);
  if (statusOf(module) === "linked") await evaluateModule(module);
  return module;
}

// The default export, or why there is none. What an `import()` may ask for later is loaded before the program runs: while
// they load, modules of an engine's library may need of its globals what a program must not have.
async function load(code) {
  try {
    if (indexOf(code, "\0") >= 0) throw new SyntaxError("the module holds a NUL character");
    if (indexOf(code, "import(") >= 0) for (let i = 0; i < ALLOWED.length; i++) await imported(ALLOWED[i]);
    const module = new SourceTextModule(code, {
      __proto__: null, identifier: "<input>", importModuleDynamically: importedLater,
      initializeImportMeta(meta) { meta.url = "<input>"; },
    });
    await linkModule(module, imported);
    sealed = true;
    platform.seal();
    await evaluateModule(module);
    const candidate = namespaceOf(module).default;
    if (typeof candidate === "function") { handler = candidate; return end("ready", ""); }
    const what = candidate === undefined ? "no default export" : "a default export that is not a function";
    throw new NativeTypeError("The module has " + what + "; it needs `export default function (input, ctx) { … }`");
  } catch (error) {
    platform.seal();
    return fail("load_failed", error);
  }
}
