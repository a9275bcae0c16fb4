// The basic URL parser of the URL Standard, section 4.4, cut into the parts of a URL instead of into characters.
//
// A record: {scheme, username, password, host: null | text, port: null | number, path: [segment…] | opaque text,
// query: null | text, fragment: null | text}.
(function (core) {
  const { parseHost, percentEncode } = core.need("url_host");
  const PORTS = { __proto__: null, "http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21, "file": null };
  const CONTROL = /[^\x20-\x7e]/gu;
  const FRAGMENT = /[^\x20-\x7e]|[ "<>`]/gu;
  const QUERY = /[^\x20-\x7e]|[ "#<>]/gu;
  const SPECIAL_QUERY = /[^\x20-\x7e]|[ "#<>']/gu;
  const PATH = /[^\x20-\x7e]|[ "#<>?^`{}]/gu;
  const USERINFO = /[^\x20-\x7e]|[ "#<>?^`{}/:;=@[\\\]|]/gu;
  const DRIVE = /^[a-zA-Z][:|]$/;
  const STARTS_WITH_DRIVE = /^[a-zA-Z][:|](?:$|[/\\?#])/;
  const DOT = /^(?:\.|%2e)$/i;
  const DOT_DOT = /^(?:\.|%2e){2}$/i;

  const isSpecial = (url) => url.scheme in PORTS;
  const encodeQuery = (url, text) => percentEncode(text, isSpecial(url) ? SPECIAL_QUERY : QUERY);
  const encodeFragment = (text) => percentEncode(text, FRAGMENT);
  const encodeUserinfo = (text) => percentEncode(text, USERINFO);
  const slashes = (url) => (isSpecial(url) ? /^[/\\]/ : /^\//);

  function parse(input, base) {
    let text = core.toWellFormed(input).replace(/^[\0-\x20]+|[\0-\x20]+$/g, "").replace(/[\t\n\r]/g, "");
    const url = { scheme: "", username: "", password: "", host: null, port: null, path: [], query: null, fragment: null };
    const hash = text.indexOf("#");
    if (hash >= 0) { url.fragment = encodeFragment(text.slice(hash + 1)); text = text.slice(0, hash); }
    const scheme = /^([a-zA-Z][a-zA-Z0-9+.-]*):/.exec(text);
    if (scheme === null) {
      if (base === null) return null;
      url.scheme = base.scheme;
      if (typeof base.path === "string") {
        if (text !== "" || hash < 0) return null;
        return { ...base, fragment: url.fragment };
      }
      return base.scheme === "file" ? file(url, text, base) : relative(url, text, base);
    }
    url.scheme = scheme[1].toLowerCase();
    const rest = text.slice(scheme[0].length);
    if (url.scheme === "file") return file(url, rest, base !== null && base.scheme === "file" ? base : null);
    if (isSpecial(url)) {
      if (base !== null && base.scheme === url.scheme && !rest.startsWith("//")) return relative(url, rest, base);
      return authority(url, rest.replace(/^[/\\]+/, ""));
    }
    if (rest.startsWith("//")) return authority(url, rest.slice(2));
    if (rest.startsWith("/")) return pathAndQuery(url, rest);
    return opaque(url, rest);
  }

  function opaque(url, text) {
    const [path, query] = splitQuery(text);
    const encoded = percentEncode(path, CONTROL);
    url.path = encoded.endsWith(" ") && (query !== null || url.fragment !== null) ? encoded.slice(0, -1) + "%20" : encoded;
    if (query !== null) url.query = encodeQuery(url, query);
    return url;
  }

  function relative(url, text, base) {
    const slash = slashes(url);
    if (slash.test(text) && slash.test(text.slice(1))) return authority(url, isSpecial(url) ? text.replace(/^[/\\]+/, "") : text.slice(2));
    url.username = base.username; url.password = base.password; url.host = base.host; url.port = base.port;
    if (slash.test(text)) return pathAndQuery(url, text);
    return fromBase(url, text, base, true);
  }

  // What follows the base's own path: nothing, a query, or segments in place of its last one.
  function fromBase(url, text, base, keepPath) {
    url.path = keepPath ? [...base.path] : [];
    if (text === "") { url.query = base.query; return url; }
    if (text[0] === "?") { url.query = encodeQuery(url, text.slice(1)); return url; }
    if (keepPath) shorten(url);
    return pathAndQuery(url, text, true);
  }

  function authority(url, text) {
    const end = text.search(isSpecial(url) ? /[/\\?]/ : /[/?]/);
    const whole = end < 0 ? text : text.slice(0, end);
    const at = whole.lastIndexOf("@");
    if (at >= 0) {
      const userinfo = whole.slice(0, at);
      const colon = userinfo.indexOf(":");
      url.username = encodeUserinfo(colon < 0 ? userinfo : userinfo.slice(0, colon));
      url.password = colon < 0 ? "" : encodeUserinfo(userinfo.slice(colon + 1));
      if (at === whole.length - 1) return null;
    }
    if (!hostAndPort(url, whole.slice(at + 1))) return null;
    return pathAndQuery(url, end < 0 ? "" : text.slice(end));
  }

  function hostAndPort(url, text) {
    const colon = text.indexOf(":", text.lastIndexOf("]") + 1);
    const host = colon < 0 ? text : text.slice(0, colon);
    if (host === "" && (isSpecial(url) || colon >= 0)) return false;
    url.host = host === "" ? "" : parseHost(host, isSpecial(url));
    return url.host !== null && (colon < 0 || setPort(url, text.slice(colon + 1)));
  }

  function setPort(url, digits) {
    if (!/^[0-9]*$/.test(digits) || +digits > 65535) return false;
    url.port = digits === "" || +digits === PORTS[url.scheme] ? null : +digits;
    return true;
  }

  function file(url, text, base) {
    url.host = "";
    if (/^[/\\]{2}/.test(text)) {
      const rest = text.slice(2);
      const end = rest.search(/[/\\?]/);
      const host = end < 0 ? rest : rest.slice(0, end);
      if (DRIVE.test(host)) return pathAndQuery(url, rest, true);
      if (host !== "") {
        url.host = parseHost(host, true);
        if (url.host === null) return null;
        if (url.host === "localhost") url.host = "";
      }
      return pathAndQuery(url, end < 0 ? "" : rest.slice(end));
    }
    if (/^[/\\]/.test(text)) {
      if (base !== null) {
        url.host = base.host;
        if (!STARTS_WITH_DRIVE.test(text.slice(1)) && /^[a-zA-Z]:$/.test(base.path[0] ?? "")) url.path = [base.path[0]];
      }
      return pathAndQuery(url, text);
    }
    if (base === null) return pathAndQuery(url, text, true);
    url.host = base.host;
    return fromBase(url, text, base, !STARTS_WITH_DRIVE.test(text));
  }

  function splitQuery(text) {
    const mark = text.indexOf("?");
    return mark < 0 ? [text, null] : [text.slice(0, mark), text.slice(mark + 1)];
  }

  // `bare`: the text begins with a segment, not with the slash before one.
  function pathAndQuery(url, text, bare = false) {
    const [path, query] = splitQuery(text);
    appendPath(url, path, bare);
    if (query !== null) url.query = encodeQuery(url, query);
    return url;
  }

  function appendPath(url, path, bare) {
    if (path === "" && !bare && !isSpecial(url)) return;
    const rest = !bare && slashes(url).test(path) ? path.slice(1) : path;
    const segments = rest.split(isSpecial(url) ? /[/\\]/ : "/");
    segments.forEach((segment, i) => {
      const last = i === segments.length - 1;
      if (DOT_DOT.test(segment)) { shorten(url); if (last) url.path.push(""); return; }
      if (DOT.test(segment)) { if (last) url.path.push(""); return; }
      const drive = url.scheme === "file" && url.path.length === 0 && DRIVE.test(segment);
      url.path.push(drive ? segment[0] + ":" : percentEncode(segment, PATH));
    });
  }

  function shorten(url) {
    if (url.scheme === "file" && url.path.length === 1 && /^[a-zA-Z]:$/.test(url.path[0])) return;
    url.path.pop();
  }

  function pathText(url) {
    return typeof url.path === "string" ? url.path : url.path.map((segment) => "/" + segment).join("");
  }

  function serialize(url) {
    let text = url.scheme + ":";
    if (url.host !== null) {
      text += "//";
      if (url.username !== "" || url.password !== "") text += url.username + (url.password === "" ? "" : ":" + url.password) + "@";
      text += url.host + (url.port === null ? "" : ":" + url.port);
    } else if (typeof url.path !== "string" && url.path.length > 1 && url.path[0] === "") text += "/.";
    text += pathText(url);
    return text + (url.query === null ? "" : "?" + url.query) + (url.fragment === null ? "" : "#" + url.fragment);
  }

  return { __proto__: null, parse, serialize, pathText, isSpecial, hostAndPort, setPort, appendPath, encodeQuery, encodeFragment, encodeUserinfo, PORTS };
})
