/* The four products of the low-rank path on a CPU, each streaming one large activation once.
 *
 * Compiled at first use by cpu_kernels.py; ops/skinny.py says what each function computes.
 * Everything thin (A, B, u and their gradients) is float32, and all sums are made in float32.
 * Results depend neither on the number of threads nor on the order in which they run.
 */
#include "activation.h"
#include "tiles.h"

ALWAYS_INLINE int panel_columns(int r, int first) {
  int left = (r - first + 7) / 8 * 8;
  return left < PANEL ? left : PANEL;
}

ALWAYS_INLINE long padded(int r) { return (r + 7) / 8 * 8; }

/* Panels of at most 24 columns, each (width, columns) and padded with zeros to eights. An element
 * (k, j) of the thin matrix lies at thin[k * by_k + j * by_j]. */
static float *pack(const float *thin, long width, int r, long by_k, long by_j, float scale) {
  float *packed = malloc(sizeof(float) * padded(r) * width);
  if (!packed) return NULL;
  for (int first = 0; first < r; first += PANEL) {
    int columns = panel_columns(r, first);
    float *panel = packed + (long)first * width;
    for (long k = 0; k < width; k++)
      for (int j = 0; j < columns; j++)
        panel[k * columns + j] =
            first + j < r ? scale * thin[k * by_k + (first + j) * by_j] : 0.0f;
  }
  return packed;
}

/* The products of one staged chunk with all panels. The tile is (panel)(ROWS, columns). */
static void project_panels(const float *x, int rows, long column, int n, const float *packed,
                           long width, int r, float *tile) {
  for (int first = 0; first < r; first += PANEL) {
    int columns = panel_columns(r, first);
    project(x, rows, n, packed + (long)first * width + column * columns, columns,
            tile + (long)first * ROWS);
  }
}

static void write_tile(const float *tile, int rows, int r, float *u, long stride) {
  for (int first = 0; first < r; first += PANEL) {
    int columns = panel_columns(r, first);
    for (int t = 0; t < rows; t++)
      for (int j = 0; j < columns && first + j < r; j++)
        u[t * stride + first + j] = tile[(long)first * ROWS + t * columns + j];
  }
}

/* u = drop(x) Aᵀ, with A (r, width). */
int lorakit_down(const matrix *x, const float *A, int r, float *u, long u_stride,
                 const dropout *mask) {
  const dropout d = *mask;
  int failed = 0;
  float *packed = pack(A, x->width, r, 1, x->width, 1.0f);
  if (!packed) return 1;
#pragma omp parallel if (x->rows > ROWS)
  {
    float *tile = malloc(sizeof(float) * ROWS * padded(r));
    if (!tile) failed = 1;
#pragma omp for schedule(static)
    for (long row = 0; row < x->rows; row += ROWS) {
      if (!tile) continue;
      int rows = (int)least(x->rows - row, ROWS);
      float buffer[ROWS * CHUNK];
      uint64_t words[ROWS][CHUNK / 4 + 1];
      memset(tile, 0, sizeof(float) * ROWS * padded(r));
      for (long column = 0; column < x->width; column += CHUNK) {
        int n = (int)least(x->width - column, CHUNK);
        stage(buffer, words, x, row, rows, column, n, d);
        project_panels(buffer, rows, column, n, packed, x->width, r, tile);
      }
      write_tile(tile, rows, r, u + row * u_stride, u_stride);
    }
    free(tile);
  }
  free(packed);
  return failed;
}

/* h += scale u Bᵀ, with B (width, r). */
int lorakit_up(const matrix *h, const float *u, long u_stride, const float *B, int r,
               float scale) {
  const long width = h->width;
  float *thin = malloc(sizeof(float) * r * width);
  if (!thin) return 1;
  for (long c = 0; c < width; c++)
    for (int j = 0; j < r; j++) thin[j * width + c] = scale * B[c * r + j];
#pragma omp parallel for schedule(static) if (h->rows > ROWS)
  for (long row = 0; row < h->rows; row += ROWS) {
    int rows = (int)least(h->rows - row, ROWS);
    const float *from = u + row * u_stride;
    for (long column = 0; column < width; column += CHUNK) {
      int n = (int)least(width - column, CHUNK);
      if (h->is_half) {
        float buffer[ROWS * CHUNK];
        expand(buffer, CHUNK, rows, from, u_stride, r, thin + column, width, n, 0);
        add_chunk(h, buffer, row, rows, column, n);
      } else {
        float *to = (float *)h->data + row * h->stride + column;
        expand(to, h->stride, rows, from, u_stride, r, thin + column, width, n, 1);
      }
    }
  }
  free(thin);
  return 0;
}

/* grad_u = scale g B and grad_B = scale gᵀ u, with B (width, r); grad_B may be NULL. */
int lorakit_up_backward(const matrix *g, const float *B, int r, float scale, const float *u,
                        long u_stride, float *grad_u, long grad_u_stride, float *grad_B) {
  const dropout none = {0, 0, 1.0f, 0};
  const long width = g->width;
  int failed = 0;
  float *packed = pack(B, width, r, r, 1, scale);
  float *sums = grad_B ? calloc((size_t)r * width, sizeof(float)) : NULL;
  if (!packed || (grad_B && !sums)) failed = 1;
  else {
#pragma omp parallel if (g->rows > ROWS)
    {
      float *tile = malloc(sizeof(float) * ROWS * padded(r));
      if (!tile) failed = 1;
      for (long strip = 0; strip < g->rows; strip += STRIP) {
        long end = least(g->rows, strip + STRIP);
#pragma omp for schedule(static)
        for (long row = strip; row < end; row += ROWS) {
          if (!tile) continue;
          int rows = (int)least(end - row, ROWS);
          float buffer[ROWS * CHUNK];
          memset(tile, 0, sizeof(float) * ROWS * padded(r));
          for (long column = 0; column < width; column += CHUNK) {
            int n = (int)least(width - column, CHUNK);
            stage(buffer, NULL, g, row, rows, column, n, none);
            project_panels(buffer, rows, column, n, packed, width, r, tile);
          }
          write_tile(tile, rows, r, grad_u + row * grad_u_stride, grad_u_stride);
        }
        if (!sums) continue;
#pragma omp for schedule(static)
        for (long column = 0; column < width; column += CHUNK) {
          int n = (int)least(width - column, CHUNK);
          float buffer[ROWS * CHUNK];
          for (long row = strip; row < end; row += ROWS) {
            int rows = (int)least(end - row, ROWS);
            stage(buffer, NULL, g, row, rows, column, n, none);
            accumulate(sums + column, width, buffer, rows, n, u + row * u_stride, u_stride, r);
          }
        }
      }
      free(tile);
    }
    if (sums)
      for (long c = 0; c < width; c++)
        for (int j = 0; j < r; j++) grad_B[c * r + j] = scale * sums[j * width + c];
  }
  free(packed);
  free(sums);
  return failed;
}

/* grad_A = grad_uᵀ drop(x) and grad_x += drop(grad_u A), with A (r, width); either may be NULL. */
int lorakit_down_backward(const matrix *x, const float *A, int r, const float *grad_u,
                          long grad_u_stride, float *grad_A, const matrix *grad_x,
                          const dropout *mask) {
  const dropout d = *mask;
  const long width = x->width;
  if (grad_A) memset(grad_A, 0, sizeof(float) * r * width);
#pragma omp parallel for schedule(static) if (x->rows > ROWS)
  for (long column = 0; column < width; column += CHUNK) {
    int n = (int)least(width - column, CHUNK);
    for (long row = 0; row < x->rows; row += ROWS) {
      int rows = (int)least(x->rows - row, ROWS);
      const float *from = grad_u + row * grad_u_stride;
      float buffer[ROWS * CHUNK];
      uint64_t words[ROWS][CHUNK / 4 + 1];
      if (grad_A || d.is_on) stage(buffer, words, x, row, rows, column, n, d);
      if (grad_A) accumulate(grad_A + column, width, buffer, rows, n, from, grad_u_stride, r);
      if (!grad_x) continue;
      if (!d.is_on && !grad_x->is_half) {
        float *to = (float *)grad_x->data + row * grad_x->stride + column;
        expand(to, grad_x->stride, rows, from, grad_u_stride, r, A + column, width, n, 1);
        continue;
      }
      expand(buffer, CHUNK, rows, from, grad_u_stride, r, A + column, width, n, 0);
      if (d.is_on)
        for (int t = 0; t < rows; t++) {
          uint64_t position = (uint64_t)(row + t) * (uint64_t)width + (uint64_t)column;
          float *values = buffer + t * CHUNK;
          keep(values, values, (const lane *)words[t] + (position & 3), n, d);
        }
      add_chunk(grad_x, buffer, row, rows, column, n);
    }
  }
  return 0;
}

/* out = drop(x), elementwise; positions count through the rows. */
int lorakit_drop(const matrix *x, const matrix *out, const dropout *mask) {
  const dropout d = *mask;
#pragma omp parallel for schedule(static) if (x->rows > 1 && x->rows * x->width > 4096)
  for (long row = 0; row < x->rows; row++) {
    float buffer[CHUNK];
    uint64_t words[1][CHUNK / 4 + 1];
    for (long column = 0; column < x->width; column += CHUNK) {
      int n = (int)least(x->width - column, CHUNK);
      stage(buffer, words, x, row, 1, column, n, d);
      if (out->is_half) {
        uint16_t *to = (uint16_t *)out->data + row * out->stride + column;
        for (int k = 0; k < n; k++) to[k] = narrow(buffer[k]);
      } else {
        memcpy((float *)out->data + row * out->stride + column, buffer, sizeof(float) * n);
      }
    }
  }
  return 0;
}
