/* What is computed of each row beside products; see the files of these names. */

#ifndef HYDRA_ROWS_H
#define HYDRA_ROWS_H

#include <stdint.h>

/* `count` vectors of `columns` numbers, one behind the other, in each of `rows` rows, which begin `stride` apart. */
typedef struct {
    const float *x;
    float *out;
    const float *weight; /* [columns] */
    int64_t rows, stride, out_stride, count, columns;
    float eps;
} norm_t;

/* x [rows, heads, head_columns], rows `row_stride` numbers apart: the first `columns` of each head are turned, where
   they lie. The tables are [rows, columns]; `signed_sin` has a minus in its first half. */
typedef struct {
    float *x;
    const float *cos, *signed_sin;
    int64_t rows, row_stride, heads, head_columns, columns;
} rotation_t;

enum gate { SILU = 0, GELU_TANH = 1 };

/* x is [rows, 2 * columns]: gates, then what they let through; out [rows, columns]. */
typedef struct {
    const float *x;
    float *out;
    int64_t rows, columns;
    int32_t kind;
} gate_t;

/* One token of each row attends to the row's past. */
typedef struct {
    const float *query;           /* [rows, heads, width], rows `query_stride` numbers apart */
    const float *keys, *values;   /* [slots, kv_heads, width] */
    const int32_t *table;         /* [rows, blocks], rows `table_stride` numbers apart */
    const int64_t *first, *reach; /* [rows]: positions that are seen */
    const float *sinks;           /* [heads], or NULL */
    float *out;                   /* [rows, heads, width] */
    int64_t rows, heads, kv_heads, width, query_stride, table_stride, block;
    float scale, softcap; /* of scores; 0: no cap */
} attention_t;

void hydra_rms_norm(const norm_t *n, int threads);
void hydra_rotate(const rotation_t *r, int threads);
void hydra_gate(const gate_t *g, int threads);
void hydra_attend(const attention_t *a, int threads);

#endif
