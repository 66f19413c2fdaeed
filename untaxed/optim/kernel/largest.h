/* One step that keeps the largest updates or momenta, in two passes. */
#define MARGIN 2e-6f /* of rounding, relative */

/* Flags the entries whose magnitude may lie between `low` and `high`, and returns how many are surely above: without a
 * division, and so with a margin for its rounding. */
static int may_lie_between(uint8_t *restrict flags, const float *restrict p, const float *restrict m,
                           const float *restrict v, int count, const Item *item) {
    const Rule rule = item->rule;
    const float scale = 1.0f / rule.root2;
    const uint32_t low_order = item->low, high_order = item->high;
    float low, high;
    int above = 0;
    memcpy(&low, &low_order, 4);
    memcpy(&high, &high_order, 4);
    low *= 1 - MARGIN;
    high *= 1 + MARGIN;
    if (item->momentum) {
        for (int j = 0; j < count; j++) {
            flags[j] = (order_of(m[j]) >= low_order) & (order_of(m[j]) <= high_order);
            above += order_of(m[j]) > high_order;
        }
        return above;
    }
    for (int j = 0; j < count; j++) {
        float root = rule.box ? sqrtf(v[j] + rule.eps) : sqrtf(v[j]) * scale + rule.eps;
        float decay = rule.decay * p[j] * root, step = rule.step_size * m[j];
        float size = fabsf(decay + step), margin = MARGIN * (fabsf(decay) + fabsf(step));
        int over = size - margin > high * root;
        flags[j] = !(size + margin < low * root) & !over; /* where v overflowed nothing is known: flagged */
        above += over;
    }
    return above;
}

/* Exact orders of the flagged entries: those above `high` are counted, those from `low` on are listed. */
static void sort_out(const Item *item, Piece *piece, const uint8_t *flags, int64_t i, int count) {
    int32_t place[CHUNK + FEW];
    const Rule rule = item->rule;
    const int found = places_of(place, flags, count);
    int64_t above = 0, between = piece->between;
    for (int k = 0; k < found; k++) {
        const int64_t at = i + place[k];
        const uint32_t order = order_of(item->momentum ? item->m[at] : proposed(item->p[at], item->m[at], item->v[at], &rule));
        piece->place[between] = (uint32_t)at; /* without a branch to guess wrong */
        piece->order[between] = order;
        above += order > item->high;
        between += (order >= item->low) & (order <= item->high);
    }
    piece->above += above;
    piece->between = between;
}

/* Updates the moments (unless `g` is null) and finds what the k-th magnitude needs. */
static void find(const Item *item, Piece *piece) {
    float *const p = item->p, *const m = item->m, *const v = item->v;
    const float *const g = item->g;
    const Reference none = {0, 0, 0, 0, 0, 0, 0, 0};
    _Alignas(64) uint8_t flags[CHUNK];
    piece->above = piece->between = 0;
    for (int64_t i = piece->from; i < piece->to;) {
        const Span span = next_span(item->start, i, piece->to);
        const Next next = next_of(p, g, m, v, i, piece->to, 1, &none);
        if (g && !all_finite(g + i, span.count)) piece->faults++;
        else if (g) moments(g + i, m + i, v + i, span.count, &item->rule);
        for (int from = 0; from < span.count; from += GROUP) {
            const int count = span.count - from < GROUP ? span.count - from : GROUP;
            const int64_t at = i + from;
            fetch(&next, from);
            piece->above += may_lie_between(flags + from, p + at, m + at, v + at, count, item);
        }
        sort_out(item, piece, flags, i, span.count);
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

/* The second pass of a choice by magnitude, when its threshold is known. */
static void step_large(const Item *item, Piece *piece) {
    const Reference *reference = &item->reference;
    const int mode = item->momentum ? LARGE_MOMENTUM : LARGE_UPDATE;
    _Alignas(64) uint8_t flags[CHUNK];
    _Alignas(64) float values[CHUNK];
    int64_t at = 0;
    for (int64_t i = piece->from; i < piece->to;) {
        const Span span = next_span(item->start, i, piece->to);
        const Next next = next_of(item->p, 0, item->m, item->v, i, piece->to, 1, reference);
        at = gather(values, flags, i, span, at, reference);
        apply_many(item, i, span, values, mode, &next);
        i += span.count;
    }
}
