/* Scales of the rows of a weight, which are columns of an activation; ops/row_scale.py says why. */
#ifndef LORAKIT_ROW_SCALE_H
#define LORAKIT_ROW_SCALE_H
#include "activation.h"

/* h = scale v + bias for each row of v, in place where h is v. */
typedef struct {
  const float *scale;
  const float *bias; /* may be NULL */
  matrix h;
} row_scale;

/* The same backwards, with g = dL/dh: out = scale g, in place where out is g. */
typedef struct {
  const float *scale;
  float *dots; /* += sum over t of g[t] v[t]; may be NULL */
  matrix v;    /* read for the dots alone */
  matrix out;
} row_scale_backward;

ALWAYS_INLINE long place(const matrix *x, long row, long column) {
  return row * x->stride + column;
}

/* A row of a chunk in float32: where it lies, or widened into a buffer. */
ALWAYS_INLINE const float *row_of(const matrix *x, long row, long column, int n, float *buffer) {
  if (!x->is_half) return (const float *)x->data + place(x, row, column);
  const uint16_t *from = (const uint16_t *)x->data + place(x, row, column);
  for (int k = 0; k < n; k++) buffer[k] = widen(from[k]);
  return buffer;
}

ALWAYS_INLINE void write_halves(const matrix *x, long row, long column, int n, const float *from) {
  uint16_t *to = (uint16_t *)x->data + place(x, row, column);
  for (int k = 0; k < n; k++) to[k] = narrow(from[k]);
}

/* h = scale v + bias for one block of rows and one chunk of columns. */
static void scale_chunk(const matrix *v, const row_scale *to, long row, int rows, long column,
                        int n) {
  const float *scale = to->scale + column, *bias = to->bias ? to->bias + column : NULL;
  float read[CHUNK], written[CHUNK];
  for (int t = 0; t < rows; t++) {
    const float *from = row_of(v, row + t, column, n, read);
    float *h = to->h.is_half ? written : (float *)to->h.data + place(&to->h, row + t, column);
    if (bias) {
#pragma GCC ivdep
      for (int k = 0; k < n; k++) h[k] = scale[k] * from[k] + bias[k];
    } else {
#pragma GCC ivdep
      for (int k = 0; k < n; k++) h[k] = scale[k] * from[k];
    }
    if (to->h.is_half) write_halves(&to->h, row + t, column, n, h);
  }
}

/* out = scale g for one block of rows and one chunk of columns, also into a compact buffer of the
 * rows; and the chunk's share of the dots. */
static void scale_chunk_backward(float *buffer, const matrix *g, const row_scale_backward *to,
                                 long row, int rows, long column, int n) {
  const float *scale = to->scale + column;
  float read[CHUNK], read_v[CHUNK], dots[CHUNK] = {0};
  for (int t = 0; t < rows; t++) {
    const float *from = row_of(g, row + t, column, n, read);
    float *staged = buffer + t * CHUNK;
    if (to->dots) {
      const float *v = row_of(&to->v, row + t, column, n, read_v);
#pragma GCC ivdep
      for (int k = 0; k < n; k++) {
        dots[k] += from[k] * v[k];
        staged[k] = scale[k] * from[k];
      }
    } else {
#pragma GCC ivdep
      for (int k = 0; k < n; k++) staged[k] = scale[k] * from[k];
    }
    if (to->out.is_half)
      write_halves(&to->out, row + t, column, n, staged);
    else
      memcpy((float *)to->out.data + place(&to->out, row + t, column), staged, sizeof(float) * n);
  }
  for (int k = 0; to->dots && k < n; k++) to->dots[column + k] += dots[k];
}

#endif
