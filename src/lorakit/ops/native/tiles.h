/* The inner loops: register tiles over one staged chunk, in float32. */
#ifndef LORAKIT_TILES_H
#define LORAKIT_TILES_H
#include "activation.h"

#define PANEL 24 /* columns of the widest register tile */

/* u[t][j] += sum over k of x[t][k] packed[k][j], for 8 * V columns j held in registers. */
#define PROJECT(T, V)                                                                          \
  ALWAYS_INLINE void project_##T##_##V(const float *x, int n, const float *packed, float *u) { \
    eight sum[T][V];                                                                           \
    for (int t = 0; t < T; t++)                                                                \
      for (int v = 0; v < V; v++) sum[t][v] = *(const eight *)(u + t * 8 * V + 8 * v);         \
    for (int k = 0; k < n; k++) {                                                              \
      eight a[V];                                                                              \
      for (int v = 0; v < V; v++) a[v] = *(const eight *)(packed + (long)k * 8 * V + 8 * v);   \
      for (int t = 0; t < T; t++)                                                              \
        for (int v = 0; v < V; v++) sum[t][v] += a[v] * x[t * CHUNK + k];                      \
    }                                                                                          \
    for (int t = 0; t < T; t++)                                                                \
      for (int v = 0; v < V; v++) *(eight *)(u + t * 8 * V + 8 * v) = sum[t][v];               \
  }
PROJECT(8, 1) PROJECT(1, 1) PROJECT(4, 2) PROJECT(1, 2) PROJECT(4, 3) PROJECT(1, 3)

static void project(const float *x, int rows, int n, const float *packed, int columns, float *u) {
  int t = 0;
#define TILES(T, V)                                                                          \
  for (; t + T <= rows; t += T)                                                              \
    project_##T##_##V(x + t * CHUNK, n, packed, u + t * 8 * V);                              \
  for (; t < rows; t++) project_1_##V(x + t * CHUNK, n, packed, u + t * 8 * V);
  if (columns == 24) {
    TILES(4, 3)
  } else if (columns == 16) {
    TILES(4, 2)
  } else {
    TILES(8, 1)
  }
#undef TILES
}

/* h[t][c] (+)= sum over j of u[t][j] thin[j][c] */
#define EXPAND(T)                                                                               \
  ALWAYS_INLINE void expand_##T(float *h, long stride, const float *u, long u_stride, int r,    \
                                const float *thin, long thin_stride, int n, int adds) {         \
    int c = 0;                                                                                  \
    for (; c + 2 * LANES <= n; c += 2 * LANES) {                                                \
      wide sum[T][2];                                                                           \
      for (int t = 0; t < T; t++)                                                               \
        for (int v = 0; v < 2; v++)                                                             \
          sum[t][v] = adds ? *(wide *)(h + t * stride + c + v * LANES) : (wide){0};             \
      for (int j = 0; j < r; j++) {                                                             \
        wide b0 = *(const wide *)(thin + j * thin_stride + c);                                  \
        wide b1 = *(const wide *)(thin + j * thin_stride + c + LANES);                          \
        for (int t = 0; t < T; t++) {                                                           \
          sum[t][0] += b0 * u[t * u_stride + j];                                                \
          sum[t][1] += b1 * u[t * u_stride + j];                                                \
        }                                                                                       \
      }                                                                                         \
      for (int t = 0; t < T; t++)                                                               \
        for (int v = 0; v < 2; v++) *(wide *)(h + t * stride + c + v * LANES) = sum[t][v];      \
    }                                                                                           \
    for (; c < n; c++)                                                                          \
      for (int t = 0; t < T; t++) {                                                             \
        float sum = adds ? h[t * stride + c] : 0.0f;                                            \
        for (int j = 0; j < r; j++) sum += u[t * u_stride + j] * thin[j * thin_stride + c];     \
        h[t * stride + c] = sum;                                                                \
      }                                                                                         \
  }
EXPAND(4) EXPAND(1)

static void expand(float *h, long stride, int rows, const float *u, long u_stride, int r,
                   const float *thin, long thin_stride, int n, int adds) {
  int t = 0;
  for (; t + 4 <= rows; t += 4)
    expand_4(h + t * stride, stride, u + t * u_stride, u_stride, r, thin, thin_stride, n, adds);
  for (; t < rows; t++)
    expand_1(h + t * stride, stride, u + t * u_stride, u_stride, r, thin, thin_stride, n, adds);
}

/* grad[j][c] += sum over t of u[t][j] x[t][c] */
#define ACCUMULATE(J)                                                                       \
  ALWAYS_INLINE void accumulate_##J(float *grad, long stride, const float *x, int rows,     \
                                    const float *u, long u_stride) {                        \
    wide sum[J][2];                                                                         \
    for (int j = 0; j < J; j++)                                                             \
      for (int v = 0; v < 2; v++) sum[j][v] = *(wide *)(grad + j * stride + v * LANES);     \
    for (int t = 0; t < rows; t++) {                                                        \
      wide x0 = *(const wide *)(x + t * CHUNK), x1 = *(const wide *)(x + t * CHUNK + LANES); \
      for (int j = 0; j < J; j++) {                                                         \
        sum[j][0] += x0 * u[t * u_stride + j];                                              \
        sum[j][1] += x1 * u[t * u_stride + j];                                              \
      }                                                                                     \
    }                                                                                       \
    for (int j = 0; j < J; j++)                                                             \
      for (int v = 0; v < 2; v++) *(wide *)(grad + j * stride + v * LANES) = sum[j][v];     \
  }
ACCUMULATE(8) ACCUMULATE(4) ACCUMULATE(1)

static void accumulate(float *grad, long stride, const float *x, int rows, int n, const float *u,
                       long u_stride, int r) {
  int c = 0;
  for (; c + 2 * LANES <= n; c += 2 * LANES) {
    int j = 0;
    for (; j + 8 <= r; j += 8)
      accumulate_8(grad + j * stride + c, stride, x + c, rows, u + j, u_stride);
    for (; j + 4 <= r; j += 4)
      accumulate_4(grad + j * stride + c, stride, x + c, rows, u + j, u_stride);
    for (; j < r; j++) accumulate_1(grad + j * stride + c, stride, x + c, rows, u + j, u_stride);
  }
  for (; c < n; c++)
    for (int j = 0; j < r; j++)
      for (int t = 0; t < rows; t++) grad[j * stride + c] += u[t * u_stride + j] * x[t * CHUNK + c];
}

#endif
