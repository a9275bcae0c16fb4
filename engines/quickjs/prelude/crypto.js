// crypto: a ChaCha20 generator keyed by the host's entropy, which comes anew with each invocation, and digests, which the
// host computes. An engine that has random bytes of its own fills arrays with them itself: core.fillRandom.
(function (core) {
  const { fromBase64, toBase64 } = core;
  const POOL_BYTES = 1024;
  const MAX_BYTES = 65536;
  const state = new Uint32Array(16);
  const block = new Uint32Array(16);
  const pool = new Uint8Array(POOL_BYTES);
  let used = POOL_BYTES;

  function rotate(value, by) { return (value << by) | (value >>> (32 - by)); }

  function quarter(x, a, b, c, d) {
    x[a] += x[b]; x[d] = rotate(x[d] ^ x[a], 16);
    x[c] += x[d]; x[b] = rotate(x[b] ^ x[c], 12);
    x[a] += x[b]; x[d] = rotate(x[d] ^ x[a], 8);
    x[c] += x[d]; x[b] = rotate(x[b] ^ x[c], 7);
  }

  function nextBlock() {
    block.set(state);
    for (let round = 0; round < 10; round++) {
      quarter(block, 0, 4, 8, 12); quarter(block, 1, 5, 9, 13); quarter(block, 2, 6, 10, 14); quarter(block, 3, 7, 11, 15);
      quarter(block, 0, 5, 10, 15); quarter(block, 1, 6, 11, 12); quarter(block, 2, 7, 8, 13); quarter(block, 3, 4, 9, 14);
    }
    for (let i = 0; i < 16; i++) block[i] += state[i];
    if (++state[12] === 0) state[13]++;
  }

  // Key erasure: each pool begins with the next key, which is mixed with fresh entropy when there is some.
  function refill() {
    const seed = core.entropy();
    if (seed !== "") {
      const fresh = new Uint32Array(fromBase64(seed).buffer);
      state.set([0x61707865, 0x3320646e, 0x79622d32, 0x6b206574]);
      for (let i = 0; i < 8; i++) state[4 + i] ^= fresh[i];
    }
    nextBlock();
    const key = block.slice(0, 8);
    for (let at = 0; at < POOL_BYTES; at += 64) {
      nextBlock();
      pool.set(new Uint8Array(block.buffer), at);
    }
    state.set(key, 4);
    state[12] = state[13] = 0;
    used = 0;
  }

  function fill(bytes) {
    if (core.fillRandom !== undefined) return core.fillRandom(bytes);
    for (let at = 0; at < bytes.length; ) {
      if (used === POOL_BYTES || core.hasEntropy()) refill();
      const count = Math.min(bytes.length - at, POOL_BYTES - used);
      bytes.set(pool.subarray(used, used + count), at);
      pool.fill(0, used, used + count);
      used += count;
      at += count;
    }
    return bytes;
  }

  const ALGORITHMS = ["SHA-1", "SHA-256", "SHA-384", "SHA-512"];

  class SubtleCrypto {
    async digest(algorithm, data) {
      const name = core.toText(typeof algorithm === "object" && algorithm !== null ? algorithm.name : algorithm).toUpperCase();
      if (!ALGORITHMS.includes(name)) throw new DOMException("Unrecognized algorithm name", "NotSupportedError");
      return fromBase64(await core.digest(name, toBase64(core.need("encoding").bytesOf(data)))).buffer;
    }
  }
  const subtle = new SubtleCrypto();

  class Crypto {
    get subtle() { return subtle; }

    getRandomValues(view) {
      if (!ArrayBuffer.isView(view) || view instanceof DataView || view instanceof Float32Array || view instanceof Float64Array || view instanceof Float16Array) {
        throw new DOMException("getRandomValues needs an integer typed array", "TypeMismatchError");
      }
      if (view.byteLength > MAX_BYTES) throw new DOMException("getRandomValues gives at most 65536 bytes", "QuotaExceededError");
      fill(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
      return view;
    }

    randomUUID() {
      const bytes = fill(new Uint8Array(16));
      bytes[6] = (bytes[6] & 0x0f) | 0x40;
      bytes[8] = (bytes[8] & 0x3f) | 0x80;
      const hex = bytes.toHex();
      return hex.slice(0, 8) + "-" + hex.slice(8, 12) + "-" + hex.slice(12, 16) + "-" + hex.slice(16, 20) + "-" + hex.slice(20);
    }
  }

  return { __proto__: null, crypto: new Crypto() };
})
