/* Thin matrices rearranged for the inner loops, and rows of one activation that belong together.
 *
 * A batch may hold rows of several adapters. A group is a run of rows with one adapter; an
 * ordinary batch is one group. A group of at most FEW rows reads its thin matrix as it lies, since
 * rearranging it would cost as much as the product itself.
 */
#ifndef LORAKIT_PANELS_H
#define LORAKIT_PANELS_H
#include "tiles.h"

#define FEW 3
#define FEW_RANKS 1024 /* a scaled row of u lies on the stack */

typedef struct {
  long begin, end;  /* rows */
  const void *thin; /* A, (r, width), or B, (width, r) */
  float *gradient;  /* of the thin matrix, to be added to; may be NULL */
  int thin_is_half; /* bfloat16, for the products without gradients alone */
  int r;
  float scale;
  dropout mask;
} group;

/* At most ROWS rows of one group, and its rearranged thin matrix. */
typedef struct {
  const group *of;
  int index; /* of the group */
  long row;
  int rows;
  const float *packed; /* NULL for a group of few rows */
} block;

ALWAYS_INLINE int panel_columns(int r, int first) {
  int left = (r - first + 7) / 8 * 8;
  return left < PANEL ? left : PANEL;
}

ALWAYS_INLINE long padded(int r) { return (r + 7) / 8 * 8; }

ALWAYS_INLINE int is_few(const group *g) {
  return g->end - g->begin <= FEW && g->r <= FEW_RANKS;
}

static int largest_rank(const group *groups, int n) {
  int r = 0;
  for (int i = 0; i < n; i++) r = groups[i].r > r ? groups[i].r : r;
  return r;
}

/* The blocks of all groups, in their order, and how many; NULL if memory is short. */
static block *cut(const group *groups, int n, long *count) {
  *count = 0;
  for (int i = 0; i < n; i++) *count += (groups[i].end - groups[i].begin + ROWS - 1) / ROWS;
  block *blocks = malloc(sizeof(block) * (*count + 1));
  if (!blocks) return NULL;
  block *next = blocks;
  for (int i = 0; i < n; i++)
    for (long row = groups[i].begin; row < groups[i].end; row += ROWS)
      *next++ = (block){groups + i, i, row, (int)least(groups[i].end - row, ROWS), NULL};
  return blocks;
}

ALWAYS_INLINE float thin_at(const group *own, long position) {
  return own->thin_is_half ? widen(((const uint16_t *)own->thin)[position])
                           : ((const float *)own->thin)[position];
}

typedef int32_t eight_indices __attribute__((vector_size(32)));

/* Turn a square of 8 x 8: rows become columns. */
ALWAYS_INLINE void turn(eight m[8]) {
  const eight_indices low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
  const eight_indices near = {0, 1, 8, 9, 4, 5, 12, 13}, far = {2, 3, 10, 11, 6, 7, 14, 15};
  const eight_indices first = {0, 1, 2, 3, 8, 9, 10, 11}, last = {4, 5, 6, 7, 12, 13, 14, 15};
  eight pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = __builtin_shuffle(m[i], m[i + 1], low);
    pairs[i + 1] = __builtin_shuffle(m[i], m[i + 1], high);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; k++) {
      fours[i + 2 * k] = __builtin_shuffle(pairs[i + k], pairs[i + k + 2], near);
      fours[i + 2 * k + 1] = __builtin_shuffle(pairs[i + k], pairs[i + k + 2], far);
    }
  for (int i = 0; i < 4; i++) {
    m[i] = __builtin_shuffle(fours[i], fours[i + 4], first);
    m[i + 4] = __builtin_shuffle(fours[i], fours[i + 4], last);
  }
}

/* Eight adjacent values of a thin matrix. */
ALWAYS_INLINE eight eight_at(const group *own, long position) {
  return own->thin_is_half ? read_eight_halves((const uint16_t *)own->thin + position)
                           : read_eight_floats((const float *)own->thin + position);
}

/* out[k * out_stride + j] = scale * thin[j * in_stride + k] for an (n, m) part of a thin matrix
 * that begins at a position; the part is turned in squares. */
static void turned(float *out, long out_stride, const group *own, long position, long in_stride,
                   long n, long m, float scale) {
  long j = 0;
  for (; j + 8 <= n; j += 8) {
    long k = 0;
    for (; k + 8 <= m; k += 8) {
      eight square[8];
      for (int i = 0; i < 8; i++)
        square[i] = scale * eight_at(own, position + (j + i) * in_stride + k);
      turn(square);
      for (int i = 0; i < 8; i++) *(eight *)(out + (k + i) * out_stride + j) = square[i];
    }
    for (; k < m; k++)
      for (long i = j; i < j + 8; i++)
        out[k * out_stride + i] = scale * thin_at(own, position + i * in_stride + k);
  }
  for (; j < n; j++)
    for (long k = 0; k < m; k++)
      out[k * out_stride + j] = scale * thin_at(own, position + j * in_stride + k);
}

/* out[k * n + j] += scale * in[j * in_stride + k] for an (n, m) part of a matrix. */
static void add_turned(float *out, const float *in, long in_stride, long n, long m, float scale) {
  for (long k = 0; k < m; k += 8)
    for (long j = 0; j < n; j += 8) {
      eight square[8];
      if (k + 8 <= m && j + 8 <= n) {
        for (int i = 0; i < 8; i++) square[i] = *(const eight *)(in + (j + i) * in_stride + k);
        turn(square);
        for (int i = 0; i < 8; i++) *(eight *)(out + (k + i) * n + j) += scale * square[i];
        continue;
      }
      for (long c = k; c < m && c < k + 8; c++)
        for (long i = j; i < n && i < j + 8; i++) out[c * n + i] += scale * in[i * in_stride + c];
    }
}

/* Panels of at most 24 columns, each (width, columns) and padded with zeros to eights, of A. */
static void panels_of_A(float *packed, const group *own, long width) {
  for (int first = 0; first < own->r; first += PANEL) {
    const int columns = panel_columns(own->r, first), given = (int)least(own->r - first, columns);
    float *panel = packed + (long)first * width;
    turned(panel, columns, own, (long)first * width, width, given, width, 1.0f);
    for (long k = 0; given < columns && k < width; k++)
      for (int j = given; j < columns; j++) panel[k * columns + j] = 0.0f;
  }
}

/* The same of B, scaled. */
static void panels_of_B(float *packed, const group *own, long width) {
  const int r = own->r;
  for (int first = 0; first < r; first += PANEL) {
    const int columns = panel_columns(r, first), given = (int)least(r - first, columns);
    for (long k = 0; k < width; k++) {
      const long from = k * r + first;
      float *to = packed + (long)first * width + k * columns;
      int j = 0;
      for (; j + 8 <= given; j += 8) *(eight *)(to + j) = own->scale * eight_at(own, from + j);
      for (; j < columns; j++) to[j] = j < given ? own->scale * thin_at(own, from + j) : 0.0f;
    }
  }
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

/* u[j] = sum over k of x[k] A[j][k], for one whole row and A (r, width) as it lies: A is read from
 * its first element to its last, as fast as memory gives it. */
#define PROJECT_AS_IT_LIES(NAME, TYPE, READ, ONE)                                          \
  static void NAME(const float *x, const TYPE *A, long width, int r, float *u) {           \
    for (int j = 0; j < r; j++) {                                                          \
      const TYPE *a = A + j * width;                                                       \
      wide sum[4] = {{0}, {0}, {0}, {0}};                                                  \
      long k = 0;                                                                          \
      for (; k + 4 * LANES <= width; k += 4 * LANES)                                       \
        for (int v = 0; v < 4; v++)                                                        \
          sum[v] += READ(a + k + v * LANES) * *(const wide *)(x + k + v * LANES);          \
      wide all = (sum[0] + sum[1]) + (sum[2] + sum[3]);                                    \
      float total = 0.0f;                                                                  \
      for (int l = 0; l < LANES; l++) total += all[l];                                     \
      for (; k < width; k++) total += ONE(a[k]) * x[k];                                    \
      u[j] = total;                                                                        \
    }                                                                                      \
  }
PROJECT_AS_IT_LIES(project_floats, float, read_floats, as_float)
PROJECT_AS_IT_LIES(project_halves, uint16_t, read_halves, widen)

static void project_as_it_lies(const float *x, const group *own, long width, float *u) {
  if (own->thin_is_half)
    project_halves(x, own->thin, width, own->r, u);
  else
    project_floats(x, own->thin, width, own->r, u);
}

/* u[j] += scale * sum over c of x[c] B[c][j], for one row of n columns and B (width, r). */
static void add_scaled_rows(const float *x, int n, const float *B, int r, float scale, float *u) {
  for (int c = 0; c < n; c++)
    for (int j = 0; j < r; j++) u[j] += scale * x[c] * B[(long)c * r + j];
}

/* The sums of eight vectors, one in each lane. */
ALWAYS_INLINE eight sums_of(const eight s[8]) {
  const eight_indices even = {0, 8, 2, 10, 4, 12, 6, 14}, odd = {1, 9, 3, 11, 5, 13, 7, 15};
  const eight_indices near = {0, 1, 8, 9, 4, 5, 12, 13}, far = {2, 3, 10, 11, 6, 7, 14, 15};
  const eight_indices low = {0, 1, 2, 3, 8, 9, 10, 11}, high = {4, 5, 6, 7, 12, 13, 14, 15};
  eight pairs[4], halves[2];
  for (int i = 0; i < 4; i++)
    pairs[i] = __builtin_shuffle(s[2 * i], s[2 * i + 1], even) +
               __builtin_shuffle(s[2 * i], s[2 * i + 1], odd);
  for (int i = 0; i < 2; i++)
    halves[i] = __builtin_shuffle(pairs[2 * i], pairs[2 * i + 1], near) +
                __builtin_shuffle(pairs[2 * i], pairs[2 * i + 1], far);
  return __builtin_shuffle(halves[0], halves[1], low) +
         __builtin_shuffle(halves[0], halves[1], high);
}

/* out[c] = sum over j of u[j] B[c][j], for one row, n columns, and B (width, r) as it lies. */
#define EXPAND_AS_IT_LIES(NAME, TYPE, READ, ONE)                                           \
  static void NAME(float *out, const float *u, const TYPE *B, int r, int n) {              \
    int c = 0;                                                                             \
    for (; c + 8 <= n; c += 8) {                                                           \
      eight s[8] = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};                               \
      int j = 0;                                                                           \
      for (; j + 8 <= r; j += 8) {                                                         \
        eight part = *(const eight *)(u + j);                                              \
        for (int i = 0; i < 8; i++) s[i] += part * READ(B + (long)(c + i) * r + j);        \
      }                                                                                    \
      eight total = sums_of(s);                                                            \
      for (; j < r; j++)                                                                   \
        for (int i = 0; i < 8; i++) total[i] += u[j] * ONE(B[(long)(c + i) * r + j]);      \
      *(eight *)(out + c) = total;                                                         \
    }                                                                                      \
    for (; c < n; c++) {                                                                   \
      float total = 0.0f;                                                                  \
      for (int j = 0; j < r; j++) total += u[j] * ONE(B[(long)c * r + j]);                 \
      out[c] = total;                                                                      \
    }                                                                                      \
  }
EXPAND_AS_IT_LIES(expand_floats, float, read_eight_floats, as_float)
EXPAND_AS_IT_LIES(expand_halves, uint16_t, read_eight_halves, widen)

static void expand_as_it_lies(float *out, const float *u, const group *own, long column, int n) {
  if (own->thin_is_half)
    expand_halves(out, u, (const uint16_t *)own->thin + column * own->r, own->r, n);
  else
    expand_floats(out, u, (const float *)own->thin + column * own->r, own->r, n);
}

typedef enum { PANELS_OF_A, PANELS_OF_B, TRANSPOSED_B } arrangement;

/* Rearrange the thin matrices of all groups with more than a few rows and point the blocks to
 * them. Returns the memory to free; NULL if there is none. */
static float *arrange(const group *groups, int n, block *blocks, long count, long width,
                      arrangement how) {
  long floats = 1;
  for (int i = 0; i < n; i++) floats += is_few(groups + i) ? 0 : padded(groups[i].r) * width;
  float *memory = malloc(sizeof(float) * floats);
  if (!memory) return NULL;
  float *next = memory;
  for (long b = 0; b < count; b++) {
    const group *own = blocks[b].of;
    if (is_few(own)) continue;
    if (blocks[b].row != own->begin) {
      blocks[b].packed = blocks[b - 1].packed;
      continue;
    }
    blocks[b].packed = next;
    next += padded(own->r) * width;
  }
#pragma omp parallel for schedule(dynamic) if (n > 1)
  for (long b = 0; b < count; b++) {
    const group *own = blocks[b].of;
    float *packed = (float *)blocks[b].packed;
    if (!packed || blocks[b].row != own->begin) continue;
    if (how == PANELS_OF_A) panels_of_A(packed, own, width);
    if (how == PANELS_OF_B) panels_of_B(packed, own, width);
    if (how == TRANSPOSED_B) turned(packed, width, own, 0, own->r, width, own->r, own->scale);
  }
  return memory;
}

#endif
