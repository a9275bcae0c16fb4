(async () => {
  "use strict";
  const { readSync, writeSync } = globalThis.Javy.IO;
  delete globalThis.Javy;
  const write = (fd, text) => {
    for (let rest = new TextEncoder().encode(text); rest.length; ) rest = rest.subarray(writeSync(fd, rest));
  };
  const shown = (value) => {
    if (typeof value === "string") return value;
    try { return JSON.stringify(value) ?? String(value); } catch { return String(value); }
  };
  const line = (...values) => write(2, values.map(shown).join(" ") + "\n");
  globalThis.console = { debug: line, info: line, log: line, warn: line, error: line, trace: line };

  const read = () => {
    const chunks = [];
    for (;;) {
      const chunk = new Uint8Array(65536);
      const length = readSync(0, chunk);
      if (length <= 0) break;
      chunks.push(chunk.subarray(0, length));
    }
    const all = new Uint8Array(chunks.reduce((total, chunk) => total + chunk.length, 0));
    let at = 0;
    for (const chunk of chunks) { all.set(chunk, at); at += chunk.length; }
    return all;
  };
  const told = (error) => {
    const is = error !== null && typeof error === "object";
    return {
      name: String((is && error.name) || "Error"),
      message: String(is && "message" in error ? error.message : error),
      stack: String((is && error.stack) || ""),
    };
  };

  let answer;
  try {
    const stdin = read();
    const end = stdin.indexOf(10);
    const decode = (bytes) => new TextDecoder().decode(bytes);
    const { kind, context } = JSON.parse(decode(stdin.subarray(0, end)));
    const body = stdin.slice(end + 1);
    const input = kind === "json" ? JSON.parse(decode(body)) : kind === "text" ? decode(body) : body;
    const user = (() => {
/* the author's script */
      return __atlas_user;
    })();
    if (typeof user.default !== "function") throw new TypeError("the default export is no function");
    const value = await user.default(input, context);
    answer = JSON.stringify({ status: 0, value: value === undefined ? null : value });
  } catch (error) {
    answer = JSON.stringify({ status: 1, error: told(error) });
  }
  write(1, answer);
})();
