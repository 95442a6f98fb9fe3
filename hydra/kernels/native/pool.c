/* See pool.h. */

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

enum { THREADS_MAX = 128, TURNS = 20000 };

static struct {
    pthread_mutex_t busy;
    pthread_mutex_t lock; /* of `signal` alone */
    pthread_cond_t signal;
    int threads; /* beside the caller */
    pid_t owner; /* threads do not survive a fork: a child works alone */
    atomic_uint round;
    atomic_int left;
    int shares;
    share_fn run;
    void *work;
    int64_t items, grain;
    struct { int share; unsigned round; } starts[THREADS_MAX];
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .signal = PTHREAD_COND_INITIALIZER};

static inline void turn(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void run_share(int share) {
    int64_t grains = (pool.items + pool.grain - 1) / pool.grain;
    int64_t first = grains * share / pool.shares * pool.grain, end = grains * (share + 1) / pool.shares * pool.grain;
    if (end > pool.items) end = pool.items;
    if (first < end) pool.run(pool.work, first, end);
}

static void *pool_thread(void *start) {
    int share = pool.starts[(intptr_t)start].share;
    unsigned seen = pool.starts[(intptr_t)start].round;
    for (;;) {
        for (int i = 0; i < TURNS && atomic_load_explicit(&pool.round, memory_order_acquire) == seen; i++) turn();
        if (atomic_load_explicit(&pool.round, memory_order_acquire) == seen) {
            pthread_mutex_lock(&pool.lock);
            while (atomic_load_explicit(&pool.round, memory_order_acquire) == seen)
                pthread_cond_wait(&pool.signal, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load_explicit(&pool.round, memory_order_acquire);
        if (share < pool.shares) run_share(share);
        atomic_fetch_sub_explicit(&pool.left, 1, memory_order_acq_rel);
    }
    return NULL;
}

/* Only while all threads are idle, so that none misses a round or sees one twice. */
static void start_threads(int wanted) {
    while (pool.threads < wanted && pool.threads < THREADS_MAX - 1) {
        pthread_t thread;
        int at = pool.threads;
        pool.starts[at].share = at + 1;
        pool.starts[at].round = atomic_load(&pool.round);
        if (pthread_create(&thread, NULL, pool_thread, (void *)(intptr_t)at) != 0) return;
        pthread_detach(thread);
        pool.threads++;
    }
}

void hydra_share_out(share_fn run, void *work, int64_t items, int64_t grain, int threads) {
    if (threads <= 1 || items <= grain || pthread_mutex_trylock(&pool.busy) != 0) {
        run(work, 0, items);
        return;
    }
    if (pool.owner == 0) pool.owner = getpid();
    if (pool.owner != getpid()) {
        pthread_mutex_unlock(&pool.busy);
        run(work, 0, items);
        return;
    }
    start_threads(threads - 1);
    pool.run = run, pool.work = work, pool.items = items, pool.grain = grain;
    pool.shares = threads < pool.threads + 1 ? threads : pool.threads + 1;
    atomic_store_explicit(&pool.left, pool.threads, memory_order_release);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add_explicit(&pool.round, 1, memory_order_release);
    pthread_cond_broadcast(&pool.signal);
    pthread_mutex_unlock(&pool.lock);
    run_share(0);
    for (int i = 0; atomic_load_explicit(&pool.left, memory_order_acquire) > 0; i++)
        if (i < TURNS) turn(); else sched_yield();
    pthread_mutex_unlock(&pool.busy);
}
