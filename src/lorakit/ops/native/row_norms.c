/* The squared norms ‖W_i + s B_i A‖² of the rows of an updated weight, reading W once:
 *
 *   ‖W_i‖² + 2 s B_i (A Wᵀ)_:,i + s² B_i (A Aᵀ) B_iᵀ
 *
 * W is larger than the caches. Its rows are therefore read from their first element to their last,
 * and the next ones are fetched while these are multiplied.
 */
#include "panels.h"

/* Rows of W and of A whose products, a multiple of eight, are held in registers. */
#if LANES == 16
#define TALL 3
#define DEEP 8
#else
#define TALL 2
#define DEEP 4
#endif

/* Read once, not by each instruction that takes it. */
#if defined(__AVX__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x)
#endif

ALWAYS_INLINE long padded_rank(long r) { return (r + DEEP - 1) / DEEP * DEEP; }

ALWAYS_INLINE eight folded(wide x) {
  eight parts[LANES / 8];
  memcpy(parts, &x, sizeof(parts));
  for (int i = 1; i < LANES / 8; i++) parts[0] += parts[i];
  return parts[0];
}

ALWAYS_INLINE float sum_of(wide x) {
  const eight sums = folded(x);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

/* crossed[j][t] = W_t · A_j for TALL rows of W and DEEP of A, and squares[t] = ‖W_t‖² if they are
 * wanted, with what lies `ahead` of the rows fetched on the way. */
ALWAYS_INLINE void cross(const float *const W[TALL], const float *A, long width,
                         float crossed[DEEP][TALL], float *squares, long ahead) {
  wide sum[DEEP * TALL] = {0}, square[TALL] = {0}, w[TALL];
  long k = 0;
  for (; k + LANES <= width; k += LANES) {
    for (int t = 0; t < TALL; t++) {
      w[t] = read_floats(W[t] + k);
      if (!squares) continue;
      square[t] += w[t] * w[t];
      __builtin_prefetch(W[t] + ahead + k, 0, 2);
    }
    for (int j = 0; j < DEEP; j++) {
      wide a = read_floats(A + j * width + k);
      IN_REGISTER(a);
      for (int t = 0; t < TALL; t++) sum[j * TALL + t] += w[t] * a;
    }
  }
  for (int first = 0; first < DEEP * TALL; first += 8) {
    eight parts[8];
    for (int i = 0; i < 8; i++) parts[i] = folded(sum[first + i]);
    *(eight *)(&crossed[0][0] + first) = sums_of(parts);
  }
  for (int t = 0; t < TALL && squares; t++) squares[t] = sum_of(square[t]);
  for (; k < width; k++)
    for (int t = 0; t < TALL; t++) {
      for (int j = 0; j < DEEP; j++) crossed[j][t] += W[t][k] * A[j * width + k];
      if (squares) squares[t] += W[t][k] * W[t][k];
    }
}

/* The products of at most TALL rows of W with all r rows of A, which zeros fill up to DEEP. */
static void cross_rows(const matrix *W, long row, const float *A, int r, float *widened,
                       float (*crossed)[TALL], float *squares) {
  const long rows = least(W->rows - row, TALL);
  const float *from[TALL];
  for (long t = 0; t < TALL; t++) {
    const long own = t < rows ? t : rows - 1;
    from[t] = W->is_half ? widened + own * W->width
                         : (const float *)W->data + (row + own) * W->stride;
  }
  for (long t = 0; W->is_half && t < rows; t++) {
    const uint16_t *halves = (const uint16_t *)W->data + (row + t) * W->stride;
    for (long k = 0; k < W->width; k++) widened[t * W->width + k] = widen(halves[k]);
  }
  cross(from, A, W->width, crossed, squares, W->is_half ? 0 : TALL * W->stride);
  for (int j = DEEP; j < r; j += DEEP)
    cross(from, A + j * W->width, W->width, crossed + j, NULL, 0);
}

/* What the update adds to ‖W_t‖², with `crossed` A W_t and `gram` A Aᵀ. */
static float added_square(const float *B, float (*crossed)[TALL], long t, const float *gram, int r,
                          float s, float *of_update) {
  memset(of_update, 0, sizeof(float) * r);
  for (int i = 0; i < r; i++)
    for (int j = 0; j < r; j++) of_update[j] += B[i] * gram[(long)i * r + j];
  float total = 0.0f;
  for (int j = 0; j < r; j++) total += (2.0f * crossed[j][t] + s * of_update[j]) * B[j];
  return s * total;
}

/* Those of at most TALL rows; never zero. */
static void norm_rows(const matrix *W, long row, const float *A, const float *B, const float *gram,
                      int r, float s, float *scratch, float *norms) {
  float squares[TALL], (*crossed)[TALL] = (float (*)[TALL])scratch;
  float *of_update = scratch + TALL * padded_rank(r), *widened = of_update + r;
  cross_rows(W, row, A, r, widened, crossed, squares);
  for (long t = 0; t < least(W->rows - row, TALL); t++) {
    float square = squares[t] + added_square(B + (row + t) * r, crossed, t, gram, r, s, of_update);
    norms[row + t] = square > 0x1p-126f ? square : 0x1p-126f;
  }
}

/* Those of W (rows, width) with A (r, width) and B (rows, r). */
int lorakit_squared_row_norms(const matrix *W, const float *A, const float *B, int r, float s,
                              float *norms) {
  const long width = W->width, floats = TALL * (padded_rank(r) + width) + r + 1;
  float *padded = calloc(padded_rank(r) * width + 1, sizeof(float));
  float *gram = malloc(sizeof(float) * ((long)r * r + 1)), *first = malloc(sizeof(float) * floats);
  int failed = !padded || !gram || !first;
  if (!failed) {
    memcpy(padded, A, sizeof(float) * r * width);
    const matrix of_A = {padded, 0, width, r, width};
    float(*crossed)[TALL] = (float(*)[TALL])first;
    for (long row = 0; row < r; row += TALL) {
      cross_rows(&of_A, row, padded, r, NULL, crossed, NULL);
      for (long t = 0; t < least(r - row, TALL); t++)
        for (int j = 0; j < r; j++) gram[(row + t) * r + j] = crossed[j][t];
    }
  }
#pragma omp parallel if (W->rows > ROWS && !failed)
  {
    float *scratch = failed ? NULL : malloc(sizeof(float) * floats);
    if (!scratch) failed = 1;
#pragma omp for schedule(static)
    for (long row = 0; row < W->rows; row += TALL)
      if (scratch) norm_rows(W, row, padded, B, gram, r, s, scratch, norms);
    free(scratch);
  }
  free(first);
  free(gram);
  free(padded);
  return failed;
}
