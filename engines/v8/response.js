// A Response that the function returned: the engine's own, read into one body.
const ResponsePrototype = Response.prototype;
const getter = (prototype, name) => uncurry(Object.getOwnPropertyDescriptor(prototype, name).get);
const responseStatus = getter(ResponsePrototype, "status");
const responseHeaders = getter(ResponsePrototype, "headers");
const responseBodyOf = getter(ResponsePrototype, "body");
const responseBodyUsed = getter(ResponsePrototype, "bodyUsed");
const streamLocked = getter(ReadableStream.prototype, "locked");
const getReader = uncurry(ReadableStream.prototype.getReader);
const read = uncurry(ReadableStreamDefaultReader.prototype.read);
const cancelReader = uncurry(ReadableStreamDefaultReader.prototype.cancel);
const forEachHeader = uncurry(Headers.prototype.forEach);
const isView = ArrayBuffer.isView;
const MOST_HEADERS = 256;
const MOST_HEADER_CHARS = 64 * 1024;
const pendingBody = { __proto__: null, bytes: undefined, length: 0 };

function isResponse(value) {
  if (typeof value !== "object" || value === null) return false;
  try {
    for (let object = value; object !== null; object = getPrototypeOf(object)) {
      if (object === ResponsePrototype) { responseStatus(value); return true; }
    }
  } catch { return false; }
  return false;
}

function hasControl(text) {
  for (let i = 0; i < text.length; i++) {
    const unit = charCodeAt(text, i);
    if ((unit < 0x20 && unit !== 9) || unit === 0x7f) return true;
  }
  return false;
}

// Headers as the inside of a JSON array, or a TypeError for those that nobody carries.
function headersText(headers) {
  let count = 0, chars = 0, text = "", bad;
  forEachHeader(headers, (value, name) => {
    count++;
    chars += name.length + value.length;
    if (bad === undefined && (name.length > 256 || hasControl(value))) bad = name;
    if (count <= MOST_HEADERS && chars <= MOST_HEADER_CHARS) text += (text === "" ? "[" : ",[") + stringify(name) + "," + stringify(value) + "]";
  });
  if (bad !== undefined) throw new NativeTypeError("The Response has an invalid header: " + stringify(slice(bad, 0, 100)));
  if (count > MOST_HEADERS) throw new NativeTypeError("The Response has " + count + " headers; " + MOST_HEADERS + " are the most");
  if (chars > MOST_HEADER_CHARS) throw new NativeTypeError("The headers of the Response have " + chars + " characters; " + MOST_HEADER_CHARS + " are the most");
  return text;
}

// The run stays open until the body has been read, or is longer than a result may be.
function outgoing(response) {
  try {
    const code = responseStatus(response);
    if (code < 200) throw new NativeTypeError("Response.error() cannot be the answer of a function");
    const head = '"status":' + code + ',"headers":[' + headersText(responseHeaders(response)) + "]";
    const stream = responseBodyOf(response);
    if (responseBodyUsed(response) || (stream !== null && streamLocked(stream))) throw new NativeTypeError("The body was already read");
    responseBody = pendingBody;
    end("response", head);
    if (stream === null) responseBody = "";
    else readAll(run, getReader(stream));
  } catch (error) { status = ""; fail("exception", error); }
}

async function readAll(of, reader) {
  let chunks, length = 0;
  try {
    for (;;) {
      const step = await read(reader);
      if (run !== of || status !== "response") { cancelReader(reader); return; }
      if (step.done) break;
      const chunk = step.value;
      if (!isView(chunk)) throw new NativeTypeError("A chunk of the body of a Response must be a Uint8Array");
      length += lengthOf(chunk);
      if (length > options.result_bytes) { status = ""; cancelReader(reader); return tooLong(length); }
      chunks = { __proto__: null, chunk, before: chunks };
    }
    let bytes = chunks?.chunk;
    if (chunks?.before !== undefined) {
      bytes = new NativeUint8Array(length);
      let at = length;
      for (let each = chunks; each !== undefined; each = each.before) {
        at -= lengthOf(each.chunk);
        copy(each.chunk, 0, lengthOf(each.chunk), bytes, at);
      }
    }
    responseBody = { __proto__: null, bytes, length };
    queueTurn();
  } catch (error) { if (run === of && status === "response") { status = ""; fail("exception", error); } }
}
