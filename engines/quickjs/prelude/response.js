// Response, as a function returns it and as fetch answers it.
(function (core) {
  const { Headers, raw } = core.need("headers");
  const { Body, extract, take, peek, base64 } = core.need("body");
  const made = { __proto__: null };

  const MOST_HEADERS = 256;
  const MOST_HEADER_CHARS = 64 * 1024;
  const CONTROL = /[\x00-\x08\x0a-\x1f\x7f]/;

  // Headers that the host takes, or a TypeError.
  function moderate(headers) {
    let chars = 0;
    for (let i = 0; i < headers.length; i++) {
      const name = headers[i][0], value = headers[i][1];
      chars += name.length + value.length;
      if (name.length > 256 || CONTROL.test(value)) throw new TypeError("The Response has an invalid header: " + core.stringify(core.slice(name, 0, 100)));
    }
    if (headers.length > MOST_HEADERS) throw new TypeError("The Response has " + headers.length + " headers; " + MOST_HEADERS + " are the most");
    if (chars > MOST_HEADER_CHARS) throw new TypeError("The headers of the Response have " + chars + " characters; " + MOST_HEADER_CHARS + " are the most");
    return headers;
  }

  class Response extends Body {
    #status;
    #statusText;
    #headers;
    #type = "default";
    #url = "";
    #redirected = false;

    constructor(body = null, init = {}, from = undefined) {
      if (from === made) {
        super(body);
        this.#status = init.status; this.#statusText = init.statusText; this.#headers = init.headers;
        this.#type = init.type; this.#url = init.url; this.#redirected = init.redirected;
        return;
      }
      const status = init?.status === undefined ? 200 : Math.trunc(Number(init.status));
      if (!(status >= 200 && status <= 599)) throw new RangeError("The status of a Response must be from 200 to 599");
      const statusText = init?.statusText === undefined ? "" : core.toText(init.statusText);
      if (/[^\t\x20-\x7e\x80-\xff]/.test(statusText)) throw new TypeError("Invalid statusText");
      const { data, type } = extract(body);
      if (data !== null && (status === 204 || status === 205 || status === 304)) throw new TypeError("A Response of status " + status + " cannot have a body");
      super(data);
      this.#status = status;
      this.#statusText = statusText;
      this.#headers = new Headers(init?.headers);
      if (type !== null && !this.#headers.has("content-type")) this.#headers.set("content-type", type);
    }

    get status() { return this.#status; }
    get statusText() { return this.#statusText; }
    get ok() { return this.#status >= 200 && this.#status <= 299; }
    get headers() { return this.#headers; }
    get type() { return this.#type; }
    get url() { return this.#url; }
    get redirected() { return this.#redirected; }

    clone() {
      const data = peek(this);
      return new Response(data, {
        status: this.#status, statusText: this.#statusText, headers: new Headers(this.#headers),
        type: this.#type, url: this.#url, redirected: this.#redirected,
      }, made);
    }

    static error() {
      return new Response(null, { status: 0, statusText: "", headers: new Headers(), type: "error", url: "", redirected: false }, made);
    }

    static json(data, init = {}) {
      const text = core.stringify(data);
      if (text === undefined) throw new TypeError("The data of Response.json cannot be JSON");
      const headers = new Headers(init?.headers);
      if (!headers.has("content-type")) headers.set("content-type", "application/json");
      return new Response(text, { status: init?.status, statusText: init?.statusText, headers });
    }

    static redirect(url, status = 302) {
      if (![301, 302, 303, 307, 308].includes(status)) throw new RangeError("Invalid redirect status: " + status);
      const { URL } = core.need("url");
      return new Response(null, { status, headers: { location: new URL(url).href } });
    }

    static is(value) { return typeof value === "object" && value !== null && #status in value; }

    // The answer of the host to a fetch.
    static fetched(answer) {
      return new Response(answer.body_base64 === null ? null : { __proto__: null, base64: answer.body_base64 }, {
        status: answer.status, statusText: answer.status_text, headers: new Headers(answer.headers),
        type: "basic", url: answer.url, redirected: answer.redirected,
      }, made);
    }

    // For the bridge: {head, body} to send, the body as "t" text or "b" base64; or {tooLong, length}.
    static outgoing(response, most) {
      const status = response.#status;
      if (status < 200) throw new TypeError("Response.error() cannot be the answer of a function");
      const data = take(response);
      const isText = typeof data === "string" && !data.includes("\0");
      const coded = isText ? data : base64(data) ?? "";
      const length = isText ? coded.length : Math.floor((coded.length / 4) * 3) - 2;
      if (length > most) return { __proto__: null, tooLong: true, length };
      const head = core.stringify({ __proto__: null, status, headers: moderate(raw(response.#headers)) });
      return { __proto__: null, head, body: (isText ? "t" : "b") + coded, tooLong: false };
    }
  }
  const { is: isResponse, fetched, outgoing } = Response;
  delete Response.is;
  delete Response.fetched;
  delete Response.outgoing;
  Object.defineProperty(Response.prototype, Symbol.toStringTag, { value: "Response", configurable: true });
  return { __proto__: null, Response, isResponse, fetched, outgoing };
})
