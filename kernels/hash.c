/* kernels/hash.c: SipHash-2-4 with 128 bits out (Aumasson, Bernstein: "SipHash: a fast short-input PRF",
 * 2012, and its 128-bit form). With a random key nobody outside the process can make two inputs collide;
 * with a fixed key it is a checksum. */
#include <string.h>

#include "internal.h"

static uint64_t rotate(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

static void rounds(uint64_t v[4], int n)
{
    for (int i = 0; i < n; i++) {
        v[0] += v[1];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[0] = rotate(v[0], 32);
        v[2] += v[3];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] += v[3];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] += v[1];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[2] = rotate(v[2], 32);
    }
}

static void absorb(turbok_hash *h, uint64_t word)
{
    h->v[3] ^= word;
    rounds(h->v, 2);
    h->v[0] ^= word;
}

void turbok_hash_init(turbok_hash *h, turbok_kv_key key)
{
    *h = (turbok_hash){.v = {0x736f6d6570736575u ^ key.lo, 0x646f72616e646f6du ^ key.hi ^ 0xee,
                             0x6c7967656e657261u ^ key.lo, 0x7465646279746573u ^ key.hi}};
}

void turbok_hash_add(turbok_hash *h, const void *data, size_t n)
{
    const unsigned char *p = data;
    uint64_t word;
    h->total += n;
    while (n && h->n_held) { /* fills up the word that an earlier piece began */
        h->held |= (uint64_t)*p++ << (8 * h->n_held);
        n--;
        if (++h->n_held == 8) {
            absorb(h, h->held);
            h->held = 0;
            h->n_held = 0;
        }
    }
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&word, p, 8); /* little-endian, as all hosts of this library are */
        absorb(h, word);
    }
    while (n--)
        h->held |= (uint64_t)*p++ << (8 * h->n_held++);
}

turbok_kv_key turbok_hash_end(turbok_hash *h)
{
    turbok_kv_key out;
    absorb(h, h->held | h->total << 56);
    h->v[2] ^= 0xee;
    rounds(h->v, 4);
    out.lo = h->v[0] ^ h->v[1] ^ h->v[2] ^ h->v[3];
    h->v[1] ^= 0xdd;
    rounds(h->v, 4);
    out.hi = h->v[0] ^ h->v[1] ^ h->v[2] ^ h->v[3];
    return out;
}
