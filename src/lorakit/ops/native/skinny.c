/* The products of the low-rank path on a CPU, each streaming one large activation once;
 * up_backward.c has one more.
 *
 * Compiled at first use by compiled_library.py; ops/skinny.py says what each function computes, and
 * ops/grouped.py for rows of several adapters. Everything thin (A, B, u and their gradients) is
 * float32, but A and B may be bfloat16 where no gradients are made; all sums are in float32.
 * Results depend neither on the number of threads nor on the order in which they run. Rows outside
 * every group are left alone. Each function returns 0, or 1 where memory was short.
 */
#include "panels.h"
#include "row_scale.h"

/* The rows of u = drop(x) Aᵀ of one block with few rows. */
static void down_few(const matrix *x, const block *b, float *scratch, float *to, long u_stride) {
  const group *own = b->of;
  uint64_t words[1][CHUNK / 4 + 1];
  for (int t = 0; t < b->rows; t++) {
    const float *row = (const float *)x->data + (b->row + t) * x->stride;
    if (x->is_half || own->mask.is_on) {
      for (long column = 0; column < x->width; column += CHUNK)
        stage(scratch + column, words, x, b->row + t, 1, column,
              (int)least(x->width - column, CHUNK), own->mask);
      row = scratch;
    }
    project_as_it_lies(row, own, x->width, to + t * u_stride);
  }
}

/* The rows of u = drop(x) Aᵀ of one block. Scratch memory is as `scratch_floats` says. */
static void down_block(const matrix *x, const block *b, float *scratch, float *to, long u_stride) {
  const group *own = b->of;
  float buffer[ROWS * CHUNK];
  uint64_t words[ROWS][CHUNK / 4 + 1];
  if (!b->packed) {
    down_few(x, b, scratch, to, u_stride);
    return;
  }
  memset(scratch, 0, sizeof(float) * ROWS * padded(own->r));
  for (long column = 0; column < x->width; column += CHUNK) {
    int n = (int)least(x->width - column, CHUNK);
    stage(buffer, words, x, b->row, b->rows, column, n, own->mask);
    project_panels(buffer, b->rows, column, n, b->packed, x->width, own->r, scratch);
  }
  write_tile(scratch, b->rows, own->r, to, u_stride);
}

/* Room for a tile, and for a whole row of the activation. */
ALWAYS_INLINE long scratch_floats(const group *groups, int n, long width) {
  long tile = ROWS * (padded(largest_rank(groups, n)) + 1);
  return tile > width ? tile : width;
}

/* u = drop(x) Aᵀ, with A (r, width). */
int lorakit_down(const matrix *x, const group *groups, int n, float *u, long u_stride) {
  long count;
  int failed = 0;
  block *blocks = cut(groups, n, &count);
  float *packed = blocks ? arrange(groups, n, blocks, count, x->width, PANELS_OF_A) : NULL;
  if (!packed) failed = 1;
#pragma omp parallel if (count > 1 && packed)
  {
    float *scratch = malloc(sizeof(float) * scratch_floats(groups, n, x->width));
    if (!scratch) failed = 1;
#pragma omp for schedule(static)
    for (long b = 0; b < count; b++)
      if (scratch && packed)
        down_block(x, blocks + b, scratch, u + blocks[b].row * u_stride, u_stride);
    free(scratch);
  }
  free(packed);
  free(blocks);
  return failed;
}

/* h += scale u Bᵀ for one chunk of a block, from its rows of u. */
static void up_chunk(const matrix *h, const block *b, const float *from, long u_stride,
                     long column, int n) {
  const group *own = b->of;
  float buffer[ROWS * CHUNK], scaled[FEW_RANKS];
  if (b->packed && !h->is_half) {
    float *to = (float *)h->data + b->row * h->stride + column;
    expand(to, h->stride, b->rows, from, u_stride, own->r, b->packed + column, h->width, n, 1);
    return;
  }
  if (b->packed)
    expand(buffer, CHUNK, b->rows, from, u_stride, own->r, b->packed + column, h->width, n, 0);
  else
    for (int t = 0; t < b->rows; t++) {
      for (int j = 0; j < own->r; j++) scaled[j] = own->scale * from[t * u_stride + j];
      expand_as_it_lies(buffer + t * CHUNK, scaled, own, column, n);
    }
  add_chunk(h, buffer, b->row, b->rows, column, n);
}

static void up_block(const matrix *h, const block *b, const float *from, long u_stride,
                     const row_scale *scale) {
  for (long column = 0; column < h->width; column += CHUNK) {
    int n = (int)least(h->width - column, CHUNK);
    if (b->of->r) up_chunk(h, b, from, u_stride, column, n);
    if (scale) scale_chunk(h, scale, b->row, b->rows, column, n);
  }
}

static int up(const matrix *h, const group *groups, int n, const float *u, long u_stride,
              const row_scale *of_rows) {
  long count;
  block *blocks = cut(groups, n, &count);
  float *packed = blocks ? arrange(groups, n, blocks, count, h->width, TRANSPOSED_B) : NULL;
  if (packed) {
#pragma omp parallel for schedule(static) if (count > 1)
    for (long b = 0; b < count; b++)
      up_block(h, blocks + b, u + blocks[b].row * u_stride, u_stride, of_rows);
  }
  free(packed);
  free(blocks);
  return !packed;
}

/* h += scale u Bᵀ, with B (width, r). */
int lorakit_up(const matrix *h, const group *groups, int n, const float *u, long u_stride) {
  return up(h, groups, n, u, u_stride, NULL);
}

/* v += scale u Bᵀ, and what `of_rows` says of v; for the latter alone the group is of rank 0. */
int lorakit_up_scaled(const matrix *v, const group *all, const float *u, long u_stride,
                      const row_scale *of_rows) {
  return up(v, all, 1, u, u_stride, of_rows);
}

/* h += scale drop(x) Aᵀ Bᵀ, u left in the cache. The groups of A and of B are of the same rows. */
int lorakit_add(const matrix *x, const matrix *h, const group *of_A, const group *of_B, int n) {
  long count;
  int failed = 0;
  const long r = padded(largest_rank(of_A, n)) + 1;
  block *downs = cut(of_A, n, &count), *ups = cut(of_B, n, &count);
  float *A = downs ? arrange(of_A, n, downs, count, x->width, PANELS_OF_A) : NULL;
  float *B = ups ? arrange(of_B, n, ups, count, h->width, TRANSPOSED_B) : NULL;
  if (!A || !B) failed = 1;
#pragma omp parallel if (count > 1 && A && B)
  {
    float *u = malloc(sizeof(float) * (ROWS * r + scratch_floats(of_A, n, x->width)));
    if (!u) failed = 1;
#pragma omp for schedule(static)
    for (long b = 0; b < count; b++) {
      if (!u || !A || !B) continue;
      down_block(x, downs + b, u + ROWS * r, u, r);
      up_block(h, ups + b, u, r, NULL);
    }
    free(u);
  }
  free(A);
  free(B);
  free(downs);
  free(ups);
  return failed;
}

/* All arguments of lorakit_add but where x and h lie. */
typedef struct {
  matrix x, h;
  const group *of_A, *of_B;
  int groups;
} addition;

int lorakit_add_prepared(const addition *what, void *x, void *h) {
  matrix from = what->x, to = what->h;
  from.data = x, to.data = h;
  return lorakit_add(&from, &to, what->of_A, what->of_B, what->groups);
}

/* The part of lorakit_down_backward in one block and one chunk of columns. */
static void down_backward_chunk(const matrix *x, const block *b, long column, int n,
                                const float *grad_u, long stride, const matrix *grad_x) {
  const group *own = b->of;
  const dropout d = own->mask;
  const float *from = grad_u + b->row * stride, *A = (const float *)own->thin + column;
  float buffer[ROWS * CHUNK];
  uint64_t words[ROWS][CHUNK / 4 + 1];
  if (own->gradient || d.is_on) stage(buffer, words, x, b->row, b->rows, column, n, d);
  if (own->gradient)
    accumulate(own->gradient + column, x->width, buffer, b->rows, n, from, stride, own->r);
  if (!grad_x) return;
  if (!d.is_on && !grad_x->is_half) {
    float *to = (float *)grad_x->data + b->row * grad_x->stride + column;
    expand(to, grad_x->stride, b->rows, from, stride, own->r, A, x->width, n, 1);
    return;
  }
  expand(buffer, CHUNK, b->rows, from, stride, own->r, A, x->width, n, 0);
  for (int t = 0; d.is_on && t < b->rows; t++) {
    uint64_t position = MASK_POSITION(d, b->row + t, x->width, column);
    float *values = buffer + t * CHUNK;
    keep(values, values, (const lane *)words[t] + (position & 3), n, d);
  }
  add_chunk(grad_x, buffer, b->row, b->rows, column, n);
}

/* gradient += grad_uᵀ drop(x) and grad_x += drop(grad_u A), with A (r, width); either may be
 * NULL. */
int lorakit_down_backward(const matrix *x, const group *groups, int n, const float *grad_u,
                          long grad_u_stride, const matrix *grad_x) {
  const long chunk = shared_chunk(x->width);
  long count;
  block *blocks = cut(groups, n, &count);
  if (!blocks) return 1;
#pragma omp parallel for schedule(static) if (x->rows > ROWS)
  for (long column = 0; column < x->width; column += chunk)
    for (long b = 0; b < count; b++)
      down_backward_chunk(x, blocks + b, column, (int)least(x->width - column, chunk), grad_u,
                          grad_u_stride, grad_x);
  free(blocks);
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
