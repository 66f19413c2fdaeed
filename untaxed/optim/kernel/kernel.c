/* One pass of AdamW whose update is sparsified and merged with a reference delta, over one contiguous float32 range.
 *
 * The range is walked in the blocks of 4,096 entries that the random masks are keyed by. A block's gradient and moments
 * are in the first cache when its kept entries are looked up, so that parameter and delta are touched where something
 * changes and nowhere else. Every operation is a single IEEE operation in the order of the eager form (no contraction
 * into fused ones), so both give the same bits.
 */
#include "types.h"
#include "arithmetic.h"
#include "spans.h"
#include "random.h"
#include "largest.h"

static void is_finite(const Item *item, Piece *piece) {
    for (int64_t i = piece->from; i < piece->to; i += BLOCK)
        piece->faults += !all_finite(item->g + i, (int)(piece->to - i < BLOCK ? piece->to - i : BLOCK));
}

/* What threads do together: each takes the next piece when it is done with one. */
typedef struct {
    void (*work)(const Item *, Piece *);
    const Item *items;
    Piece *pieces;
    int64_t count, *next; /* the first piece that nobody has taken */
} Job;

static void take_part(void *shared) {
    Job *job = shared;
    for (int64_t k; (k = __atomic_fetch_add(job->next, 1, __ATOMIC_RELAXED)) < job->count;)
        job->work(&job->items[job->pieces[k].item], &job->pieces[k]);
}

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */

enum { STEP_RANDOM, FIND, STEP_LARGE, IS_FINITE };

/* `parallel` is torch's own OpenMP runtime, whose threads work here instead of spinning; null: this thread alone, which may
 * share `next` with others. */
void run(int32_t what, const Item *items, Piece *pieces, int64_t count, int64_t *next, uint32_t threads, Parallel parallel) {
    void (*const works[])(const Item *, Piece *) = {step_random, find, step_large, is_finite};
    Job job = {works[what], items, pieces, count, next};
    if (parallel) parallel(take_part, &job, threads, 0);
    else take_part(&job);
}

int64_t item_size(void) { return (int64_t)sizeof(Item); }
int64_t piece_size(void) { return (int64_t)sizeof(Piece); }
