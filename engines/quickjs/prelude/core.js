// Eager. What the bridge needs of the language, taken before any user code can change it, and the loader of lazy units.
// Everything below this file that must survive a hostile program uses these names, null-prototype objects and string
// concatenation only: no methods of arrays, no assignment that could meet a setter of Object.prototype.
const global = globalThis;
const uncurry = Function.prototype.bind.bind(Function.prototype.call);
const NativePromise = Promise;
const NativeError = Error;
const NativeTypeError = TypeError;
const InternalErrorPrototype = InternalError.prototype;
const getPrototypeOf = Object.getPrototypeOf;
const isNativeError = Error.isError;
const stringify = JSON.stringify;
const apply = Reflect.apply;
const ownKeys = Reflect.ownKeys;
const freeze = Object.freeze;
const defineProperty = Object.defineProperty;
const toWellFormed = uncurry(String.prototype.toWellFormed);
const slice = uncurry(String.prototype.slice);
const charCodeAt = uncurry(String.prototype.charCodeAt);
const fromBase64 = Uint8Array.fromBase64;
const toBase64 = uncurry(Uint8Array.prototype.toBase64);
const now = performance.now.bind(performance);
const indirectEval = eval;
const toText = String;

// An interrupt or an out-of-memory error is turned into text outside of every limit: nothing of the user's may run then.
defineProperty(InternalErrorPrototype, "toString", { __proto__: null, value: Error.prototype.toString });
defineProperty(InternalErrorPrototype, "stack", { value: "" });
defineProperty(InternalErrorPrototype, Symbol.toPrimitive, { value: undefined });
freeze(InternalErrorPrototype);

// The host can take flat strings only, and what was joined with + may be a rope.
function flat(text) { return slice(text, 0); }

// The names of the language that lazy units are compiled with, whatever a program has made of them since.
const natives = {
  __proto__: null, Array, ArrayBuffer, BigInt, Boolean, DataView, Date, DOMException, Error, EvalError, Float16Array,
  Float32Array, Float64Array, Function, JSON, Map, Math, Number, Object, Promise, RangeError, ReferenceError, Reflect,
  RegExp, Set, SharedArrayBuffer, String, Symbol, SyntaxError, TypeError, URIError, Uint16Array, Uint32Array, Uint8Array,
  atob, btoa, decodeURIComponent, encodeURIComponent, escape, isNaN, parseFloat, parseInt, unescape,
};
const nativeNames = Object.keys(natives).join(",");

const sources = { __proto__: null };
const loaded = { __proto__: null };
const core = {
  __proto__: null, uncurry, NativePromise, NativeError, isNativeError, stringify, apply, ownKeys, freeze, defineProperty,
  toWellFormed, slice, charCodeAt, fromBase64, toBase64, now, toText, need, loaded,
};

// The exports of a lazy unit, compiled on its first use.
function need(unit) {
  const known = loaded[unit];
  if (known !== undefined) return known;
  const exports = indirectEval("(function({" + nativeNames + "}){return " + sources[unit] + "})")(natives)(core);
  loaded[unit] = exports;
  return exports;
}

function hidden(name, value) {
  defineProperty(global, name, { __proto__: null, value, writable: true, enumerable: false, configurable: true });
}

// A global that costs nothing until it is read.
function lazyGlobal(name, unit) {
  defineProperty(global, name, {
    __proto__: null, enumerable: false, configurable: true,
    get() { const value = need(unit)[name]; hidden(name, value); return value; },
    set(value) { hidden(name, value); },
  });
}
