// Frames of engines/frames.py over the platform's one stream: cut out of what arrives, and written whole.
const HEADER_BYTES = 14;
const MAX_PAYLOAD_BYTES = 8 * 1024 * 1024;
const OUT_BYTES = 64 * 1024;
const BIND = 1, INVOKE = 2, HOSTRES = 3, CANCEL = 4, READY = 16, HOSTCALL = 17, RESULT = 18, ERROR = 19;
const outBuffer = new ArrayBuffer(OUT_BYTES);
const out = new NativeUint8Array(outBuffer);
let held;
let heldLength = 0;

function u32(bytes, at) { return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0; }

function putU32(bytes, at, value) {
  bytes[at] = value; bytes[at + 1] = value >>> 8; bytes[at + 2] = value >>> 16; bytes[at + 3] = value >>> 24;
}

function part(bytes, start, end) { return new NativeUint8Array(bufferOf(bytes), offsetOf(bytes) + start, end - start); }
function textOf(bytes, start, end) { return decode(utf8Decoder, part(bytes, start, end)); }

function copy(from, start, end, to, at) {
  for (let i = start; i < end; i++) to[at + i - start] = from[i];
}

// What arrived: `length` bytes of `bytes`, which are used again once this returns. The rest of a frame that is cut is held.
function receive(bytes, length) {
  if (heldLength === 0) return keep(bytes, frames(bytes, length), length);
  const whole = heldLength + length;
  if (whole > lengthOf(held)) {
    const larger = new NativeUint8Array(2 * whole);
    copy(held, 0, heldLength, larger, 0);
    held = larger;
  }
  copy(bytes, 0, length, held, heldLength);
  heldLength = whole;
  if (whole < HEADER_BYTES || whole < HEADER_BYTES + u32(held, 0)) return;
  const all = held;
  held = undefined;
  heldLength = 0;
  keep(all, frames(all, whole), whole);
}

function keep(bytes, start, end) {
  if (start === end) return;
  held = new NativeUint8Array(end - start < OUT_BYTES ? OUT_BYTES : 2 * (end - start));
  heldLength = end - start;
  copy(bytes, start, end, held, 0);
}

// Handle every whole frame; where the first that is not whole begins.
function frames(bytes, length) {
  let start = 0;
  while (length - start >= HEADER_BYTES) {
    const end = start + HEADER_BYTES + u32(bytes, start);
    if (end > length) break;
    handle(bytes[start + 4], u32(bytes, start + 6), u32(bytes, start + 10), bytes, start + HEADER_BYTES, end);
    start = end;
  }
  return start;
}

// One frame with a text as payload; or `meta` behind its length and then a body, a text or {bytes, length}.
function sendFrame(type, inv, meta, body) {
  const isText = typeof body === "string";
  const prefix = body === undefined ? 0 : 4;
  const bodyChars = body === undefined || !isText ? 0 : body.length;
  const small = HEADER_BYTES + prefix + 3 * (meta.length + bodyChars) + (prefix > 0 && !isText ? body.length : 0) <= OUT_BYTES;
  const metaBytes = small ? 3 * meta.length : byteLength(meta);
  const bodyBytes = body === undefined ? 0 : !isText ? body.length : small ? 3 * bodyChars : byteLength(body);
  const room = HEADER_BYTES + prefix + metaBytes + bodyBytes;
  const buffer = small ? outBuffer : new ArrayBuffer(room);
  const bytes = small ? out : new NativeUint8Array(buffer);
  let end = HEADER_BYTES + prefix;
  const metaLength = encodeInto(utf8Encoder, meta, new NativeUint8Array(buffer, end, metaBytes)).written;
  end += metaLength;
  if (isText) end += encodeInto(utf8Encoder, body, new NativeUint8Array(buffer, end, bodyBytes)).written;
  else if (prefix > 0) { copy(body.bytes, 0, body.length, bytes, end); end += body.length; }
  putU32(bytes, 0, end - HEADER_BYTES);
  bytes[4] = type; bytes[5] = 0;
  putU32(bytes, 6, inv);
  putU32(bytes, 10, 0);
  if (prefix > 0) putU32(bytes, HEADER_BYTES, metaLength);
  platform.write(bytes, end);
}
