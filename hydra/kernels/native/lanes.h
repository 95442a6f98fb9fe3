/* Vectors of 32 bytes and what is computed with them, the same on every processor: AVX2 (with AVX-512's and AVX's dot
   products where they are there), NEON, or plain C that a compiler may vectorise as it can. Knows no weight format.

   bytes_t: 32 bytes; ints_t: 8 int32; floats_t: 8 float. Every operation here gives the same bits
   whatever surrounds it: sums of integers are exact, and `sum_floats` adds in one fixed order. */

#ifndef HYDRA_LANES_H
#define HYDRA_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* ---- numbers of 16 bits, one at a time ---- */

INLINE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE float float_of_bf16(uint16_t bits) { return float_of_bits((uint32_t)bits << 16); }

INLINE float float_of_f16_plain(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest < 0x400u) { /* subnormal: rest * 2^-24 */
        float value = (float)rest * 0x1p-24f;
        return sign ? -value : value;
    }
    return float_of_bits(sign | ((rest << 13) + 0x38000000u));
}

INLINE uint16_t u16_at(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, 2);
    return value;
}

INLINE uint32_t u32_at(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(HYDRA_PLAIN)
/* ================================================= AVX2 ================================================= */
#include <immintrin.h>
#define HYDRA_LANES "avx2"
#define MANY INLINE /* loops of which there is one for each number of rows of input */
/* Spelled out, not looped over: only then do compilers keep what belongs to a row in registers. */
#define FOR_ROWS(rows, step) do { step(0); if ((rows) > 1) step(1); if ((rows) > 2) { step(2); step(3); } } while (0)

typedef __m256i bytes_t;
typedef __m256i ints_t;
typedef __m256 floats_t;

INLINE float float_of_f16(uint16_t bits) { return _cvtsh_ss(bits); }

INLINE bytes_t load_bytes(const void *at) { return _mm256_loadu_si256((const __m256i *)at); }
INLINE void store_bytes(void *at, bytes_t v) { _mm256_storeu_si256((__m256i *)at, v); }
INLINE bytes_t low_nibbles(bytes_t v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
INLINE bytes_t high_nibbles(bytes_t v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
INLINE bytes_t or_bytes(bytes_t a, bytes_t b) { return _mm256_or_si256(a, b); }
/* bits [from, from + width) of every byte, moved to `to` */
INLINE bytes_t bits_of(bytes_t v, int from, int width, int to) {
    __m256i mask = _mm256_set1_epi8((char)(((1 << width) - 1) << to));
    __m256i moved = from >= to ? _mm256_srli_epi16(v, from - to) : _mm256_slli_epi16(v, to - from);
    return _mm256_and_si256(moved, mask);
}
/* 16 bytes: their low halves, then their high halves */
INLINE bytes_t halves_of(const uint8_t *at) {
    __m128i v = _mm_loadu_si128((const __m128i *)at);
    return low_nibbles(_mm256_insertf128_si256(_mm256_castsi128_si256(v), _mm_srli_epi16(v, 4), 1));
}
/* bit b of `bits` as bit `to` of byte b */
INLINE bytes_t spread_bits(uint32_t bits, int to) {
    const __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3,
                                           3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), which), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, bit), _mm256_set1_epi8((char)(1 << to)));
}
INLINE bytes_t look_up(const uint8_t table[16], bytes_t codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), codes);
}
INLINE bytes_t less_bytes(bytes_t v, uint8_t by) { return _mm256_sub_epi8(v, _mm256_set1_epi8((char)by)); }
INLINE bytes_t flip_signs(bytes_t v) { return _mm256_xor_si256(v, _mm256_set1_epi8((char)128)); }
/* 64 bytes: of either in turn */
INLINE void store_in_turn(uint8_t *at, bytes_t a, bytes_t b) {
    __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
    store_bytes(at, _mm256_permute2x128_si256(low, high, 0x20));
    store_bytes(at + 32, _mm256_permute2x128_si256(low, high, 0x31));
}

INLINE ints_t no_ints(void) { return _mm256_setzero_si256(); }
INLINE ints_t add_ints(ints_t a, ints_t b) { return _mm256_add_epi32(a, b); }
/* Lane i: the codes of bytes 4i to 4i + 3 times the numbers whose digits are in a unit. */
#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define DOT(sum, codes, at) _mm256_dpbusd_epi32(sum, codes, load_bytes(at))
#else
#define DOT(sum, codes, at) _mm256_dpbusd_avx_epi32(sum, codes, load_bytes(at))
#endif
INLINE ints_t dot(bytes_t codes, const uint8_t *unit) {
    __m256i sum = _mm256_slli_epi32(DOT(_mm256_setzero_si256(), codes, unit), 7);
    sum = _mm256_slli_epi32(DOT(sum, codes, unit + 32), 7);
    return DOT(sum, codes, unit + 64);
}
INLINE ints_t dot_2(bytes_t a, bytes_t b, const uint8_t *unit, int wide) {
    (void)wide;
    __m256i sum = _mm256_slli_epi32(DOT(DOT(_mm256_setzero_si256(), a, unit), b, unit + 96), 7);
    sum = _mm256_slli_epi32(DOT(DOT(sum, a, unit + 32), b, unit + 128), 7);
    return DOT(DOT(sum, a, unit + 64), b, unit + 160);
}
#else
/* two products are 16 bits: 255 * 2 * 64, or 63 * 2 * 127 */
#define DOT(codes, at) _mm256_maddubs_epi16(codes, load_bytes(at))
INLINE ints_t digits_sum(__m256i high, __m256i middle, __m256i low) {
    high = _mm256_madd_epi16(high, _mm256_set1_epi16(128 * 128));
    middle = _mm256_madd_epi16(middle, _mm256_set1_epi16(128));
    low = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
    return _mm256_add_epi32(_mm256_add_epi32(high, middle), low);
}
INLINE ints_t dot(bytes_t codes, const uint8_t *unit) {
    return digits_sum(DOT(codes, unit), DOT(codes, unit + 32), DOT(codes, unit + 64));
}
/* of two vectors of codes and the two units that belong to them; `wide`: codes may be above 63 */
INLINE ints_t dot_2(bytes_t a, bytes_t b, const uint8_t *unit, int wide) {
    if (wide) return _mm256_add_epi32(dot(a, unit), dot(b, unit + 96));
    return digits_sum(_mm256_add_epi16(DOT(a, unit), DOT(b, unit + 96)),
                      _mm256_add_epi16(DOT(a, unit + 32), DOT(b, unit + 128)),
                      _mm256_add_epi16(DOT(a, unit + 64), DOT(b, unit + 160)));
}
#endif

INLINE floats_t no_floats(void) { return _mm256_setzero_ps(); }
INLINE floats_t load_floats(const float *at) { return _mm256_loadu_ps(at); }
INLINE void store_floats(float *at, floats_t v) { _mm256_storeu_ps(at, v); }
INLINE floats_t all_floats(float value) { return _mm256_set1_ps(value); }
INLINE floats_t floats_of(ints_t v) { return _mm256_cvtepi32_ps(v); }
INLINE floats_t add_floats(floats_t a, floats_t b) { return _mm256_add_ps(a, b); }
INLINE floats_t sub_floats(floats_t a, floats_t b) { return _mm256_sub_ps(a, b); }
INLINE floats_t mul_floats(floats_t a, floats_t b) { return _mm256_mul_ps(a, b); }
INLINE floats_t fma_floats(floats_t a, floats_t b, floats_t c) { return _mm256_fmadd_ps(a, b, c); }
/* the first `count` of eight; nought for the others */
INLINE floats_t first_floats(floats_t v, int count) {
    const __m256i which = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), which)));
}
INLINE floats_t div_floats(floats_t a, floats_t b) { return _mm256_div_ps(a, b); }
/* e to the power of each, within two units in the last place (Cephes' expf); below -87 what is next to nought */
INLINE floats_t exp_floats(floats_t v) {
    v = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), v)); /* no number stays none */
    __m256 twos = _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(1.44269504088896341f)), 8);
    v = _mm256_fmadd_ps(twos, _mm256_set1_ps(-0.693359375f), v);
    v = _mm256_fmadd_ps(twos, _mm256_set1_ps(2.12194440e-4f), v);
    __m256 sum = _mm256_set1_ps(1.9875691500e-4f);
    sum = _mm256_fmadd_ps(sum, v, _mm256_set1_ps(1.3981999507e-3f));
    sum = _mm256_fmadd_ps(sum, v, _mm256_set1_ps(8.3334519073e-3f));
    sum = _mm256_fmadd_ps(sum, v, _mm256_set1_ps(4.1665795894e-2f));
    sum = _mm256_fmadd_ps(sum, v, _mm256_set1_ps(1.6666665459e-1f));
    sum = _mm256_fmadd_ps(sum, v, _mm256_set1_ps(5.0000001201e-1f));
    sum = _mm256_fmadd_ps(sum, _mm256_mul_ps(v, v), _mm256_add_ps(v, _mm256_set1_ps(1.0f)));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(twos), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(power));
}
INLINE float sum_floats(floats_t v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
INLINE floats_t load_bf16(const uint16_t *at) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at)), 16));
}
INLINE floats_t load_f16(const uint16_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }
INLINE floats_t load_u8(const uint8_t *at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}
INLINE floats_t load_i8(const uint8_t *at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}
/* of 32 codes from 0 to 15, each a float whose bytes are in four tables, the lowest first */
INLINE void look_up_floats(const uint8_t tables[4][16], bytes_t codes, floats_t into[4]) {
    __m256i a = look_up(tables[0], codes), b = look_up(tables[1], codes), c = look_up(tables[2], codes);
    __m256i d = look_up(tables[3], codes), words[4];
    __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
    __m256i low_above = _mm256_unpacklo_epi8(c, d), high_above = _mm256_unpackhi_epi8(c, d);
    words[0] = _mm256_unpacklo_epi16(low, low_above), words[1] = _mm256_unpackhi_epi16(low, low_above);
    words[2] = _mm256_unpacklo_epi16(high, high_above), words[3] = _mm256_unpackhi_epi16(high, high_above);
    into[0] = _mm256_castsi256_ps(_mm256_permute2x128_si256(words[0], words[1], 0x20));
    into[1] = _mm256_castsi256_ps(_mm256_permute2x128_si256(words[2], words[3], 0x20));
    into[2] = _mm256_castsi256_ps(_mm256_permute2x128_si256(words[0], words[1], 0x31));
    into[3] = _mm256_castsi256_ps(_mm256_permute2x128_si256(words[2], words[3], 0x31));
}
/* eight e4m3 as floats of 2^-8 their value: they become f16 by a shift; for 127 and 255, which are no numbers, 1.875 */
INLINE floats_t load_f8(const uint8_t *at) {
    __m128i v = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)at)); /* the sign is the sign of 16 bits */
    v = _mm_and_si128(_mm_slli_epi16(v, 7), _mm_set1_epi16((short)0xbfff));
    return _mm256_cvtph_ps(v);
}
/* two numbers, each four times; four numbers, each twice */
INLINE floats_t spread_2(const float *at) {
    double both; /* that is, the two */
    memcpy(&both, at, 8);
    return _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_set1_pd(both)), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}
INLINE floats_t spread_4(const float *at) {
    const __m256i which = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(at)), which);
}
#define PREFETCH(at) _mm_prefetch((const char *)(at), _MM_HINT_T0)

#else
/* ======================================= NEON, and everything else ======================================= */
#if defined(__ARM_NEON) && defined(__aarch64__) && !defined(HYDRA_PLAIN)
#include <arm_neon.h>
#define HYDRA_NEON 1
#define HYDRA_LANES "neon"
#else
#define HYDRA_LANES "plain"
#endif

#define MANY static
#define HYDRA_ONE_LOOP 1 /* compilers take minutes over more of these */
#define FOR_ROWS(rows, step) do { (void)(rows); step(0); } while (0)

typedef struct { uint8_t v[32]; } bytes_t;
typedef struct { int32_t v[8]; } ints_t;
typedef struct { float v[8]; } floats_t;
#define EACH(n) for (int i = 0; i < (n); i++)

INLINE float float_of_f16(uint16_t bits) { return float_of_f16_plain(bits); }

INLINE bytes_t load_bytes(const void *at) { bytes_t r; memcpy(r.v, at, 32); return r; }
INLINE void store_bytes(void *at, bytes_t v) { memcpy(at, v.v, 32); }
INLINE bytes_t low_nibbles(bytes_t v) { EACH(32) v.v[i] &= 15; return v; }
INLINE bytes_t high_nibbles(bytes_t v) { EACH(32) v.v[i] >>= 4; return v; }
INLINE bytes_t or_bytes(bytes_t a, bytes_t b) { EACH(32) a.v[i] |= b.v[i]; return a; }
INLINE bytes_t bits_of(bytes_t v, int from, int width, int to) {
    EACH(32) v.v[i] = (uint8_t)(((v.v[i] >> from) & ((1 << width) - 1)) << to);
    return v;
}
INLINE bytes_t halves_of(const uint8_t *at) {
    bytes_t r;
    EACH(16) { r.v[i] = at[i] & 15; r.v[16 + i] = at[i] >> 4; }
    return r;
}
INLINE bytes_t spread_bits(uint32_t bits, int to) {
    bytes_t r;
    EACH(32) r.v[i] = (uint8_t)(((bits >> i) & 1) << to);
    return r;
}
INLINE bytes_t look_up(const uint8_t table[16], bytes_t codes) {
    EACH(32) codes.v[i] = table[codes.v[i] & 15];
    return codes;
}
INLINE bytes_t less_bytes(bytes_t v, uint8_t by) { EACH(32) v.v[i] = (uint8_t)(v.v[i] - by); return v; }
INLINE bytes_t flip_signs(bytes_t v) { EACH(32) v.v[i] ^= 128; return v; }
INLINE void store_in_turn(uint8_t *at, bytes_t a, bytes_t b) { EACH(32) { at[2 * i] = a.v[i]; at[2 * i + 1] = b.v[i]; } }

INLINE ints_t no_ints(void) { ints_t r; EACH(8) r.v[i] = 0; return r; }
INLINE ints_t add_ints(ints_t a, ints_t b) { EACH(8) a.v[i] += b.v[i]; return a; }
INLINE ints_t dot(bytes_t codes, const uint8_t *unit) {
    const int8_t *digits = (const int8_t *)unit;
    ints_t r;
    EACH(8) {
        int32_t sum = 0;
        for (int j = 4 * i; j < 4 * i + 4; j++)
            sum += codes.v[j] * (digits[j] * 16384 + digits[32 + j] * 128 + digits[64 + j]);
        r.v[i] = sum;
    }
    return r;
}
INLINE ints_t dot_2(bytes_t a, bytes_t b, const uint8_t *unit, int wide) {
    (void)wide;
    return add_ints(dot(a, unit), dot(b, unit + 96));
}

INLINE floats_t all_floats(float value) { floats_t r; EACH(8) r.v[i] = value; return r; }
INLINE floats_t no_floats(void) { return all_floats(0.0f); }
INLINE floats_t load_floats(const float *at) { floats_t r; memcpy(r.v, at, 32); return r; }
INLINE void store_floats(float *at, floats_t v) { memcpy(at, v.v, 32); }
INLINE floats_t floats_of(ints_t v) { floats_t r; EACH(8) r.v[i] = (float)v.v[i]; return r; }
INLINE floats_t add_floats(floats_t a, floats_t b) { EACH(8) a.v[i] += b.v[i]; return a; }
INLINE floats_t sub_floats(floats_t a, floats_t b) { EACH(8) a.v[i] -= b.v[i]; return a; }
INLINE floats_t mul_floats(floats_t a, floats_t b) { EACH(8) a.v[i] *= b.v[i]; return a; }
INLINE floats_t fma_floats(floats_t a, floats_t b, floats_t c) {
#if defined(HYDRA_NEON)
    for (int half = 0; half < 8; half += 4)
        vst1q_f32(c.v + half, vfmaq_f32(vld1q_f32(c.v + half), vld1q_f32(a.v + half), vld1q_f32(b.v + half)));
#else
    EACH(8) c.v[i] += a.v[i] * b.v[i];
#endif
    return c;
}
INLINE floats_t first_floats(floats_t v, int count) { for (int i = count; i < 8; i++) v.v[i] = 0; return v; }
INLINE floats_t div_floats(floats_t a, floats_t b) { EACH(8) a.v[i] /= b.v[i]; return a; }
INLINE floats_t exp_floats(floats_t v) {
    EACH(8) v.v[i] = expf(v.v[i] < -87.0f ? -87.0f : v.v[i] > 88.0f ? 88.0f : v.v[i]);
    return v;
}
INLINE float sum_floats(floats_t v) {
    float a = v.v[0] + v.v[4], b = v.v[1] + v.v[5], c = v.v[2] + v.v[6], d = v.v[3] + v.v[7];
    return (a + c) + (b + d);
}
INLINE floats_t load_bf16(const uint16_t *at) { floats_t r; EACH(8) r.v[i] = float_of_bf16(at[i]); return r; }
INLINE floats_t load_f16(const uint16_t *at) {
    floats_t r;
#if defined(HYDRA_NEON)
    for (int half = 0; half < 8; half += 4)
        vst1q_f32(r.v + half, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at + half))));
#else
    EACH(8) r.v[i] = float_of_f16_plain(at[i]);
#endif
    return r;
}
INLINE floats_t load_u8(const uint8_t *at) { floats_t r; EACH(8) r.v[i] = (float)at[i]; return r; }
INLINE floats_t load_i8(const uint8_t *at) { floats_t r; EACH(8) r.v[i] = (float)(int8_t)at[i]; return r; }
INLINE void look_up_floats(const uint8_t tables[4][16], bytes_t codes, floats_t into[4]) {
    EACH(32) {
        uint32_t bits = 0;
        for (int b = 0; b < 4; b++) bits |= (uint32_t)tables[b][codes.v[i] & 15] << 8 * b;
        into[i / 8].v[i % 8] = float_of_bits(bits);
    }
}
INLINE floats_t load_f8(const uint8_t *at) {
    uint16_t wide[8];
    EACH(8) wide[i] = (uint16_t)((at[i] & 0x80u) << 8 | (at[i] & 0x7fu) << 7);
    return load_f16(wide);
}
INLINE floats_t spread_2(const float *at) { floats_t r; EACH(8) r.v[i] = at[i / 4]; return r; }
INLINE floats_t spread_4(const float *at) { floats_t r; EACH(8) r.v[i] = at[i / 2]; return r; }
#define PREFETCH(at) ((void)(at))
#endif

/* of one number, as of eight */
INLINE float exp_float(float value) {
    float eight[8];
    store_floats(eight, exp_floats(all_floats(value)));
    return eight[0];
}

#endif
