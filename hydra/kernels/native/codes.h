/* The codes of GGUF's blocks: 32 columns of a row, one after the other, each as an unsigned byte. */

#ifndef HYDRA_CODES_H
#define HYDRA_CODES_H

#include "matrix.h"

/* IQ4_XS's numbers, and 128. */
static const uint8_t IQ4_CODES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

/* Unit `part` of the block at `block_at`, that is, its columns from 32 * part on. */
INLINE bytes_t block_codes(int block, const uint8_t *block_at, int part) {
    const int half = part / 4, quarter = part % 4;
    switch (block) {
    case Q5_0: return or_bytes(halves_of(block_at + 6), spread_bits(u32_at(block_at + 2), 4));
    case Q5_1: return or_bytes(halves_of(block_at + 8), spread_bits(u32_at(block_at + 4), 4));
    case Q2_K: return bits_of(load_bytes(block_at + 16 + 32 * half), 2 * quarter, 2, 0);
    case Q3_K:
        return or_bytes(bits_of(load_bytes(block_at + 32 + 32 * half), 2 * quarter, 2, 0),
                        bits_of(load_bytes(block_at), part, 1, 2));
    case Q4_K: {
        bytes_t fours = load_bytes(block_at + 16 + 32 * (part / 2));
        return part % 2 ? high_nibbles(fours) : low_nibbles(fours);
    }
    case Q5_K: {
        bytes_t fours = load_bytes(block_at + 48 + 32 * (part / 2));
        return or_bytes(part % 2 ? high_nibbles(fours) : low_nibbles(fours), bits_of(load_bytes(block_at + 16), part, 1, 4));
    }
    case Q6_K: {
        bytes_t fours = load_bytes(block_at + 64 * half + 32 * (quarter % 2));
        bytes_t twos = bits_of(load_bytes(block_at + 128 + 32 * half), 2 * quarter, 2, 4);
        return or_bytes(quarter / 2 ? high_nibbles(fours) : low_nibbles(fours), twos);
    }
    default: return look_up(IQ4_CODES, halves_of(block_at + 8 + 16 * part)); /* IQ4_XS */
    }
}

#endif
