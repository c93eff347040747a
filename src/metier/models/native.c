/* What a sampling pass does between its matrix products, for bfloat16 on a CPU.

   A pass over few rows is made of hundreds of small operations; each costs torch more to
   start than to do. Here a norm, a rotation, a gated unit and the attention of rows that
   grow by one token are one call each. Sums and exponentials are float32; what torch rounds
   to bfloat16 on the way in norms, rotations and gates is rounded here too, so those agree
   with torch but for the order of sums. Attention keeps its weights in float32.

   Compiled on first use by metier/models/native.py, which also has the shapes. Plain C: the
   compiler makes vectors of the loops over d, and may order sums as it likes. No input is
   checked here. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

static inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline bf16 narrow(float x) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return x == x ? (bf16)rounded : (bf16)0x7fc0;
}

static inline float rounded(float x) { return wide(narrow(x)); }

/* e^x to 2e-7 of itself: 2^n by the exponent's bits, the rest by a polynomial. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 89.0f ? 89.0f : x; /* from 88.4 on it is infinite */
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x)); /* ln 2 in two parts, not to be joined */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* out = weight * x / sqrt(mean(x^2) + eps), each row of `size` numbers. */
void metier_norm(const bf16 *x, const bf16 *weight, bf16 *out, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for if (rows * size > 32768)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *from = x + r * size;
        bf16 *to = out + r * size;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < size; d++) sum += wide(from[d]) * wide(from[d]);
        float inverse = 1.0f / sqrtf(sum / (float)size + eps);
#pragma omp simd
        for (int64_t d = 0; d < size; d++) to[d] = narrow(wide(weight[d]) * rounded(wide(from[d]) * inverse));
    }
}

/* out = silu(gate) * up; rows of gate and up lie `stride` apart, those of out `size`. */
void metier_gate(const bf16 *gate, const bf16 *up, bf16 *out, int64_t rows, int64_t size, int64_t stride) {
#pragma omp parallel for if (rows * size > 8192)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *g = gate + r * stride, *u = up + r * stride;
        bf16 *to = out + r * size;
#pragma omp simd
        for (int64_t d = 0; d < size; d++) {
            float x = wide(g[d]);
            to[d] = narrow(rounded(x / (1.0f + exponential(-x))) * wide(u[d]));
        }
    }
}

/* Heads turned by their position, first half against second: x (tokens, heads, size), rows `stride` apart;
   out without gaps; cosines and sines (tokens, size), of which the first half is read. */
void metier_rotate(const bf16 *x, const bf16 *cosines, const bf16 *sines, bf16 *out, int64_t tokens, int64_t heads,
                   int64_t size, int64_t stride) {
    int64_t half = size / 2;
#pragma omp parallel for if (tokens * heads * size > 32768)
    for (int64_t t = 0; t < tokens; t++) {
        const bf16 *c = cosines + t * size, *s = sines + t * size;
        for (int64_t h = 0; h < heads; h++) {
            const bf16 *one = x + t * stride + h * size, *two = one + half;
            bf16 *to = out + (t * heads + h) * size;
#pragma omp simd
            for (int64_t d = 0; d < half; d++) {
                float a = wide(one[d]), b = wide(two[d]), cos = wide(c[d]), sin = wide(s[d]);
                to[d] = narrow(rounded(a * cos) - rounded(b * sin));
                to[d + half] = narrow(rounded(b * cos) + rounded(a * sin));
            }
        }
    }
}

/* One row that grows by one token. */
typedef struct {
    int64_t token;  /* its place in the pass */
    int64_t slot;   /* of the cache */
    int64_t length; /* own tokens before this one */
    int64_t prefix; /* in the stacked prefixes; of no meaning where it has no tokens */
    int64_t ahead;  /* tokens of the prefix */
} Row;

typedef struct {
    int64_t rows, heads, key_heads;
    int64_t capacity, longest; /* room of a slot and of a stacked prefix */
    float scale;
} Shape;

/* Scores of one query against n keys, and the largest so far. */
static inline __attribute__((always_inline)) float score(const float *query, const bf16 *keys, int64_t n, float *scores,
                                                         float top, const int64_t size) {
    for (int64_t p = 0; p < n; p++) {
        const bf16 *key = keys + p * size;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < size; d++) sum += query[d] * wide(key[d]);
        scores[p] = sum;
        top = sum > top ? sum : top;
    }
    return top;
}

/* sum += weights of n values. */
static inline __attribute__((always_inline)) void gather(const float *weights, const bf16 *values, int64_t n, float *sum,
                                                         const int64_t size) {
    float held[size];
    memcpy(held, sum, sizeof held);
    for (int64_t p = 0; p < n; p++) {
        const bf16 *value = values + p * size;
#pragma omp simd
        for (int64_t d = 0; d < size; d++) held[d] += weights[p] * wide(value[d]);
    }
    memcpy(sum, held, sizeof held);
}

/* One key head of one row: keeps the new key and value, then attends with each of its queries. */
static inline __attribute__((always_inline)) void attend(
    const Row *row, const Shape *shape, int64_t head, const bf16 *queries, const bf16 *key, const bf16 *value,
    bf16 *keys, bf16 *values, const bf16 *ahead_keys, const bf16 *ahead_values, float *scores, bf16 *out,
    const int64_t size) {
    bf16 *own_keys = keys + (row->slot * shape->key_heads + head) * shape->capacity * size;
    bf16 *own_values = values + (row->slot * shape->key_heads + head) * shape->capacity * size;
    memcpy(own_keys + row->length * size, key, size * sizeof(bf16));
    memcpy(own_values + row->length * size, value, size * sizeof(bf16));
    int64_t before = (row->prefix * shape->key_heads + head) * shape->longest * size;
    int64_t own = row->length + 1, all = row->ahead + own, each = shape->heads / shape->key_heads;
    for (int64_t q = 0; q < each; q++) {
        float query[size], sum[size], total = 0.0f, top = -INFINITY;
        for (int64_t d = 0; d < size; d++) query[d] = wide(queries[q * size + d]) * shape->scale, sum[d] = 0.0f;
        if (row->ahead) top = score(query, ahead_keys + before, row->ahead, scores, top, size);
        top = score(query, own_keys, own, scores + row->ahead, top, size);
#pragma omp simd reduction(+ : total)
        for (int64_t p = 0; p < all; p++) {
            scores[p] = exponential(scores[p] - top);
            total += scores[p];
        }
        if (row->ahead) gather(scores, ahead_values + before, row->ahead, sum, size);
        gather(scores + row->ahead, own_values, own, sum, size);
        for (int64_t d = 0; d < size; d++) out[q * size + d] = narrow(sum[d] / total);
    }
}

/* Attention of rows that grow by one token each. query (tokens, heads, size), key and value (tokens, key heads, size)
   with rows `query_stride`, `key_stride`, `value_stride` apart; keys and values (slots, key heads, capacity, size);
   ahead_keys and ahead_values (prefixes, key heads, longest, size). out (rows, heads, size). Returns 0, or 1 where
   there is no memory. */
#define ATTEND(SIZE)                                                                                                   \
    int metier_attend_##SIZE(const Shape *shape, const Row *rows, const bf16 *query, int64_t query_stride,             \
                             const bf16 *key, int64_t key_stride, const bf16 *value, int64_t value_stride, bf16 *keys, \
                             bf16 *values, const bf16 *ahead_keys, const bf16 *ahead_values, bf16 *out) {              \
        int64_t heads = shape->key_heads, each = shape->heads / heads, failed = 0;                                     \
        int64_t reads = shape->rows * shape->heads * (shape->longest + shape->capacity);                               \
        _Pragma("omp parallel reduction(+ : failed) if (reads > 16384)") {                                                                \
            float *scores = malloc((shape->longest + shape->capacity) * sizeof(float));                                \
            failed += scores == NULL;                                                                                  \
            _Pragma("omp for schedule(dynamic, 4)") for (int64_t n = 0; n < shape->rows * heads; n++) {                \
                const Row *row = rows + n / heads;                                                                     \
                int64_t head = n % heads;                                                                              \
                if (scores)                                                                                            \
                    attend(row, shape, head, query + row->token * query_stride + head * each * SIZE,                   \
                           key + row->token * key_stride + head * SIZE,                                                \
                           value + row->token * value_stride + head * SIZE, keys, values, ahead_keys, ahead_values,    \
                           scores, out + ((n / heads) * shape->heads + head * each) * SIZE, SIZE);                     \
            }                                                                                                          \
            free(scores);                                                                                              \
        }                                                                                                              \
        return failed != 0;                                                                                            \
    }
ATTEND(64)
ATTEND(128)
