// `atlas`: the host's capabilities. Arguments travel as JSON text; answers are JSON values.
(function (core) {
  const { hostCall, freeze, NativeError, isNativeError } = core;
  const isArray = Array.isArray;
  const isView = ArrayBuffer.isView;
  const DateProto = Date.prototype;
  const getTime = core.uncurry(DateProto.getTime);
  const toISOString = core.uncurry(DateProto.toISOString);

  function isDate(value) {
    try { getTime(value); return true; } catch { return false; }
  }

  // One parameter of a query as JSON can carry it.
  function parameter(value) {
    if (value === undefined) return null;
    if (typeof value === "bigint") return core.toText(value);
    if (typeof value !== "object" || value === null) return value;
    if (isArray(value)) {
      const out = [];
      for (let i = 0; i < value.length; i++) core.defineProperty(out, i, { __proto__: null, value: parameter(value[i]), enumerable: true });
      return out;
    }
    if (isDate(value)) return toISOString(value);
    if (isView(value) || value instanceof ArrayBuffer) return { __proto__: null, $bytes: core.toBase64(core.need("encoding").bytesOf(value)) };
    return value;
  }

  function text(value, what) {
    if (typeof value !== "string") throw new TypeError(what + " must be a string");
    return value;
  }

  const db = freeze({
    __proto__: null,
    async query(sql, params) {
      text(sql, "The statement of atlas.db.query");
      if (params !== undefined && params !== null && !isArray(params)) throw new TypeError("The parameters of atlas.db.query must be an array");
      return await hostCall("db.query", [sql, params === undefined || params === null ? [] : parameter(params)]);
    },
  });

  const kv = freeze({
    __proto__: null,
    async get(key) { return await hostCall("kv.get", [text(key, "The key")]); },
    async set(key, value, options) {
      const ttl = options === undefined || options === null ? undefined : options.ttl;
      if (ttl !== undefined && ttl !== null && !(typeof ttl === "number" && ttl > 0 && ttl < Infinity)) throw new TypeError("ttl must be a positive number of seconds");
      await hostCall("kv.set", [text(key, "The key"), value === undefined ? null : value, { __proto__: null, ttl_s: ttl === undefined ? null : ttl }]);
    },
    async delete(key) { return await hostCall("kv.delete", [text(key, "The key")]); },
  });

  const atlas = { __proto__: null, db, kv, get storage() { return core.need("storage").storage; }, get fetch() { return core.need("fetch").fetch; } };
  return { __proto__: null, atlas: freeze(atlas) };
})
