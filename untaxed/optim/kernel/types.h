/* What the kernel is given, laid out as in `_kernel.py`. */
#include <stdint.h>

#define BLOCK 4096
#define CHUNK 256  /* entries worked on at once; divides BLOCK */
#define WINDOW 65536
#define GROUP 64   /* of these, between two rounds of fetching; divides CHUNK */
#define EVERYTHING (1ULL << 32) /* a threshold that keeps every entry */

enum { SUM = 0, SIGN = 1, SIGN_UNWEIGHTED = 2 };
enum { UPDATE = 1, REFERENCE = 2 }; /* bits of an entry's flags */

typedef struct {
    float rest1, beta2, rest2;      /* 1 - beta1, beta2, 1 - beta2 */
    float step_size, root2, eps;    /* lr / (1 - beta1^t), sqrt(1 - beta2^t) */
    float decay;                    /* lr * weight_decay */
    int32_t box;                    /* 1: the root holds eps, no bias correction */
    float weight, update_weight;    /* merge_weight, 1 - merge_weight */
    float scale, reference_scale;   /* rescaling of what is kept */
    float clamp;                    /* of the rescaled reference; infinity: none */
    int32_t consensus;
    uint64_t key, below;            /* the update's mask: random bits below are kept */
    uint64_t reference_key, reference_below;
} Rule;

/* The reference delta: dense (first - second, either as float32 or bfloat16), or a sorted list of kept entries: the lower
 * 16 bits of their places, and where in the list each WINDOW of places begins (and the last one ends). */
typedef struct {
    const void *first, *second;
    int32_t first_narrow, second_narrow; /* 1: bfloat16 */
    const uint16_t *index;
    const int64_t *begins;
    const float *value;
    int64_t listed;
} Reference;

/* One tensor at one step: its local range, which starts at entry `start` of the whole, and how it is moved. */
typedef struct {
    float *p;
    const float *g;
    float *m, *v;
    int64_t n, start;
    Rule rule;
    Reference reference;
    /* Of a choice by magnitude: of the momenta instead of the updates; the guesses between which the threshold lies; what
     * is kept: order above limit, or equal to it with random bits from choice on. */
    int32_t momentum;
    uint32_t low, high, limit, choice;
} Item;

/* A part [from, to) of a tensor. `faults` counts its spans whose gradient is not finite. Of a choice by magnitude: how
 * many entries lie above `high`, and places and order of those from `low` to `high`. */
typedef struct {
    int64_t item, from, to, faults, above, between;
    uint32_t *place, *order;
} Piece;
