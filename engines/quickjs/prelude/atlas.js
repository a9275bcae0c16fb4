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

  function statement(sql, params, what) {
    text(sql, "The statement of " + what);
    if (params !== undefined && params !== null && !isArray(params)) throw new TypeError("The parameters of " + what + " must be an array");
    return params === undefined || params === null ? [] : parameter(params);
  }

  function failure(code, message) {
    const error = new NativeError(message);
    core.defineProperty(error, "name", { __proto__: null, value: "AtlasError", writable: true, configurable: true });
    core.defineProperty(error, "code", { __proto__: null, value: code, writable: true, enumerable: true, configurable: true });
    return error;
  }

  // The name of what is done once, null when it is done each time.
  function onceName(options) {
    const once = options === undefined || options === null ? undefined : options.exactlyOnce;
    if (once === undefined || once === null || once === false) return null;
    if (once === true) return "";
    return text(once, "exactlyOnce");
  }

  async function quietly(promise) {
    try { await promise; } catch { /* told elsewhere */ }
  }

  let lastTransaction = 0;

  // `tx.open` is answered when the transaction is over; a run that ends takes it with it.
  async function transaction(work, options) {
    if (typeof work !== "function") throw new TypeError("atlas.db.transaction needs a function");
    const once = onceName(options);
    const number = ++lastTransaction;
    const held = hostCall("tx.open", [number, { __proto__: null, exactly_once: once }]);
    quietly(held);
    let begun;
    try { begun = await hostCall("tx.begin", [number]); } catch (error) {
      // what could not even be opened says why itself
      await held;
      throw error;
    }
    if (begun !== null) return begun.value;
    let open = true;
    function within() {
      if (!open) throw failure("transaction_ended", "atlas.db.transaction: this transaction is over; tx is for use within its callback");
    }
    const tx = freeze({
      __proto__: null,
      async query(sql, params) {
        within();
        return await hostCall("tx.query", [number, sql, statement(sql, params, "tx.query")]);
      },
      async publish(type, data, options) {
        within();
        return await publishEvent(type, data, options, number);
      },
    });
    let value, told;
    try {
      value = await work(tx);
      told = once === null ? [number] : [number, jsonOf(value)];
    } catch (error) {
      open = false;
      await quietly(hostCall("tx.rollback", [number]));
      throw error;
    }
    open = false;
    try {
      await hostCall("tx.commit", told);
    } catch (error) {
      await quietly(hostCall("tx.rollback", [number]));
      throw error;
    }
    return value;
  }

  // What is kept of a value: null for what JSON does not have.
  function jsonOf(value) {
    const json = core.stringify(value);
    return json === undefined ? null : value;
  }

  const db = freeze({
    __proto__: null,
    async query(sql, params) { return await hostCall("db.query", [sql, statement(sql, params, "atlas.db.query")]); },
    transaction,
  });

  async function publishEvent(type, data, options, number) {
    text(type, "The type of an event");
    const given = options === undefined || options === null ? { __proto__: null } : options;
    return await hostCall("events.publish", [type, data === undefined ? null : data, {
      __proto__: null, id: given.id ?? null, subject: given.subject ?? null, transactional: given.transactional === true,
    }, number]);
  }

  const events = freeze({
    __proto__: null,
    async publish(type, data, options) { return await publishEvent(type, data, options, null); },
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

  const atlas = {
    __proto__: null, db, events, kv, get storage() { return core.need("storage").storage; }, get fetch() { return core.need("fetch").fetch; },
  };
  return { __proto__: null, atlas: freeze(atlas) };
})
