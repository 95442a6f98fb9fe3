/* Layers as a list of operations, run for one new token of up to 16 rows in a single call: what Python would ask for one
   by one, without the time that asking takes. Every operation is the function that is also called alone, so that the
   bits are the same either way. */

#include <string.h>

#include "pool.h"
#include "products.h"
#include "rows.h"

enum kind { NORM = 0, PRODUCT, BIAS, ADD, GATE, ROTATE, GROW, KEEP, ATTEND };

/* Numbers of each row; a buffer has room for all rows, one behind the other. */
typedef struct {
    float *at;
    int64_t width;
} buffer_t;

/* Which fields an operation has is said where it is run. The fields and their order are those of program.py. */
typedef struct {
    int32_t kind, in, out, index;
    int64_t in_at, out_at; /* the first column in a row of the buffer */
    int64_t columns, count, kv_count;
    const void *data, *more, *sinks;
    float number, softcap;
} operation_t;

typedef struct {
    const float *cos, *signed_sin, *query_scale; /* [rows, columns], the last [rows] or NULL */
    int64_t columns;
} table_t;

typedef struct {
    const operation_t *operations;
    const buffer_t *buffers;
    const table_t *tables;        /* of rotations */
    const int64_t *const *firsts; /* of each view, [rows] */
    const int64_t *slots, *reach; /* [rows] */
    const int32_t *blocks;        /* [rows, blocks], rows `blocks_stride` numbers apart */
    int64_t blocks_stride, block, n_operations, rows;
    int32_t threads;
} step_t;

static void add_rows(float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < columns; i++) to[row * to_stride + i] += from[row * from_stride + i];
}

/* Each row's numbers times the row's own. */
static void grow_rows(float *x, int64_t stride, const float *scales, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < columns; i++) x[row * stride + i] *= scales[row];
}

/* Keys, and behind them values, of `columns` numbers each, into the rows' slots. */
static void keep_rows(const float *x, int64_t stride, const int64_t *slots, float *keys, float *values, int64_t rows,
                      int64_t columns) {
    for (int64_t row = 0; row < rows; row++) {
        memcpy(keys + slots[row] * columns, x + row * stride, (size_t)columns * sizeof(float));
        memcpy(values + slots[row] * columns, x + row * stride + columns, (size_t)columns * sizeof(float));
    }
}

static int run(const step_t *s, const operation_t *o) {
    const buffer_t *in = s->buffers + o->in, *out = s->buffers + o->out;
    float *x = in->at + o->in_at, *y = out->at + o->out_at;
    const table_t *table = s->tables + o->index;
    switch (o->kind) {
    case NORM: { /* `count` vectors of `columns`, by the weights `data`; `number` is eps */
        norm_t n = {x, y, o->data, s->rows, in->width, out->width, o->count, o->columns, o->number};
        hydra_rms_norm(&n, s->threads);
        return 0;
    }
    case PRODUCT: /* with the matrix `data`; the input is a whole buffer */
        return hydra_product(o->data, x, (int)s->rows, y, out->width, s->threads);
    case BIAS: /* `data` [columns] */
        add_rows(y, out->width, o->data, 0, s->rows, o->columns);
        return 0;
    case ADD:
        add_rows(y, out->width, x, in->width, s->rows, o->columns);
        return 0;
    case GATE: { /* of the kind `index`: whole buffers */
        gate_t g = {x, y, s->rows, o->columns, o->index};
        hydra_gate(&g, s->threads);
        return 0;
    }
    case ROTATE: { /* `count` heads of `columns`, by the table `index` */
        rotation_t r = {x, table->cos, table->signed_sin, s->rows, in->width, o->count, o->columns, table->columns};
        hydra_rotate(&r, s->threads);
        return 0;
    }
    case GROW: /* by the query scale of the table `index`, where it has one */
        if (table->query_scale) grow_rows(x, in->width, table->query_scale, s->rows, o->columns);
        return 0;
    case KEEP: /* `columns` of keys and as many of values, into `data` and `more` */
        keep_rows(x, in->width, s->slots, (float *)o->data, (float *)o->more, s->rows, o->columns);
        return 0;
    default: { /* ATTEND: `count` heads of `columns` under the view `index`; keys `data`, values `more`; scale `number` */
        attention_t a = {x,        o->data,        o->more,  s->blocks, s->firsts[o->index], s->reach,  o->sinks,
                         y,        s->rows,        o->count, o->kv_count, o->columns,        in->width, s->blocks_stride,
                         s->block, o->number, o->softcap};
        hydra_attend(&a, s->threads);
        return 0;
    }
    }
}

/* 1: a product got no memory; the buffers then hold nothing of use. */
int hydra_run(const step_t *s) {
    for (int64_t i = 0; i < s->n_operations; i++)
        if (run(s, s->operations + i)) return 1;
    return 0;
}
