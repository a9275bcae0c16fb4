// TextEncoder and TextDecoder: UTF-8, UTF-16 and windows-1252, by the engine's own base64 and percent codecs: a loop over
// bytes in JavaScript would be some fifty times slower.
(function (core) {
  const { fromBase64, toBase64, toWellFormed, slice, charCodeAt, apply } = core;
  const percentEncode = encodeURIComponent;
  const percentDecode = decodeURIComponent;
  const latin1ToPercent = escape;
  const percentToLatin1 = unescape;
  const toLatin1Base64 = btoa;
  const fromLatin1Base64 = atob;
  const fromCharCode = String.fromCharCode;
  const isView = ArrayBuffer.isView;
  const CHUNK = 32768;
  const WINDOWS_1252 = "€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ";

  function encodeUtf8(text) {
    const whole = toWellFormed(text);
    if (whole.length <= CHUNK) return encodeChunk(whole);
    const chunks = [];
    let total = 0;
    for (let from = 0; from < whole.length; ) {
      let to = from + CHUNK;
      if (to < whole.length && (charCodeAt(whole, to - 1) & 0xfc00) === 0xd800) to--;
      const chunk = encodeChunk(slice(whole, from, to));
      chunks.push(chunk);
      total += chunk.length;
      from = to;
    }
    const bytes = new Uint8Array(total);
    let at = 0;
    for (const chunk of chunks) { bytes.set(chunk, at); at += chunk.length; }
    return bytes;
  }

  function encodeChunk(text) {
    return fromBase64(toLatin1Base64(percentToLatin1(percentEncode(text))));
  }

  // How many bytes at the end begin a sequence that they do not finish.
  function unfinished(bytes) {
    const length = bytes.length;
    for (let back = 1; back <= 3 && back <= length; back++) {
      const byte = bytes[length - back];
      if (byte >= 0xc0) return back < (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2) ? back : 0;
      if (byte < 0x80) return 0;
    }
    return 0;
  }

  // The text of UTF-8 bytes; what is malformed becomes U+FFFD, or a TypeError when `fatal`.
  function decodeUtf8(bytes, fatal) {
    let text = "";
    for (let from = 0; from < bytes.length; ) {
      let to = from + CHUNK;
      if (to < bytes.length) to -= unfinished(bytes.subarray(from, to));
      const chunk = bytes.subarray(from, to);
      try {
        text += percentDecode(latin1ToPercent(fromLatin1Base64(toBase64(chunk))));
      } catch (error) {
        if (!(error instanceof URIError)) throw error;
        if (fatal) throw new TypeError("The encoded data was not valid UTF-8");
        return text + replaceMalformed(bytes.subarray(from));
      }
      from = to;
    }
    return text;
  }

  // The decoder of the Encoding Standard, section 8.1.1.
  function replaceMalformed(bytes) {
    let text = "", point = 0, needed = 0, lower = 0x80, upper = 0xbf;
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i];
      if (needed === 0) {
        if (byte < 0x80) text += fromCharCode(byte);
        else if (byte >= 0xc2 && byte <= 0xdf) { needed = 1; point = byte & 0x1f; }
        else if (byte >= 0xe0 && byte <= 0xef) {
          if (byte === 0xe0) lower = 0xa0;
          if (byte === 0xed) upper = 0x9f;
          needed = 2; point = byte & 0xf;
        } else if (byte >= 0xf0 && byte <= 0xf4) {
          if (byte === 0xf0) lower = 0x90;
          if (byte === 0xf4) upper = 0x8f;
          needed = 3; point = byte & 0x7;
        } else text += "\ufffd";
        continue;
      }
      if (byte < lower || byte > upper) {
        text += "\ufffd";
        needed = 0; lower = 0x80; upper = 0xbf; i--;
        continue;
      }
      lower = 0x80; upper = 0xbf;
      point = (point << 6) | (byte & 0x3f);
      if (--needed === 0) text += String.fromCodePoint(point);
    }
    return needed === 0 ? text : text + "\ufffd";
  }

  function decodeWindows1252(bytes) {
    return fromLatin1Base64(toBase64(bytes)).replace(/[\x80-\x9f]/g, (char) => WINDOWS_1252[charCodeAt(char, 0) - 0x80]);
  }

  function decodeUtf16(bytes, fatal, bigEndian) {
    let text = "";
    const units = new Uint16Array(bytes.length >> 1);
    for (let i = 0; i < units.length; i++) {
      units[i] = bigEndian ? (bytes[2 * i] << 8) | bytes[2 * i + 1] : bytes[2 * i] | (bytes[2 * i + 1] << 8);
    }
    for (let from = 0; from < units.length; from += 4096) text += apply(fromCharCode, null, units.subarray(from, from + 4096));
    if (bytes.length & 1 && !/[\ud800-\udbff]$/.test(text)) text += "\ud800";
    const well = toWellFormed(text);
    if (fatal && well !== text) throw new TypeError("The encoded data was not valid UTF-16");
    return well;
  }

  // The bytes of an ArrayBuffer or a view of one, not copied.
  function bytesOf(source) {
    if (source instanceof Uint8Array) return source;
    if (isView(source)) return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
    if (source instanceof ArrayBuffer || source instanceof SharedArrayBuffer) return new Uint8Array(source);
    throw new TypeError("An ArrayBuffer or a view of one is needed");
  }

  function concat(a, b) {
    if (a.length === 0) return b;
    const both = new Uint8Array(a.length + b.length);
    both.set(a);
    both.set(b, a.length);
    return both;
  }

  class TextEncoder {
    get encoding() { return "utf-8"; }

    encode(text = "") { return encodeUtf8(core.toText(text)); }

    encodeInto(text, target) {
      if (!(target instanceof Uint8Array)) throw new TypeError("encodeInto needs a Uint8Array");
      const whole = toWellFormed(core.toText(text));
      const fitting = core.utf8Prefix(whole, target.length);
      target.set(encodeUtf8(fitting.text));
      return { read: fitting.text.length, written: fitting.bytes };
    }
  }

  const LABELS = {
    __proto__: null, "utf-8": "utf-8", utf8: "utf-8", "unicode-1-1-utf-8": "utf-8", "utf-16": "utf-16le", "utf-16le": "utf-16le",
    "ucs-2": "utf-16le", unicode: "utf-16le", "utf-16be": "utf-16be", latin1: "windows-1252", ascii: "windows-1252", l1: "windows-1252",
    "us-ascii": "windows-1252", "iso-8859-1": "windows-1252", "iso8859-1": "windows-1252", "windows-1252": "windows-1252", cp1252: "windows-1252",
  };
  const NOTHING = new Uint8Array(0);

  class TextDecoder {
    #encoding;
    #fatal;
    #ignoreBOM;
    #held = NOTHING;
    #begun = false;

    constructor(label = "utf-8", options = {}) {
      const encoding = LABELS[core.toText(label).trim().toLowerCase()];
      if (encoding === undefined) throw new RangeError("The encoding '" + label + "' is not supported");
      this.#encoding = encoding;
      this.#fatal = Boolean(options?.fatal);
      this.#ignoreBOM = Boolean(options?.ignoreBOM);
    }

    get encoding() { return this.#encoding; }
    get fatal() { return this.#fatal; }
    get ignoreBOM() { return this.#ignoreBOM; }

    decode(source, options = {}) {
      let bytes = concat(this.#held, source === undefined ? NOTHING : bytesOf(source));
      this.#held = NOTHING;
      const more = Boolean(options?.stream);
      if (more) {
        const keep = this.#encoding === "utf-8" ? unfinished(bytes) : this.#encoding === "windows-1252" ? 0 : bytes.length & 3;
        this.#held = bytes.slice(bytes.length - keep);
        bytes = bytes.subarray(0, bytes.length - keep);
      }
      let text;
      try {
        text = this.#encoding === "utf-8" ? decodeUtf8(bytes, this.#fatal)
          : this.#encoding === "windows-1252" ? decodeWindows1252(bytes)
          : decodeUtf16(bytes, this.#fatal, this.#encoding === "utf-16be");
      } catch (error) { this.#begun = false; this.#held = NOTHING; throw error; }
      if (!this.#begun && text !== "") {
        this.#begun = true;
        if (!this.#ignoreBOM && this.#encoding !== "windows-1252" && charCodeAt(text, 0) === 0xfeff) text = slice(text, 1);
      }
      if (!more) this.#begun = false;
      return text;
    }
  }

  return { __proto__: null, TextEncoder, TextDecoder, encodeUtf8, decodeUtf8, bytesOf };
})
