/* The gradients of h += scale u Bᵀ, as the products of skinny.c; where the rows of the weight were
 * scaled afterwards, the gradient is scaled on the way. */
#include "panels.h"
#include "row_scale.h"

#define STRIP_BLOCKS (STRIP / ROWS)

/* grad_u = scale g B for one block, with B (width, r). */
static void backward_block(const matrix *g, const block *b, float *tile, float *grad_u,
                           long stride) {
  const dropout none = {0, 0, 1.0f, 0, 0};
  const group *own = b->of;
  float buffer[ROWS * CHUNK];
  memset(tile, 0, sizeof(float) * ROWS * padded(own->r));
  for (long column = 0; column < g->width; column += CHUNK) {
    int n = (int)least(g->width - column, CHUNK);
    stage(buffer, NULL, g, b->row, b->rows, column, n, none);
    if (b->packed)
      project_panels(buffer, b->rows, column, n, b->packed, g->width, own->r, tile);
    else
      for (int t = 0; t < b->rows; t++)
        add_scaled_rows(buffer + t * CHUNK, n, (const float *)own->thin + column * own->r, own->r,
                        own->scale, tile + t * own->r);
  }
  if (b->packed)
    write_tile(tile, b->rows, own->r, grad_u + b->row * stride, stride);
  else
    for (int t = 0; t < b->rows; t++)
      memcpy(grad_u + (b->row + t) * stride, tile + t * own->r, sizeof(float) * own->r);
}

/* gradient += scale gᵀ u for one chunk of columns, in sums of the shape (r, width). */
static void backward_chunk(const matrix *g, const block *b, long column, int n, const float *u,
                           long u_stride, float *sums, const row_scale_backward *of_rows) {
  const dropout none = {0, 0, 1.0f, 0, 0};
  float buffer[ROWS * CHUNK];
  if (of_rows)
    scale_chunk_backward(buffer, g, of_rows, b->row, b->rows, column, n);
  else if (b->of->gradient)
    stage(buffer, NULL, g, b->row, b->rows, column, n, none);
  if (b->of->gradient)
    accumulate(sums + column, g->width, buffer, b->rows, n, u + b->row * u_stride, u_stride,
               b->of->r);
}

static int backward(const matrix *g, const group *groups, int n, const float *u, long u_stride,
                    float *grad_u, long grad_u_stride, const row_scale_backward *of_rows) {
  const long width = g->width, chunk = shared_chunk(width);
  const matrix *scaled = of_rows ? &of_rows->out : g;
  long count, floats = 1;
  int failed = 0;
  block *blocks = cut(groups, n, &count);
  float *packed = blocks ? arrange(groups, n, blocks, count, width, PANELS_OF_B) : NULL;
  long *starts = malloc(sizeof(long) * (n + 1));
  for (int i = 0; starts && i < n; i++) {
    starts[i] = floats - 1;
    floats += groups[i].gradient ? groups[i].r * width : 0;
  }
  float *sums = calloc(floats, sizeof(float));
  if (!packed || !starts || !sums) failed = 1;
  else {
#pragma omp parallel if (count > 1)
    {
      float *tile = malloc(sizeof(float) * ROWS * (padded(largest_rank(groups, n)) + 1));
      if (!tile) failed = 1;
      for (long strip = 0; strip < count; strip += STRIP_BLOCKS) {
        long end = least(count, strip + STRIP_BLOCKS);
#pragma omp for schedule(static)
        for (long column = 0; column < width; column += chunk)
          for (long b = strip; b < end; b++)
            backward_chunk(g, blocks + b, column, (int)least(width - column, chunk), u, u_stride,
                           sums + starts[blocks[b].index], of_rows);
#pragma omp for schedule(static)
        for (long b = strip; b < end; b++)
          if (tile && blocks[b].of->r)
            backward_block(scaled, blocks + b, tile, grad_u, grad_u_stride);
      }
      free(tile);
#pragma omp for schedule(static)
      for (long column = 0; column < width; column += chunk)
        for (int i = 0; i < n; i++) {
          const group *own = groups + i;
          if (own->gradient)
            add_turned(own->gradient + column * own->r, sums + starts[i] + column, width, own->r,
                       least(width - column, chunk), own->scale);
        }
    }
  }
  free(sums);
  free(starts);
  free(packed);
  free(blocks);
  return failed;
}

/* grad_u = scale g B and gradient += scale gᵀ u, with B (width, r). */
int lorakit_up_backward(const matrix *g, const group *groups, int n, const float *u, long u_stride,
                        float *grad_u, long grad_u_stride) {
  return backward(g, groups, n, u, u_stride, grad_u, grad_u_stride, NULL);
}

/* The same of what `of_rows` makes of g; for the latter alone the group is of rank 0. */
int lorakit_up_scaled_backward(const matrix *g, const group *all, const float *u, long u_stride,
                               float *grad_u, long grad_u_stride,
                               const row_scale_backward *of_rows) {
  return backward(g, all, 1, u, u_stride, grad_u, grad_u_stride, of_rows);
}
