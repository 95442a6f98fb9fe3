/* One token of each row attends to the row's past, read where its KV blocks lie: the running softmax of Milakov and
   Gimelshein (arXiv:1805.02867), a tile of positions at a time. A row's bits are its own, whatever other rows there are
   and however many threads. */

#include "lanes.h"
#include "pool.h"
#include "rows.h"

enum { POSITIONS = 64 }; /* of a tile */

/* Where `count` positions from `position` on lie, in numbers from the start of the keys. */
static void find_places(const attention_t *a, int64_t row, int64_t kv_head, int64_t position, int count, int64_t *places) {
    const int32_t *table = a->table + row * a->table_stride;
    const int64_t step = a->kv_heads * a->width;
    int64_t block = position / a->block, inside = position % a->block;
    for (int i = 0; i < count; i++) {
        places[i] = (table[block] * a->block + inside) * step + kv_head * a->width;
        if (++inside == a->block) inside = 0, block++;
    }
}

INLINE float dot_product(const float *a, const float *b, int64_t width) {
    floats_t even = no_floats(), odd = no_floats();
    int64_t at = 0;
    for (; at + 16 <= width; at += 16) {
        even = fma_floats(load_floats(a + at), load_floats(b + at), even);
        odd = fma_floats(load_floats(a + at + 8), load_floats(b + at + 8), odd);
    }
    float sum = sum_floats(add_floats(even, odd));
    for (; at < width; at++) sum += a[at] * b[at];
    return sum;
}

/* mixed[width] += the sum over positions of weight * value */
static void mix_values(const float *values, const int64_t *places, const float *weights, int count, int64_t width,
                       float *mixed) {
    int64_t at = 0;
    for (; at + 32 <= width; at += 32) {
        floats_t sums[4];
        for (int i = 0; i < 4; i++) sums[i] = load_floats(mixed + at + 8 * i);
        for (int p = 0; p < count; p++) {
            const float *value = values + places[p] + at;
            const floats_t weight = all_floats(weights[p]);
            for (int i = 0; i < 4; i++) sums[i] = fma_floats(weight, load_floats(value + 8 * i), sums[i]);
        }
        for (int i = 0; i < 4; i++) store_floats(mixed + at + 8 * i, sums[i]);
    }
    for (int p = 0; p < count; p++)
        for (int64_t column = at; column < width; column++) mixed[column] += weights[p] * values[places[p] + column];
}

/* Scores of a tile become weights: returns their sum, and what is kept of the former ones. `scores` has room for whole
   eights. */
static float weigh(float *scores, int count, float *top, float *kept) {
    float highest = *top;
    for (int p = 0; p < count; p++) highest = scores[p] > highest || scores[p] != scores[p] ? scores[p] : highest;
    *kept = *top == highest ? 1.0f : exp_float(*top - highest);
    for (int p = count; p % 8; p++) scores[p] = -INFINITY;
    floats_t sum = no_floats(), top_of_all = all_floats(highest);
    for (int p = 0; p < count; p += 8) {
        floats_t weight = exp_floats(sub_floats(load_floats(scores + p), top_of_all));
        store_floats(scores + p, weight);
        sum = add_floats(sum, weight);
    }
    *top = highest;
    return sum_floats(sum);
}

/* One head of one row. `mixed` is where its answer goes. */
static void attend(const attention_t *a, int64_t row, int64_t head, float *mixed) {
    const int64_t kv_head = head / (a->heads / a->kv_heads), width = a->width;
    const float *query = a->query + row * a->query_stride + head * width;
    float top = a->sinks ? a->sinks[head] : -INFINITY, total = a->sinks ? 1.0f : 0.0f;
    memset(mixed, 0, (size_t)width * sizeof(float));
    for (int64_t position = a->first[row]; position < a->reach[row]; position += POSITIONS) {
        const int count = a->reach[row] - position < POSITIONS ? (int)(a->reach[row] - position) : POSITIONS;
        int64_t places[POSITIONS];
        float scores[POSITIONS], kept;
        find_places(a, row, kv_head, position, count, places);
        for (int p = 0; p < count; p++) scores[p] = dot_product(query, a->keys + places[p], width) * a->scale;
        if (a->softcap > 0)
            for (int p = 0; p < count; p++) scores[p] = a->softcap * tanhf(scores[p] / a->softcap);
        const float sum = weigh(scores, count, &top, &kept);
        total = total * kept + sum;
        if (kept != 1.0f)
            for (int64_t column = 0; column < width; column++) mixed[column] *= kept;
        mix_values(a->values, places, scores, count, width, mixed);
    }
    for (int64_t column = 0; column < width; column++) mixed[column] /= total;
}

static void attention_share(void *work, int64_t first, int64_t end) {
    const attention_t *a = work;
    for (int64_t item = first; item < end; item++)
        attend(a, item / a->heads, item % a->heads, a->out + item * a->width);
}

void hydra_attend(const attention_t *a, int threads) {
    hydra_share_out(attention_share, (void *)a, a->rows * a->heads, a->heads / a->kv_heads, threads);
}
