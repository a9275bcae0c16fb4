// Hosts of the URL Standard, section 3: domains, IPv4 and IPv6 addresses, opaque hosts. Internationalised names are mapped
// by NFKC and lower case, which agrees with UTS 46 for all but some rare characters.
(function (core) {
  const FORBIDDEN_HOST = /[\0\t\n\r #/:<>?@[\\\]^|]/;
  const FORBIDDEN_DOMAIN = /[\0-\x20"#%/:<>?@[\\\]^`{|}\x7f]/;
  const CONTROL = /[^\x20-\x7e]/gu;

  function percentEncode(text, set) {
    return text.replace(set, (char) => {
      const code = char.codePointAt(0);
      if (code >= 0xd800 && code <= 0xdfff) return "%EF%BF%BD";
      return code < 0x80 ? "%" + (code < 16 ? "0" : "") + code.toString(16).toUpperCase() : encodeURIComponent(char);
    });
  }

  function percentDecode(text) {
    if (!text.includes("%")) return text;
    const { decodeUtf8, encodeUtf8 } = core.need("encoding");
    const from = encodeUtf8(text);
    const to = new Uint8Array(from.length);
    let length = 0;
    for (let i = 0; i < from.length; i++) {
      const hex = from[i] === 0x25 ? String.fromCharCode(from[i + 1] ?? 0, from[i + 2] ?? 0) : "";
      if (/^[0-9a-fA-F]{2}$/.test(hex)) { to[length++] = parseInt(hex, 16); i += 2; } else to[length++] = from[i];
    }
    return decodeUtf8(to.subarray(0, length), false);
  }

  // Punycode, RFC 3492.
  function punycode(label) {
    const points = [...label].map((char) => char.codePointAt(0));
    let out = points.filter((point) => point < 0x80).map((point) => String.fromCharCode(point)).join("");
    const basic = out.length;
    let handled = basic, n = 128, delta = 0, bias = 72;
    if (basic > 0) out += "-";
    while (handled < points.length) {
      const next = Math.min(...points.filter((point) => point >= n));
      delta += (next - n) * (handled + 1);
      n = next;
      for (const point of points) {
        if (point < n) delta++;
        if (point !== n) continue;
        let q = delta;
        for (let k = 36; ; k += 36) {
          const t = k <= bias ? 1 : k >= bias + 26 ? 26 : k - bias;
          if (q < t) break;
          const digit = t + ((q - t) % (36 - t));
          out += String.fromCharCode(digit < 26 ? digit + 97 : digit + 22);
          q = Math.floor((q - t) / (36 - t));
        }
        out += String.fromCharCode(q < 26 ? q + 97 : q + 22);
        delta = handled === basic ? Math.floor(delta / 700) : delta >> 1;
        delta += Math.floor(delta / (handled + 1));
        let k = 0;
        for (; delta > 455; k += 36) delta = Math.floor(delta / 35);
        bias = k + Math.floor((36 * delta) / (delta + 38));
        delta = 0;
        handled++;
      }
      delta++;
      n++;
    }
    return "xn--" + out;
  }

  function toAscii(domain) {
    if (/^[\0-\x7f]*$/.test(domain)) return domain.toLowerCase();
    const mapped = domain.replace(/[\u00ad\u200b\u2060\ufeff\ufe00-\ufe0f]/g, "").normalize("NFKC").toLowerCase().normalize("NFKC");
    const labels = mapped.replace(/[\u3002\uff0e\uff61]/g, ".").split(".");
    if (labels.some((label) => /[\ufffd\u200e\u200f\u202a-\u202e]|^\p{M}/u.test(label))) return null;
    return labels.map((label) => (/^[\0-\x7f]*$/.test(label) ? label : punycode(label))).join(".");
  }

  function ipv4Number(text) {
    if (text === "") return NaN;
    if (/^0[xX][0-9a-fA-F]*$/.test(text)) return text.length === 2 ? 0 : parseInt(text, 16);
    if (/^0[0-7]*$/.test(text)) return parseInt(text, 8);
    return /^[0-9]+$/.test(text) && text[0] !== "0" ? parseInt(text, 10) : NaN;
  }

  function endsInNumber(host) {
    const parts = host.split(".");
    if (parts.at(-1) === "") { if (parts.length === 1) return false; parts.pop(); }
    const last = parts.at(-1);
    return /^[0-9]+$/.test(last) || /^0[xX][0-9a-fA-F]*$/.test(last);
  }

  function ipv4(host) {
    const parts = host.split(".");
    if (parts.at(-1) === "" && parts.length > 1) parts.pop();
    if (parts.length > 4) return null;
    const numbers = parts.map(ipv4Number);
    const last = numbers.pop();
    if (numbers.some((number) => !(number <= 255)) || !(last < 256 ** (4 - numbers.length))) return null;
    let address = last;
    for (let i = 0; i < numbers.length; i++) address += numbers[i] * 256 ** (3 - i);
    return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");
  }

  function ipv6(text) {
    const halves = text.split("::");
    if (halves.length > 2) return null;
    const pieces = [];
    let compress = -1;
    for (let h = 0; h < halves.length; h++) {
      if (h === 1) compress = pieces.length;
      if (halves[h] === "") { if (halves.length === 1) return null; continue; }
      const parts = halves[h].split(":");
      for (let i = 0; i < parts.length; i++) {
        const dotted = i === parts.length - 1 && h === halves.length - 1 && parts[i].includes(".");
        if (dotted) {
          const bytes = parts[i].split(".");
          if (bytes.length !== 4 || bytes.some((byte) => !/^(?:0|[1-9][0-9]{0,2})$/.test(byte) || byte > 255)) return null;
          pieces.push(bytes[0] * 256 + +bytes[1], bytes[2] * 256 + +bytes[3]);
        } else {
          if (!/^[0-9a-fA-F]{1,4}$/.test(parts[i])) return null;
          pieces.push(parseInt(parts[i], 16));
        }
      }
    }
    if (compress >= 0) {
      if (pieces.length > 7) return null;
      pieces.splice(compress, 0, ...new Array(8 - pieces.length).fill(0));
    }
    return pieces.length === 8 ? "[" + ipv6Text(pieces) + "]" : null;
  }

  // The longest run of two or more zero pieces is told as "::".
  function ipv6Text(pieces) {
    let best = -1, length = 1;
    for (let i = 0; i < 8; i++) {
      let end = i;
      while (end < 8 && pieces[end] === 0) end++;
      if (end - i > length) { best = i; length = end - i; }
      if (end > i) i = end;
    }
    const hex = pieces.map((piece) => piece.toString(16));
    return best < 0 ? hex.join(":") : hex.slice(0, best).join(":") + "::" + hex.slice(best + length).join(":");
  }

  // The host of a URL as it is serialised, or null when it cannot be one.
  function parseHost(text, special) {
    if (text[0] === "[") return text.at(-1) === "]" ? ipv6(text.slice(1, -1)) : null;
    if (!special) return FORBIDDEN_HOST.test(text) ? null : percentEncode(text, CONTROL);
    const domain = toAscii(percentDecode(text));
    if (domain === null || domain === "" || FORBIDDEN_DOMAIN.test(domain.replace(/["`{}]/g, ""))) return null;
    return endsInNumber(domain) ? ipv4(domain) : domain;
  }

  return { __proto__: null, parseHost, percentEncode, percentDecode };
})
