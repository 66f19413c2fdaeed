/* One pass of AdamW whose update is sparsified and merged with a reference delta, over one contiguous float32 range.
 *
 * The range is walked in the blocks of 4,096 entries that the random masks are keyed by. A block's gradient and moments
 * are in the first cache when its kept entries are looked up, so that parameter and delta are touched where something
 * changes and nowhere else. Every operation is a single IEEE operation in the order of the eager form (no contraction
 * into fused ones), so both give the same bits.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 4096
#define CHUNK 256  /* entries worked on at once; divides BLOCK */
#define GROUP 64   /* of these, between two rounds of fetching; divides CHUNK */
#define AHEAD 512  /* how far ahead is fetched */
#define DEPTH 4    /* spans between finding a kept entry and moving it, so that its cache line has arrived */
#define MANY 0.03  /* kept share from which computing all entries costs less than looking for the kept */
#define GOLDEN 0x9E3779B97F4A7C15ULL
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

/* The reference delta: dense (first - second, either as float32 or bfloat16), or a sorted list of kept entries. */
typedef struct {
    const void *first, *second;
    int32_t first_narrow, second_narrow; /* 1: bfloat16 */
    const int32_t *index;
    const float *value;
    int64_t listed;
} Reference;

/* Which entries a choice by magnitude keeps: order above limit, or equal to it with random bits from choice on. */
typedef struct {
    uint32_t limit, choice;
} Magnitude;

static inline uint64_t mix(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9ULL;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBULL;
    return word ^ (word >> 31);
}

static inline uint32_t bits_of(uint64_t block, uint32_t place) {
    uint32_t x = (uint32_t)block + place * 0x9E3779B1u;
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x ^= (uint32_t)(block >> 32);
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

static inline float widened(uint16_t narrow) {
    uint32_t word = (uint32_t)narrow << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static inline float element(const void *values, int narrow, int64_t i) {
    return narrow ? widened(((const uint16_t *)values)[i]) : ((const float *)values)[i];
}

static inline float reference_at(const Reference *reference, int64_t i) {
    float value = element(reference->first, reference->first_narrow, i);
    return reference->second ? value - element(reference->second, reference->second_narrow, i) : value;
}

/* The same for a whole span, one plain loop a kind of storage so that it is vectorised. */
static void references_from(float *restrict values, const Reference *reference, int64_t i, int count) {
    const float *wide = (const float *)reference->first + i;
    const uint16_t *narrow = (const uint16_t *)reference->first + i;
    if (reference->first_narrow) for (int j = 0; j < count; j++) values[j] = widened(narrow[j]);
    else for (int j = 0; j < count; j++) values[j] = wide[j];
    if (!reference->second) return;
    wide = (const float *)reference->second + i;
    narrow = (const uint16_t *)reference->second + i;
    if (reference->second_narrow) for (int j = 0; j < count; j++) values[j] -= widened(narrow[j]);
    else for (int j = 0; j < count; j++) values[j] -= wide[j];
}

static inline uint32_t order_of(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    return word & 0x7FFFFFFFu;
}

static int all_finite(const float *restrict values, int count) {
    uint32_t worst = 0;
    for (int j = 0; j < count; j++) {
        uint32_t order = order_of(values[j]);
        worst = order > worst ? order : worst;
    }
    return worst < 0x7F800000u;
}

static void moments(const float *restrict g, float *restrict m, float *restrict v, int count, const Rule *rule) {
    const float rest1 = rule->rest1, beta2 = rule->beta2, rest2 = rule->rest2;
    for (int j = 0; j < count; j++) {
        m[j] = m[j] + rest1 * (g[j] - m[j]);
        v[j] = v[j] * beta2 + rest2 * g[j] * g[j];
    }
}

static inline float proposed(float p, float m, float v, const Rule *rule) {
    float root = rule->box ? sqrtf(v + rule->eps) : sqrtf(v) / rule->root2 + rule->eps;
    return -rule->decay * p + -rule->step_size * m / root;
}

static inline float above_zero(float value) { return value > 0 ? value : 0.0f; }
static inline float below_zero(float value) { return value < 0 ? value : 0.0f; }

static inline float merged(float update, float reference, const Rule *rule) {
    update *= rule->scale;
    float a = update * rule->update_weight, b = reference * rule->weight;
    if (rule->consensus == SUM) return a + b;
    float total = rule->consensus == SIGN ? a + b : update + reference;
    float positive = above_zero(a) + above_zero(b), negative = below_zero(a) + below_zero(b);
    float otherwise = total == 0 && rule->consensus == SIGN ? 0.0f : positive;
    return total < 0 ? negative : otherwise;
}

static inline float prepared(float reference, const Rule *rule) {
    reference *= rule->reference_scale;
    reference = reference > rule->clamp ? rule->clamp : reference;
    return reference < -rule->clamp ? -rule->clamp : reference;
}

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

/* The random choices of a span: an entry is kept where its bits are at most `last`. */
typedef struct {
    uint64_t own, other;
    uint32_t own_last, other_last, place;
} Choices;

static Choices choices_of(Span span, const Rule *rule) {
    return (Choices){mix(rule->key + (uint64_t)span.block * GOLDEN), mix(rule->reference_key + (uint64_t)span.block * GOLDEN),
                     (uint32_t)(rule->below - 1), (uint32_t)(rule->reference_below - 1), (uint32_t)span.place};
}

/* Flags the kept entries of a span. Meanwhile what the next span will need is fetched: hashing keeps the arithmetic busy
 * and would leave the memory idle. */
static void flag(uint8_t *restrict flags, Span span, const Rule *rule, int with_reference, const Next *next) {
    const Choices choices = choices_of(span, rule);
    for (int from = 0; from < span.count; from += GROUP) {
        const int count = span.count - from < GROUP ? span.count - from : GROUP;
        uint8_t *restrict group = flags + from;
        const uint32_t place = choices.place + (uint32_t)from;
        fetch(next, from);
        if (with_reference)
            for (int j = 0; j < count; j++)
                group[j] = (bits_of(choices.own, place + (uint32_t)j) <= choices.own_last ? UPDATE : 0) |
                           (bits_of(choices.other, place + (uint32_t)j) <= choices.other_last ? REFERENCE : 0);
        else
            for (int j = 0; j < count; j++)
                group[j] = bits_of(choices.own, place + (uint32_t)j) <= choices.own_last ? UPDATE : 0;
    }
}

/* The next run of entries that lies within one block of the whole tensor. */
static Span next_span(int64_t start, int64_t i, int64_t n) {
    int64_t global = start + i;
    Span span = {global / BLOCK, (int)(global % BLOCK), 0};
    int64_t room = CHUNK - span.place % CHUNK;
    span.count = (int)(n - i < room ? n - i : room);
    return span;
}

/* Entries that are all computed, in whole vectors; where their update is kept says `chosen`, or the hash. */
static inline __attribute__((always_inline)) void all_of_group(
    float *restrict p, const float *restrict m, const float *restrict v, const float *restrict values,
    const uint32_t *restrict chosen, int count, uint32_t place, Choices choices, Rule rule, int by_list, int hashed_reference) {
    for (int j = 0; j < count; j++) {
        int own = by_list ? chosen[j] != 0 : bits_of(choices.own, place + (uint32_t)j) <= choices.own_last;
        int other = hashed_reference ? bits_of(choices.other, place + (uint32_t)j) <= choices.other_last : 1;
        float update = proposed(p[j], m[j], v[j], &rule), pull = prepared(values[j], &rule);
        p[j] += merged(own ? update : 0.0f, other ? pull : 0.0f, &rule);
    }
}

/* The same with what its loop would branch on known to the compiler. */
static void compute(float *p, const float *m, const float *v, const float *values, const uint32_t *chosen, int count,
                    uint32_t place, Choices choices, const Rule *rule, int hashed_reference) {
    Rule own = *rule;
#define CALL(list, hashed) all_of_group(p, m, v, values, chosen, count, place, choices, own, list, hashed)
#define EACH_MASK { if (chosen) CALL(1, 0); else if (hashed_reference) CALL(0, 1); else CALL(0, 0); }
    if (own.box) EACH_MASK
    else if (own.consensus == SUM) { own.box = 0; own.consensus = SUM; EACH_MASK }
    else if (own.consensus == SIGN) { own.box = 0; own.consensus = SIGN; EACH_MASK }
    else { own.box = 0; own.consensus = SIGN_UNWEIGHTED; EACH_MASK }
#undef EACH_MASK
#undef CALL
}

static void apply_many(float *p, const float *m, const float *v, const float *values, const uint32_t *chosen, Span span,
                       const Rule *rule, int hashed_reference, const Next *next) {
    const Choices choices = choices_of(span, rule);
    for (int from = 0; from < span.count; from += GROUP) {
        const int count = span.count - from < GROUP ? span.count - from : GROUP;
        fetch(next, from);
        compute(p + from, m + from, v + from, values + from, chosen ? chosen + from : 0, count,
                choices.place + (uint32_t)from, choices, rule, hashed_reference);
    }
}

/* The few kept entries of a span. They are moved DEPTH spans later, when their cache lines have arrived. */
typedef struct {
    int64_t from;
    int count;
    int32_t place[CHUNK];
    uint32_t own[CHUNK];   /* 1: the update is kept */
    uint32_t other[CHUNK]; /* 1: the reference is */
    float pull[CHUNK];     /* of listed references; dense ones are read when they are used */
} Kept;

static void collect(Kept *kept, const float *p, int64_t i, const uint8_t *flags, const float *values, int count,
                    const Reference *reference) {
    uint64_t words[CHUNK / 8];
    uint8_t places[CHUNK / 8];
    int found = 0, k = 0;
    for (int word = 0; 8 * word < count; word++) { /* the words that hold a flag, without a branch to guess wrong */
        uint64_t eight = 0;
        memcpy(&eight, flags + 8 * word, count - 8 * word < 8 ? (size_t)(count - 8 * word) : 8);
        words[found] = eight;
        places[found] = (uint8_t)word;
        found += eight != 0;
    }
    for (int w = 0; w < found; w++) {
        uint64_t eight = words[w];
        do {
            int byte = __builtin_ctzll(eight) >> 3, j = 8 * places[w] + byte, set = (int)(eight >> (8 * byte)) & 0xFF;
            eight &= ~(0xFFULL << (8 * byte));
            kept->place[k] = j;
            kept->own[k] = set & UPDATE;
            kept->other[k] = (uint32_t)(set & REFERENCE);
            kept->pull[k++] = set & REFERENCE && reference->index ? values[j] : 0.0f;
            __builtin_prefetch(p + i + j, 1, 0);
            if (set & REFERENCE && reference->first) {
                __builtin_prefetch((const char *)reference->first + (reference->first_narrow ? 2 : 4) * (i + j), 0, 0);
                if (reference->second)
                    __builtin_prefetch((const char *)reference->second + (reference->second_narrow ? 2 : 4) * (i + j), 0, 0);
            }
        } while (eight);
    }
    kept->from = i;
    kept->count = k;
}

static void apply_kept(Kept *kept, float *p, const float *m, const float *v, const Rule *rule, const Reference *reference) {
    _Alignas(64) float weights[CHUNK], first[CHUNK], second[CHUNK];
    for (int k = 0; k < kept->count; k++) {
        const int64_t i = kept->from + kept->place[k];
        weights[k] = p[i];
        first[k] = m[i];
        second[k] = v[i];
        if (kept->other[k] && !reference->index) kept->pull[k] = reference_at(reference, i);
    }
    compute(weights, first, second, kept->pull, kept->own, kept->count, 0, (Choices){0}, rule, 0);
    for (int k = 0; k < kept->count; k++) p[kept->from + kept->place[k]] = weights[k];
    kept->count = 0;
}

/* Flags the listed entries of a span that starts at i; returns the first place in the list behind it. */
static int64_t flag_listed(uint8_t *flags, float *values, int64_t i, int count, int64_t at, const Reference *reference) {
    while (at < reference->listed && reference->index[at] < i) at++; /* of blocks that were left out */
    for (; at < reference->listed && reference->index[at] < i + count; at++) {
        flags[reference->index[at] - i] |= REFERENCE;
        values[reference->index[at] - i] = reference->value[at];
    }
    return at;
}

static int64_t first_listed(const Reference *reference, int64_t from) {
    int64_t low = 0, high = reference->index ? reference->listed : 0;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (reference->index[middle] < from) low = middle + 1; else high = middle;
    }
    return low;
}

/* 1 where so many entries will be kept that all are computed. */
static int keeps_many(int64_t n, const Rule *rule, const Reference *reference) {
    double share = (double)rule->below / (double)EVERYTHING;
    if (reference->index) share += (double)reference->listed / (double)(n > 0 ? n : 1);
    else if (reference->first) share += (double)rule->reference_below / (double)EVERYTHING;
    return share > MANY;
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

/* Entries [from, to) of a local range that starts at entry `start` of the whole tensor, masks at random.
 * A span whose gradient is not finite is left as it is; returns how many there were. */
int64_t step_random(float *p, const float *g, float *m, float *v, int64_t n, int64_t from, int64_t to, int64_t start,
                    const Rule *rule, const Reference *reference) {
    _Alignas(64) uint8_t flags[CHUNK];
    _Alignas(64) float values[CHUNK];
    int64_t faults = 0, at = first_listed(reference, from);
    const int many = keeps_many(n, rule, reference), hashed = reference->first != 0;
    Kept kept[DEPTH];
    for (int k = 0; k < DEPTH; k++) kept[k].count = 0;
    int turn = 0;
    for (int64_t i = from; i < to;) {
        const Span span = next_span(start, i, to);
        const Next next = next_of(p, g, m, v, i, to, many, reference);
        if (!all_finite(g + i, span.count)) {
            faults++;
        } else {
            moments(g + i, m + i, v + i, span.count, rule);
            if (many) {
                const int as_it_lies = reference->first && !reference->second && !reference->first_narrow;
                if (!as_it_lies) at = gather(values, flags, i, span, at, reference);
                apply_many(p + i, m + i, v + i, as_it_lies ? (const float *)reference->first + i : values, 0, span, rule,
                           hashed, &next);
            } else {
                flag(flags, span, rule, hashed, &next);
                if (reference->index) at = flag_listed(flags, values, i, span.count, at, reference);
                apply_kept(&kept[turn], p, m, v, rule, reference);
                collect(&kept[turn], p, i, flags, values, span.count, reference);
                turn = (turn + 1) % DEPTH;
            }
        }
        i += span.count;
    }
    for (int k = 0; k < DEPTH; k++) apply_kept(&kept[k], p, m, v, rule, reference);
    return faults;
}

/* Flags the entries whose magnitude may be `low` or more: without a division, and so with a margin for its rounding. */
static void may_reach(uint8_t *restrict flags, const float *restrict p, const float *restrict m, const float *restrict v,
                      int count, const Rule *rule, int momentum, uint32_t low) {
    const Rule own = *rule;
    const float scale = 1.0f / own.root2;
    float bound;
    memcpy(&bound, &low, 4);
    bound *= 0.99999f;
    if (momentum)
        for (int j = 0; j < count; j++) flags[j] = order_of(m[j]) >= low;
    else if (own.box)
        for (int j = 0; j < count; j++) {
            float root = sqrtf(v[j] + own.eps);
            flags[j] = fabsf(own.decay * p[j] * root + own.step_size * m[j]) >= bound * root;
        }
    else
        for (int j = 0; j < count; j++) {
            float root = sqrtf(v[j]) * scale + own.eps;
            flags[j] = fabsf(own.decay * p[j] * root + own.step_size * m[j]) >= bound * root;
        }
}

/* What the first pass finds in one range: places of the entries above `high`, and places and order of those between. */
typedef struct {
    uint32_t *above, *between, *order;
    int64_t above_count, between_count, faults;
} Found;

static void sort_out(Found *found, const Kept *kept, const float *p, const float *m, const float *v, const Rule *rule,
                     int momentum, uint32_t low, uint32_t high) {
    _Alignas(64) float weights[CHUNK], first[CHUNK], second[CHUNK];
    uint32_t order[CHUNK];
    const Rule own = *rule;
    for (int k = 0; k < kept->count; k++) {
        const int64_t i = kept->from + kept->place[k];
        weights[k] = p[i];
        first[k] = m[i];
        second[k] = v[i];
    }
    if (momentum) for (int k = 0; k < kept->count; k++) order[k] = order_of(first[k]);
    else for (int k = 0; k < kept->count; k++) order[k] = order_of(proposed(weights[k], first[k], second[k], &own));
    for (int k = 0; k < kept->count; k++) {
        const uint32_t place = (uint32_t)(kept->from + kept->place[k]);
        if (order[k] > high) {
            found->above[found->above_count++] = place;
        } else if (order[k] >= low) {
            found->between[found->between_count] = place;
            found->order[found->between_count++] = order[k];
        }
    }
}

/* Updates the moments (unless `g` is null) and finds what the k-th magnitude needs. */
void moments_and_found(const float *p, const float *g, float *m, float *v, int64_t from, int64_t to, int64_t start,
                       const Rule *rule, int32_t momentum, uint32_t low, uint32_t high, Found *found) {
    _Alignas(64) uint8_t flags[CHUNK];
    const Reference none = {0, 0, 0, 0, 0, 0, 0};
    Kept kept;
    for (int64_t i = from; i < to;) {
        const Span span = next_span(start, i, to);
        if (g && !all_finite(g + i, span.count)) found->faults++;
        else if (g) moments(g + i, m + i, v + i, span.count, rule);
        may_reach(flags, p + i, m + i, v + i, span.count, rule, momentum, low);
        collect(&kept, p, i, flags, 0, span.count, &none);
        sort_out(found, &kept, p, m, v, rule, momentum, low, high);
        i += span.count;
    }
}

/* Random bits of the entries at these places of a local range, for the choice among ties. */
void bits_at(const uint32_t *places, int64_t count, int64_t start, uint64_t key, uint32_t *bits) {
    for (int64_t k = 0; k < count; k++) {
        const int64_t global = start + places[k];
        bits[k] = bits_of(mix(key + (uint64_t)(global / BLOCK) * GOLDEN), (uint32_t)(global % BLOCK));
    }
}

/* The second pass of a choice by magnitude: moves what the first one found and `magnitude` chose among. */
void step_found(float *p, const float *m, const float *v, int64_t n, int64_t from, int64_t to, int64_t start,
                const Rule *rule, const Magnitude *magnitude, const Found *found, const Reference *reference) {
    _Alignas(64) uint8_t flags[CHUNK];
    _Alignas(64) float values[CHUNK];
    _Alignas(64) uint32_t chosen[CHUNK];
    int64_t at = first_listed(reference, from), above = 0, between = 0;
    const int many = keeps_many(n, rule, reference);
    Kept kept[DEPTH];
    for (int k = 0; k < DEPTH; k++) kept[k].count = 0;
    int turn = 0;
    for (int64_t i = from; i < to;) {
        const Span span = next_span(start, i, to);
        const Next next = next_of(p, 0, m, v, i, to, many, reference);
        const uint64_t word = mix(rule->key + (uint64_t)span.block * GOLDEN);
        memset(flags, 0, (size_t)span.count);
        for (; above < found->above_count && found->above[above] < i + span.count; above++)
            flags[found->above[above] - i] = UPDATE;
        for (; between < found->between_count && found->between[between] < i + span.count; between++) {
            const int j = (int)(found->between[between] - i);
            if (found->order[between] > magnitude->limit ||
                (found->order[between] == magnitude->limit &&
                 bits_of(word, (uint32_t)(span.place + j)) >= magnitude->choice))
                flags[j] = UPDATE;
        }
        if (many) {
            for (int j = 0; j < span.count; j++) chosen[j] = flags[j];
            at = gather(values, flags, i, span, at, reference);
            apply_many(p + i, m + i, v + i, values, chosen, span, rule, 0, &next);
        } else {
            for (int group = 0; group < span.count; group += GROUP) fetch(&next, group);
            if (reference->index) at = flag_listed(flags, values, i, span.count, at, reference);
            apply_kept(&kept[turn], p, m, v, rule, reference);
            collect(&kept[turn], p, i, flags, values, span.count, reference);
            turn = (turn + 1) % DEPTH;
        }
        i += span.count;
    }
    for (int k = 0; k < DEPTH; k++) apply_kept(&kept[k], p, m, v, rule, reference);
}

/* 1 when every entry of the range is finite. */
int64_t is_finite(const float *values, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i += BLOCK)
        if (!all_finite(values + i, (int)(to - i < BLOCK ? to - i : BLOCK))) return 0;
    return 1;
}

int64_t rule_size(void) { return (int64_t)sizeof(Rule); }
