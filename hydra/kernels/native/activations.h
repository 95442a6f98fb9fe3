/* Rows of input as integers: of every 32 columns the numbers are brought to a common power of two and split into a high
   part of 16 bits and a low one of 8 (narrow) or 16 (wide). What is lost is below 2^-23 (2^-30) of the largest of them,
   so that products of integers, which are exact, lose no more than a float product does.

   A unit is 32 columns in the order in which a vector of 32 codes has them: one after the other, or, of matrices of 4
   bits, the even ones of 64 and then the odd ones. In a unit's words the even places stand before the odd ones. */

#ifndef HYDRA_ACTIVATIONS_H
#define HYDRA_ACTIVATIONS_H

#include <math.h>
#include <stdlib.h>

#include "lanes.h"

enum { UNIT = 32, NARROW_BYTES = 96, WIDE_BYTES = 128, ROWS_MAX = 16 };

typedef struct {
    int rows;
    int64_t units;      /* of a row, rounded up to whole chunks */
    int64_t unit_bytes; /* NARROW_BYTES or WIDE_BYTES */
    uint8_t *planes;    /* [rows, units, unit_bytes], on 32 bytes */
    float *scales;      /* [rows, units] */
    int64_t groups;     /* rounded up to 8 */
    float *sums;        /* [rows, groups]: of the columns that share a scale; nought beyond them */
} activations_t;

static const float ROUNDER = 12582912.0f; /* 1.5 * 2^23: adding and taking it away rounds to the nearest integer */

/* The power of two that brings numbers up to `most` just below 2^15. */
INLINE float power_for(float most) {
    int exponent;
    if (!(most > 0x1p-100f)) return 0x1p114f; /* smaller ones keep fewer bits: they are nothing beside any other */
    frexpf(most, &exponent);
    float power = ldexpf(1.0f, 15 - exponent);
    return most * power <= 32766.0f ? power : 0.5f * power;
}

INLINE void split_unit(const float *from, float power, int wide, uint8_t *unit) {
    int16_t high[UNIT], low[UNIT];
    const float low_power = wide ? 32768.0f : 256.0f;
    const int low_most = wide ? 32767 : 127;
    for (int i = 0; i < UNIT; i++) {
        float x = from[i] * power;
        float whole = (x + ROUNDER) - ROUNDER;
        int rest = (int)(((x - whole) * low_power + ROUNDER) - ROUNDER);
        int over = rest > low_most;
        high[i] = (int16_t)((int)whole + over);
        low[i] = (int16_t)(rest - (over ? (int)low_power : 0));
    }
    int16_t *words = (int16_t *)unit;
    for (int i = 0; i < 16; i++) {
        words[i] = high[2 * i];
        words[16 + i] = high[2 * i + 1];
    }
    if (wide) {
        for (int i = 0; i < 16; i++) {
            words[32 + i] = low[2 * i];
            words[48 + i] = low[2 * i + 1];
        }
    } else {
        int8_t *bytes = (int8_t *)(unit + 64);
        for (int i = 0; i < UNIT; i++) bytes[i] = (int8_t)low[i];
    }
}

/* One row. `paired`: units are the even and the odd columns of 64. A row with a number that is not finite has no
   integers: all that is computed with it is not a number. */
static void split_row(const float *x, int64_t columns, int paired, int wide, activations_t *into, int row) {
    uint8_t *planes = into->planes + row * into->units * into->unit_bytes;
    float *scales = into->scales + row * into->units;
    const int span = paired ? 2 * UNIT : UNIT, steps = paired ? 2 : 1;
    for (int64_t unit = 0; unit < into->units; unit += steps) {
        float chunk[2 * UNIT], sorted[2 * UNIT], most = 0.0f, wrong = 0.0f;
        int64_t first = unit * UNIT, here = columns - first < span ? columns - first : span;
        if (here < span) memset(chunk, 0, sizeof chunk);
        memcpy(chunk, x + first, (size_t)here * sizeof(float));
        for (int i = 0; i < span; i++) {
            float size = fabsf(chunk[i]);
            most = size > most ? size : most;
        }
        for (int i = 0; i < span; i++) wrong += chunk[i] * 0.0f; /* 0, or not a number */
        if (paired)
            for (int i = 0; i < UNIT; i++) {
                sorted[i] = chunk[2 * i];
                sorted[UNIT + i] = chunk[2 * i + 1];
            }
        const float power = power_for(most);
        if (wrong != 0.0f) memset(sorted, 0, sizeof sorted), memset(chunk, 0, sizeof chunk);
        for (int part = 0; part < steps; part++) {
            split_unit((paired ? sorted : chunk) + UNIT * part, power, wide, planes + (unit + part) * into->unit_bytes);
            scales[unit + part] = 1.0f / power + wrong;
        }
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
