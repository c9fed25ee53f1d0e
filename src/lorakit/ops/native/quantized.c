/* y = x Wᵀ + b with W in 4 or 8 bits, for few tokens: what costs is reading W, so it is read as it
 * is stored and decoded in registers. ops/quantized.py says what the numbers of W mean.
 *
 * A tile has a few rows of W and T tokens. Each block of W's values gets its own code book, the 16
 * values times absmax, in which one instruction looks up a whole vector of codes; a decoded group
 * of values is multiplied with all tokens of the tile. Sums are float32. With bfloat16 tokens on a
 * processor that multiplies them, W is rounded to bfloat16 as well, as a dense weight would be.
 * Results do not depend on the number of threads.
 */
#include "quantized_weight.h"

#define STRIP_ROWS 4       /* rows of W whose absmax are decoded together */
#define SERIAL_CODES 16384 /* a product with fewer does not pay for waking threads */

typedef struct {
  const quantized *w;
  const matrix *x; /* as multiplied: arranged float32, or bfloat16 */
  const void *bias;
  const matrix *y;
} product;

ALWAYS_INLINE float element(const matrix *x, long row, long column) {
  long offset = row * x->stride + column;
  return x->is_half ? widen(((const uint16_t *)x->data)[offset]) : ((const float *)x->data)[offset];
}

/* A row of x in float32, with its columns in the order in which groups have them. */
static void arrange_row(float *to, const matrix *x, long row, int is_4bit) {
  for (long c = 0; c < x->width; c += GROUP)
    for (int k = 0; k < LANES; k++) {
      to[c + k] = element(x, row, is_4bit ? c + 2 * k : c + k);
      to[c + LANES + k] = element(x, row, is_4bit ? c + 2 * k + 1 : c + LANES + k);
    }
}

static void write_sum(const product *p, long token, long row, float sum) {
  long offset = token * p->y->stride + row;
  if (p->y->is_half)
    ((uint16_t *)p->y->data)[offset] =
        narrow(p->bias ? sum + widen(((const uint16_t *)p->bias)[row]) : sum);
  else
    ((float *)p->y->data)[offset] = p->bias ? sum + ((const float *)p->bias)[row] : sum;
}

/* y[token + t][row + r] for T tokens and ROWS rows. A tile that reaches beyond the last row of W
 * (`last`, from `row` on) or the last token repeats these, and writes no more than there is. */
#define TILE(KIND, ROWS, T)                                                                      \
  ALWAYS_INLINE void KIND##_tile_##T(const product *p, long row, long last, const float *absmax, \
                                     long token, int is_4bit) {                                  \
    const quantized *w = p->w;                                                                   \
    const long block = w->block_size, blocks = w->columns / block, tokens = p->x->rows;          \
    const uint8_t *codes[ROWS];                                                                  \
    const float *scales[ROWS];                                                                   \
    const KIND##_element *x[T];                                                                  \
    wide sum[ROWS][T];                                                                           \
    KIND##_group decoded[ROWS];                                                                  \
    KIND##_book books[ROWS];                                                                     \
    for (int r = 0; r < ROWS; r++) {                                                             \
      codes[r] = (const uint8_t *)w->codes + (row + least(r, last)) * w->columns / (1 + is_4bit); \
      scales[r] = absmax + least(r, last) * blocks;                                              \
      for (int t = 0; t < T; t++) sum[r][t] = (wide){0};                                         \
    }                                                                                            \
    for (int t = 0; t < T; t++)                                                                  \
      x[t] = (const KIND##_element *)p->x->data + least(token + t, tokens - 1) * p->x->stride;   \
    for (long b = 0; b < blocks; b++) {                                                          \
      for (int r = 0; is_4bit && r < ROWS; r++)                                                  \
        books[r] = KIND##_scaled(w->code_book, scales[r][b]);                                    \
      for (long k = b * block; k < (b + 1) * block; k += GROUP) {                                \
        for (int r = 0; r < ROWS; r++)                                                           \
          decoded[r] = is_4bit ? KIND##_decode_4bit(codes[r] + k / 2, books[r])                  \
                               : KIND##_decode_8bit((const int8_t *)codes[r] + k);               \
        for (int t = 0; t < T; t++) {                                                            \
          const KIND##_group columns = KIND##_load(x[t] + k);                                    \
          for (int r = 0; r < ROWS; r++)                                                         \
            sum[r][t] = KIND##_multiply(sum[r][t], decoded[r], columns);                         \
        }                                                                                        \
      }                                                                                          \
    }                                                                                            \
    for (int r = 0; r < ROWS && r <= last; r++)                                                  \
      for (int t = 0; t < T && token + t < tokens; t++)                                          \
        write_sum(p, token + t, row + r,                                                         \
                  sum_of(sum[r][t]) * (is_4bit ? 1.0f : scales[r][0] / 127.0f));                 \
  }                                                                                              \
  static void KIND##_strip_##T(const product *p, long row, const float *absmax, long token) {    \
    const long last = least(p->w->rows - row, STRIP_ROWS) - 1;                                   \
    const long blocks = p->w->columns / p->w->block_size;                                        \
    for (long r = 0; r <= last; r += ROWS)                                                       \
      if (p->w->code_book)                                                                       \
        KIND##_tile_##T(p, row + r, last - r, absmax + r * blocks, token, 1);                    \
      else                                                                                       \
        KIND##_tile_##T(p, row + r, last - r, absmax + r * blocks, token, 0);                    \
  }

/* All products of up to STRIP_ROWS rows of W, in the smallest tiles that have room. */
#define EACH_STRIP(KIND)                                                               \
  static void KIND##_strip(const product *p, long row, const float *absmax) {          \
    for (long token = 0; token < p->x->rows; token += 8) {                             \
      long left = p->x->rows - token;                                                  \
      if (left == 1) KIND##_strip_1(p, row, absmax, token);                            \
      else if (left == 2) KIND##_strip_2(p, row, absmax, token);                       \
      else if (left <= 4) KIND##_strip_4(p, row, absmax, token);                       \
      else KIND##_strip_8(p, row, absmax, token);                                      \
    }                                                                                  \
  }

/* As many rows as there are registers for sums. */
#if LANES == 16
TILE(single, 4, 1) TILE(single, 4, 2) TILE(single, 4, 4) TILE(single, 2, 8)
#else
TILE(single, 2, 1) TILE(single, 2, 2) TILE(single, 2, 4) TILE(single, 1, 8)
#endif
EACH_STRIP(single)
#ifdef MULTIPLIES_HALVES
TILE(half, 4, 1) TILE(half, 4, 2) TILE(half, 4, 4) TILE(half, 2, 8)
EACH_STRIP(half)
#endif

/* y = x Wᵀ + bias, with a bias of the dtype of y or NULL. Returns 1 where memory was short. */
int lorakit_quantized_linear(const matrix *x, const quantized *w, const void *bias,
                             const matrix *y) {
  const int is_4bit = w->code_book != NULL;
  const long blocks = w->columns / w->block_size;
  int failed = 0, in_halves = 0;
#ifdef MULTIPLIES_HALVES
  in_halves = x->is_half;
#endif
  matrix arranged = {NULL, 0, w->columns, x->rows, w->columns};
  if (!in_halves) {
    arranged.data = malloc(sizeof(float) * x->rows * w->columns);
    if (!arranged.data) return 1;
  }
  const product p = {w, in_halves ? x : &arranged, bias, y};
#pragma omp parallel if (w->rows * w->columns >= SERIAL_CODES)
  {
    float *decoded = malloc(sizeof(float) * STRIP_ROWS * blocks);
    if (!decoded) failed = 1;
    if (!in_halves) {
#pragma omp for schedule(static)
      for (long t = 0; t < x->rows; t++)
        arrange_row((float *)arranged.data + t * w->columns, x, t, is_4bit);
    }
#pragma omp for schedule(static)
    for (long row = 0; row < w->rows; row += STRIP_ROWS) {
      if (!decoded) continue;
      long n = least(STRIP_ROWS, w->rows - row) * blocks;
      const float *absmax = absmax_of(w, row * blocks, n, decoded);
#ifdef MULTIPLIES_HALVES
      if (in_halves) half_strip(&p, row, absmax);
      else
#endif
        single_strip(&p, row, absmax);
    }
    free(decoded);
  }
  free(arranged.data);
  return failed;
}
