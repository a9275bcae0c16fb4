// The program inside a Deno sandbox: frames over stdin and stdout, one socket. See program.mjs and run.js.
import { AsyncLocalStorage, AsyncResource } from "node:async_hooks";
import { Buffer } from "node:buffer";
import process from "node:process";
import { getHeapStatistics } from "node:v8";
import vm from "node:vm";
import { start } from "./program.mjs";
import core from "./core.js" with { type: "text" };
import errors from "./errors.js" with { type: "text" };
import fetch from "./fetch.js" with { type: "text" };
import globals from "./globals.js" with { type: "text" };
import modules from "./modules.js" with { type: "text" };
import response from "./response.js" with { type: "text" };
import run from "./run.js" with { type: "text" };
import timers from "./timers.js" with { type: "text" };
import wire from "./wire.js" with { type: "text" };
import atlas from "../quickjs/prelude/atlas.js" with { type: "text" };
import calls from "../quickjs/prelude/calls.js" with { type: "text" };
import console from "../quickjs/prelude/console.js" with { type: "text" };
import inspect from "../quickjs/prelude/inspect.js" with { type: "text" };
import logs from "../quickjs/prelude/logs.js" with { type: "text" };
import storage from "../quickjs/prelude/storage.js" with { type: "text" };

const READ_BYTES = 256 * 1024;
const STDIN = 0, STDOUT = 1;
const { exit, cpuUsage } = Deno;
// Deno.stdin and Deno.stdout are made of these; they alone tell which read keeps the event loop alive.
const { read, writeSync, refOpPromise, unrefOpPromise } = Deno[Deno.internal].core;
const then = Function.prototype.call.bind(Promise.prototype.then);
const { byteLength, from, prototype: { base64Slice } } = Buffer;
const toBase64 = base64Slice.call.bind(base64Slice);
const NativeUint8Array = Uint8Array;
const bufferOf = Function.prototype.call.bind(Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), "buffer").get);
const inbox = new Uint8Array(READ_BYTES);
let program;
let reading;
let attached = true;

function write(bytes, length) {
  for (let at = 0; at < length;) at += writeSync(STDOUT, new NativeUint8Array(bufferOf(bytes), at, length - at));
}

function listen() {
  reading = read(STDIN, inbox);
  if (!attached) unrefOpPromise(reading);
  then(reading, heard, () => exit(0));
}
function heard(length) {
  if (length === 0) exit(0);
  program.receive(inbox, length);
  listen();
}

const platform = {
  __proto__: null, AsyncLocalStorage, AsyncResource, SourceTextModule: vm.SourceTextModule, SyntheticModule: vm.SyntheticModule,
  file: import.meta.url, process, write, exit,
  nextTick: process.nextTick,
  importBuiltin: (name) => import("node:" + name),
  byteLength: (text) => byteLength(text),
  toBase64: (bytes) => toBase64(bytes),
  fromBase64: (text) => from(text, "base64"),
  cpuUs() { const { user, system } = cpuUsage(); return user + system; },
  memoryBytes() { const { used_heap_size: heap, external_memory: external } = getHeapStatistics(); return heap + external; },
  attach(wanted) {
    attached = wanted;
    if (wanted) refOpPromise(reading); else unrefOpPromise(reading);
  },
  seal() { delete globalThis.Deno; },
  start(made) {
    program = made;
    globalThis.addEventListener("beforeunload", (event) => { event.preventDefault(); made.onIdle(); });
    globalThis.addEventListener("unhandledrejection", (event) => { event.preventDefault(); made.onRejection(event.reason); });
    globalThis.addEventListener("error", (event) => { event.preventDefault(); made.onException(event.error); });
    listen();
  },
};
const texts = {
  "core.js": core, "errors.js": errors, "fetch.js": fetch, "globals.js": globals, "modules.js": modules,
  "response.js": response, "run.js": run, "timers.js": timers, "wire.js": wire,
  "../quickjs/prelude/atlas.js": atlas, "../quickjs/prelude/calls.js": calls, "../quickjs/prelude/console.js": console,
  "../quickjs/prelude/inspect.js": inspect, "../quickjs/prelude/logs.js": logs,
  "../quickjs/prelude/storage.js": storage,
};
start(texts, platform, (body, names) => vm.compileFunction(body, names, { filename: "<input>" }));
