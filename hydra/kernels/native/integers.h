/* Products of integer codes with activations in integers: sums of a unit are exact, then scaled and added in float. Up
   to four rows of input at once; the order of additions is that of one alone, so that a row's bits are its own. */

#ifndef HYDRA_INTEGERS_H
#define HYDRA_INTEGERS_H

#include "activations.h"
#include "codes.h"
#include "scales.h"

#if defined(HYDRA_ONE_LOOP)
enum { TILE = 1 };
#else
enum { TILE = 4 };
#endif

typedef struct {
    const uint8_t *planes[TILE]; /* of each row of input */
    const float *scales[TILE];
} tile_t;

/* What 32 codes and their unit of input make: 8 sums. */
INLINE floats_t unit_sums(words_t even, words_t odd, bytes_t codes, const uint8_t *unit, int wide) {
    const int16_t *words = (const int16_t *)unit;
    ints_t high = add_dot_words(dot_words(even, load_words(words)), odd, load_words(words + 16));
    ints_t low = wide ? add_dot_words(dot_words(even, load_words(words + 32)), odd, load_words(words + 48))
                      : dot_bytes(codes, load_bytes(unit + 64));
    return fma_floats(floats_of(low), all_floats(wide ? 0x1p-15f : 0x1p-8f), floats_of(high));
}

INLINE floats_t scales_of(const float *scale, int64_t chunk, int per) {
    switch (per) {
    case 1: return all_floats(scale[chunk]);
    case 2: return spread_2(scale + 2 * chunk);
    case 4: return spread_4(scale + 4 * chunk);
    default: return load_floats(scale + 8 * chunk);
    }
}

/* Codes of 4 bits, 64 columns at a time. Lane i of a sum is of columns 8i to 8i + 7. `table`: 0 none, 1 of codes below
   64, 2 of codes up to 255, which need wide activations. */
INLINE void nibble_chunk(const matrix_t *m, const uint8_t *at, int64_t chunk, const tile_t *x, int rows, floats_t scale,
                         int table, floats_t *sums) {
    const int wide = table == 2, bytes = wide ? WIDE_BYTES : NARROW_BYTES;
    bytes_t both = load_bytes(at), a = low_nibbles(both), b = high_nibbles(both);
    if (table) a = look_up(m->table, a), b = look_up(m->table, b);
    words_t a0 = even_bytes(a), a1 = odd_bytes(a), b0 = even_bytes(b), b1 = odd_bytes(b);
    for (int r = 0; r < rows; r++) {
        const uint8_t *unit = x->planes[r] + 2 * chunk * bytes, *next = unit + bytes;
        const int16_t *p = (const int16_t *)unit, *q = (const int16_t *)next;
        ints_t high = add_dot_words(dot_words(a0, load_words(p)), a1, load_words(p + 16));
        high = add_ints(high, add_dot_words(dot_words(b0, load_words(q)), b1, load_words(q + 16)));
        ints_t low;
        if (wide) {
            low = add_dot_words(dot_words(a0, load_words(p + 32)), a1, load_words(p + 48));
            low = add_ints(low, add_dot_words(dot_words(b0, load_words(q + 32)), b1, load_words(q + 48)));
        } else {
            low = dot_bytes_2(a, load_bytes(unit + 64), b, load_bytes(next + 64));
        }
        floats_t sum = fma_floats(floats_of(low), all_floats(wide ? 0x1p-15f : 0x1p-8f), floats_of(high));
        sums[r] = fma_floats(sum, mul_floats(scale, all_floats(x->scales[r][2 * chunk])), sums[r]);
    }
}

MANY void nibble_row(const matrix_t *m, const uint8_t *codes, const tile_t *x, int rows, const float *scale, int per,
                     int table, float *into) {
    floats_t sums[TILE];
    for (int r = 0; r < rows; r++) sums[r] = no_floats();
    const int64_t whole = m->columns / 64;
    for (int64_t chunk = 0; chunk < whole; chunk++) {
        PREFETCH(codes + 32 * chunk + 1024);
        nibble_chunk(m, codes + 32 * chunk, chunk, x, rows, scales_of(scale, chunk, per), table, sums);
    }
    if (m->columns % 64) {
        uint8_t last[32] = {0};
        memcpy(last, codes + 32 * whole, (size_t)(m->row_bytes - 32 * whole));
        nibble_chunk(m, last, whole, x, rows, scales_of(scale, whole, per), table, sums);
    }
    for (int r = 0; r < rows; r++) into[r] = sum_floats(sums[r]);
}

/* Codes of a byte each, 32 columns at a time. Lane i of a sum is of columns 4i to 4i + 3. */
INLINE void byte_unit(bytes_t codes, int64_t unit, const tile_t *x, int rows, floats_t scale, int wide, int is_signed,
                      floats_t *sums) {
    words_t even = is_signed ? even_signed(codes) : even_bytes(codes);
    words_t odd = is_signed ? odd_signed(codes) : odd_bytes(codes);
    for (int r = 0; r < rows; r++) {
        floats_t sum = unit_sums(even, odd, codes, x->planes[r] + unit * (wide ? WIDE_BYTES : NARROW_BYTES), wide);
        sums[r] = fma_floats(sum, mul_floats(scale, all_floats(x->scales[r][unit])), sums[r]);
    }
}

MANY void byte_row(const matrix_t *m, const uint8_t *codes, const tile_t *x, int rows, const float *scale, int per,
                   int is_signed, float *into) {
    floats_t sums[TILE];
    for (int r = 0; r < rows; r++) sums[r] = no_floats();
    const int64_t whole = m->columns / 32;
    for (int64_t unit = 0; unit < whole; unit++) {
        PREFETCH(codes + 32 * unit + 1024);
        byte_unit(load_bytes(codes + 32 * unit), unit, x, rows, scales_of(scale, unit, per), 1, is_signed, sums);
    }
    if (m->columns % 32) {
        uint8_t last[32] = {0};
        memcpy(last, codes + 32 * whole, (size_t)(m->columns - 32 * whole));
        byte_unit(load_bytes(last), whole, x, rows, scales_of(scale, whole, per), 1, is_signed, sums);
    }
    for (int r = 0; r < rows; r++) into[r] = sum_floats(sums[r]);
}

MANY void block_row(const matrix_t *m, int block, const uint8_t *codes, const tile_t *x, int rows, const float *scale,
                      float *into) {
    const int wide = block == IQ4_XS, per = BLOCK_FACTS[block].group == 16 ? 2 : 1;
    const int64_t units = m->columns / 32;
    floats_t sums[TILE];
    for (int r = 0; r < rows; r++) sums[r] = no_floats();
    if (BLOCK_FACTS[block].columns == 32) {
        for (int64_t unit = 0; unit < units; unit++)
            byte_unit(block_codes(block, codes, unit), unit, x, rows, scales_of(scale, unit, per), wide, 0, sums);
    } else {
        for (int64_t super = 0; super < units; super += 8) {
#pragma GCC unroll 8
            for (int part = 0; part < 8; part++) {
                int64_t unit = super + part;
                byte_unit(block_codes(block, codes, unit), unit, x, rows, scales_of(scale, unit, per), wide, 0, sums);
            }
        }
    }
    for (int r = 0; r < rows; r++) into[r] = sum_floats(sums[r]);
}

#endif
