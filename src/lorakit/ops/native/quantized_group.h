/* Groups of weights decoded from 4 or 8 bits, and the columns of x that they are multiplied with.
 *
 * A group is GROUP values in registers. `single` groups are two vectors of float32; `half` groups,
 * where the processor multiplies bfloat16, one vector of pairs. A byte holds the code of an even
 * column in its high half and that of the next column in its low half.
 */
#ifndef LORAKIT_QUANTIZED_GROUP_H
#define LORAKIT_QUANTIZED_GROUP_H
#include "activation.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define GROUP (2 * LANES)
#define WIDEST_GROUP 32 /* of all processors: what the caller has to take care of */

typedef float single_element;

/* In 4 bits `first` are even columns and `second` odd ones, in 8 bits they are neighbours. */
typedef struct {
  wide first, second;
} single_group;

/* ---- a code book times absmax, and looking up in it ---- */

#if defined(__AVX512F__)

typedef struct {
  __m512 values;
} single_book;

ALWAYS_INLINE single_book single_scaled(const float *code_book, float scale) {
  return (single_book){_mm512_mul_ps(_mm512_loadu_ps(code_book), _mm512_set1_ps(scale))};
}

/* A look-up reads the low four bits of each index. */
ALWAYS_INLINE single_group single_decode_4bit(const uint8_t *codes, single_book b) {
  __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
  return (single_group){(wide)_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), b.values),
                        (wide)_mm512_permutexvar_ps(pairs, b.values)};
}

ALWAYS_INLINE wide widen_bytes(const int8_t *codes) {
  __m128i bytes = _mm_loadu_si128((const __m128i *)codes);
  return (wide)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

#elif defined(__AVX2__)

typedef struct {
  __m256 low, high; /* of codes below 8, and of the others */
} single_book;

ALWAYS_INLINE single_book single_scaled(const float *code_book, float scale) {
  __m256 factor = _mm256_set1_ps(scale);
  return (single_book){_mm256_mul_ps(_mm256_loadu_ps(code_book), factor),
                       _mm256_mul_ps(_mm256_loadu_ps(code_book + 8), factor)};
}

/* A look-up reads the low three bits of each index; a blend reads the sign of each selector. */
ALWAYS_INLINE wide look_up(__m256i index, __m256i selector, single_book b) {
  return (wide)_mm256_blendv_ps(_mm256_permutevar8x32_ps(b.low, index),
                                _mm256_permutevar8x32_ps(b.high, index),
                                _mm256_castsi256_ps(selector));
}

ALWAYS_INLINE single_group single_decode_4bit(const uint8_t *codes, single_book b) {
  __m256i pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes));
  return (single_group){look_up(_mm256_srli_epi32(pairs, 4), _mm256_slli_epi32(pairs, 24), b),
                        look_up(pairs, _mm256_slli_epi32(pairs, 28), b)};
}

ALWAYS_INLINE wide widen_bytes(const int8_t *codes) {
  __m128i bytes = _mm_loadl_epi64((const __m128i *)codes);
  return (wide)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

#else

typedef struct {
  float values[16];
} single_book;

ALWAYS_INLINE single_book single_scaled(const float *code_book, float scale) {
  single_book b;
  for (int k = 0; k < 16; k++) b.values[k] = code_book[k] * scale;
  return b;
}

ALWAYS_INLINE single_group single_decode_4bit(const uint8_t *codes, single_book b) {
  single_group group;
  for (int k = 0; k < LANES; k++) {
    group.first[k] = b.values[codes[k] >> 4];
    group.second[k] = b.values[codes[k] & 15];
  }
  return group;
}

ALWAYS_INLINE wide widen_bytes(const int8_t *codes) {
  wide values;
  for (int k = 0; k < LANES; k++) values[k] = codes[k];
  return values;
}

#endif

ALWAYS_INLINE single_group single_decode_8bit(const int8_t *codes) {
  return (single_group){widen_bytes(codes), widen_bytes(codes + LANES)};
}

ALWAYS_INLINE single_group single_load(const single_element *x) {
  return (single_group){*(const wide *)x, *(const wide *)(x + LANES)};
}

ALWAYS_INLINE wide single_multiply(wide sum, single_group w, single_group x) {
  return sum + w.first * x.first + w.second * x.second;
}

ALWAYS_INLINE float sum_of(wide v) {
  for (int half = LANES / 2; half; half /= 2)
    for (int k = 0; k < half; k++) v[k] += v[k + half];
  return v[0];
}

/* ---- the same in bfloat16, columns in their own order ---- */

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define MULTIPLIES_HALVES

typedef uint16_t half_element;
typedef __m512bh half_group;

typedef struct {
  __m512i values; /* the 16 values twice: the low four bits of an index of five decide */
} half_book;

ALWAYS_INLINE half_book half_scaled(const float *code_book, float scale) {
  __m512 values = single_scaled(code_book, scale).values;
  return (half_book){_mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(values))};
}

ALWAYS_INLINE half_group half_decode_4bit(const uint8_t *codes, half_book b) {
  __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
  __m512i indices = _mm512_or_si512(_mm512_srli_epi32(pairs, 4), _mm512_slli_epi32(pairs, 16));
  return (half_group)_mm512_permutexvar_epi16(indices, b.values);
}

ALWAYS_INLINE half_group half_decode_8bit(const int8_t *codes) {
  return _mm512_cvtne2ps_pbh((__m512)widen_bytes(codes + LANES), (__m512)widen_bytes(codes));
}

ALWAYS_INLINE half_group half_load(const half_element *x) {
  return (half_group)_mm512_loadu_si512(x);
}

ALWAYS_INLINE wide half_multiply(wide sum, half_group w, half_group x) {
  return (wide)_mm512_dpbf16_ps((__m512)sum, w, x);
}

#endif
#endif
