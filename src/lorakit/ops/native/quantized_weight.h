/* A weight in 4 or 8 bits as it is stored; ops/quantized.py says what its numbers mean. */
#ifndef LORAKIT_QUANTIZED_WEIGHT_H
#define LORAKIT_QUANTIZED_WEIGHT_H
#include "quantized_group.h"

typedef struct {
  const void *codes;  /* (rows, columns): int8, or two in a byte, the first in its high half */
  const void *absmax; /* of each block; uint8 if it is quantized too, else float32 */
  const float *code_book;     /* what the 16 codes stand for; NULL for int8 */
  const float *nested_absmax; /* of each block of absmax; NULL if that is float32 */
  const float *nested_code;   /* what the 256 values of absmax stand for */
  const float *offset;        /* added to a decoded absmax */
  long rows, columns;
  long block_size; /* divides columns, and WIDEST_GROUP divides it; columns for int8 */
  long nested_block_size;
} quantized;

#define CODES 256 /* of a quantized absmax */

/* absmax of `n` blocks from `block` on; in `decoded` if it is quantized too. Products lie in memory
 * before the sum, which keeps them from being fused with it: the bits are those of torch operations. */
ALWAYS_INLINE const float *absmax_of(const quantized *w, long block, long n, float *decoded) {
  if (!w->nested_absmax) return (const float *)w->absmax + block;
  const uint8_t *codes = (const uint8_t *)w->absmax + block;
  for (long k = 0; k < n;) {
    long nested = (block + k) / w->nested_block_size;
    long end = least(n, (nested + 1) * w->nested_block_size - block);
    const float scale = w->nested_absmax[nested], offset = *w->offset;
    float products[CODES];
    for (int code = 0; code < CODES; code++) products[code] = w->nested_code[code] * scale;
    for (; k < end; k++) decoded[k] = products[codes[k]] + offset;
  }
  return decoded;
}

#endif
