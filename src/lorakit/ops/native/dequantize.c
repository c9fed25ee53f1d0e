/* W in 4 or 8 bits, written as a dense matrix for one large product.
 *
 * What costs is writing W, so each group of codes is looked up in registers, in a code book that has
 * been multiplied by its block's absmax, and written in the order of its columns. A value is rounded
 * as often as by torch operations: product with the scale, then bfloat16 if W is wanted in it.
 */
#include "quantized_weight.h"

#define STRIP_ROWS 8 /* rows of W whose absmax are decoded together */
#define SERIAL_CODES 16384 /* a weight with fewer does not pay for waking threads */

typedef int32_t wide_order __attribute__((vector_size(4 * LANES)));

/* Even and odd columns as neighbours. */
ALWAYS_INLINE single_group in_order(single_group group) {
  wide_order first, second;
  for (int k = 0; k < LANES; k++) {
    first[k] = k / 2 + k % 2 * LANES;
    second[k] = first[k] + LANES / 2;
  }
  return (single_group){__builtin_shuffle(group.first, group.second, first),
                        __builtin_shuffle(group.first, group.second, second)};
}

ALWAYS_INLINE void single_write(single_group group, const matrix *y, long offset) {
  if (!y->is_half) {
    *(wide *)((float *)y->data + offset) = group.first;
    *(wide *)((float *)y->data + offset + LANES) = group.second;
    return;
  }
  uint16_t *to = (uint16_t *)y->data + offset;
#ifdef MULTIPLIES_HALVES
  __m512bh halves = _mm512_cvtne2ps_pbh((__m512)group.second, (__m512)group.first);
  _mm512_storeu_si512(to, (__m512i)halves);
#else
  for (int k = 0; k < LANES; k++) to[k] = narrow(group.first[k]);
  for (int k = 0; k < LANES; k++) to[LANES + k] = narrow(group.second[k]);
#endif
}

/* Row `row` of a weight in 4 bits. */
static void write_4bit(const quantized *w, long row, const float *absmax, const matrix *y) {
  const uint8_t *codes = (const uint8_t *)w->codes + row * w->columns / 2;
  const long start = row * y->stride;
  for (long column = 0; column < w->columns; column += w->block_size, absmax++) {
    const long end = column + w->block_size;
#ifdef MULTIPLIES_HALVES
    if (y->is_half) {
      const half_book book = half_scaled(w->code_book, *absmax);
      for (long k = column; k < end; k += GROUP)
        _mm512_storeu_si512((uint16_t *)y->data + start + k,
                            (__m512i)half_decode_4bit(codes + k / 2, book));
      continue;
    }
#endif
    const single_book book = single_scaled(w->code_book, *absmax);
    for (long k = column; k < end; k += GROUP)
      single_write(in_order(single_decode_4bit(codes + k / 2, book)), y, start + k);
  }
}

/* Row `row` of a weight in 8 bits. */
static void write_8bit(const quantized *w, long row, float absmax, const matrix *y) {
  const int8_t *codes = (const int8_t *)w->codes + row * w->columns;
  const float scale = absmax * (float)(1.0 / 127);
  for (long k = 0; k < w->columns; k += GROUP) {
    single_group group = single_decode_8bit(codes + k);
    single_write((single_group){group.first * scale, group.second * scale}, y, row * y->stride + k);
  }
}

/* y = W in float32 or bfloat16. Returns 1 where memory was short. */
int lorakit_dequantize(const quantized *w, const matrix *y) {
  const long blocks = w->columns / w->block_size;
  int failed = 0;
#pragma omp parallel if (w->rows * w->columns >= SERIAL_CODES)
  {
    float *decoded = malloc(sizeof(float) * STRIP_ROWS * blocks);
    if (!decoded) failed = 1;
#pragma omp for schedule(static)
    for (long row = 0; row < w->rows; row += STRIP_ROWS) {
      if (!decoded) continue;
      const long rows = least(STRIP_ROWS, w->rows - row);
      const float *absmax = absmax_of(w, row * blocks, rows * blocks, decoded);
      for (long r = 0; r < rows; r++)
        if (w->code_book) write_4bit(w, row + r, absmax + r * blocks, y);
        else write_8bit(w, row + r, absmax[r], y);
    }
    free(decoded);
  }
  return failed;
}
