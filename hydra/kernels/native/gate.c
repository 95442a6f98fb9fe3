/* activation(gate) * up, of rows in which both lie side by side. */

#include "lanes.h"
#include "pool.h"
#include "rows.h"

/* Both activations are v / (1 + exp(-k)): k is v itself (silu), or 2 * sqrt(2 / pi) * (v + 0.044715 * v^3) (gelu by
   tanh, Hendrycks and Gimpel, arXiv:1606.08415). */
INLINE floats_t activated(floats_t v, const int kind) {
    floats_t k = v;
    if (kind == GELU_TANH) {
        floats_t cube = mul_floats(mul_floats(v, v), v);
        k = mul_floats(fma_floats(cube, all_floats(0.044715f), v), all_floats(1.5957691216057308f));
    }
    return div_floats(v, add_floats(all_floats(1.0f), exp_floats(sub_floats(no_floats(), k))));
}

INLINE void gate_row(const float *gate, const float *up, int64_t columns, float *out, const int kind) {
    int64_t at = 0;
    for (; at + 8 <= columns; at += 8)
        store_floats(out + at, mul_floats(activated(load_floats(gate + at), kind), load_floats(up + at)));
    for (; at < columns; at++) {
        float eight[8];
        store_floats(eight, activated(all_floats(gate[at]), kind));
        out[at] = eight[0] * up[at];
    }
}

static void gate_share(void *work, int64_t first, int64_t end) {
    const gate_t *g = work;
    for (int64_t row = first; row < end; row++) {
        const float *gate = g->x + 2 * row * g->columns;
        float *out = g->out + row * g->columns;
        if (g->kind == SILU) gate_row(gate, gate + g->columns, g->columns, out, SILU);
        else gate_row(gate, gate + g->columns, g->columns, out, GELU_TANH);
    }
}

void hydra_gate(const gate_t *g, int threads) {
    hydra_share_out(gate_share, (void *)g, g->rows, 1 + 8192 / (g->columns + 1), threads);
}
