// Eager, after the bridge. What shim.c calls, and what this engine does in its own way: digests, random bytes and waiting.
bridge.open = (logBytes, resultBytes) => {
  logBytesAllowed = logBytes;
  resultLength = resultBytes;
  begin();
};

// Once the module is loaded. Logs of its top level stay: it runs for this call.
bridge.call = (...input) => {
  clearTimers();
  end("", "");
  if (input.length === 0) fail("E", new NativeTypeError("The input is not one JSON value"));
  else call(() => ({ __proto__: null, input: input[0], context: lazyContext }));
};

// How the run stands, as the first letter of the bridge's status tells it; the rest is to be taken.
bridge.report = () => (status === "" ? "P" : status);
bridge.takeText = () => { const taken = toText(detail); detail = ""; return taken; };

// Nothing but a timer is left: whether there was one. The clock is moved to when it is due.
bridge.wait = () => {
  const timer = nextTimer();
  if (timer === undefined || !native.waitUntil(timer.due)) return false;
  tick();
  return true;
};

bridge.refuse = (error) => fail("L", error);

// For the standalone form: logs (l), an error (e) or a Response (r) as it is written to a stream.
bridge.print = (what, text, body) => {
  if (what === "l") return parse('{"logs":' + text + "}").logs.map((line) => line[1] + "\n").join("");
  const said = parse(text);
  if (what === "r") return stringify({ ...said, [body[0] === "t" ? "body" : "body_base64"]: slice(body, 1) });
  const frames = said.stack.split("\n").filter((line) => line !== "" && !line.includes("<input>:1:"));
  return [said.name + ": " + said.message, ...frames].join("\n") + "\n";
};
const parse = JSON.parse;

const HASH_BITS = { __proto__: null, "SHA-1": 1, "SHA-256": 256, "SHA-384": 384, "SHA-512": 512 };
core.digest = (algorithm, base64) => new NativePromise((resolve) => {
  resolve(toBase64(native.digest(HASH_BITS[algorithm], fromBase64(base64))));
});

core.fillRandom = native.fillRandom;
