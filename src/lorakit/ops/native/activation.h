/* Large activations: how they are read, dropped and added to.
 *
 * Activations are float32 or bfloat16 (is_half) and rows may be strided. A block of rows and a
 * chunk of columns is widened, and dropped, into a buffer in the first-level cache.
 */
#ifndef LORAKIT_ACTIVATION_H
#define LORAKIT_ACTIVATION_H
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define ROWS 16   /* rows of a block */
#define CHUNK 256 /* columns of a chunk: ROWS * CHUNK floats are 16 KiB */
#define STRIP 128 /* rows whose chunk two loops share by way of the second-level cache */

typedef float wide __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int16_t lane __attribute__((may_alias));
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef struct {
  int is_on;
  int32_t threshold; /* lanes below it are dropped */
  float scale;       /* 1 / keep probability */
  uint64_t seed;
  long shift; /* from rows of the activation to rows of the mask */
} dropout;

/* The position of an element in its mask. */
#define MASK_POSITION(d, row, width, column) \
  ((uint64_t)((row) + (d).shift) * (uint64_t)(width) + (uint64_t)(column))

ALWAYS_INLINE long least(long a, long b) { return a < b ? a : b; }

ALWAYS_INLINE long cut_into(long n, long pieces) { return (n + pieces - 1) / pieces; }

/* Columns of a chunk where threads share out the columns: as many chunks for each, of at most CHUNK
 * columns. Chunks begin at whole register tiles, so that results do not depend on the threads. */
ALWAYS_INLINE long shared_chunk(long width) {
  const long threads = omp_get_max_threads(), tile = 2 * LANES;
  const long each = cut_into(cut_into(width, CHUNK), threads);
  return cut_into(cut_into(width, each * threads), tile) * tile;
}

ALWAYS_INLINE float widen(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

/* Vectors of a thin matrix, float32 or widened from bfloat16. */
typedef uint16_t wide_halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint16_t eight_halves __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t wide_bits __attribute__((vector_size(4 * LANES)));
typedef uint32_t eight_bits __attribute__((vector_size(32)));

ALWAYS_INLINE float as_float(float value) { return value; }
ALWAYS_INLINE wide read_floats(const float *from) { return *(const wide *)from; }
ALWAYS_INLINE eight read_eight_floats(const float *from) { return *(const eight *)from; }
ALWAYS_INLINE wide read_halves(const uint16_t *from) {
  return (wide)(__builtin_convertvector(*(const wide_halves *)from, wide_bits) << 16);
}
ALWAYS_INLINE eight read_eight_halves(const uint16_t *from) {
  return (eight)(__builtin_convertvector(*(const eight_halves *)from, eight_bits) << 16);
}

/* Round to nearest, ties to even; a NaN stays one. */
ALWAYS_INLINE uint16_t narrow(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
}

/* SplitMix64 of the positions from `position` on, four 16-bit lanes a word; dropout.py has the
 * contract. Returns where the first position's lane lies in `words`. */
ALWAYS_INLINE const lane *hash_lanes(uint64_t *words, uint64_t position, int n, uint64_t seed) {
  const uint64_t step = 0x9E3779B97F4A7C15ull;
  int skipped = (int)(position & 3);
  int count = (n + skipped + 3) / 4;
  uint64_t first = (position / 4 + seed) * step;
  for (int i = 0; i < count; i++) {
    uint64_t z = first + (uint64_t)i * step;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    words[i] = z ^ (z >> 31);
  }
  return (const lane *)words + skipped;
}

ALWAYS_INLINE void keep(float *out, const float *x, const lane *lanes, int n, dropout d) {
  const int32_t threshold = d.threshold;
  const float scale = d.scale;
  for (int k = 0; k < n; k++) out[k] = lanes[k] >= threshold ? x[k] * scale : 0.0f;
}

/* One activation: a matrix of float32 or bfloat16 rows. */
typedef struct {
  void *data;
  int is_half;
  long stride; /* elements from row to row */
  long rows, width;
} matrix;

/* out[t][k] = drop(x)[row + t][column + k], float32 and compact; the hash words are kept. */
static void stage(float *out, uint64_t (*words)[CHUNK / 4 + 1], const matrix *x, long row,
                  int rows, long column, int n, dropout d) {
  for (int t = 0; t < rows; t++) {
    float *to = out + t * CHUNK;
    long offset = (row + t) * x->stride + column;
    const float *from = (const float *)x->data + offset;
    if (x->is_half) {
      const uint16_t *halves = (const uint16_t *)x->data + offset;
      for (int k = 0; k < n; k++) to[k] = widen(halves[k]);
      from = to;
    }
    if (d.is_on) {
      uint64_t position = MASK_POSITION(d, row + t, x->width, column);
      keep(to, from, hash_lanes(words[t], position, n, d.seed), n, d);
    } else if (from != to) {
      memcpy(to, from, sizeof(float) * n);
    }
  }
}

/* h[row + t][column + k] += buffer[t][k] */
static void add_chunk(const matrix *h, const float *buffer, long row, int rows, long column,
                      int n) {
  for (int t = 0; t < rows; t++) {
    const float *from = buffer + t * CHUNK;
    long offset = (row + t) * h->stride + column;
    if (h->is_half) {
      uint16_t *to = (uint16_t *)h->data + offset;
      for (int k = 0; k < n; k++) to[k] = narrow(widen(to[k]) + from[k]);
    } else {
      float *to = (float *)h->data + offset;
      for (int k = 0; k < n; k++) to[k] += from[k];
    }
  }
}

#endif
