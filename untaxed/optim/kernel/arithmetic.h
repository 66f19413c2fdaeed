/* Hash, moments, update, merge: what happens to one entry, or to a plain run of them. */
#include <math.h>
#include <string.h>

#define GOLDEN 0x9E3779B97F4A7C15ULL

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
    if (total != total) return total; /* as the eager form has it */
    return total < 0 ? negative : otherwise;
}

static inline float prepared(float reference, const Rule *rule) {
    reference *= rule->reference_scale;
    reference = reference > rule->clamp ? rule->clamp : reference;
    return reference < -rule->clamp ? -rule->clamp : reference;
}
