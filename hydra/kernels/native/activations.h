/* Rows of input as integers: of every 32 columns (of every 64, where codes have 4 bits) the numbers are brought to whole
   numbers up to 2^21 (2^20, where codes have 8 bits), and these are split into three digits of base 128, one byte each.
   What is lost is below 2^-22 (2^-21) of the largest of them; products of such integers with codes are exact. The sums of
   input that offsets are multiplied by are of the same rounded numbers, so that what was rounded weighs no more than the
   matrix's own numbers make it.

   A unit is 32 columns in the order in which a vector of 32 codes has them: one after the other, or, of matrices of 4
   bits, the even ones of 64 and then the odd ones. It is 96 bytes: the highest digits, the middle ones, the lowest. */

#ifndef HYDRA_ACTIVATIONS_H
#define HYDRA_ACTIVATIONS_H

#include <stdlib.h>

#include "lanes.h"

enum { UNIT = 32, UNIT_BYTES = 96, ROWS_MAX = 16 };

typedef struct {
    int rows;
    int64_t units;  /* of a row, rounded up to whole chunks */
    uint8_t *digits; /* [rows, units, UNIT_BYTES], on 32 bytes */
    float *scales;  /* [rows, units] */
    float *last;    /* of the last row: as many to each chunk as the matrix has scales there */
    int64_t groups; /* rounded up to 8 */
    float *sums;    /* [rows, groups]: of the columns that share a scale; nought beyond them */
} activations_t;

static const float ROUNDER = 12582912.0f; /* 1.5 * 2^23: adding it rounds a small number to an integer in its last bits */

INLINE uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE void split_unit(const float *from, float factor, uint8_t *unit) {
    int8_t *digits = (int8_t *)unit;
    const int32_t offset = (int32_t)bits_of_float(ROUNDER);
    for (int i = 0; i < UNIT; i++) {
        int32_t whole = (int32_t)bits_of_float(from[i] * factor + ROUNDER) - offset;
        int32_t low = ((whole + 64) & 127) - 64, rest = (whole - low) >> 7, middle = ((rest + 64) & 127) - 64;
        digits[i] = (int8_t)((rest - middle) >> 7);
        digits[UNIT + i] = (int8_t)middle;
        digits[2 * UNIT + i] = (int8_t)low;
    }
}

/* `span` columns, 32 or 64, of which `here` are there. What is not finite has no digits: its scale is no number.
   `rounded`: the numbers that the digits stand for. */
INLINE void split_chunk(const float *x, int64_t here, int span, float most, uint8_t *units, float *scales,
                        float *rounded) {
    float chunk[2 * UNIT], sorted[2 * UNIT];
    uint32_t largest = 0;
    if (here < span) memset(chunk, 0, sizeof chunk);
    memcpy(chunk, x, (size_t)here * sizeof(float));
    for (int i = 0; i < span; i++) {
        uint32_t size = bits_of_float(chunk[i]) & 0x7fffffffu;
        largest = size > largest ? size : largest;
    }
    float size = float_of_bits(largest), factor = size > 1e-30f ? most / size : 0.0f, scale = size / most;
    if (largest >= 0x7f800000u) {
        memset(chunk, 0, sizeof chunk);
        factor = 0.0f, scale = float_of_bits(0x7fc00000u);
    }
    for (int i = 0; i < span; i++) rounded[i] = (chunk[i] * factor + ROUNDER - ROUNDER) * scale;
    if (span == UNIT) {
        split_unit(chunk, factor, units);
        scales[0] = scale;
        return;
    }
    for (int i = 0; i < UNIT; i++) {
        sorted[i] = chunk[2 * i];
        sorted[UNIT + i] = chunk[2 * i + 1];
    }
    split_unit(sorted, factor, units);
    split_unit(sorted + UNIT, factor, units + UNIT_BYTES);
    scales[0] = scales[1] = scale;
}

/* `rounded`: of whole chunks. */
static void split_row(const float *x, int64_t columns, int paired, int wide, activations_t *into, int row,
                      float *rounded) {
    uint8_t *digits = into->digits + row * into->units * UNIT_BYTES;
    float *scales = into->scales + row * into->units;
    const float most = wide ? 0x1p20f : 0x1p21f - 0x1p14f; /* the highest digit is at most 64, or 127 */
    const int64_t span = paired ? 2 * UNIT : UNIT;
    for (int64_t first = 0; first < columns; first += span) {
        int64_t here = columns - first < span ? columns - first : span;
        uint8_t *units = digits + first / UNIT * UNIT_BYTES;
        if (paired) split_chunk(x + first, here, 2 * UNIT, most, units, scales + first / UNIT, rounded + first);
        else split_chunk(x + first, here, UNIT, most, units, scales + first / UNIT, rounded + first);
    }
}

/* The sum of every `group` columns of a row. */
static void sum_groups(const float *x, int64_t columns, int64_t group, float *sums, int64_t groups) {
    memset(sums, 0, (size_t)groups * sizeof(float));
    for (int64_t at = 0, first = 0; first < columns; at++, first += group) {
        int64_t end = first + group < columns ? first + group : columns, i = first;
        floats_t sum = no_floats(), one = all_floats(1.0f);
        for (; i + 8 <= end; i += 8) sum = fma_floats(load_floats(x + i), one, sum);
        float total = sum_floats(sum);
        for (; i < end; i++) total += x[i];
        sums[at] = total;
    }
}

#endif
