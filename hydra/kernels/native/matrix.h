/* What the Python side hands over: one encoded matrix, and where its rows' scales are. The fields and their order are
   those of `products.py`. Nothing here owns memory. */

#ifndef HYDRA_MATRIX_H
#define HYDRA_MATRIX_H

#include "lanes.h"

enum form { NIBBLES = 0, BYTES = 1, BLOCKS = 2, FLOAT8 = 3, DENSE = 4 };
enum number { IS_F32 = 0, IS_BF16 = 1, IS_F16 = 2 };
enum block { Q5_0 = 0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS };
/* How a number comes of a code: (code - the form's middle), (code - zero), code + minimum, table[code]; times scale. */
enum offset { MIDDLE = 0, ZEROS = 1, MINIMA = 2, TABLE = 3, FLOAT_TABLE = 4 };

typedef struct {
    int64_t rows, columns;
    int64_t row_bytes; /* of codes */
    int64_t groups;    /* scales of a row */
    int64_t group_columns, group_rows;
    const uint8_t *codes;
    const uint8_t *scales;
    const uint8_t *zeros;  /* uint8 [rows, groups] */
    const uint8_t *minima; /* as scales */
    int32_t form, block, number, offset;
    float table_unit;       /* of TABLE: what one step of the codes in `table` is worth */
    int32_t table_middle;   /* of TABLE: the code that is nought */
    uint8_t table[16];      /* of TABLE: codes, 0 to 255 */
    uint8_t float_table[4][16]; /* of FLOAT_TABLE: the lowest byte of each of its floats, and so on to the highest */
} matrix_t;

INLINE float number_at(const uint8_t *base, int kind, int64_t index) {
    if (kind == IS_F32) return float_of_bits(u32_at(base + 4 * index));
    uint16_t bits = u16_at(base + 2 * index);
    return kind == IS_BF16 ? float_of_bf16(bits) : float_of_f16(bits);
}

/* `count` numbers from `first` on, as floats */
INLINE void numbers_at(const uint8_t *base, int kind, int64_t first, int64_t count, float *into) {
    int64_t i = 0;
    if (kind == IS_F32) {
        memcpy(into, base + 4 * first, (size_t)(4 * count));
        return;
    }
    const uint16_t *at = (const uint16_t *)base + first;
    for (; i + 8 <= count; i += 8) store_floats(into + i, kind == IS_BF16 ? load_bf16(at + i) : load_f16(at + i));
    for (; i < count; i++) into[i] = number_at(base, kind, first + i);
}

#endif
