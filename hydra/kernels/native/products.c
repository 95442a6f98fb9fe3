/* Products of 1 to 16 rows of float input with a matrix as it is stored, and rows of such a matrix as floats.

   Compiled by the machine that runs it, for its own processor (see library.py); called through ctypes. Every function
   returns 0, or 1 where it got no memory or has no way for such a matrix; nothing is written then. Rows of the matrix
   are shared out among threads; no bit of a result depends on how many they are. Nor does it depend on how many rows of
   input there are, as long as they are multiplied in the same way (see `takes_a_panel`). */

#include "products.h"

#include "float_rows.h"
#include "integer_rows.h"
#include "pool.h"

enum { ROWS_OF_NIBBLES = 11, ROWS_OF_OTHERS = 6 }; /* of input, that are multiplied one by one */

static _Thread_local void *kept;
static _Thread_local size_t kept_bytes;

/* Memory that a calling thread keeps for its next call. */
static void *scratch(size_t bytes) {
    if (bytes > kept_bytes) {
        free(kept);
        kept_bytes = (bytes + 65535) / 65536 * 65536;
        kept = aligned_alloc(ROUND_BYTES, kept_bytes);
        if (!kept) kept_bytes = 0;
    }
    return kept;
}

static int split_input(product_t *p, const float *x, int rows) {
    const matrix_t *m = p->m;
    const int64_t group = group_of(m);
    const int wide = m->form == BYTES || (m->form == BLOCKS && m->block == IQ4_XS) || table_kind(m) == 2;
    activations_t *in = &p->in;
    in->rows = rows;
    in->units = m->form == NIBBLES ? rounded(m->columns, 64) / 32 : rounded(m->columns, 32) / 32;
    in->groups = rounded((m->columns + group - 1) / group, 8);
    size_t digits = (size_t)rounded(rows * in->units * UNIT_BYTES, ROUND_BYTES);
    size_t scales = (size_t)rounded(rows * in->units * 4, ROUND_BYTES);
    size_t last = (size_t)spread_numbers(m) * 4;
    size_t sums = (size_t)rounded(rows * in->groups * 4, ROUND_BYTES);
    in->digits = scratch(digits + scales + last + sums + (size_t)in->units * UNIT * 4);
    if (!in->digits) return 1;
    in->scales = (float *)(in->digits + digits);
    in->last = (float *)(in->digits + digits + scales);
    in->sums = (float *)(in->digits + digits + scales + last);
    float *numbers = (float *)(in->digits + digits + scales + last + sums); /* of one row after the other */
    for (int row = 0; row < rows; row++) {
        split_row(x + row * p->x_stride, m->columns, m->form == NIBBLES, wide, in, row, numbers);
        sum_groups(numbers, m->columns, group, in->sums + row * in->groups, in->groups);
    }
    const int64_t unit = m->form == NIBBLES ? 64 : 32, per = scales_per(m, unit);
    const float *scales_of_last = in->scales + (rows - 1) * in->units;
    for (int64_t chunk = 0; chunk * unit < m->columns; chunk++)
        for (int64_t i = 0; i < per; i++) in->last[chunk * per + i] = scales_of_last[chunk * (unit / UNIT)];
    return 0;
}

/* Whether so many rows of input are multiplied by the matrix's rows as floats, all at once: where that was measured to be
   faster. Of codes of any numbers there is no other way. */
static int takes_a_panel(const matrix_t *m, int rows) {
    if (m->form == NIBBLES) return rows > ROWS_OF_NIBBLES || m->offset == FLOAT_TABLE;
    return rows > ROWS_OF_OTHERS;
}

/* out[r, n] = sum over the columns of x[r] * m[n]: x is [rows, columns] with whole rows one behind the other. */
int hydra_product(const matrix_t *m, const float *x, int rows, float *out, int64_t out_stride, int threads) {
    if (rows < 1 || rows > ROWS_MAX) return 1;
    product_t p = {.m = m, .x = x, .x_stride = m->columns, .out = out, .out_stride = out_stride};
    p.in.rows = rows;
    const int64_t grain = DENSE_ROWS * (1 + 16384 / (m->row_bytes * DENSE_ROWS + 1));
    if (m->form == DENSE) {
        hydra_share_out(dense_share, &p, m->rows, grain, threads);
        return 0;
    }
    if (takes_a_panel(m, rows)) {
        float *panel = scratch((size_t)((m->columns + 1) * ROWS_MAX) * 4);
        if (!panel) return 1;
        turn_input(x, rows, m->columns, rows > PANEL_LANES ? 2 * PANEL_LANES : PANEL_LANES, panel);
        p.x = panel;
        hydra_share_out(panel_share, &p, m->rows, PANEL_ROWS, threads);
        return atomic_load(&p.failed);
    }
    if (m->form == FLOAT8) {
        if (m->columns % 8) { /* whole vectors are read of every row */
            int64_t stride = rounded(m->columns, 8);
            float *copy = scratch((size_t)(rows * stride) * 4);
            if (!copy) return 1;
            memset(copy, 0, (size_t)(rows * stride) * 4);
            for (int r = 0; r < rows; r++) memcpy(copy + r * stride, x + r * m->columns, (size_t)m->columns * 4);
            p.x = copy, p.x_stride = stride;
        }
        hydra_share_out(float8_share, &p, m->rows, grain, threads);
        return atomic_load(&p.failed);
    }
    if (split_input(&p, x, rows)) return 1;
    hydra_share_out(integer_share, &p, m->rows, grain, threads);
    return atomic_load(&p.failed);
}

typedef struct {
    const matrix_t *m;
    const int64_t *rows; /* which, or NULL: from `first` on */
    int64_t first;
    float *out;
    atomic_int failed;
} decoding_t;

static void decode_share(void *work, int64_t first, int64_t end) {
    decoding_t *d = work;
    float *offset, *spread, *scale = row_buffers(d->m, &offset, &spread);
    uint8_t *codes = scale ? malloc((size_t)d->m->columns + 64) : NULL;
    if (!codes) atomic_store(&d->failed, 1);
    for (int64_t at = first; codes && at < end; at++) {
        int64_t row = d->rows ? d->rows[at] : d->first + at;
        decode_row(d->m, row, scale, offset, codes, d->out + at * d->m->columns);
    }
    free(codes);
    free(scale);
}

/* `count` rows as floats, one behind the other: those with these numbers, or, of NULL, from `first` on. */
int hydra_decode(const matrix_t *m, const int64_t *rows, int64_t first, int64_t count, float *out, int threads) {
    decoding_t d = {.m = m, .rows = rows, .first = first, .out = out};
    hydra_share_out(decode_share, &d, count, 4, threads);
    return atomic_load(&d.failed);
}

/* The other side of a measurement: all bytes of a range, read and added up as fast as one thread can. */
uint64_t hydra_read(const uint8_t *from, int64_t bytes) {
    ints_t sums[4] = {no_ints(), no_ints(), no_ints(), no_ints()};
    for (int64_t at = 0; at + 128 <= bytes; at += 128)
        for (int i = 0; i < 4; i++) {
            ints_t v;
            memcpy(&v, from + at + 32 * i, 32);
            sums[i] = add_ints(sums[i], v);
        }
    uint32_t parts[8];
    uint64_t total = 0;
    for (int i = 1; i < 4; i++) sums[0] = add_ints(sums[0], sums[i]);
    memcpy(parts, &sums[0], 32);
    for (int i = 0; i < 8; i++) total += parts[i];
    return total;
}

const char *hydra_lanes(void) { return HYDRA_LANES; }
