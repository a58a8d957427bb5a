/* Cross-entropy and forward KL of float32 logits, and their gradient, a row at a time: three passes in cache.

   Two exponentials a pair of logits are enough: at temperature 2, softmax(z) follows from softmax(z / 2) by squaring.
   V columns of the student's logits, of which the teacher knows the first C. The meaning of masked columns is that of
   log_space.py: at most MASKED counts as probability 0; as a denominator it counts as LOG_TINY, with gradient 0. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))
#define SIMD(clauses) _Pragma(#clauses)
#define LOG_TINY (-87.33654475)
#define MASKED (-1e30f)
#define LEAST (-87.0f) /* exp of less counts as 0 */

/* exp(x) for x <= 0, to 2 units in the last place: x = n log 2 + r, and a polynomial for exp(r) (Cephes' coefficients). */
INLINE float exp_(float x)
{
    float c = x < LEAST ? LEAST : x;
    union { float f; int32_t i; } n = {c * 1.44269504088896341f + 12582912.0f}; /* n in the low bits of the mantissa */
    float whole = n.f - 12582912.0f;
    float r = c - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    n.i = (n.i - 0x4B400000 + 127) << 23; /* 2^n */
    return x < LEAST ? 0.0f : p * n.f;
}

/* exp(T x), from e = exp(x) where T is one of the whole numbers that the loops are compiled for */
INLINE float power(float e, float x, const int whole)
{
    return whole == 1 ? e : whole == 2 ? e * e : whole == 4 ? (e * e) * (e * e) : exp_(x);
}

INLINE int64_t first_equal(const float *x, int64_t count, float wanted)
{
    int64_t at = 0;
    for (; at + 256 < count; at += 256) {
        int found = 0;
        SIMD(omp simd reduction(|:found))
        for (int64_t j = at; j < at + 256; j++) found |= x[j] == wanted;
        if (found) break;
    }
    while (at < count - 1 && x[at] != wanted) at++;
    return at;
}

/* sums: cross-entropy, T^2 KL, the teacher's NLL, equal top tokens. y, place: the target among the V and the C, or -1. */
INLINE void pair(float *restrict s, const float *restrict t, float *restrict kept, int64_t V, int64_t C, int64_t y,
                 int64_t place, float T, const int whole, float w_ce, float w_kl, double *restrict sums)
{
    float s_max = -INFINITY, t_max = -INFINITY, beyond = -INFINITY, over_T = 1 / T;
    SIMD(omp simd reduction(max:s_max, t_max))
    for (int64_t j = 0; j < C; j++) {
        s_max = s[j] > s_max ? s[j] : s_max;
        t_max = t[j] > t_max ? t[j] : t_max;
    }
    SIMD(omp simd reduction(max:beyond))
    for (int64_t j = C; j < V; j++) beyond = s[j] > beyond ? s[j] : beyond;
    float at_target = y >= 0 ? s[y] : 0;
    sums[3] += s[first_equal(t, C, t_max)] == s_max;

    float s_sum = 0, t_sum = 0, s_plain = 0, t_plain = 0, gap = 0, lost = 0, lost_gap = 0;
    SIMD(omp simd reduction(+:s_sum, t_sum, s_plain, t_plain, gap, lost, lost_gap))
    for (int64_t j = 0; j < C; j++) {
        float x = s[j] - s_max, z = t[j] - t_max;
        float es = exp_(x * over_T), et = exp_(z * over_T);
        float open = s[j] <= MASKED ? 0 : et; /* what the teacher gives to tokens that the student can say */
        float x0 = s[j] <= MASKED ? 0 : x, z0 = t[j] <= MASKED ? 0 : z;
        s_sum += es;
        t_sum += et;
        s_plain += power(es, x, whole);
        t_plain += power(et, z, whole);
        gap += open * (z0 - x0);
        lost += et - open;
        lost_gap += (et - open) * z0;
        kept[j] = open;
        if (whole) s[j] = es;
    }
    double log_t = log(t_sum), share = (t_sum - lost) / t_sum;
    double kl = gap * over_T / t_sum - share * (log_t - log(s_sum));
    if (lost > 0) kl += (lost_gap * over_T - lost * (log_t + LOG_TINY)) / t_sum;
    sums[1] += kl * T * T;
    if (place >= 0) sums[2] += t_max + log(t_plain) - t[place];

    /* cross-entropy is over all V columns, whose largest may lie beyond the C */
    float top = s_max > beyond ? s_max : beyond, shift = exp_(s_max - top), rest = 0;
    SIMD(omp simd reduction(+:rest))
    for (int64_t j = C; j < V; j++) {
        s[j] = exp_(s[j] - top);
        rest += s[j];
    }
    float all = s_plain * shift + rest;
    if (y >= 0) sums[0] += top + log(all) - at_target;
    float a = w_kl * T * share / s_sum, b = w_kl * T / t_sum, c = y >= 0 ? w_ce / all : 0, c_shift = c * shift;
    SIMD(omp simd)
    for (int64_t j = 0; j < C; j++) {
        float x = whole ? 0 : s[j] - s_max;
        float e = whole ? s[j] : exp_(x * over_T);
        s[j] = a * e - b * kept[j] + c_shift * power(e, x, whole);
    }
    SIMD(omp simd)
    for (int64_t j = C; j < V; j++) s[j] *= c;
    if (y >= 0) s[y] -= w_ce;
}

INLINE void alone(float *restrict s, int64_t V, int64_t y, float w_ce, double *restrict sums)
{
    float top = -INFINITY, all = 0;
    SIMD(omp simd reduction(max:top))
    for (int64_t j = 0; j < V; j++) top = s[j] > top ? s[j] : top;
    float at_target = y >= 0 ? s[y] : 0;
    SIMD(omp simd reduction(+:all))
    for (int64_t j = 0; j < V; j++) {
        s[j] = exp_(s[j] - top);
        all += s[j];
    }
    float c = y >= 0 ? w_ce / all : 0;
    SIMD(omp simd)
    for (int64_t j = 0; j < V; j++) s[j] *= c;
    if (y < 0) return;
    s[y] -= w_ce;
    sums[0] += top + log(all) - at_target;
}

/* Turns logits s [n, V] into the gradient of the weighted loss, and adds up sums[4]. t: [n, C], or null. known: [n], or
   null where the teacher answers everywhere. Returns 0, or 1 where there is no memory for a row. */
int response_rows(float *s, const float *t, const int64_t *targets, const int64_t *places, const uint8_t *known,
                  int64_t n, int64_t V, int64_t C, int64_t s_stride, int64_t t_stride, float T, float w_ce, float w_kl,
                  double *sums)
{
    float *kept = t ? malloc(C * sizeof(float)) : NULL;
    if (t && !kept) return 1;
    for (int64_t i = 0; i < n; i++, s += s_stride) {
        if (!t || (known && !known[i])) {
            alone(s, V, targets[i], w_ce, sums);
            continue;
        }
        const float *row = t + i * t_stride;
#define AT(whole) pair(s, row, kept, V, C, targets[i], places[i], T, whole, w_ce, w_kl, sums)
        if (T == 1) AT(1);
        else if (T == 2) AT(2);
        else if (T == 4) AT(4);
        else AT(0);
    }
    free(kept);
    return 0;
}
