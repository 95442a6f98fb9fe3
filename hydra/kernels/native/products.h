/* The products that other sources call; see products.c. */

#ifndef HYDRA_PRODUCTS_H
#define HYDRA_PRODUCTS_H

#include "matrix.h"

int hydra_product(const matrix_t *m, const float *x, int rows, float *out, int64_t out_stride, int threads);

#endif
