// What the rest needs of the language, taken before any user code can change it. As in engines/quickjs/prelude/core.js:
// what must survive a hostile program uses these names, null-prototype objects and string concatenation only; no methods
// of arrays, no iteration, no assignment that could meet a setter of Object.prototype, no property of a typed array.
const global = globalThis;
const uncurry = Function.prototype.bind.bind(Function.prototype.call);
const NativePromise = Promise;
const NativeError = Error;
const NativeTypeError = TypeError;
const NativeReferenceError = ReferenceError;
const RangeErrorPrototype = RangeError.prototype;
const NativeUint8Array = Uint8Array;
const getPrototypeOf = Object.getPrototypeOf;
const getOwnPropertyNames = Object.getOwnPropertyNames;
const isNativeError = Error.isError;
const parse = JSON.parse;
const stringify = JSON.stringify;
const apply = Reflect.apply;
const ownKeys = Reflect.ownKeys;
const freeze = Object.freeze;
const defineProperty = Object.defineProperty;
const toWellFormed = uncurry(String.prototype.toWellFormed);
const slice = uncurry(String.prototype.slice);
const charCodeAt = uncurry(String.prototype.charCodeAt);
const indexOf = uncurry(String.prototype.indexOf);
const startsWith = uncurry(String.prototype.startsWith);
const trunc = Math.trunc;
const now = performance.now.bind(performance);
const toText = String;
const encode = uncurry(TextEncoder.prototype.encode);
const encodeInto = uncurry(TextEncoder.prototype.encodeInto);
const decode = uncurry(TextDecoder.prototype.decode);
const utf8Encoder = new TextEncoder();
const utf8Decoder = new TextDecoder("utf-8", { __proto__: null, ignoreBOM: true });
const { byteLength, toBase64, fromBase64 } = platform;

const loaded = { __proto__: null };
const core = {
  __proto__: null, uncurry, NativePromise, NativeError, isNativeError, stringify, apply, ownKeys, freeze, defineProperty,
  toWellFormed, slice, charCodeAt, toBase64, now, toText, need, loaded,
};

// The exports of a unit, made on its first use.
function need(unit) {
  const known = loaded[unit];
  if (known !== undefined) return known;
  const exports = units[unit](core);
  loaded[unit] = exports;
  return exports;
}

function hidden(name, value) {
  defineProperty(global, name, { __proto__: null, value, writable: true, enumerable: false, configurable: true });
}

// The encoding unit of the QuickJS prelude has more; here the engine has the rest.
const bufferOf = uncurry(Object.getOwnPropertyDescriptor(getPrototypeOf(NativeUint8Array.prototype), "buffer").get);
const offsetOf = uncurry(Object.getOwnPropertyDescriptor(getPrototypeOf(NativeUint8Array.prototype), "byteOffset").get);
const lengthOf = uncurry(Object.getOwnPropertyDescriptor(getPrototypeOf(NativeUint8Array.prototype), "byteLength").get);
loaded.encoding = {
  __proto__: null,
  bytesOf(value) {
    return ArrayBuffer.isView(value) ? new NativeUint8Array(value.buffer, value.byteOffset, value.byteLength) : new NativeUint8Array(value);
  },
  encodeUtf8(text) { return encode(utf8Encoder, text); },
  decodeUtf8(bytes) { return decode(utf8Decoder, bytes); },
};
