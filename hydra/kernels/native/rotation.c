/* Rotary positions: halves of heads turned against each other, where they lie. */

#include "lanes.h"
#include "pool.h"
#include "rows.h"

static void turn_head(float *low, float *high, const float *cos, const float *sin, int64_t half) {
    int64_t at = 0;
    for (; at + 8 <= half; at += 8) {
        floats_t a = load_floats(low + at), b = load_floats(high + at);
        floats_t turned = fma_floats(b, load_floats(sin + at), mul_floats(a, load_floats(cos + at)));
        floats_t other = fma_floats(a, load_floats(sin + half + at), mul_floats(b, load_floats(cos + half + at)));
        store_floats(low + at, turned);
        store_floats(high + at, other);
    }
    for (; at < half; at++) {
        float a = low[at], b = high[at];
        low[at] = a * cos[at] + b * sin[at];
        high[at] = b * cos[half + at] + a * sin[half + at];
    }
}

static void rotation_share(void *work, int64_t first, int64_t end) {
    const rotation_t *r = work;
    for (int64_t row = first; row < end; row++)
        for (int64_t head = 0; head < r->heads; head++) {
            float *x = r->x + row * r->row_stride + head * r->head_columns;
            turn_head(x, x + r->columns / 2, r->cos + row * r->columns, r->signed_sin + row * r->columns, r->columns / 2);
        }
}

void hydra_rotate(const rotation_t *r, int threads) {
    hydra_share_out(rotation_share, (void *)r, r->rows, 1 + 16384 / (r->heads * r->columns + 1), threads);
}
