/* Products in floats: of plain matrices and of float8, where every output is one chain of eight lanes over its columns,
   however many outputs are computed at once; and of rows that were decoded, by many rows of input at once (a panel). */

#ifndef HYDRA_FLOATS_H
#define HYDRA_FLOATS_H

#include "integers.h"

enum { DENSE_ROWS = 4, DENSE_TILE = 3 };

INLINE floats_t load_numbers(const uint8_t *row, int kind, int64_t column) {
    if (kind == IS_F32) return load_floats((const float *)row + column);
    const uint16_t *at = (const uint16_t *)row + column;
    return kind == IS_BF16 ? load_bf16(at) : load_f16(at);
}

/* `n` rows of the matrix times `rows` rows of input, columns [first, end) of them, added to `sums` [n][rows]. */
MANY void dense_tile(const uint8_t *const *w, int n, const float *const *x, int rows, int kind, int64_t first,
                       int64_t end, floats_t sums[DENSE_ROWS][DENSE_TILE]) {
    floats_t own[DENSE_ROWS][DENSE_TILE];
    for (int i = 0; i < n; i++)
        for (int r = 0; r < rows; r++) own[i][r] = sums[i][r];
    for (int64_t column = first; column < end; column += 8) {
        floats_t in[DENSE_TILE];
        for (int r = 0; r < rows; r++) in[r] = load_floats(x[r] + column);
        for (int i = 0; i < n; i++) {
            floats_t number = load_numbers(w[i], kind, column);
            for (int r = 0; r < rows; r++) own[i][r] = fma_floats(number, in[r], own[i][r]);
        }
    }
    for (int i = 0; i < n; i++)
        for (int r = 0; r < rows; r++) sums[i][r] = own[i][r];
}

enum { PANEL_ROWS = 6, PANEL_COLUMNS = 256, PANEL_LANES = 8 };

/* Rows of input side by side: for each column, and one more, `width` numbers; nought where there are no rows. */
static void turn_input(const float *x, int rows, int64_t columns, int width, float *into) {
    memset(into, 0, (size_t)((columns + 1) * width) * 4);
    for (int r = 0; r < rows; r++)
        for (int64_t column = 0; column < columns; column++) into[column * width + r] = x[r * columns + column];
}

#define PANEL_ROW(i) floats_t one##i = sums[i][0], other##i = sums[i][1]
#define PANEL_KEEP(i) sums[i][0] = one##i, sums[i][1] = other##i
#define PANEL_STEP(i)                                                                  \
    do {                                                                               \
        one##i = fma_floats(all_floats(numbers[i][column]), low, one##i);              \
        other##i = fma_floats(all_floats(numbers[i][column + beside]), high, other##i); \
    } while (0)
#define SIX(step) step(0); step(1); step(2); step(3); step(4); step(5)

/* Six rows of the matrix times 8 or 16 of input, `columns` of them, added to `sums`: of 16 rows each half has its own;
   of 8 rows each has one for even columns and one for odd ones. `x` is followed by a column of nought. */
MANY void panel_tile(float numbers[PANEL_ROWS][PANEL_COLUMNS + 1], const float *x, int64_t columns, const int width,
                     floats_t sums[PANEL_ROWS][2]) {
    const int step = width == PANEL_LANES ? 2 : 1, beside = step - 1;
    SIX(PANEL_ROW);
    for (int64_t column = 0; column < columns; column += step) {
        const floats_t low = load_floats(x + column * width), high = load_floats(x + column * width + PANEL_LANES);
        SIX(PANEL_STEP);
    }
    SIX(PANEL_KEEP);
}

/* One row of float8: each tile across has a scale. `x` has nought beyond the columns, up to a multiple of 8. */
MANY void float8_row(const matrix_t *m, const uint8_t *codes, const float *const *x, int rows, const float *scale,
                       float *into) {
    floats_t sums[TILE];
    FOR_ROWS(rows, NO_SUM);
    for (int64_t first = 0, group = 0; first < m->columns; first += m->group_columns, group++) {
        int64_t end = first + m->group_columns < m->columns ? first + m->group_columns : m->columns, column = first;
        floats_t own[TILE], wide = all_floats(scale[group] * 256.0f);
#define STEP(r) own[r] = no_floats()
        FOR_ROWS(rows, STEP);
#undef STEP
#define STEP(r) own[r] = fma_floats(number, load_floats(x[r] + column), own[r])
        for (; column + 8 <= end; column += 8) {
            floats_t number = load_f8(codes + column);
            FOR_ROWS(rows, STEP);
        }
        if (column < end) { /* only at the end of a row */
            uint8_t last[8] = {0};
            memcpy(last, codes + column, (size_t)(end - column));
            floats_t number = load_f8(last);
            FOR_ROWS(rows, STEP);
        }
#undef STEP
#define STEP(r) sums[r] = fma_floats(own[r], wide, sums[r])
        FOR_ROWS(rows, STEP);
#undef STEP
    }
#define STEP(r) into[r] = sum_floats(sums[r])
    FOR_ROWS(rows, STEP);
#undef STEP
}

#endif
