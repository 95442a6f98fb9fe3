/* Root mean square norms: out = x / sqrt(mean of its squares + eps) * weight. */

#include "lanes.h"
#include "pool.h"
#include "rows.h"

static float sum_of_squares(const float *x, int64_t columns) {
    floats_t sums[4] = {no_floats(), no_floats(), no_floats(), no_floats()};
    int64_t at = 0;
    for (; at + 32 <= columns; at += 32)
        for (int i = 0; i < 4; i++) {
            floats_t v = load_floats(x + at + 8 * i);
            sums[i] = fma_floats(v, v, sums[i]);
        }
    float sum = sum_floats(add_floats(add_floats(sums[0], sums[1]), add_floats(sums[2], sums[3])));
    for (; at < columns; at++) sum += x[at] * x[at];
    return sum;
}

static void norm_one(const norm_t *n, const float *x, float *out) {
    const float factor = 1.0f / sqrtf(sum_of_squares(x, n->columns) / (float)n->columns + n->eps);
    const floats_t factors = all_floats(factor);
    int64_t at = 0;
    for (; at + 8 <= n->columns; at += 8)
        store_floats(out + at, mul_floats(mul_floats(load_floats(x + at), factors), load_floats(n->weight + at)));
    for (; at < n->columns; at++) out[at] = x[at] * factor * n->weight[at];
}

static void norm_share(void *work, int64_t first, int64_t end) {
    const norm_t *n = work;
    for (int64_t row = first; row < end; row++)
        for (int64_t i = 0; i < n->count; i++)
            norm_one(n, n->x + row * n->stride + i * n->columns, n->out + row * n->out_stride + i * n->columns);
}

void hydra_rms_norm(const norm_t *n, int threads) {
    hydra_share_out(norm_share, (void *)n, n->rows, 1 + 16384 / (n->count * n->columns + 1), threads);
}
