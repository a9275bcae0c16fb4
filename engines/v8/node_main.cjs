"use strict";
// The program inside a Node sandbox: frames over fd 3. Run with --experimental-vm-modules. See program.mjs and run.js.
const { AsyncLocalStorage, AsyncResource } = require("node:async_hooks");
const { Buffer } = require("node:buffer");
const fs = require("node:fs");
const net = require("node:net");
const path = require("node:path");
const process = require("node:process");
const v8 = require("node:v8");
const vm = require("node:vm");
const { FILES, start } = require("./program.mjs");

const FD = 3;
const READ_BYTES = 256 * 1024;
const FULL_PAUSE_MS = 1;
const { exit, cpuUsage, nextTick, getBuiltinModule } = process;
const { writeSync } = fs;
const { wait } = Atomics;
const { byteLength, from, prototype: { base64Slice } } = Buffer;
const toBase64 = base64Slice.call.bind(base64Slice);
const { getHeapStatistics } = v8;
const inbox = new Uint8Array(READ_BYTES);
const pause = new Int32Array(new SharedArrayBuffer(4));
const socket = new net.Socket({
  fd: FD,
  readable: false,
  writable: false,
  onread: { buffer: inbox, callback(length) { program.receive(inbox, length); return true; } },
});
let program;

function write(bytes, length) {
  for (let at = 0; at < length;) {
    try { at += writeSync(FD, bytes, at, length - at); } catch (error) {
      if (error.code !== "EAGAIN") exit(0);
      wait(pause, 0, 0, FULL_PAUSE_MS);
    }
  }
}

const platform = {
  __proto__: null, AsyncLocalStorage, AsyncResource, SourceTextModule: vm.SourceTextModule, SyntheticModule: vm.SyntheticModule,
  file: __filename, process, write, nextTick, exit,
  importBuiltin: (name) => getBuiltinModule(name),
  byteLength: (text) => byteLength(text),
  toBase64: (bytes) => toBase64(bytes),
  fromBase64: (text) => from(text, "base64"),
  cpuUs() { const { user, system } = cpuUsage(); return user + system; },
  memoryBytes() { const { used_heap_size: heap, external_memory: external } = getHeapStatistics(); return heap + external; },
  attach(wanted) { if (wanted) socket.ref(); else socket.unref(); },
  seal() { for (const name of ["binding", "_linkedBinding", "dlopen", "getBuiltinModule", "mainModule"]) process[name] = undefined; },
  start(made) {
    program = made;
    // A program can change EventEmitter, and must not be handed what emits.
    const { emit } = process;
    for (const emitter of [process, socket]) emitter.emit = emit;
    process.on("beforeExit", made.onIdle);
    process.on("unhandledRejection", made.onRejection);
    process.setUncaughtExceptionCaptureCallback(made.onException);
    socket.on("close", () => exit(0));
    socket.read(0);
  },
};
const texts = Object.fromEntries(FILES.map((file) => [file, fs.readFileSync(path.join(__dirname, file), "utf8")]));
start(texts, platform, (body, names) => vm.compileFunction(body, names, { filename: "<input>" }));
