// The program of a Node or Deno sandbox, put together of texts: parts of its own and parts of the QuickJS prelude, so that
// both mean the same. All of it is one line of "<input>": its frames in a stack are told by that, see engines/sourcemap.py.
// End each statement with its semicolon, put comments on their own lines.

const PRELUDE = "../quickjs/prelude/";

// Joined in this order, in the scope of one function.
const PARTS = [
  "core.js", PRELUDE + "logs.js", PRELUDE + "calls.js", "errors.js", "wire.js", "response.js", "modules.js", "timers.js",
  "run.js", "globals.js",
];

// Function expressions that take `core` and give their exports.
const UNITS = { console: PRELUDE + "console.js", inspect: PRELUDE + "inspect.js", atlas: PRELUDE + "atlas.js", storage: PRELUDE + "storage.js", fetch: "fetch.js" };

// The names of the language and the web that all parts are compiled with, whatever a program makes of them later.
const NATIVES = [
  "AbortSignal", "Array", "ArrayBuffer", "BigInt", "Boolean", "DOMException", "DataView", "Date", "Error", "Headers", "JSON", "Map",
  "Math", "Number", "Object", "Promise", "Proxy", "RangeError", "ReadableStream", "ReadableStreamDefaultReader",
  "ReferenceError", "Reflect", "RegExp", "Request", "Response", "Set", "String", "Symbol", "SyntaxError", "TextDecoder",
  "TextEncoder", "TypeError", "Uint8Array", "clearImmediate", "clearInterval", "clearTimeout", "isNaN", "parseFloat",
  "parseInt", "performance", "queueMicrotask", "setImmediate", "setInterval", "setTimeout",
];

export const FILES = [...PARTS, ...Object.values(UNITS)];

function joined(text) {
  return text.split("\n").map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("//")).join(" ");
}

// Start the program: `texts` by the name of their file, `compile` a function body to a function with the name "<input>".
export function start(texts, platform, compile) {
  const units = Object.entries(UNITS).map(([name, file]) => `${name}: (${joined(texts[file])})`);
  const parts = PARTS.map((file) => joined(texts[file]));
  const body = `"use strict"; const units = { __proto__: null, ${units.join(", ")} }; ${parts.join(" ")}`;
  compile(body, ["platform", ...NATIVES])(platform, ...NATIVES.map((name) => globalThis[name]));
}
