/* Threads that share the rows of a matrix. They are started when they are first needed, turn a short while after each
   piece of work and then sleep. One piece of work at a time: a caller who finds them busy does all of its work alone,
   and so does one whose threads cannot be started. What is computed does not depend on who computes it. */

#ifndef HYDRA_POOL_H
#define HYDRA_POOL_H

#include <stdint.h>

typedef void (*share_fn)(void *work, int64_t first, int64_t end);

/* Runs `run` over [0, items) in `threads` shares of whole grains, this thread's among them; returns when all is done. */
void hydra_share_out(share_fn run, void *work, int64_t items, int64_t grain, int threads);

#endif
