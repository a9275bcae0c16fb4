// URLSearchParams, and application/x-www-form-urlencoded in both directions.
(function (core) {
  const { percentEncode, percentDecode } = core.need("url_host");
  const UNSAFE = /[^A-Za-z0-9*\-._ ]/gu;
  const string = (value) => core.toWellFormed(core.toText(value));
  const encode = (text) => percentEncode(text, UNSAFE).replaceAll(" ", "+");
  const decode = (text) => percentDecode(text.replaceAll("+", " "));

  function parse(text) {
    return text.split("&").filter((part) => part !== "").map((part) => {
      const equals = part.indexOf("=");
      return equals < 0 ? [decode(part), ""] : [decode(part.slice(0, equals)), decode(part.slice(equals + 1))];
    });
  }

  function pairs(init) {
    if (typeof init[Symbol.iterator] === "function") {
      return Array.from(init, (item) => {
        const pair = [...item];
        if (pair.length !== 2) throw new TypeError("Each entry of URLSearchParams must be a pair of name and value");
        return [string(pair[0]), string(pair[1])];
      });
    }
    return Object.entries(init).map(([name, value]) => [string(name), string(value)]);
  }

  class URLSearchParams {
    #list = [];
    #update;

    constructor(init = "") {
      if ((typeof init === "object" && init !== null) || typeof init === "function") this.#list = pairs(init);
      else this.#list = parse(string(init).replace(/^\?/, ""));
    }

    // Tie to a URL: `update` is called with the text after each change; `text` replaces what is here.
    static attach(params, update, text) {
      if (update !== undefined) params.#update = update;
      if (text !== undefined) params.#list = parse(text.replace(/^\?/, ""));
    }

    #changed() { this.#update?.(this.toString()); }

    get size() { return this.#list.length; }
    append(name, value) { this.#list.push([string(name), string(value)]); this.#changed(); }

    delete(name, value) {
      const key = string(name);
      const wanted = value === undefined ? undefined : string(value);
      this.#list = this.#list.filter(([known, item]) => known !== key || (wanted !== undefined && item !== wanted));
      this.#changed();
    }

    get(name) { const key = string(name); return this.#list.find(([known]) => known === key)?.[1] ?? null; }
    getAll(name) { const key = string(name); return this.#list.filter(([known]) => known === key).map(([, value]) => value); }
    has(name, value) {
      const key = string(name);
      const wanted = value === undefined ? undefined : string(value);
      return this.#list.some(([known, item]) => known === key && (wanted === undefined || item === wanted));
    }

    set(name, value) {
      const key = string(name);
      const first = this.#list.findIndex(([known]) => known === key);
      if (first < 0) this.#list.push([key, string(value)]);
      else {
        this.#list[first][1] = string(value);
        this.#list = this.#list.filter(([known], i) => i <= first || known !== key);
      }
      this.#changed();
    }

    sort() { this.#list.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)); this.#changed(); }
    forEach(callback, self) { for (const [name, value] of this) callback.call(self, value, name, this); }
    *entries() { for (let i = 0; i < this.#list.length; i++) yield [...this.#list[i]]; }
    *keys() { for (const [name] of this.entries()) yield name; }
    *values() { for (const [, value] of this.entries()) yield value; }
    toString() { return this.#list.map(([name, value]) => encode(name) + "=" + encode(value)).join("&"); }
  }

  const { attach } = URLSearchParams;
  delete URLSearchParams.attach;
  Object.defineProperty(URLSearchParams.prototype, Symbol.iterator, { value: URLSearchParams.prototype.entries, writable: true, configurable: true });
  Object.defineProperty(URLSearchParams.prototype, Symbol.toStringTag, { value: "URLSearchParams", configurable: true });
  return { __proto__: null, URLSearchParams, attach };
})
