// structuredClone, as in the HTML standard for the values this engine has.
(function (core) {
  const ERRORS = { __proto__: null, Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };

  function refuse(what) { throw new DOMException(what + " could not be cloned", "DataCloneError"); }

  function structuredClone(value, options) {
    if (arguments.length === 0) throw new TypeError("structuredClone needs a value");
    const moved = new Map();
    for (const item of options?.transfer ?? []) {
      if (!(item instanceof ArrayBuffer) || moved.has(item)) refuse("An item of transfer");
      moved.set(item, undefined);
    }
    const copies = new Map();
    const result = copy(value, copies, moved);
    for (const [item, taken] of moved) if (taken === undefined) item.transfer();
    return result;
  }

  function copy(value, copies, moved) {
    if (typeof value === "symbol" || typeof value === "function") refuse(typeof value === "symbol" ? value.toString() : "function " + value.name);
    if (typeof value !== "object" || value === null) return value;
    if (copies.has(value)) return copies.get(value);
    const made = shell(value, copies, moved);
    copies.set(value, made.copy);
    made.fill?.(made.copy);
    return made.copy;
  }

  // An empty copy of an object, and what fills it once it is known under its original.
  function shell(value, copies, moved) {
    const again = (item) => copy(item, copies, moved);
    if (Array.isArray(value)) return { copy: new Array(value.length), fill: (target) => properties(value, target, again) };
    if (value instanceof Date) return { copy: new Date(Date.prototype.getTime.call(value)) };
    if (value instanceof RegExp) return { copy: new RegExp(value.source, value.flags) };
    if (value instanceof Map) {
      const entries = [...Map.prototype.entries.call(value)];
      return { copy: new Map(), fill: (target) => { for (const [key, item] of entries) target.set(again(key), again(item)); } };
    }
    if (value instanceof Set) {
      const items = [...Set.prototype.values.call(value)];
      return { copy: new Set(), fill: (target) => { for (const item of items) target.add(again(item)); } };
    }
    if (value instanceof ArrayBuffer) {
      if (value.detached) refuse("A detached ArrayBuffer");
      if (!moved.has(value)) return { copy: value.slice(0) };
      const taken = value.transfer();
      moved.set(value, taken);
      return { copy: taken };
    }
    if (value instanceof SharedArrayBuffer) refuse("A SharedArrayBuffer");
    if (ArrayBuffer.isView(value)) {
      const length = value instanceof DataView ? value.byteLength : value.length;
      const { byteOffset, constructor } = value;
      const Known = value instanceof DataView ? DataView : globalThis[value[Symbol.toStringTag]] ?? constructor;
      return { copy: new Known(again(value.buffer), byteOffset, length) };
    }
    if (core.isNativeError(value)) return error(value, again);
    for (const Wrapper of [Boolean, Number, String, BigInt]) {
      if (value instanceof Wrapper) return { copy: Object(Wrapper.prototype.valueOf.call(value)) };
    }
    if (value instanceof Symbol) refuse("A Symbol");
    const tag = Object.prototype.toString.call(value);
    if (/^\[object (?:Promise|WeakMap|WeakSet|WeakRef|Generator|AsyncGenerator|.* Iterator)\]$/.test(tag)) refuse(tag);
    return { copy: {}, fill: (target) => properties(value, target, again) };
  }

  function properties(from, to, again) {
    for (const key of Object.keys(from)) {
      Object.defineProperty(to, key, { value: again(from[key]), writable: true, enumerable: true, configurable: true });
    }
  }

  function error(value, again) {
    const Known = ERRORS[value.name] ?? Error;
    const made = Object.create(Known.prototype);
    const copied = Reflect.construct(Known, [core.toText(value.message)], Known);
    Object.setPrototypeOf(copied, Object.getPrototypeOf(made));
    Object.defineProperty(copied, "stack", { value: core.toText(value.stack ?? ""), writable: true, configurable: true });
    if (Object.hasOwn(value, "cause")) Object.defineProperty(copied, "cause", { value: again(value.cause), writable: true, configurable: true });
    return { copy: copied };
  }

  return { __proto__: null, structuredClone };
})
