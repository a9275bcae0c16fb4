// Request: enough of it to be built, read and given to fetch.
(function (core) {
  const { Headers } = core.need("headers");
  const { Body, extract, peek } = core.need("body");
  const PLAIN = /^(?:delete|get|head|options|post|put)$/i;
  const METHOD = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

  function methodOf(given) {
    const method = core.toText(given);
    if (!METHOD.test(method) || /^(?:connect|trace|track)$/i.test(method)) throw new TypeError("Invalid method: " + core.slice(method, 0, 50));
    return PLAIN.test(method) ? method.toUpperCase() : method;
  }

  class Request extends Body {
    #url;
    #method;
    #headers;
    #signal;
    #redirect;

    constructor(input, init = {}) {
      const from = typeof input === "object" && input !== null && #url in input ? input : undefined;
      const method = init?.method !== undefined ? methodOf(init.method) : from?.method ?? "GET";
      const { data, type } = init?.body !== undefined ? extract(init.body) : { data: from === undefined ? null : peek(from), type: null };
      if (data !== null && (method === "GET" || method === "HEAD")) throw new TypeError("A request with method " + method + " cannot have a body");
      const redirect = init?.redirect ?? from?.redirect ?? "follow";
      if (redirect !== "follow" && redirect !== "manual" && redirect !== "error") throw new TypeError("redirect must be follow, manual or error");
      super(data);
      this.#url = from === undefined ? core.toText(input) : from.url;
      this.#method = method;
      this.#redirect = redirect;
      this.#signal = init?.signal === undefined ? from?.signal ?? null : init.signal;
      this.#headers = new Headers(init?.headers ?? from?.headers);
      if (type !== null && !this.#headers.has("content-type")) this.#headers.set("content-type", type);
    }

    get url() { return this.#url; }
    get method() { return this.#method; }
    get headers() { return this.#headers; }
    get signal() { return this.#signal; }
    get redirect() { return this.#redirect; }
    clone() { return new Request(this); }
  }
  Object.defineProperty(Request.prototype, Symbol.toStringTag, { value: "Request", configurable: true });
  return { __proto__: null, Request };
})
