// Headers of the Fetch Standard, without guards: names in lower case, values combined, set-cookie kept apart.
(function (core) {
  const NAME = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
  const BAD_VALUE = /[\0\r\n]|[^\0-\xff]/;

  function nameOf(name) {
    const text = core.toText(name);
    if (!NAME.test(text)) throw new TypeError("Invalid header name: " + core.stringify(core.slice(text, 0, 100)));
    return text.toLowerCase();
  }

  function valueOf(value) {
    const text = core.toText(value).replace(/^[\t\n\r ]+|[\t\n\r ]+$/g, "");
    if (BAD_VALUE.test(text)) throw new TypeError("Invalid header value: " + core.stringify(core.slice(text, 0, 100)));
    return text;
  }

  class Headers {
    #list = [];

    constructor(init) {
      if (init === undefined || init === null) return;
      if (typeof init !== "object") throw new TypeError("Headers are made of an object, of pairs or of Headers");
      if (#list in init) { this.#list = init.#list.map((pair) => [...pair]); return; }
      const pairs = typeof init[Symbol.iterator] === "function" ? init : Object.entries(init);
      for (const item of pairs) {
        const pair = [...item];
        if (pair.length !== 2) throw new TypeError("Each entry of Headers must be a pair of name and value");
        this.append(pair[0], pair[1]);
      }
    }

    append(name, value) { this.#list.push([nameOf(name), valueOf(value)]); }
    delete(name) { const key = nameOf(name); this.#list = this.#list.filter(([known]) => known !== key); }
    get(name) {
      const key = nameOf(name);
      const values = this.#list.filter(([known]) => known === key).map(([, value]) => value);
      return values.length === 0 ? null : values.join(", ");
    }
    has(name) { const key = nameOf(name); return this.#list.some(([known]) => known === key); }
    set(name, value) {
      const pair = [nameOf(name), valueOf(value)];
      const first = this.#list.findIndex(([known]) => known === pair[0]);
      if (first < 0) this.#list.push(pair);
      else this.#list = this.#list.flatMap((old, i) => (old[0] !== pair[0] ? [old] : i === first ? [pair] : []));
    }
    getSetCookie() { return this.#list.filter(([name]) => name === "set-cookie").map(([, value]) => value); }
    forEach(callback, self) { for (const [name, value] of this) callback.call(self, value, name, this); }

    *entries() {
      for (const name of [...new Set(this.#list.map(([known]) => known))].sort()) {
        if (name === "set-cookie") for (const value of this.getSetCookie()) yield [name, value];
        else yield [name, this.get(name)];
      }
    }
    *keys() { for (const [name] of this.entries()) yield name; }
    *values() { for (const [, value] of this.entries()) yield value; }

    // Every header as it was given, for the wire.
    static raw(headers) { return headers.#list; }
  }
  const { raw } = Headers;
  delete Headers.raw;
  Object.defineProperty(Headers.prototype, Symbol.iterator, { value: Headers.prototype.entries, writable: true, configurable: true });
  Object.defineProperty(Headers.prototype, Symbol.toStringTag, { value: "Headers", configurable: true });
  return { __proto__: null, Headers, raw };
})
