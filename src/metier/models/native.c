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
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

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

typedef float Lanes __attribute__((vector_size(64))); /* sixteen numbers */
enum { LANES = 16, TOGETHER = 4 };                    /* TOGETHER: queries that read a key at once */

static inline Lanes load(const bf16 *from) {
    uint16_t narrowed __attribute__((vector_size(32)));
    uint32_t bits __attribute__((vector_size(64)));
    Lanes out;
    memcpy(&narrowed, from, sizeof narrowed);
    bits = __builtin_convertvector(narrowed, __typeof__(bits)) << 16;
    memcpy(&out, &bits, sizeof out);
    return out;
}

/* Scores of `count` queries against n keys, before the scale; the rows of scores lie `stride` apart. Where the
   processor multiplies bfloat16 itself, thirty-two products are one instruction. */
static inline __attribute__((always_inline)) void score(const bf16 *queries, const bf16 *keys, int64_t n, float *scores,
                                                        int64_t stride, const int count, const int size) {
    for (int64_t p = 0; p < n; p++)
        for (int q = 0; q < count; q++) {
            const bf16 *query = queries + q * size, *key = keys + p * size;
#ifdef __AVX512BF16__
            __m512 sums = _mm512_setzero_ps();
            for (int d = 0; d < size; d += 32)
                sums = _mm512_dpbf16_ps(sums, (__m512bh)_mm512_loadu_si512(query + d),
                                        (__m512bh)_mm512_loadu_si512(key + d));
            scores[q * stride + p] = _mm512_reduce_add_ps(sums);
#else
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int d = 0; d < size; d++) sum += wide(query[d]) * wide(key[d]);
            scores[q * stride + p] = sum;
#endif
        }
}

/* sums += weights of n values, for `count` queries. */
static inline __attribute__((always_inline)) void gather(const float *weights, const bf16 *values, int64_t n,
                                                         int64_t stride, Lanes *sums, const int count, const int size) {
    Lanes held[TOGETHER * size / LANES];
    memcpy(held, sums, count * size / LANES * sizeof(Lanes));
    for (int64_t p = 0; p < n; p++) {
#pragma GCC unroll 8
        for (int d = 0; d < size / LANES; d++) {
            Lanes value = load(values + p * size + d * LANES);
#pragma GCC unroll 8
            for (int q = 0; q < count; q++) held[q * (size / LANES) + d] += weights[q * stride + p] * value;
        }
    }
    memcpy(sums, held, count * size / LANES * sizeof(Lanes));
}

typedef struct {
    const bf16 *keys, *values, *ahead_keys, *ahead_values; /* of one key head of one row, in order */
    int64_t own, ahead;
} Seen;

/* What `count` queries of one key head make of what they see; scores has room for all of it `count` times. */
static inline __attribute__((always_inline)) void attend(const Seen *seen, const bf16 *queries, float scale,
                                                         float *scores, bf16 *out, const int count, const int size) {
    Lanes sums[TOGETHER * size / LANES];
    float totals[TOGETHER];
    int64_t all = seen->ahead + seen->own;
    for (int d = 0; d < count * size / LANES; d++) sums[d] = (Lanes){0};
    score(queries, seen->ahead_keys, seen->ahead, scores, all, count, size);
    score(queries, seen->keys, seen->own, scores + seen->ahead, all, count, size);
    for (int q = 0; q < count; q++) {
        float *mine = scores + q * all, top = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : top)
        for (int64_t p = 0; p < all; p++) top = mine[p] > top ? mine[p] : top;
#pragma omp simd reduction(+ : total)
        for (int64_t p = 0; p < all; p++) {
            mine[p] = exponential((mine[p] - top) * scale);
            total += mine[p];
        }
        totals[q] = total;
    }
    gather(scores, seen->ahead_values, seen->ahead, all, sums, count, size);
    gather(scores + seen->ahead, seen->values, seen->own, all, sums, count, size);
    for (int q = 0; q < count; q++)
        for (int d = 0; d < size; d++) out[q * size + d] = narrow(sums[(q * size + d) / LANES][d % LANES] / totals[q]);
}

/* Attention of rows that grow by one token each. query (tokens, heads, size), key and value (tokens, key heads, size)
   with rows `query_stride`, `key_stride`, `value_stride` apart; keys and values (slots, key heads, capacity, size);
   ahead_keys and ahead_values (prefixes, key heads, longest, size). out (rows, heads, size). Returns 0, or 1 where
   there is no memory. */
static inline __attribute__((always_inline)) int attend_rows(
    const Shape *shape, const Row *rows, const bf16 *query, int64_t query_stride, const bf16 *key, int64_t key_stride,
    const bf16 *value, int64_t value_stride, bf16 *keys, bf16 *values, const bf16 *ahead_keys, const bf16 *ahead_values,
    bf16 *out, const int size) {
    int64_t key_heads = shape->key_heads, each = shape->heads / key_heads, most = shape->longest + shape->capacity;
    int failed = 0;
#pragma omp parallel reduction(+ : failed) if (shape->rows * shape->heads * most > 16384)
    {
        float *scores = malloc(TOGETHER * most * sizeof(float));
        failed += scores == NULL;
#pragma omp for schedule(dynamic, 4)
        for (int64_t n = 0; n < shape->rows * key_heads; n++) {
            const Row *row = rows + n / key_heads;
            int64_t head = n % key_heads, begin = (row->slot * key_heads + head) * shape->capacity * size;
            int64_t before = (row->prefix * key_heads + head) * shape->longest * size;
            memcpy(keys + begin + row->length * size, key + row->token * key_stride + head * size, size * sizeof(bf16));
            memcpy(values + begin + row->length * size, value + row->token * value_stride + head * size,
                   size * sizeof(bf16));
            Seen seen = {keys + begin, values + begin, NULL, NULL, row->length + 1, row->ahead};
            if (row->ahead) seen.ahead_keys = ahead_keys + before, seen.ahead_values = ahead_values + before;
            for (int64_t done = 0, count; scores && done < each; done += count) {
                const bf16 *from = query + row->token * query_stride + (head * each + done) * size;
                bf16 *to = out + ((n / key_heads) * shape->heads + head * each + done) * size;
                count = each - done < TOGETHER ? each - done : TOGETHER;
                switch (count) { /* each with its number known to the compiler */
                    case 4: attend(&seen, from, shape->scale, scores, to, 4, size); break;
                    case 3: attend(&seen, from, shape->scale, scores, to, 3, size); break;
                    case 2: attend(&seen, from, shape->scale, scores, to, 2, size); break;
                    default: attend(&seen, from, shape->scale, scores, to, 1, size);
                }
            }
        }
        free(scores);
    }
    return failed;
}

#define ATTEND(SIZE)                                                                                                   \
    int metier_attend_##SIZE(const Shape *shape, const Row *rows, const bf16 *query, int64_t query_stride,             \
                             const bf16 *key, int64_t key_stride, const bf16 *value, int64_t value_stride, bf16 *keys, \
                             bf16 *values, const bf16 *ahead_keys, const bf16 *ahead_values, bf16 *out) {              \
        return attend_rows(shape, rows, query, query_stride, key, key_stride, value, value_stride, keys, values,       \
                           ahead_keys, ahead_values, out, SIZE);                                                       \
    }
ATTEND(64)
ATTEND(128)
