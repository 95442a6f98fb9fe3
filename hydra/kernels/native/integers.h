/* Products of integer codes with activations in integers: sums of a chunk are exact, then scaled and added in float. One,
   two or four rows of input at once; the order of additions is that of one alone, so that a row's bits are its own. */

#ifndef HYDRA_INTEGERS_H
#define HYDRA_INTEGERS_H

#include "activations.h"
#include "codes.h"
#include "scales.h"

#if defined(HYDRA_ONE_LOOP)
enum { TILE = 1, ALONE_SCALED = 0 };
#else
enum { TILE = 4, ALONE_SCALED = 1 }; /* of one row alone (the last) the scales are in the matrix's own beforehand */
#endif

enum { AHEAD = 2048 }; /* bytes of codes that are asked for before they are needed: no processor looks beyond a page */

/* Of each row of input: its digits, its scales (not used of one row alone, where they are already in the matrix's own),
   and what the matrix's offsets add, in eight parts. */
typedef struct {
    const uint8_t *digits[TILE];
    const float *scales[TILE];
    float offsets[TILE][8];
} tile_t;

#define NO_SUM(r) sums[r] = no_floats()
#define ALL_SUM(r) into[r] = sum_floats(add_floats(sums[r], load_floats(x->offsets[r])))

INLINE floats_t scales_of(const float *scale, int64_t chunk, int per) {
    switch (per) {
    case 1: return all_floats(scale[chunk]);
    case 2: return spread_2(scale + 2 * chunk);
    case 4: return spread_4(scale + 4 * chunk);
    default: return load_floats(scale + 8 * chunk);
    }
}

INLINE floats_t scaled(const tile_t *x, int r, int rows, int64_t unit, floats_t scale) {
    return ALONE_SCALED && rows == 1 ? scale : mul_floats(scale, all_floats(x->scales[r][unit]));
}

/* Codes of 4 bits, 64 columns at a time. Lane i of a sum is of columns 8i to 8i + 7. `table`: 0 none, 1 of codes below
   64, 2 of codes up to 255. */
INLINE void nibble_chunk(const matrix_t *m, const uint8_t *at, int64_t chunk, const tile_t *x, int rows, floats_t scale,
                         int table, floats_t *sums) {
    bytes_t both = load_bytes(at), even = low_nibbles(both), odd = high_nibbles(both);
    if (table) even = look_up(m->table, even), odd = look_up(m->table, odd);
#define STEP(r) sums[r] = fma_floats(floats_of(dot_2(even, odd, x->digits[r] + 2 * UNIT_BYTES * chunk, table == 2)), \
                                     scaled(x, r, rows, 2 * chunk, scale), sums[r])
    FOR_ROWS(rows, STEP);
#undef STEP
}

MANY void nibble_row(const matrix_t *m, const uint8_t *codes, const tile_t *x, int rows, const float *scale, int per,
                     int table, float *into) {
    floats_t sums[TILE];
    FOR_ROWS(rows, NO_SUM);
    const int64_t whole = m->columns / 64;
    int64_t chunk = 0;
    for (; chunk + 2 <= whole; chunk += 2) { /* two at a time: a fifth faster than one */
        PREFETCH(codes + 32 * chunk + AHEAD);
        nibble_chunk(m, codes + 32 * chunk, chunk, x, rows, scales_of(scale, chunk, per), table, sums);
        nibble_chunk(m, codes + 32 * chunk + 32, chunk + 1, x, rows, scales_of(scale, chunk + 1, per), table, sums);
    }
    if (chunk < whole)
        nibble_chunk(m, codes + 32 * chunk, chunk, x, rows, scales_of(scale, chunk, per), table, sums);
    if (m->columns % 64) {
        uint8_t last[32] = {0};
        memcpy(last, codes + 32 * whole, (size_t)(m->row_bytes - 32 * whole));
        nibble_chunk(m, last, whole, x, rows, scales_of(scale, whole, per), table, sums);
    }
    FOR_ROWS(rows, ALL_SUM);
}

/* Codes of a byte each, 32 columns at a time. Lane i of a sum is of columns 4i to 4i + 3. */
INLINE void byte_unit(bytes_t codes, int64_t unit, const tile_t *x, int rows, floats_t scale, floats_t *sums) {
#define STEP(r) sums[r] = fma_floats(floats_of(dot(codes, x->digits[r] + UNIT_BYTES * unit)), \
                                     scaled(x, r, rows, unit, scale), sums[r])
    FOR_ROWS(rows, STEP);
#undef STEP
}

INLINE bytes_t unsigned_codes(const uint8_t *at, int is_signed) {
    return is_signed ? flip_signs(load_bytes(at)) : load_bytes(at);
}

MANY void byte_row(const matrix_t *m, const uint8_t *codes, const tile_t *x, int rows, const float *scale, int per,
                   int is_signed, float *into) {
    floats_t sums[TILE];
    FOR_ROWS(rows, NO_SUM);
    const int64_t whole = m->columns / 32;
    int64_t unit = 0;
    for (; unit + 2 <= whole; unit += 2) {
        const uint8_t *at = codes + 32 * unit;
        PREFETCH(at + AHEAD);
        byte_unit(unsigned_codes(at, is_signed), unit, x, rows, scales_of(scale, unit, per), sums);
        byte_unit(unsigned_codes(at + 32, is_signed), unit + 1, x, rows, scales_of(scale, unit + 1, per), sums);
    }
    if (unit < whole)
        byte_unit(unsigned_codes(codes + 32 * unit, is_signed), unit, x, rows, scales_of(scale, unit, per), sums);
    if (m->columns % 32) {
        uint8_t last[32] = {0};
        memcpy(last, codes + 32 * whole, (size_t)(m->columns - 32 * whole));
        byte_unit(unsigned_codes(last, is_signed), whole, x, rows, scales_of(scale, whole, per), sums);
    }
    FOR_ROWS(rows, ALL_SUM);
}

MANY void block_row(const matrix_t *m, int block, const uint8_t *codes, const tile_t *x, int rows, const float *scale,
                    float *into) {
    const int per = BLOCK_FACTS[block].group == 16 ? 2 : 1;
    const int64_t units = m->columns / 32;
    floats_t sums[TILE], others[TILE]; /* of even units and of odd ones: one chain of additions would be waited for */
    FOR_ROWS(rows, NO_SUM);
#define NO_OTHER(r) others[r] = no_floats()
    FOR_ROWS(rows, NO_OTHER);
#undef NO_OTHER
    const int bytes = BLOCK_FACTS[block].bytes;
    if (BLOCK_FACTS[block].columns == 32) {
        for (int64_t unit = 0; unit < units; unit += 2, codes += 2 * bytes) {
            PREFETCH(codes + AHEAD);
            byte_unit(block_codes(block, codes, 0), unit, x, rows, scales_of(scale, unit, per), sums);
            if (unit + 1 < units)
                byte_unit(block_codes(block, codes + bytes, 0), unit + 1, x, rows, scales_of(scale, unit + 1, per), others);
        }
    } else {
        for (int64_t unit = 0; unit < units; unit += 8, codes += bytes) {
            for (int line = 0; line < bytes; line += 64) PREFETCH(codes + AHEAD + line);
#pragma GCC unroll 4
            for (int part = 0; part < 8; part += 2) {
                const floats_t even = scales_of(scale, unit + part, per), odd = scales_of(scale, unit + part + 1, per);
                byte_unit(block_codes(block, codes, part), unit + part, x, rows, even, sums);
                byte_unit(block_codes(block, codes, part + 1), unit + part + 1, x, rows, odd, others);
            }
        }
    }
#define BOTH_SUM(r) into[r] = sum_floats(add_floats(add_floats(sums[r], others[r]), load_floats(x->offsets[r])))
    FOR_ROWS(rows, BOTH_SUM);
#undef BOTH_SUM
}

#endif
