/* The squared norms ‖W_i + s B_i A‖² of the rows of an updated weight, reading W once:
 *
 *   ‖W_i‖² + 2 s B_i (A Wᵀ)_:,i + s² B_i (A Aᵀ) B_iᵀ
 */
#include "panels.h"

/* The sum of the squares of n numbers. */
static float square_sum(const float *x, int n) {
  wide sums[2] = {{0}, {0}};
  int k = 0;
  for (; k + 2 * LANES <= n; k += 2 * LANES)
    for (int v = 0; v < 2; v++) {
      wide part = *(const wide *)(x + k + v * LANES);
      sums[v] += part * part;
    }
  float total = 0.0f;
  for (int l = 0; l < LANES; l++) total += sums[0][l] + sums[1][l];
  for (; k < n; k++) total += x[k] * x[k];
  return total;
}

/* What the update adds to ‖W_i‖², with `crossed` W_i Aᵀ and `gram` A Aᵀ. */
static float added_square(const float *B, const float *crossed, const float *gram, int r, float s) {
  float total = 0.0f;
  for (int j = 0; j < r; j++) {
    float of_update = 0.0f;
    for (int i = 0; i < r; i++) of_update += B[i] * gram[(long)i * r + j];
    total += (2.0f * crossed[j] + s * of_update) * B[j];
  }
  return s * total;
}

/* Those of W (rows, width) with B (rows, r), A in a group of all rows, and A Aᵀ (r, r); never zero. */
int lorakit_squared_row_norms(const matrix *W, const group *of_A, const float *B,
                              const float *gram, float *norms) {
  const dropout none = {0, 0, 1.0f, 0, 0};
  const int r = of_A->r;
  long count;
  int failed = 0;
  block *blocks = cut(of_A, 1, &count);
  float *packed = malloc(sizeof(float) * (padded(r) * W->width + 1));
  if (!blocks || !packed) failed = 1;
  else panels_of_A(packed, of_A, W->width);
#pragma omp parallel if (count > 1 && !failed)
  {
    float *scratch = malloc(sizeof(float) * ROWS * (padded(r) + r + 1)), *crossed = NULL;
    float buffer[ROWS * CHUNK], squares[ROWS];
    if (scratch) crossed = scratch + ROWS * padded(r);
    else failed = 1;
#pragma omp for schedule(static)
    for (long b = 0; b < count; b++) {
      if (!crossed || !packed || !blocks) continue;
      const long row = blocks[b].row;
      const int rows = blocks[b].rows;
      memset(scratch, 0, sizeof(float) * ROWS * padded(r));
      memset(squares, 0, sizeof(squares));
      for (long column = 0; column < W->width; column += CHUNK) {
        int n = (int)least(W->width - column, CHUNK);
        stage(buffer, NULL, W, row, rows, column, n, none);
        for (int t = 0; t < rows; t++) squares[t] += square_sum(buffer + t * CHUNK, n);
        project_panels(buffer, rows, column, n, packed, W->width, r, scratch);
      }
      write_tile(scratch, rows, r, crossed, r);
      for (int t = 0; t < rows; t++) {
        float square = squares[t] + added_square(B + (row + t) * r, crossed + (long)t * r, gram, r,
                                                 of_A->scale);
        norms[row + t] = square > 0x1p-126f ? square : 0x1p-126f;
      }
    }
    free(scratch);
  }
  free(packed);
  free(blocks);
  return failed;
}
