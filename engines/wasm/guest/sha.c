/* SHA-1 and SHA-2 (FIPS 180-4), one shot. */
#include "shim.h"

#include <string.h>

/* The round constants of SHA-512; those of SHA-256 are the upper halves of the first 64. */
static const uint64_t K[80] = {
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538,
    0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe,
    0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2, 0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235,
    0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5, 0x983e5152ee66dfab,
    0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
    0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed,
    0x53380d139d95b3df, 0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218,
    0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8, 0x19a4c116b8d2d0c8, 0x1e376c085141ab53,
    0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373,
    0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c,
    0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6,
    0x113f9804bef90dae, 0x1b710b35131c471b, 0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc,
    0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
};
static const uint64_t START_384[8] = {
    0xcbbb9d5dc1059ed8, 0x629a292a367cd507, 0x9159015a3070dd17, 0x152fecd8f70e5939, 0x67332667ffc00b31,
    0x8eb44a8768581511, 0xdb0c2e0d64f98fa7, 0x47b5481dbefa4fa4,
};
static const uint64_t START_512[8] = { /* of SHA-256: the upper halves */
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1, 0x510e527fade682d1,
    0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};
static const uint32_t START_1[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};

static uint32_t left(uint32_t x, int n) { return x << n | x >> (32 - n); }
static uint32_t right(uint32_t x, int n) { return x >> n | x << (32 - n); }
static uint64_t right64(uint64_t x, int n) { return x >> n | x << (64 - n); }

/* Big-endian words of `width` bytes. */
static uint64_t word(const uint8_t *bytes, int width) {
    uint64_t value = 0;
    for (int i = 0; i < width; i++) value = value << 8 | bytes[i];
    return value;
}
static void put(uint8_t *bytes, uint64_t value, int width) {
    for (int i = width; i-- > 0; value >>= 8) bytes[i] = (uint8_t)value;
}

static void block_1(uint64_t *h, const uint8_t *block) {
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 80; i++) {
        w[i] = i < 16 ? word(block + 4 * i, 4) : left(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t f = i < 20 ? (b & c) | (~b & d) : i >= 40 && i < 60 ? (b & c) | (b & d) | (c & d) : b ^ c ^ d;
        uint32_t k = i < 20 ? 0x5a827999 : i < 40 ? 0x6ed9eba1 : i < 60 ? 0x8f1bbcdc : 0xca62c1d6;
        uint32_t t = left(a, 5) + f + e + k + w[i];
        e = d, d = c, c = left(b, 30), b = a, a = t;
    }
    uint32_t sums[5] = {a, b, c, d, e};
    for (int i = 0; i < 5; i++) h[i] = (uint32_t)(h[i] + sums[i]);
}

static void block_256(uint64_t *h, const uint8_t *block) {
    uint32_t w[64], v[8];
    for (int i = 0; i < 8; i++) v[i] = h[i];
    for (int i = 0; i < 64; i++) {
        if (i < 16) w[i] = word(block + 4 * i, 4);
        else {
            uint32_t x = w[i - 15], y = w[i - 2];
            w[i] = w[i - 16] + (right(x, 7) ^ right(x, 18) ^ x >> 3) + w[i - 7] + (right(y, 17) ^ right(y, 19) ^ y >> 10);
        }
        uint32_t a = v[0], e = v[4];
        uint32_t t = v[7] + (right(e, 6) ^ right(e, 11) ^ right(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + (K[i] >> 32) + w[i];
        uint32_t u = (right(a, 2) ^ right(a, 13) ^ right(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t;
        v[0] = t + u;
    }
    for (int i = 0; i < 8; i++) h[i] = (uint32_t)(h[i] + v[i]);
}

static void block_512(uint64_t *h, const uint8_t *block) {
    uint64_t w[80], v[8];
    memcpy(v, h, sizeof v);
    for (int i = 0; i < 80; i++) {
        if (i < 16) w[i] = word(block + 8 * i, 8);
        else {
            uint64_t x = w[i - 15], y = w[i - 2];
            w[i] = w[i - 16] + (right64(x, 1) ^ right64(x, 8) ^ x >> 7) + w[i - 7] +
                   (right64(y, 19) ^ right64(y, 61) ^ y >> 6);
        }
        uint64_t a = v[0], e = v[4];
        uint64_t t =
            v[7] + (right64(e, 14) ^ right64(e, 18) ^ right64(e, 41)) + ((e & v[5]) ^ (~e & v[6])) + K[i] + w[i];
        uint64_t u = (right64(a, 28) ^ right64(a, 34) ^ right64(a, 39)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t;
        v[0] = t + u;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
}

size_t sha(int bits, const uint8_t *data, size_t length, uint8_t sum[64]) {
    bool wide = bits > 256;
    int word_bytes = wide ? 8 : 4;
    size_t block_bytes = wide ? 128 : 64, at = 0;
    void (*block)(uint64_t *, const uint8_t *) = wide ? block_512 : bits == 1 ? block_1 : block_256;

    uint64_t h[8] = {0};
    for (int i = 0; i < 8; i++) {
        if (wide) h[i] = bits == 384 ? START_384[i] : START_512[i];
        else h[i] = bits == 256 ? START_512[i] >> 32 : i < 5 ? START_1[i] : 0;
    }
    for (; length - at >= block_bytes; at += block_bytes) block(h, data + at);

    uint8_t tail[256] = {0};
    size_t rest = length - at, tail_bytes = rest + 1 + 2 * word_bytes <= block_bytes ? block_bytes : 2 * block_bytes;
    if (rest) memcpy(tail, data + at, rest);
    tail[rest] = 0x80;
    put(tail + tail_bytes - 8, (uint64_t)length * 8, 8);
    for (at = 0; at < tail_bytes; at += block_bytes) block(h, tail + at);

    size_t size = bits == 1 ? 20 : bits / 8;
    for (size_t i = 0; i * word_bytes < size; i++) put(sum + i * word_bytes, h[i], word_bytes);
    return size;
}
