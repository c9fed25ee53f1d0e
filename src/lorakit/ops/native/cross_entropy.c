/* The cross-entropy of rows of logits, and its gradient in place of the logits:
 *
 *   loss_t = log(sum_j exp(z_tj - max_t)) + max_t - z_t,target      z = logits
 *   dloss_t/dz_tj = exp(z_tj - max_t) / sum - [j = target]
 *
 * A row is widened to float32 in the second-level cache, where three passes read it: all logits
 * travel from and to memory once.
 */
#include "activation.h"

#define OUT_OF_BOUNDS 2
#define UNROLL 4 /* vectors in flight: the chains of maxima and sums would wait for each other */

typedef int32_t wide_ints __attribute__((vector_size(4 * LANES)));

ALWAYS_INLINE wide all_lanes(float value) { return (wide){0} + value; }
ALWAYS_INLINE wide chosen(wide_ints where, wide x, wide otherwise) {
  return (wide)(((wide_ints)x & where) | ((wide_ints)otherwise & ~where));
}

/* exp(x) for x <= 0 to 1e-7 of its value; 0 below the smallest normal number, NaN for NaN.
 *
 * x = n log 2 + y with |y| <= log(2) / 2: exp(y) by its series to the seventh power, whose next
 * term is 5e-9, and 2^n by its bits. log 2 is subtracted in two parts, the first of few bits, so
 * that n times it is exact. Adding 1.5 * 2^23 rounds to a whole number, which is then in the low
 * bits. */
ALWAYS_INLINE wide exp_of(wide x) {
  const wide rounder = all_lanes(0x1.8p23f);
  const wide shifted = x * 0x1.715476p0f + rounder, n = shifted - rounder;
  const wide y = x - n * 0x1.62ep-1f - n * 0x1.0bfbe8p-15f;
  wide e = all_lanes(1.0f / 5040);
  e = e * y + 1.0f / 720;
  e = e * y + 1.0f / 120;
  e = e * y + 1.0f / 24;
  e = e * y + 1.0f / 6;
  e = e * y + 0.5f;
  e = e * y + 1.0f;
  e = e * y + 1.0f;
  const wide power = (wide)(((wide_ints)shifted + 127) << 23);
  return chosen(x < -87.0f, all_lanes(0.0f), e * power);
}

/* z[0 .. padded) with what is behind `width` so small that nothing comes of it. */
static void widen_row(const matrix *logits, long row, float *z, long padded) {
  const long first = row * logits->stride;
  if (logits->is_half) {
    const uint16_t *halves = (const uint16_t *)logits->data + first;
    for (long j = 0; j < logits->width; j++) z[j] = widen(halves[j]);
  } else {
    memcpy(z, (const float *)logits->data + first, sizeof(float) * logits->width);
  }
  for (long j = logits->width; j < padded; j++) z[j] = -__builtin_inff();
}

static float maximum(const float *z, long padded) {
  wide most[UNROLL];
  for (int i = 0; i < UNROLL; i++) most[i] = read_floats(z + i * LANES);
  for (long j = UNROLL * LANES; j < padded; j += UNROLL * LANES)
    for (int i = 0; i < UNROLL; i++) {
      const wide next = read_floats(z + j + i * LANES);
      most[i] = chosen(next > most[i], next, most[i]);
    }
  float found = most[0][0];
  for (int i = 0; i < UNROLL; i++)
    for (int k = 0; k < LANES; k++) found = most[i][k] > found ? most[i][k] : found;
  return found;
}

/* Replace z by exp(z - most) and return the sum. */
static float exponentials(float *z, long padded, float most) {
  wide sum[UNROLL] = {0};
  for (long j = 0; j < padded; j += UNROLL * LANES)
    for (int i = 0; i < UNROLL; i++) {
      const wide e = exp_of(read_floats(z + j + i * LANES) - most);
      *(wide *)(z + j + i * LANES) = e;
      sum[i] += e;
    }
  double total = 0.0;
  for (int i = 0; i < UNROLL; i++)
    for (int k = 0; k < LANES; k++) total += sum[i][k];
  return (float)total;
}

/* logits = e / sum - [column = target] */
static void write_gradient(const matrix *logits, long row, const float *e, float sum,
                           int64_t target) {
  const long first = row * logits->stride;
  const float share = 1.0f / sum;
  if (logits->is_half) {
    uint16_t *to = (uint16_t *)logits->data + first;
    for (long j = 0; j < logits->width; j++) to[j] = narrow(e[j] * share);
    to[target] = narrow(e[target] * share - 1.0f);
  } else {
    float *to = (float *)logits->data + first;
    for (long j = 0; j < logits->width; j++) to[j] = e[j] * share;
    to[target] = e[target] * share - 1.0f;
  }
}

/* Write the sum of each row's exponentials, and what its logarithm lacks to the loss; with
 * `replaces`, write the gradient into the logits. */
int lorakit_cross_entropy(const matrix *logits, const int64_t *targets, float *sums, float *rest,
                          int replaces) {
  const long step = UNROLL * LANES, padded = (logits->width + step - 1) / step * step;
  int failed = 0;
  for (long row = 0; row < logits->rows; row++)
    if (targets[row] < 0 || targets[row] >= logits->width) return OUT_OF_BOUNDS;
#pragma omp parallel if (logits->rows > 1)
  {
    float *z = malloc(sizeof(float) * padded);
    if (!z) failed = 1;
#pragma omp for schedule(static)
    for (long row = 0; row < logits->rows; row++) {
      if (!z) continue;
      widen_row(logits, row, z, padded);
      const float most = maximum(z, padded);
      rest[row] = most - z[targets[row]];
      sums[row] = exponentials(z, padded, most);
      if (replaces) write_gradient(logits, row, z, sums[row], targets[row]);
    }
    free(z);
  }
  return failed;
}
