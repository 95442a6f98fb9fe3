/* Shares of a product in which rows of a matrix are multiplied as floats: float8, plain numbers, and panels of many rows
   of input. */

#ifndef HYDRA_FLOAT_ROWS_H
#define HYDRA_FLOAT_ROWS_H

#include "product_work.h"

static void float8_share(void *work, int64_t first, int64_t end) {
    product_t *p = work;
    const matrix_t *m = p->m;
    float *offset, *spread, *scale = row_buffers(m, &offset, &spread);
    if (!scale) {
        atomic_store(&p->failed, 1);
        return;
    }
    for (int64_t row = first; row < end; row++) {
        const uint8_t *codes = m->codes + row * m->row_bytes;
        numbers_at(m->scales, m->number, row / m->group_rows * m->groups, m->groups, scale);
        for (int at = 0, rows; at < p->in.rows; at += rows) {
            const float *x[TILE];
            rows = tile_of(p->in.rows - at);
            float sums[TILE];
            for (int r = 0; r < rows; r++) x[r] = p->x + (at + r) * p->x_stride;
            WITH_ROWS(rows, float8_row(m, codes, x, R, scale, sums))
            for (int r = 0; r < rows; r++) p->out[(at + r) * p->out_stride + row] = sums[r];
        }
    }
    free(scale);
}

#define DENSE_CALL(n, r) dense_tile(w, n, x, r, KIND, from, to, sums[t])
#if defined(HYDRA_ONE_LOOP)
#define DENSE_CASES(n, rows) DENSE_CALL(n, rows)
#else
#define DENSE_CASES(n, rows)          \
    if (rows == 1) DENSE_CALL(n, 1);  \
    else if (rows == 2) DENSE_CALL(n, 2); \
    else DENSE_CALL(n, 3)
#endif

enum { DENSE_COLUMNS = 512, DENSE_TILES = (ROWS_MAX + DENSE_TILE - 1) / DENSE_TILE };

/* Up to four rows of the matrix, plain numbers at `w`; over few columns at a time where there are many rows of input,
   which then stay in the nearest cache. */
INLINE void dense_block(product_t *p, const uint8_t *const *w, int n, int64_t row, const int KIND) {
    const int64_t columns = p->m->columns, whole = columns / 8 * 8, step = p->in.rows <= DENSE_TILE ? whole : DENSE_COLUMNS;
    floats_t sums[DENSE_TILES][DENSE_ROWS][DENSE_TILE];
    for (int t = 0; t < DENSE_TILES; t++)
        for (int i = 0; i < DENSE_ROWS; i++)
            for (int r = 0; r < DENSE_TILE; r++) sums[t][i][r] = no_floats();
    for (int64_t from = 0; from < whole; from += step) {
        int64_t to = from + step < whole ? from + step : whole;
        for (int t = 0; t * DENSE_TILE < p->in.rows; t++) {
            int at = t * DENSE_TILE, rows = p->in.rows - at < DENSE_TILE ? p->in.rows - at : DENSE_TILE;
            const float *x[DENSE_TILE];
            for (int r = 0; r < rows; r++) x[r] = p->x + (at + r) * p->x_stride;
            if (n == DENSE_ROWS) DENSE_CASES(DENSE_ROWS, rows);
            else DENSE_CALL(n, rows);
        }
    }
    for (int r = 0; r < p->in.rows; r++)
        for (int i = 0; i < n; i++) {
            float sum = sum_floats(sums[r / DENSE_TILE][i][r % DENSE_TILE]);
            for (int64_t column = whole; column < columns; column++)
                sum += number_at(w[i], KIND, column) * p->x[r * p->x_stride + column];
            p->out[r * p->out_stride + row + i] = sum;
        }
}

INLINE void dense_rows(product_t *p, int64_t first, int64_t end, const int KIND) {
    for (int64_t row = first; row < end; row += DENSE_ROWS) {
        int n = end - row < DENSE_ROWS ? (int)(end - row) : DENSE_ROWS;
        const uint8_t *w[DENSE_ROWS];
        for (int i = 0; i < n; i++) w[i] = p->m->codes + (row + i) * p->m->row_bytes;
        dense_block(p, w, n, row, KIND);
    }
}

static void dense_share(void *work, int64_t first, int64_t end) {
    product_t *p = work;
    switch (p->m->number) {
    case IS_F32: dense_rows(p, first, end, IS_F32); break;
    case IS_BF16: dense_rows(p, first, end, IS_BF16); break;
    default: dense_rows(p, first, end, IS_F16); break;
    }
}

/* The codes of these columns, which are asked for while those of six rows before are multiplied. */
static void prefetch_columns(const matrix_t *m, int64_t row, int64_t from, int64_t to) {
    const uint8_t *codes = m->codes + row * m->row_bytes;
    for (int64_t at = from * m->row_bytes / m->columns; at < to * m->row_bytes / m->columns; at += 64) PREFETCH(codes + at);
}

/* Many rows of input: six rows of the matrix become floats, a few columns at a time, and are multiplied by all rows of
   input at once. */
static void panel_share(void *work, int64_t first, int64_t end) {
    product_t *p = work;
    const matrix_t *m = p->m;
    float *scales[PANEL_ROWS] = {0}, *offsets[PANEL_ROWS], *spread;
    float numbers[PANEL_ROWS][PANEL_COLUMNS + 1] = {{0}}; /* rows that are not there stay nought */
    const int width = p->in.rows > PANEL_LANES ? 2 * PANEL_LANES : PANEL_LANES;
    uint8_t codes[PANEL_COLUMNS + 64];
    int failed = 0;
    for (int i = 0; i < PANEL_ROWS; i++) failed |= !(scales[i] = row_buffers(m, &offsets[i], &spread));
    if (failed) atomic_store(&p->failed, 1);
    for (int64_t row = first; !failed && row < end; row += PANEL_ROWS) {
        const int n = end - row < PANEL_ROWS ? (int)(end - row) : PANEL_ROWS;
        floats_t sums[PANEL_ROWS][2];
        for (int i = 0; i < PANEL_ROWS; i++) sums[i][0] = sums[i][1] = no_floats();
        for (int i = 0; i < n; i++) read_decode_scales(m, row + i, scales[i], offsets[i]);
        for (int64_t from = 0; from < m->columns; from += PANEL_COLUMNS) {
            const int64_t to = from + PANEL_COLUMNS < m->columns ? from + PANEL_COLUMNS : m->columns;
            for (int i = 0; i < n; i++) {
                prefetch_columns(m, row + PANEL_ROWS + i, from, to);
                decode_columns(m, row + i, from, to, scales[i], offsets[i], codes, numbers[i]);
                numbers[i][to - from] = 0.0f;
            }
            if (width == PANEL_LANES) panel_tile(numbers, p->x + from * PANEL_LANES, to - from, PANEL_LANES, sums);
            else panel_tile(numbers, p->x + from * 2 * PANEL_LANES, to - from, 2 * PANEL_LANES, sums);
        }
        for (int i = 0; i < n; i++) {
            float of_rows[ROWS_MAX];
            store_floats(of_rows, width == PANEL_LANES ? add_floats(sums[i][0], sums[i][1]) : sums[i][0]);
            store_floats(of_rows + PANEL_LANES, sums[i][1]);
            for (int r = 0; r < p->in.rows; r++) p->out[r * p->out_stride + row + i] = of_rows[r];
        }
    }
    for (int i = 0; i < PANEL_ROWS; i++) free(scales[i]);
}

#endif
