/* Walking a range in spans of one block: what is fetched ahead, what is kept, and steps of whole groups. */
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define AHEAD 512  /* how far ahead is fetched */
#define FEW 3      /* kept entries of a group that are usual */

typedef struct { int64_t block; int place, count; } Span;

/* Where the next span's entries begin in each array that will be read. */
typedef struct {
    int arrays;
    const float *array[5];
} Next;

static inline void fetch(const Next *next, int from) {
    for (int k = 0; k < next->arrays; k++)
        for (int line = 0; line < GROUP; line += 16) __builtin_prefetch(next->array[k] + from + line);
}

/* What is kept of a span: entries whose bits are at most `last`; of a choice by magnitude see Item. */
typedef struct {
    uint64_t own, other;
    uint32_t own_last, other_last, place, limit, choice;
} Choices;

static Choices choices_of(Span span, const Item *item) {
    const Rule *rule = &item->rule;
    return (Choices){mix(rule->key + (uint64_t)span.block * GOLDEN), mix(rule->reference_key + (uint64_t)span.block * GOLDEN),
                     (uint32_t)(rule->below - 1), (uint32_t)(rule->reference_below - 1), (uint32_t)span.place,
                     item->limit, item->choice};
}

/* The next run of entries that lies within one block of the whole tensor. */
static Span next_span(int64_t start, int64_t i, int64_t n) {
    int64_t global = start + i;
    Span span = {global / BLOCK, (int)(global % BLOCK), 0};
    int64_t room = CHUNK - span.place % CHUNK;
    span.count = (int)(n - i < room ? n - i : room);
    return span;
}

/* What the next span needs: always its gradient and moments, and its weights and delta where all entries are computed. */
static Next next_of(const float *p, const float *g, const float *m, const float *v, int64_t i, int64_t to, int many,
                    const Reference *reference) {
    Next next = {0, {0}};
    if (i + AHEAD + CHUNK >= to) return next;
    i += AHEAD;
    if (g) next.array[next.arrays++] = g + i;
    next.array[next.arrays++] = m + i;
    next.array[next.arrays++] = v + i;
    if (many) next.array[next.arrays++] = p + i;
    if (many && reference->first && !reference->first_narrow) next.array[next.arrays++] = (const float *)reference->first + i;
    return next;
}

/* Where the update of an entry is kept: where a list says so; where the hash does, which may choose the reference, too;
 * where the update, or the momentum, is large. */
enum { LISTED, HASHED, HASHED_BOTH, LARGE_UPDATE, LARGE_MOMENTUM };

/* Entries that are all computed, in whole vectors. */
static inline __attribute__((always_inline)) void all_of_group(
    float *restrict p, const float *restrict m, const float *restrict v, const float *restrict values,
    const uint32_t *restrict listed, int count, uint32_t place, Choices choices, Rule rule, int mode) {
    for (int j = 0; j < count; j++) {
        float update = proposed(p[j], m[j], v[j], &rule), pull = prepared(values[j], &rule);
        uint32_t bits = mode == LISTED ? 0 : bits_of(choices.own, place + (uint32_t)j);
        uint32_t order = order_of(mode == LARGE_MOMENTUM ? m[j] : update);
        int own = mode == LISTED ? listed[j] != 0 : bits <= choices.own_last;
        if (mode >= LARGE_UPDATE) own = (order > choices.limit) | ((order == choices.limit) & (bits >= choices.choice));
        int other = mode == HASHED_BOTH ? bits_of(choices.other, place + (uint32_t)j) <= choices.other_last : 1;
        p[j] += merged(own ? update : 0.0f, other ? pull : 0.0f, &rule);
    }
}

/* The same with what its loop would branch on known to the compiler. */
static void compute(float *p, const float *m, const float *v, const float *values, const uint32_t *listed, int count,
                    uint32_t place, Choices choices, const Rule *rule, int mode) {
    Rule own = *rule;
#define IN(which) if (mode == which) all_of_group(p, m, v, values, listed, count, place, choices, own, which); else
#define EACH_MODE { IN(LISTED) IN(HASHED) IN(HASHED_BOTH) IN(LARGE_UPDATE) IN(LARGE_MOMENTUM) return; }
    if (own.box) EACH_MODE
    else if (own.consensus == SUM) { own.box = 0; own.consensus = SUM; EACH_MODE }
    else if (own.consensus == SIGN) { own.box = 0; own.consensus = SIGN; EACH_MODE }
    else { own.box = 0; own.consensus = SIGN_UNWEIGHTED; EACH_MODE }
#undef EACH_MODE
#undef IN
}

static void apply_many(const Item *item, int64_t i, Span span, const float *values, int mode, const Next *next) {
    const Choices choices = choices_of(span, item);
    for (int from = 0; from < span.count; from += GROUP) {
        const int count = span.count - from < GROUP ? span.count - from : GROUP;
        const int64_t at = i + from;
        fetch(next, from);
        compute(item->p + at, item->m + at, item->v + at, values + from, 0, count, choices.place + (uint32_t)from, choices,
                &item->rule, mode);
    }
}

/* Which of GROUP flags are set, a bit each. */
static inline uint64_t bits_set(const uint8_t *flags) {
    uint64_t set = 0;
#ifdef __SSE2__
    for (int k = 0; k < GROUP; k += 16) {
        __m128i zero = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(flags + k)), _mm_setzero_si128());
        set |= (uint64_t)(uint16_t)~_mm_movemask_epi8(zero) << k;
    }
#else
    for (int k = 0; k < GROUP; k++) set |= (uint64_t)(flags[k] != 0) << k;
#endif
    return set;
}

/* Places of the flagged entries of a span. The first few of a group are written whether they are there or not: a loop
 * whose end nobody can guess costs more. */
static int places_of(int32_t *place, const uint8_t *flags, int count) {
    int k = 0;
    for (int from = 0; from < count; from += GROUP) {
        uint64_t set = bits_set(flags + from);
        if (count - from < GROUP) set &= (1ULL << (count - from)) - 1;
        const int found = __builtin_popcountll(set);
        for (int t = 0; t < FEW || t < found; t++) {
            place[k + t] = from + __builtin_ctzll(set | 1ULL << 63);
            set &= set - 1;
        }
        k += found;
    }
    return k;
}

/* Flags the listed entries of a span that starts at i; returns the first place in the list behind it. */
static int64_t flag_listed(uint8_t *flags, float *values, int64_t i, int count, int64_t at, const Reference *reference) {
    for (int64_t window = i / WINDOW; window <= (i + count - 1) / WINDOW; window++) {
        const int64_t shift = window * WINDOW - i, end = reference->begins[window + 1];
        if (at < reference->begins[window]) at = reference->begins[window];
        for (; at < end && reference->index[at] + shift < count; at++) {
            if (reference->index[at] + shift < 0) continue; /* of spans that were left out */
            flags[reference->index[at] + shift] |= REFERENCE;
            values[reference->index[at] + shift] = reference->value[at];
        }
    }
    return at;
}

/* The delta's values of a span where all entries are computed: 0 where a list has none. */
static int64_t gather(float *values, uint8_t *flags, int64_t i, Span span, int64_t at, const Reference *reference) {
    if (reference->first) {
        references_from(values, reference, i, span.count);
        return at;
    }
    memset(values, 0, sizeof(float) * (size_t)span.count);
    return reference->index ? flag_listed(flags, values, i, span.count, at, reference) : at;
}
