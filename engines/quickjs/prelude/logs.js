// Eager. Log lines of the running invocation, as the inside of a JSON array, kept up to a number of UTF-8 bytes.
const LINE_OVERHEAD_BYTES = 16;
let logBytesAllowed = 0;
let logBytesLeft = 0;
let logText = "";
let logsTruncated = false;
let startedAt = 0;

function resetLogs() {
  logText = "";
  logsTruncated = false;
  logBytesLeft = logBytesAllowed;
  startedAt = now();
}

// The longest prefix of `text` that takes at most `most` bytes of UTF-8, and its length in bytes.
function utf8Prefix(text, most) {
  let bytes = 0;
  const length = text.length;
  for (let i = 0; i < length; i++) {
    const unit = charCodeAt(text, i);
    const pair = unit >= 0xd800 && unit < 0xdc00;
    const cost = unit < 0x80 ? 1 : unit < 0x800 ? 2 : pair ? 4 : 3;
    if (bytes + cost > most) return { __proto__: null, text: slice(text, 0, i), bytes };
    bytes += cost;
    if (pair) i++;
  }
  return { __proto__: null, text, bytes };
}

function writeLog(level, text) {
  const room = logBytesLeft - LINE_OVERHEAD_BYTES;
  if (room <= 0) { logBytesLeft = 0; logsTruncated = true; return; }
  const cut = utf8Prefix(toWellFormed(text.length > room ? slice(text, 0, room) : text), room);
  if (cut.text.length < text.length) logsTruncated = true;
  logBytesLeft = logsTruncated ? 0 : room - cut.bytes;
  const at = ((now() - startedAt) * 1000) | 0;
  logText += (logText === "" ? "[" : ",[") + stringify(level) + "," + stringify(cut.text) + "," + at + "]";
}

// What a callback threw that nobody waits for. Running out of memory ends the invocation wherever it happens.
function uncaught(error) {
  if (isOutOfMemory(error)) return end("M", "");
  let text;
  try { text = core.need("inspect").inspect(error); } catch { text = "(an error that cannot be shown)"; }
  writeLog("error", "Uncaught " + text);
}
core.writeLog = writeLog;
core.uncaught = uncaught;
core.utf8Prefix = utf8Prefix;
