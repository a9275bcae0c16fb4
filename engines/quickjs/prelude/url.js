// The URL class: the record of url_parser behind the properties of the URL Standard, section 6.1.
(function (core) {
  const parser = core.need("url_parser");
  const { parseHost } = core.need("url_host");
  const clean = (value) => core.toWellFormed(core.toText(value)).replace(/[\t\n\r]/g, "");

  function parseOrNull(input, base) {
    let baseRecord = null;
    if (base !== undefined) {
      baseRecord = parser.parse(core.toText(base), null);
      if (baseRecord === null) return null;
    }
    return parser.parse(core.toText(input), baseRecord);
  }

  class URL {
    #url;
    #params;

    constructor(input, base) {
      if (arguments.length === 0) throw new TypeError("URL needs an address");
      const record = parseOrNull(input, base);
      if (record === null) {
        const error = new TypeError("Invalid URL: " + core.slice(core.toText(input), 0, 200));
        error.code = "ERR_INVALID_URL";
        throw error;
      }
      this.#url = record;
    }

    static canParse(input, base) { return parseOrNull(input, base) !== null; }
    static parse(input, base) { return parseOrNull(input, base) === null ? null : new URL(input, base); }

    get href() { return parser.serialize(this.#url); }
    set href(value) {
      const record = parser.parse(core.toText(value), null);
      if (record === null) throw new TypeError("Invalid URL");
      this.#url = record;
      this.#refresh();
    }

    get origin() {
      const url = this.#url;
      if (url.scheme === "blob") {
        const inner = parser.parse(parser.pathText(url), null);
        return inner !== null && /^https?$/.test(inner.scheme) ? new URL(parser.serialize(inner)).origin : "null";
      }
      return parser.isSpecial(url) && url.scheme !== "file" ? url.scheme + "://" + this.host : "null";
    }

    get protocol() { return this.#url.scheme + ":"; }
    set protocol(value) {
      const url = this.#url;
      const match = /^([a-zA-Z][a-zA-Z0-9+.-]*)(?::|$)/.exec(clean(value));
      if (match === null) return;
      const scheme = match[1].toLowerCase();
      if (scheme in parser.PORTS !== parser.isSpecial(url)) return;
      if (scheme === "file" && (url.username !== "" || url.password !== "" || url.port !== null)) return;
      if (url.scheme === "file" && url.host === "") return;
      url.scheme = scheme;
      if (url.port === parser.PORTS[scheme]) url.port = null;
    }

    get username() { return this.#url.username; }
    set username(value) { if (this.#hasAuthority()) this.#url.username = parser.encodeUserinfo(core.toWellFormed(core.toText(value))); }
    get password() { return this.#url.password; }
    set password(value) { if (this.#hasAuthority()) this.#url.password = parser.encodeUserinfo(core.toWellFormed(core.toText(value))); }

    get host() { const url = this.#url; return url.host === null ? "" : url.host + (url.port === null ? "" : ":" + url.port); }
    set host(value) { this.#setHost(value, true); }
    get hostname() { return this.#url.host ?? ""; }
    set hostname(value) { this.#setHost(value, false); }

    get port() { return this.#url.port === null ? "" : core.toText(this.#url.port); }
    set port(value) {
      if (!this.#hasAuthority()) return;
      const text = clean(value);
      const digits = /^[0-9]+/.exec(text);
      if (text === "") this.#url.port = null;
      else if (digits !== null) parser.setPort(this.#url, digits[0]);
    }

    get pathname() { return parser.pathText(this.#url); }
    set pathname(value) {
      const url = this.#url;
      if (typeof url.path === "string") return;
      const text = clean(value);
      url.path = [];
      parser.appendPath(url, text, text !== "" && !/^[/\\]/.test(text));
    }

    get search() { const { query } = this.#url; return query === null || query === "" ? "" : "?" + query; }
    set search(value) {
      const text = clean(value);
      this.#url.query = text === "" ? null : parser.encodeQuery(this.#url, text.replace(/^\?/, ""));
      this.#refresh();
    }

    get searchParams() {
      if (this.#params === undefined) {
        const { URLSearchParams, attach } = core.need("search_params");
        this.#params = new URLSearchParams(this.search);
        attach(this.#params, (text) => { this.#url.query = text === "" ? null : text; });
      }
      return this.#params;
    }

    get hash() { const { fragment } = this.#url; return fragment === null || fragment === "" ? "" : "#" + fragment; }
    set hash(value) {
      const text = clean(value);
      this.#url.fragment = text === "" ? null : parser.encodeFragment(text.replace(/^#/, ""));
    }

    toString() { return this.href; }
    toJSON() { return this.href; }

    #hasAuthority() { const { host, scheme } = this.#url; return host !== null && host !== "" && scheme !== "file"; }

    #setHost(value, withPort) {
      const url = this.#url;
      if (typeof url.path === "string") return;
      const text = clean(value);
      const end = text.search(parser.isSpecial(url) ? /[/\\?#]/ : /[/?#]/);
      const whole = end < 0 ? text : text.slice(0, end);
      const colon = whole.indexOf(":", whole.lastIndexOf("]") + 1);
      if (colon >= 0 && !withPort) return;
      const name = colon < 0 ? whole : whole.slice(0, colon);
      if (name === "") {
        if (parser.isSpecial(url) && url.scheme !== "file") return;
        if (colon >= 0 || url.username !== "" || url.password !== "" || url.port !== null) return;
      }
      const host = name === "" ? "" : parseHost(name, parser.isSpecial(url));
      if (host === null) return;
      url.host = url.scheme === "file" && host === "localhost" ? "" : host;
      const digits = colon < 0 ? null : /^[0-9]+/.exec(whole.slice(colon + 1));
      if (digits !== null) parser.setPort(url, digits[0]);
    }

    #refresh() { if (this.#params !== undefined) core.need("search_params").attach(this.#params, undefined, this.search); }
  }

  Object.defineProperty(URL.prototype, Symbol.toStringTag, { value: "URL", configurable: true });
  return { __proto__: null, URL };
})
