/* One step with masks drawn at random, in one pass. */
#define DEPTH 4    /* spans between finding a kept entry and moving it, so that its cache line has arrived */
#define MANY 0.03  /* kept share from which computing all entries costs less than looking for the kept */

/* Flags the kept entries of a span. Meanwhile what the next span will need is fetched: hashing keeps the arithmetic busy
 * and would leave the memory idle. */
static void flag(uint8_t *restrict flags, Span span, const Item *item, int with_reference, const Next *next) {
    const Choices choices = choices_of(span, item);
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

/* The few kept entries of a span. They are moved DEPTH spans later, when their cache lines have arrived. */
typedef struct {
    int64_t from;
    int count;
    int32_t place[CHUNK + FEW];
    uint32_t own[CHUNK];   /* 1: the update is kept */
    uint32_t other[CHUNK]; /* 1: the reference is */
    float pull[CHUNK];     /* of listed references; dense ones are read when they are used */
} Kept;

/* Where the reference's value of an entry lies; that of one whose reference is left out is `nothing`. Chosen without a
 * branch: whether it is left out nobody can guess. */
static inline const char *place_in(const void *values, int narrow, int64_t i, uint32_t wanted, const void *nothing) {
    const char *there = (const char *)values + ((uint64_t)i << (narrow ? 1 : 2));
    return (const char *)((uintptr_t)nothing ^ (((uintptr_t)nothing ^ (uintptr_t)there) & -(uintptr_t)(wanted != 0)));
}

static void collect(Kept *kept, const float *p, int64_t i, const uint8_t *flags, const float *values, int count,
                    const Reference *reference) {
    kept->from = i;
    kept->count = places_of(kept->place, flags, count);
    for (int k = 0; k < kept->count; k++) {
        const int j = kept->place[k];
        kept->own[k] = flags[j] & UPDATE;
        kept->other[k] = flags[j] & REFERENCE;
        __builtin_prefetch(p + i + j, 1, 0);
    }
    if (reference->index)
        for (int k = 0; k < kept->count; k++) kept->pull[k] = kept->other[k] ? values[kept->place[k]] : 0.0f;
    for (int side = 0; side < 2; side++) {
        const void *side_values = side ? reference->second : reference->first;
        const int narrow = side ? reference->second_narrow : reference->first_narrow;
        if (!side_values) continue;
        for (int k = 0; k < kept->count; k++)
            __builtin_prefetch(place_in(side_values, narrow, i + kept->place[k], kept->other[k], p + i + kept->place[k]), 0, 3);
    }
}

/* The values of one side of a dense reference at the kept entries, 0 where the reference is left out; or less these. */
static void pull_from(Kept *kept, const void *values, int narrow, int less) {
    const float nothing = 0.0f;
    for (int k = 0; k < kept->count; k++) {
        const char *place = place_in(values, narrow, kept->from + kept->place[k], kept->other[k], &nothing);
        const float value = narrow ? widened(*(const uint16_t *)place) : *(const float *)place;
        kept->pull[k] = less ? kept->pull[k] - value : value;
    }
}

static void apply_kept(Kept *kept, float *p, const float *m, const float *v, const Rule *rule, const Reference *reference) {
    _Alignas(64) float weights[CHUNK], first[CHUNK], second[CHUNK];
    if (reference->first) pull_from(kept, reference->first, reference->first_narrow, 0);
    else if (!reference->index) memset(kept->pull, 0, sizeof(float) * (size_t)kept->count);
    if (reference->second) pull_from(kept, reference->second, reference->second_narrow, 1);
    for (int k = 0; k < kept->count; k++) {
        const int64_t i = kept->from + kept->place[k];
        weights[k] = p[i];
        first[k] = m[i];
        second[k] = v[i];
    }
    compute(weights, first, second, kept->pull, kept->own, kept->count, 0, (Choices){0}, rule, LISTED);
    for (int k = 0; k < kept->count; k++) p[kept->from + kept->place[k]] = weights[k];
    kept->count = 0;
}

/* 1 where so many entries will be kept that all are computed. */
static int keeps_many(int64_t n, const Rule *rule, const Reference *reference) {
    double share = (double)rule->below / (double)EVERYTHING;
    if (reference->index) share += (double)reference->listed / (double)(n > 0 ? n : 1);
    else if (reference->first) share += (double)rule->reference_below / (double)EVERYTHING;
    return share > MANY;
}

/* Masks at random. A span whose gradient is not finite is left as it is. */
static void step_random(const Item *item, Piece *piece) {
    float *const p = item->p, *const m = item->m, *const v = item->v;
    const float *const g = item->g;
    const Rule *rule = &item->rule;
    const Reference *reference = &item->reference;
    const int64_t from = piece->from, to = piece->to, start = item->start;
    _Alignas(64) uint8_t flags[CHUNK];
    _Alignas(64) float values[CHUNK];
    int64_t at = 0;
    const int many = keeps_many(item->n, rule, reference), hashed = reference->first != 0;
    Kept kept[DEPTH];
    for (int k = 0; k < DEPTH; k++) kept[k].count = 0;
    int turn = 0;
    for (int64_t i = from; i < to;) {
        const Span span = next_span(start, i, to);
        const Next next = next_of(p, g, m, v, i, to, many, reference);
        if (!all_finite(g + i, span.count)) {
            piece->faults++;
        } else {
            moments(g + i, m + i, v + i, span.count, rule);
            if (many) {
                const int as_it_lies = reference->first && !reference->second && !reference->first_narrow;
                if (!as_it_lies) at = gather(values, flags, i, span, at, reference);
                apply_many(item, i, span, as_it_lies ? (const float *)reference->first + i : values,
                           hashed ? HASHED_BOTH : HASHED, &next);
            } else {
                flag(flags, span, item, hashed, &next);
                if (reference->index) at = flag_listed(flags, values, i, span.count, at, reference);
                apply_kept(&kept[turn], p, m, v, rule, reference);
                collect(&kept[turn], p, i, flags, values, span.count, reference);
                turn = (turn + 1) % DEPTH;
            }
        }
        i += span.count;
    }
    for (int k = 0; k < DEPTH; k++) apply_kept(&kept[k], p, m, v, rule, reference);
}
