/* Shares of a product in which rows of a matrix are multiplied one by one, as integers (see integers.h). */

#ifndef HYDRA_INTEGER_ROWS_H
#define HYDRA_INTEGER_ROWS_H

#include "product_work.h"

/* How many scales a chunk of `unit` columns has: 1, 2, 4, or 8 where groups do not fit it otherwise. */
static int scales_per(const matrix_t *m, int64_t unit) {
    int64_t group = group_of(m);
    if (group >= m->columns || group % unit == 0) return 1;
    if (group == unit / 2) return 2;
    return group == unit / 4 && unit == 64 ? 4 : 8;
}

#define BLOCK_CASE(block) \
    case block: WITH_ROWS(rows, block_row(m, block, codes, tile, R, spread, into)); break;

static __attribute__((noinline)) void nibble_tile(const matrix_t *m, const uint8_t *codes, const tile_t *tile, int rows,
                                                  const float *spread, int per, int table, float *into) {
    if (!table) WITH_ROWS(rows, nibble_row(m, codes, tile, R, spread, per, 0, into))
    else if (table == 1) WITH_ROWS(rows, nibble_row(m, codes, tile, R, spread, per, 1, into))
    else WITH_ROWS(rows, nibble_row(m, codes, tile, R, spread, per, 2, into))
}

static __attribute__((noinline)) void byte_tile(const matrix_t *m, const uint8_t *codes, const tile_t *tile, int rows,
                                                const float *spread, int per, float *into) {
    if (m->offset == ZEROS) WITH_ROWS(rows, byte_row(m, codes, tile, R, spread, per, 0, into))
    else WITH_ROWS(rows, byte_row(m, codes, tile, R, spread, per, 1, into))
}

static __attribute__((noinline)) void block_tile(const matrix_t *m, const uint8_t *codes, const tile_t *tile, int rows,
                                                 const float *spread, float *into) {
    switch (m->block) {
        BLOCK_CASE(Q5_0)
        BLOCK_CASE(Q5_1)
        BLOCK_CASE(Q2_K)
        BLOCK_CASE(Q3_K)
        BLOCK_CASE(Q4_K)
        BLOCK_CASE(Q5_K)
        BLOCK_CASE(Q6_K)
        BLOCK_CASE(IQ4_XS)
    }
}

/* The sum of what `each` makes of every eight groups, in two chains. */
#define EIGHTS(groups, each)                                           \
    floats_t even = no_floats(), odd = no_floats();                    \
    for (int64_t g = 0; g < (groups); g += 16) {                       \
        each(even, g);                                                 \
        if (g + 8 < (groups)) each(odd, g + 8);                        \
    }                                                                  \
    floats_t all = add_floats(even, odd)

/* What the offsets of all groups add to an output, in eight parts. */
static void offsets_sum(const matrix_t *m, float zero, const float *scale, const float *offset, int64_t groups,
                        const float *sums, float into[8]) {
#define SCALED(sum, g) sum = fma_floats(load_floats(scale + (g)), load_floats(sums + (g)), sum)
#define ADDED(sum, g) sum = fma_floats(load_floats(offset + (g)), load_floats(sums + (g)), sum)
#define BOTH(sum, g) \
    sum = fma_floats(mul_floats(load_floats(scale + (g)), load_floats(offset + (g))), load_floats(sums + (g)), sum)
    if (zero != 0.0f) {
        EIGHTS(groups, SCALED);
        store_floats(into, mul_floats(all, all_floats(-zero)));
    } else if (has_minima(m)) {
        EIGHTS(groups, ADDED);
        store_floats(into, all);
    } else {
        EIGHTS(groups, BOTH);
        store_floats(into, mul_floats(all, all_floats(-1.0f)));
    }
}

/* The usual case in one go, of one row of input and a matrix whose groups are `times` as wide as what one scale is used
   for, and which has one zero for all, or minima: its scales times the input's, and what its zero or minima add. The same
   numbers as by the general way. Whole vectors of scales are read: behind a row's own there must be as many more. */
INLINE void scale_row(const matrix_t *m, int64_t row, float zero, const product_t *p, float *scale, float *both, int times,
                      const int table, const int kind, const int minima,
                      float into[8]) {
    const float *sums = p->in.sums + (p->in.rows - 1) * p->in.groups, *input = p->in.last;
    const int64_t first = row * m->groups;
    const floats_t unit = all_floats(m->table_unit);
    floats_t sum[2] = {no_floats(), no_floats()};
    for (int64_t g = 0; g < m->groups; g += 32) PREFETCH(m->scales + 2 * (first + 4 * m->groups + g));
    for (int64_t g = 0; g < m->groups; g += 8) {
        floats_t own = load_numbers(m->scales, kind, first + g);
        if (table) own = mul_floats(own, unit);
        floats_t added = minima ? load_numbers(m->minima, kind, first + g) : own;
        if (g + 8 > m->groups) added = first_floats(added, (int)(m->groups - g));
        sum[g / 8 % 2] = fma_floats(added, load_floats(sums + g), sum[g / 8 % 2]);
        if (times == 1) store_floats(both + g, mul_floats(own, load_floats(input + g)));
        else store_floats(scale + g, own);
    }
    floats_t all = add_floats(sum[0], sum[1]);
    store_floats(into, minima ? all : mul_floats(all, all_floats(-zero)));
    if (times > 1)
        for (int64_t g = 0; g < m->groups; g++)
            for (int i = 0; i < times; i++) both[g * times + i] = scale[g] * input[g * times + i];
}

/* Of a table: 1 where its codes are below 64, else 2. */
static int table_kind(const matrix_t *m) {
    int most = 0;
    for (int i = 0; i < 16; i++) most = m->table[i] > most ? m->table[i] : most;
    return m->form != NIBBLES || m->offset != TABLE ? 0 : most < 64 ? 1 : 2;
}

/* Rows of the usual kind (see `scale_row`), without a call between one and the next. */
INLINE void usual_rows(const product_t *p, int64_t first, int64_t end, float *scale, float *both, int form, const int per,
                       const int times, int table, const int kind, const int minima) {
    const matrix_t *m = p->m;
    const float zero = common_zero(m);
    tile_t tile = {.digits = {p->in.digits}};
    for (int64_t row = first; row < end; row++) {
        const uint8_t *codes = m->codes + row * m->row_bytes;
        scale_row(m, row, zero, p, scale, both, times, table, kind, minima, tile.offsets[0]);
        if (form == NIBBLES) nibble_row(m, codes, &tile, 1, both, per, table, p->out + row);
        else byte_row(m, codes, &tile, 1, both, per, 1, p->out + row);
    }
}

#define USUAL(form, per, times, table, minima)                                                            \
    do {                                                                                                  \
        switch (m->number) {                                                                              \
        case IS_F16: usual_rows(p, first, end, scale, both, form, per, times, table, IS_F16, minima); break;   \
        case IS_BF16: usual_rows(p, first, end, scale, both, form, per, times, table, IS_BF16, minima); break; \
        default: usual_rows(p, first, end, scale, both, form, per, times, table, IS_F32, minima);         \
        }                                                                                                 \
    } while (0)

/* How many of the rows [first, end) were done: all, or all but the matrix's last ones, or none. */
static int64_t usual_share(const product_t *p, int64_t first, int64_t end, float *scale, float *both) {
    const matrix_t *m = p->m;
    const int minima = m->form == NIBBLES && m->offset == MINIMA;
    if (!ALONE_SCALED || m->form == BLOCKS || p->in.rows != 1 || !(minima || common_zero(m) != 0.0f)) return 0;
    const int table = table_kind(m), nibbles = m->form == NIBBLES;
    const int64_t unit = nibbles ? 64 : 32, per = scales_per(m, unit), times = m->group_columns * per / unit;
    if (m->columns != m->groups * m->group_columns || m->group_columns * per % unit != 0) return 0;
    const int64_t beyond = (8 - m->groups % 8) % 8, rows_behind = (beyond + m->groups - 1) / m->groups;
    if (end > m->rows - rows_behind) end = m->rows - rows_behind;
    if (end <= first) return 0;
    if (!nibbles) {
        if (times == 1 && per == 1) USUAL(BYTES, 1, 1, 0, 0);
        else if (times == 4) USUAL(BYTES, 1, 4, 0, 0);
        else return 0;
    } else if (minima) {
        if (times == 1 && per == 2) USUAL(NIBBLES, 2, 1, 0, 1);
        else if (times == 1 && per == 1) USUAL(NIBBLES, 1, 1, 0, 1);
        else return 0;
    } else if (table == 1 && times == 1) USUAL(NIBBLES, (int)per, 1, 1, 0);
    else if (table) return 0;
    else if (times == 1 && per == 1) USUAL(NIBBLES, 1, 1, 0, 0);
    else if (times == 1 && per == 2) USUAL(NIBBLES, 2, 1, 0, 0);
    else if (times == 2) USUAL(NIBBLES, 1, 2, 0, 0);
    else return 0;
    return end - first;
}

static void integer_share(void *work, int64_t first, int64_t end) {
    product_t *p = work;
    const matrix_t *m = p->m;
    float *offset, *spread, *scale = row_buffers(m, &offset, &spread);
    if (!scale) {
        atomic_store(&p->failed, 1);
        return;
    }
    const int64_t group = group_of(m), groups = (m->columns + group - 1) / group;
    const int64_t unit = m->form == NIBBLES ? 64 : 32, numbers = (m->columns + unit - 1) / unit * scales_per(m, unit);
    const int per = scales_per(m, unit), table = table_kind(m);
    const float zero = common_zero(m);
    float *both = spread + spread_numbers(m);
    first += usual_share(p, first, end, scale, both);
    for (int64_t row = first; row < end; row++) {
        const uint8_t *codes = m->codes + row * m->row_bytes;
        read_row_scales(m, row, scale, offset);
        const float *use = spread_scales(scale, group, m->columns, unit, per, spread);
        for (int at = 0, rows; at < p->in.rows; at += rows) {
            float sums[TILE];
            tile_t tile;
            rows = tile_of(p->in.rows - at);
            for (int r = 0; r < rows; r++) {
                tile.digits[r] = p->in.digits + (at + r) * p->in.units * UNIT_BYTES;
                tile.scales[r] = p->in.scales + (at + r) * p->in.units;
                offsets_sum(m, zero, scale, offset, groups, p->in.sums + (at + r) * p->in.groups, tile.offsets[r]);
            }
            const float *own = use;
            if (ALONE_SCALED && rows == 1) {
                own = both;
                for (int64_t i = 0; i < numbers; i += 8)
                    store_floats(both + i, mul_floats(load_floats(use + i), load_floats(p->in.last + i)));
            }
            if (m->form == NIBBLES) nibble_tile(m, codes, &tile, rows, own, per, table, sums);
            else if (m->form == BYTES) byte_tile(m, codes, &tile, rows, own, per, sums);
            else block_tile(m, codes, &tile, rows, own, sums);
            for (int r = 0; r < rows; r++) p->out[(at + r) * p->out_stride + row] = sums[r];
        }
    }
    free(scale);
}

#endif
