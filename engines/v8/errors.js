// What was thrown, as the JSON an ERROR frame tells, and the stacks of it without frames that are not the program's.
const LONGEST = { __proto__: null, name: 128, message: 8192, stack: 16384, code: 128 };
const EXHAUSTED = "Array buffer allocation failed";
const OUR_FILES = ["node:internal/", "(ext:", " ext:", platform.file];

function text(value, field) {
  const whole = typeof value === "string" ? value : toText(value);
  const most = LONGEST[field];
  return toWellFormed(whole.length > most ? slice(whole, 0, most) + "…" : whole);
}

function property(object, key) {
  try { return object[key]; } catch { return undefined; }
}

function isOurs(line) {
  if (indexOf(line, "<input>:1:") >= 0) return true;
  for (let i = 0; i < 4; i++) if (indexOf(line, OUR_FILES[i]) >= 0) return true;
  return false;
}

// The frames of a stack that are the program's own, without the message that V8 puts above them.
function framesOf(stack) {
  let kept = "";
  for (let at = indexOf(stack, "\n    at "); at >= 0;) {
    const next = indexOf(stack, "\n", at + 1);
    const line = slice(stack, at + 1, next < 0 ? stack.length : next);
    if (!isOurs(line)) kept += line + "\n";
    at = next;
  }
  return kept;
}

function describe(error) {
  let name = "Error", message = "", stack = "", code;
  if (isNativeError(error) || (typeof error === "object" && error !== null && typeof property(error, "message") === "string")) {
    const own = property(error, "name");
    if (typeof own === "string" && own !== "") name = text(own, "name");
    const said = property(error, "message");
    if (typeof said === "string") message = text(said, "message");
    const trace = property(error, "stack");
    if (typeof trace === "string") stack = text(framesOf(slice(trace, 0, 65536)), "stack");
    const given = property(error, "code");
    if (typeof given === "string" || (typeof given === "number" && !isDomException(error))) code = text(given, "code");
  } else {
    try { message = text(core.need("inspect").inspect(error), "message"); } catch { message = "(a value that cannot be shown)"; }
    message = "Thrown value: " + message;
  }
  return told(name, message, stack, code);
}

function told(name, message, stack, code) {
  return '{"name":' + stringify(name) + ',"message":' + stringify(message) + ',"stack":' + stringify(stack) +
    (code === undefined ? "" : ',"code":' + stringify(code)) + "}";
}

const domCode = uncurry(Object.getOwnPropertyDescriptor(DOMException.prototype, "code").get);
function isDomException(error) {
  try { domCode(error); return true; } catch { return false; }
}

// A typed array that the process has no memory for: the heap itself ends the process when it is full.
function isOutOfMemory(error) {
  return isNativeError(error) && getPrototypeOf(error) === RangeErrorPrototype && property(error, "message") === EXHAUSTED;
}

// V8's own two complaints, told in terms of the result; what a toJSON threw stays as it is.
function unserializable(error) {
  const said = isNativeError(error) ? property(error, "message") : undefined;
  if (typeof said !== "string") return error;
  if (startsWith(said, "Converting circular structure to JSON")) return new NativeTypeError("The result cannot be JSON: it contains itself");
  if (said === "Do not know how to serialize a BigInt") return new NativeTypeError("The result cannot be JSON: it contains a BigInt");
  return error;
}
