/* One product under way: the matrix, the input in the form in which it is multiplied, and where the answer goes. */

#ifndef HYDRA_PRODUCT_WORK_H
#define HYDRA_PRODUCT_WORK_H

#include <stdatomic.h>

#include "decode.h"
#include "floats.h"

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

/* Rows of input are taken in tiles of so many. */
static int tile_of(int left) { return left >= TILE ? TILE : left >= 2 && TILE >= 2 ? 2 : 1; }

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

#endif
