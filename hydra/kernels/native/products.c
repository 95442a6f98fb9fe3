/* Products of 1 to 16 rows of float input with a matrix as it is stored, and rows of such a matrix as floats.

   Compiled by the machine that runs it, for its own processor (see library.py); called through ctypes. Every function
   returns 0, or 1 where it got no memory or has no way for such a matrix; nothing is written then. Rows of the matrix
   are shared out among threads; no bit of a result depends on how many they are. Nor does it depend on how many rows of
   input there are, as long as they are multiplied in the same way (see `takes_a_panel`). */

#include "decode.h"
#include "floats.h"
#include "pool.h"

#include <stdatomic.h>

typedef struct {
    const matrix_t *m;
    const float *x; /* [rows, columns], followed by at least 8 floats of nought where columns are not whole eights */
    int64_t x_stride;
    float *out;
    int64_t out_stride;
    activations_t in;
    atomic_int failed;
} product_t;

enum { ROUND_BYTES = 64 };
enum { ROWS_OF_NIBBLES = 11, ROWS_OF_OTHERS = 6 }; /* of input, that are multiplied one by one */

static int64_t rounded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

/* Numbers that the scales of a row, spread out, may be. */
static int64_t spread_numbers(const matrix_t *m) { return rounded(m->columns / 4 + 64, 16); }

/* What a thread needs beside the stack: scales, offsets and, twice, scales spread out, of one row. */
static float *row_buffers(const matrix_t *m, float **offset, float **spread) {
    int64_t group = group_of(m), groups = rounded((m->columns + group - 1) / group, 16) + 64;
    size_t bytes = (size_t)(2 * groups + 2 * spread_numbers(m)) * 4;
    float *scale = aligned_alloc(ROUND_BYTES, (bytes + ROUND_BYTES - 1) / ROUND_BYTES * ROUND_BYTES);
    if (!scale) return NULL;
    memset(scale, 0, bytes);
    *offset = scale + groups;
    *spread = scale + 2 * groups;
    return scale;
}

/* How many scales a chunk of `unit` columns has: 1, 2, 4, or 8 where groups do not fit it otherwise. */
static int scales_per(const matrix_t *m, int64_t unit) {
    int64_t group = group_of(m);
    if (group >= m->columns || group % unit == 0) return 1;
    if (group == unit / 2) return 2;
    return group == unit / 4 && unit == 64 ? 4 : 8;
}

#if defined(HYDRA_ONE_LOOP)
#define WITH_ROWS(rows, call) { const int R = (rows); call; }
#else
#define WITH_ROWS(rows, call)                    \
    switch (rows) {                              \
    case 1: { enum { R = 1 }; call; break; }     \
    case 2: { enum { R = 2 }; call; break; }     \
    default: { enum { R = 4 }; call; break; }    \
    }
#endif

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
   numbers as by the general way. Whole vectors of scales are read: of the last row there must be more behind them. */
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

static int tile_of(int left) { return left >= TILE ? TILE : left >= 2 && TILE >= 2 ? 2 : 1; }

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

/* How many of the rows [first, end) were done: all, or all but the matrix's last, or none. */
static int64_t usual_share(const product_t *p, int64_t first, int64_t end, float *scale, float *both) {
    const matrix_t *m = p->m;
    const int minima = m->form == NIBBLES && m->offset == MINIMA;
    if (!ALONE_SCALED || m->form == BLOCKS || p->in.rows != 1 || !(minima || common_zero(m) != 0.0f)) return 0;
    const int table = table_kind(m), nibbles = m->form == NIBBLES;
    const int64_t unit = nibbles ? 64 : 32, per = scales_per(m, unit), times = m->group_columns * per / unit;
    if (m->columns != m->groups * m->group_columns || m->group_columns * per % unit != 0) return 0;
    if (end == m->rows && m->groups % 8 != 0) end--;
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
