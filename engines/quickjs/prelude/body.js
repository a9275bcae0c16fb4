// The body of a Request or Response: null, text, bytes, or the base64 that came from the host, decoded when it is read.
// There are no streams: `body` is null, and a body is read whole.
(function (core) {
  const { encodeUtf8, decodeUtf8, bytesOf } = core.need("encoding");

  // {data, type}: what is kept of something given as a body, and its content type if it implies one.
  function extract(given) {
    if (given === null || given === undefined) return { __proto__: null, data: null, type: null };
    if (typeof given === "object" && (ArrayBuffer.isView(given) || given instanceof ArrayBuffer)) {
      return { __proto__: null, data: new Uint8Array(bytesOf(given)), type: null };
    }
    const params = core.loaded.search_params;
    const form = params !== undefined && given instanceof params.URLSearchParams;
    const type = form ? "application/x-www-form-urlencoded;charset=UTF-8" : "text/plain;charset=UTF-8";
    return { __proto__: null, data: core.toWellFormed(core.toText(given)), type };
  }

  class Body {
    #data;
    #used = false;

    constructor(data) { this.#data = data; }

    get body() { return null; }
    get bodyUsed() { return this.#used; }
    async text() {
      const data = this.#take();
      return data === null ? "" : typeof data === "string" ? data : decodeUtf8(withoutMark(bytes(data)), false);
    }
    async json() {
      const text = await this.text();
      return JSON.parse(text);
    }
    async bytes() { const data = this.#take(); return data === null ? new Uint8Array(0) : new Uint8Array(bytes(data)); }
    async arrayBuffer() { return (await this.bytes()).buffer; }

    #take() {
      if (this.#used) throw new TypeError("The body was already read");
      if (this.#data !== null) this.#used = true;
      return this.#data;
    }

    static take(object) { return object.#take(); }
    static peek(object) {
      if (object.#used) throw new TypeError("The body was already read");
      return object.#data;
    }
  }
  const { take, peek } = Body;
  delete Body.take;
  delete Body.peek;

  function bytes(data) {
    return typeof data === "string" ? encodeUtf8(data) : data instanceof Uint8Array ? data : core.fromBase64(data.base64);
  }

  function withoutMark(data) {
    return data[0] === 0xef && data[1] === 0xbb && data[2] === 0xbf ? data.subarray(3) : data;
  }

  // A body as base64 for the wire, or null.
  function base64(data) {
    return data === null ? null : typeof data === "object" && !(data instanceof Uint8Array) ? data.base64 : core.toBase64(bytes(data));
  }

  return { __proto__: null, Body, extract, take, peek, base64 };
})
