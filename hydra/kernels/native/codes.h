/* The codes of GGUF's blocks: 32 columns of a row, one after the other, each as an unsigned byte. */

#ifndef HYDRA_CODES_H
#define HYDRA_CODES_H

#include "matrix.h"

/* IQ4_XS's numbers, and 128. */
static const uint8_t IQ4_CODES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

/* Unit `unit` of a row, that is, its columns from 32 * unit on. */
INLINE bytes_t block_codes(int block, const uint8_t *row, int64_t unit) {
    if (block == Q5_0 || block == Q5_1) {
        const uint8_t *at = row + (block == Q5_0 ? 22 : 24) * unit + (block == Q5_0 ? 2 : 4);
        return or_bytes(halves_of(at + 4), spread_bits(u32_at(at), 4));
    }
    const int64_t super = unit / 8;
    const int part = (int)(unit % 8), half = part / 4, quarter = part % 4;
    const uint8_t *at;
    switch (block) {
    case Q2_K:
        at = row + 84 * super;
        return bits_of(load_bytes(at + 16 + 32 * half), 2 * quarter, 2, 0);
    case Q3_K:
        at = row + 110 * super;
        return or_bytes(bits_of(load_bytes(at + 32 + 32 * half), 2 * quarter, 2, 0), bits_of(load_bytes(at), part, 1, 2));
    case Q4_K:
        at = row + 144 * super + 16 + 32 * (part / 2);
        return part % 2 ? high_nibbles(load_bytes(at)) : low_nibbles(load_bytes(at));
    case Q5_K: {
        at = row + 176 * super;
        bytes_t fours = load_bytes(at + 48 + 32 * (part / 2));
        return or_bytes(part % 2 ? high_nibbles(fours) : low_nibbles(fours), bits_of(load_bytes(at + 16), part, 1, 4));
    }
    case Q6_K: {
        at = row + 210 * super;
        bytes_t fours = load_bytes(at + 64 * half + 32 * (quarter % 2));
        bytes_t twos = bits_of(load_bytes(at + 128 + 32 * half), 2 * quarter, 2, 4);
        return or_bytes(quarter / 2 ? high_nibbles(fours) : low_nibbles(fours), twos);
    }
    default: /* IQ4_XS */
        at = row + 136 * super + 8 + 16 * part;
        return look_up(IQ4_CODES, halves_of(at));
    }
}

#endif
