// The forward pass of the Llama family on a CPU, in float32, for ragged batches.
//
// One call computes all layers in one parallel region. Nothing is kept between calls: weights,
// cache and workspace belong to the caller. A row's bits depend on its own sequence alone, not on
// what else is in the batch and not on the number of threads: every sum has one order.
//
// Names and shapes are those of transformer.py; library.py holds the same structs for Python.

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// Vectors of the compiler: W floats, and integers of the same width for masks and exponents.
template <int W>
struct Vectors;
#define PDV_VECTORS(W)                                      \
  template <>                                               \
  struct Vectors<W> {                                       \
    typedef float Float __attribute__((vector_size(4 * W))); \
    typedef int32_t Int __attribute__((vector_size(4 * W))); \
  };
PDV_VECTORS(2)
PDV_VECTORS(4)
PDV_VECTORS(8)
PDV_VECTORS(16)
#undef PDV_VECTORS

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

using Vector = Vectors<LANES>::Float;

// A panel is PANEL outputs of a matrix, input after input: two vectors for each input.
constexpr int PANEL = 2 * LANES;
// Rows of activations that meet a panel at once; their sums stay in registers.
constexpr int TILE = REGISTERS == 32 ? 12 : 6;
// Floats by which memory is asked for weights before they are needed.
constexpr int64_t AHEAD = 1536;
// Bytes of activations that stay in a core's cache while panels pass by.
constexpr int64_t BLOCK_BYTES = 768 << 10;
// Most query tokens of a sequence that attend together, and rows whose sums stay in registers.
constexpr int TOKENS = 16;
// Rows of which each thread finds all norms.
constexpr int NORMS_ALONE = 16;
constexpr int ROWS = REGISTERS == 32 ? 6 : 3;
// Most queries that meet keys in registers; for more of them keys become a panel in memory.
constexpr int FEW = REGISTERS == 32 ? 8 : 4;
// Values that stay in the first cache while all rows of a task meet them, and how many of them
// further it is asked for the next ones.
constexpr int VALUES = 64, VALUES_AHEAD = 16;

// Memory need not be aligned.
template <typename V>
inline V load(const float* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename V>
inline void store(float* to, V value) {
  std::memcpy(to, &value, sizeof value);
}

inline float sum(Vector value) {
  float parts[LANES];
  store(parts, value);
  for (int half = LANES / 2; half; half /= 2) {
    for (int lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
  }
  return parts[0];
}

inline Vector larger(Vector a, Vector b) { return b > a ? b : a; }

inline float highest(Vector value) {
  float parts[LANES];
  store(parts, value);
  for (int half = LANES / 2; half; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      parts[lane] = std::max(parts[lane], parts[lane + half]);
    }
  }
  return parts[0];
}

#if defined(__clang__)
inline void transpose(Vector* square) {
  float from[LANES][LANES];
  std::memcpy(from, square, sizeof from);
  for (int i = 0; i < LANES; ++i) {
    for (int j = 0; j < LANES; ++j) square[i][j] = from[j][i];
  }
}
#else
// Exchange the parts of a square of vectors that lie across its diagonal: halves, then quarters of
// each quarter, and so on.
template <int Half = LANES / 2>
inline void transpose(Vector* square) {
  if constexpr (Half > 0) {
    Vectors<LANES>::Int upper, lower;
    for (int lane = 0; lane < LANES; ++lane) {
      const bool first = lane % (2 * Half) < Half;
      upper[lane] = first ? lane : LANES + lane - Half;
      lower[lane] = first ? lane + Half : LANES + lane;
    }
#pragma GCC unroll 16
    for (int pair = 0; pair < LANES / 2; ++pair) {
      Vector* a = square + pair / Half * 2 * Half + pair % Half;
      const Vector up = *a, down = a[Half];
      a[0] = __builtin_shuffle(up, down, upper);
      a[Half] = __builtin_shuffle(up, down, lower);
    }
    transpose<Half / 2>(square);
  }
}
#endif

// e^x, 0 below -87 and e^88 above 88: x = n ln 2 + r, and a polynomial for e^r (Cephes' coefficients).
template <int W>
inline typename Vectors<W>::Float exponential(typename Vectors<W>::Float x) {
  using Float = typename Vectors<W>::Float;
  using Int = typename Vectors<W>::Int;
  const Int small = x < -87.0f;
  x = small ? Float{} - 87.0f : x;
  x = x > 88.0f ? Float{} + 88.0f : x;
  const Float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the fraction is rounded off
  const Float n = shifted - 12582912.0f;
  const Float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Int bits, scale;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&scale, &shifted, sizeof scale);
  bits += scale << 23;
  Float result;
  std::memcpy(&result, &bits, sizeof result);
  return small ? Float{} : result;
}

}  // namespace

extern "C" {

// A matrix [outputs, inputs] in panels: [ceil(outputs / PANEL), inputs, PANEL]. The bias has as
// many entries as the panels have outputs; null: none.
struct Matrix {
  const float* panels;
  const float* bias;
  int64_t outputs, inputs;
};

// In `gate_up` vectors of gate and up alternate. Norm weights are in the matrices that follow them.
struct Layer {
  Matrix qkv, o, gate_up, down;
  const float* qk_norm;  // [num_heads + num_kv_heads, head_dim], null: none
};

struct Model {
  const float* embedding;  // [vocab_size, hidden]
  const float* rotations;  // [max_model_len, head_dim]: cosine and sine of each pair
  const Layer* layers;
  Matrix lm_head;
  int64_t hidden, num_layers, num_heads, num_kv_heads, head_dim, width;
  float eps;
};

// Where keys and values lie, strides in floats: token t of sequence b at layer l, head h is at
// base + table[b, t / unit_tokens] * unit + l * layer + (0 or value) + h * head
// + t % unit_tokens * position.
struct Cache {
  float* base;
  int64_t unit_tokens, unit, layer, value, head, position;
};

struct Batch {
  const int64_t* token_ids;   // [rows]
  const int64_t* positions;   // [rows]
  const int64_t* query_lens;  // [sequences]
  const int64_t* table;       // [sequences, units]
  const int64_t* logit_rows;  // [wanted], null: all rows
  int64_t rows, sequences, units, wanted;
};

// Where the best id of each wanted row goes, [wanted]. Tokens from `vocab_size` on are not chosen.
// `accepted`, `next_ids` [sequences], null: not wanted. Where they are, all rows are, and those of a
// sequence but its first hold drafts: how many of these are the best ids, up to the first that is
// not, and the best id after them.
struct Choice {
  int64_t* ids;
  int64_t vocab_size;
  int64_t *accepted, *next_ids;
};

// What a greedy draft is to write: the first `lengths[b]` >= 1 entries of each row of `ids`. Tokens
// from `vocab_size` on are not chosen.
struct Drafts {
  const int64_t* lengths;  // [sequences]
  int64_t* ids;            // [sequences, width]
  int64_t width, vocab_size;
};

// Outputs in a vector of the packed matrices.
int64_t pdv_lanes() { return LANES; }
}

namespace {

// What a step is accounted to; library.py has the same order.
enum Phase { EMBED, NORM, QKV, ROTATE, ATTEND, OUT, GATE_UP, DOWN, HEAD, PHASES };

// Parts of a step, shared among threads: each begins with a run of its own, whose weights its core
// may still have, and then helps the others.
class Shares {
 public:
  Shares(std::atomic<int64_t>* next, int threads, double* seconds)
      : next_(next), threads_(threads), seconds_(seconds) {
    if (seconds_) since_ = omp_get_wtime();
  }

  // Tell how many threads there are, which may be fewer than were asked for.
  void begin(int threads) { threads_ = threads; }

  template <typename Work>
  void run(int step, Phase phase, int thread, int64_t parts, Work work) {
    for (int other = 0; other < threads_; ++other) {
      const int owner = (thread + other) % threads_;
      const int64_t first = parts * owner / threads_, end = parts * (owner + 1) / threads_;
      auto& next = next_[(step * threads_ + owner) * STRIDE];
      for (;;) {
        const int64_t part = first + next.fetch_add(1, std::memory_order_relaxed);
        if (part >= end) break;
        work(part);
      }
    }
    wait();
    if (seconds_ && thread == 0) {
      const double now = omp_get_wtime();
      seconds_[phase] += now - since_;
      since_ = now;
    }
  }

  static constexpr int STRIDE = 8;  // a cache line each

 private:
  // Until all threads are here. They come within microseconds of each other, a hundred times in a
  // step: to sleep would take longer. Only where another process has the core, it is left alone.
  void wait() {
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int turn = 0; round_.load(std::memory_order_acquire) == round; ++turn) {
      if (turn < TURNS) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  static constexpr int TURNS = 2000;  // some 50 microseconds

  std::atomic<int64_t>* next_;
  int threads_;
  double* seconds_;  // of each phase, null: not wanted
  double since_ = 0;
  alignas(64) std::atomic<int64_t> round_{0};
  alignas(64) std::atomic<int> arrived_{0};
};

// What becomes of a product: `scale` each row first (null: no), then add the bias.
enum class Then { STORE, ADD, SILU };

// Weights that memory is asked for before they are needed: from where, and how many floats further
// with each input.
struct Ahead {
  const float* from;
  int64_t step;
};

// Which those are: none; those that follow in the same run; or a share of the next panel, where
// several tiles of rows meet this one.
enum class Fetch { NONE, RUN, SHARE };
template <Fetch fetch>
using Fetching = std::integral_constant<Fetch, fetch>;

// Vectors that are asked for with each input. The CPU follows a run by itself, and where few rows
// leave it little to compute, asking for all of it only gets in its way.
template <int M>
constexpr int vectors_ahead(Fetch fetch) {
  if (fetch == Fetch::NONE) return 0;
  return fetch == Fetch::RUN && M >= 8 ? 2 : 1;
}

template <int M, Then then, Fetch fetch>
void multiply_tile(const float* x, int64_t stride, const float* panel, Ahead ahead, int64_t inputs,
                   const float* scale, const float* bias, float* out, int64_t out_stride,
                   int64_t columns) {
  Vector sums[M][2] = {};
  // Few registers address all rows: a pointer for each four, and one distance.
  const float* fours[(M + 3) / 4];
  for (int i = 0; i < (M + 3) / 4; ++i) fours[i] = x + 4 * i * stride;
  for (int64_t k = 0; k < inputs; ++k) {
    const Vector w0 = load<Vector>(panel), w1 = load<Vector>(panel + LANES);
    for (int i = 0; i < vectors_ahead<M>(fetch); ++i) {
      __builtin_prefetch(ahead.from + i * LANES, 0, 2);
    }
    ahead.from += ahead.step;
    panel += PANEL;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const float value = fours[m / 4][m % 4 * stride + k];
      sums[m][0] += value * w0;
      sums[m][1] += value * w1;
    }
  }
  const Vector zero = {};
  const Vector b0 = bias ? load<Vector>(bias) : zero;
  const Vector b1 = bias ? load<Vector>(bias + LANES) : zero;
  for (int m = 0; m < M; ++m) {
    const float factor = scale ? scale[m] : 1.0f;
    Vector y0 = sums[m][0] * factor + b0, y1 = sums[m][1] * factor + b1;
    float* row = out + m * out_stride;
    int64_t left = columns;
    if constexpr (then == Then::SILU) {
      y0 = y0 / (1.0f + exponential<LANES>(zero - y0)) * y1;
    }
    if (left >= (then == Then::SILU ? LANES : PANEL)) {
      if constexpr (then == Then::ADD) {
        y0 += load<Vector>(row);
        y1 += load<Vector>(row + LANES);
      }
      store(row, y0);
      if constexpr (then != Then::SILU) store(row + LANES, y1);
      continue;
    }
    for (int64_t n = 0; n < left; ++n) {
      const float y = n < LANES ? y0[n] : y1[n - LANES];
      row[n] = then == Then::ADD ? row[n] + y : y;
    }
  }
}

template <Then then, Fetch fetch, int M = TILE>
inline void multiply_rows(int rows, const float* x, int64_t stride, const float* panel, Ahead ahead,
                          int64_t inputs, const float* scale, const float* bias, float* out,
                          int64_t out_stride, int64_t columns) {
  if constexpr (M > 0) {
    if (rows == M) {
      multiply_tile<M, then, fetch>(x, stride, panel, ahead, inputs, scale, bias, out, out_stride,
                                    columns);
    } else {
      multiply_rows<then, fetch, M - 1>(rows, x, stride, panel, ahead, inputs, scale, bias, out,
                                        out_stride, columns);
    }
  }
}

// x [rows, inputs] times the transposed matrix, into out [rows, outputs]; with SILU into
// [rows, outputs / 2], silu(gate) * up.
template <Then then>
void multiply(Shares& shares, int step, Phase phase, int thread, const Matrix& matrix, const float* x,
              int64_t rows, const float* scale, float* out, int64_t out_stride) {
  const int64_t panels = (matrix.outputs + PANEL - 1) / PANEL;
  const int64_t wide = then == Then::SILU ? LANES : PANEL;
  const int64_t columns = then == Then::SILU ? matrix.outputs / 2 : matrix.outputs;
  const int64_t fitting = std::max<int64_t>(TILE, BLOCK_BYTES / (4 * matrix.inputs));
  const int64_t blocks = (rows + fitting - 1) / fitting;
  // A few panels at a time: the count of parts is small against the work in one.
  const int64_t together = rows <= TILE ? std::max<int64_t>(1, panels / 32) : 1;
  const int64_t groups = (panels + together - 1) / together;
  shares.run(step, phase, thread, blocks * groups, [&](int64_t part) {
    const int64_t block = part / groups, group = part % groups;
    const int64_t from = rows * block / blocks, to = rows * (block + 1) / blocks;
    const int64_t tiles = (to - from + TILE - 1) / TILE;
    const int64_t last = std::min(panels, (group + 1) * together);
    for (int64_t panel = group * together; panel < last; ++panel) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = from + (to - from) * tile / tiles;
        const int64_t end = from + (to - from) * (tile + 1) / tiles;
        const float* weights = matrix.panels + panel * matrix.inputs * PANEL;
        const auto meet = [&](auto fetch, Ahead ahead) {
          multiply_rows<then, fetch.value>(
              int(end - first), x + first * matrix.inputs, matrix.inputs, weights, ahead,
              matrix.inputs, scale ? scale + first : nullptr,
              matrix.bias ? matrix.bias + panel * PANEL : nullptr,
              out + first * out_stride + panel * wide, out_stride, columns - panel * wide);
        };
        if (tiles == 1) {
          meet(Fetching<Fetch::RUN>{}, {weights + AHEAD, PANEL});
        } else {
          const int64_t step = (PANEL + tiles - 1) / tiles;
          meet(Fetching<Fetch::SHARE>{}, {weights + matrix.inputs * (PANEL + tile * step), step});
        }
      }
    }
  });
}

// 1 / sqrt(mean of squares + eps), the factor of root mean square normalisation (arXiv 1910.07467).
float inverse_norm(const float* x, int64_t size, float eps) {
  Vector sums = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    const Vector value = load<Vector>(x + i);
    sums += value * value;
  }
  float total = sum(sums);
  for (; i < size; ++i) total += x[i] * x[i];
  return 1.0f / std::sqrt(total / float(size) + eps);
}

// (a + ib)(c + is) for the interleaved pairs of a head, after its norm and times a factor.
void rotate(float* head, const float* rotation, const float* weight, int64_t size, float eps,
            float factor) {
  if (weight) {
    const float inverse = inverse_norm(head, size, eps);
    for (int64_t i = 0; i < size; ++i) head[i] *= inverse * weight[i];
  }
  for (int64_t i = 0; i < size; i += 2) {
    const float a = head[i] * factor, b = head[i + 1] * factor;
    head[i] = a * rotation[i] - b * rotation[i + 1];
    head[i + 1] = a * rotation[i + 1] + b * rotation[i];
  }
}

// What a thread needs for a task: queries [queries, head_dim], a panel of keys, and scores
// [queries, room].
struct Scratch {
  float *queries, *keys, *scores;
  int64_t room;
};

struct Work {
  const Model& model;
  const Cache& cache;
  const Batch& batch;

  float* place(int64_t layer, int64_t sequence, int64_t token, int64_t head) const {
    const int64_t unit = batch.table[sequence * batch.units + token / cache.unit_tokens];
    return cache.base + unit * cache.unit + layer * cache.layer + head * cache.head +
           token % cache.unit_tokens * cache.position;
  }

  int64_t query_width() const { return model.num_heads * model.head_dim; }
  int64_t fused_width() const {
    return (model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
  }

  // Rotate a key head of a row and the queries that meet it, in place, and put key and value into the
  // cache.
  void rotate_and_store(int64_t layer, int64_t sequence, int64_t row, int64_t key_head,
                        float* qkv) const {
    const int64_t size = model.head_dim, heads = model.num_heads, kv_heads = model.num_kv_heads;
    const int64_t position = batch.positions[row];
    const float* rotation = model.rotations + position * size;
    const float* weights = model.layers[layer].qk_norm;
    const float scale = 1.0f / std::sqrt(float(size));
    for (int64_t head = key_head; head < heads + kv_heads; head += kv_heads) {
      rotate(qkv + head * size, rotation, weights ? weights + head * size : nullptr, size,
             model.eps, head < heads ? scale : 1.0f);
    }
    float* key = place(layer, sequence, position, key_head);
    std::memcpy(key, qkv + (heads + key_head) * size, size * sizeof(float));
    std::memcpy(key + cache.value, qkv + (heads + kv_heads + key_head) * size,
                size * sizeof(float));
  }

  // Query tokens `rows[0 .. count)` of a sequence attend through one key head; `out` has a row of
  // query_width for each. `later`: the first of the keys that will be needed next, null: none; memory
  // is asked for those of its unit while values are summed up, a few at a time: a core waits for so
  // many lines and no more.
  template <int W>
  void attend(int64_t layer, int64_t sequence, int64_t head, const int64_t* rows, int64_t count,
              const float* qkv, float* out, const Scratch& scratch, const float* later) const {
    const int64_t size = model.head_dim, kv_heads = model.num_kv_heads;
    const int64_t members = model.num_heads / kv_heads, queries = count * members;
    const auto lane = [&](int64_t query) { return (query % members * kv_heads + head) * size; };
    int64_t context = 0;
    for (int64_t i = 0; i < count; ++i) context = std::max(context, batch.positions[rows[i]] + 1);
    for (int64_t query = 0; query < queries; ++query) {
      std::memcpy(scratch.queries + query * size,
                  qkv + rows[query / members] * fused_width() + lane(query), size * sizeof(float));
    }
    const float* keys[PANEL];
    const int64_t together = queries <= FEW ? LANES : PANEL;
    for (int64_t from = 0; from < context; from += together) {
      locate(layer, sequence, head, from, context, together, keys);
      if (queries <= FEW) {
        few_scores(int(queries), keys, scratch.queries, scratch.scores + from, scratch.room);
      } else {
        key_panel(keys, scratch.keys);
        for (int64_t query = 0; query < queries; query += TILE) {
          multiply_rows<Then::STORE, Fetch::NONE>(
              int(std::min<int64_t>(TILE, queries - query)), scratch.queries + query * size, size,
              scratch.keys, {}, size, nullptr, nullptr,
              scratch.scores + query * scratch.room + from, scratch.room, PANEL);
        }
      }
    }
    for (int64_t query = 0; query < queries; ++query) {
      softmax(scratch.scores + query * scratch.room, batch.positions[rows[query / members]] + 1,
              context);
      std::memset(out + query / members * query_width() + lane(query), 0, size * sizeof(float));
    }
    for (int64_t from = 0; from < context;) {
      const int64_t unit_end = (from / cache.unit_tokens + 1) * cache.unit_tokens;
      const int64_t to = std::min({context, unit_end, from + VALUES});
      const float* values = place(layer, sequence, from, head) + cache.value;
      const float* ahead = values;
      if (later && from < cache.unit_tokens) ahead = later + from * cache.position;
      for (int64_t query = 0; query < queries; query += ROWS) {
        const int64_t some = std::min<int64_t>(ROWS, queries - query);
        float* into[ROWS];
        for (int64_t row = 0; row < some; ++row) {
          into[row] = out + (query + row) / members * query_width() + lane(query + row);
        }
        weigh<W>(int(some), values, from, to, scratch.scores + query * scratch.room, scratch.room,
                 into, query ? values : ahead);
      }
      from = to;
    }
  }

  // Where `count` keys lie, from the one at `from` on. Those from `context` on are not there: the
  // first one stands for each, since what becomes of them is not looked at.
  void locate(int64_t layer, int64_t sequence, int64_t head, int64_t from, int64_t context,
              int64_t count, const float** keys) const {
    const int64_t present = std::min(count, context - from);
    int64_t left = 0;
    for (int64_t key = 0; key < present; ++key, --left) {
      if (left == 0) {
        keys[key] = place(layer, sequence, from + key, head);
        left = cache.unit_tokens - (from + key) % cache.unit_tokens;
      } else {
        keys[key] = keys[key - 1] + cache.position;
      }
    }
    for (int64_t key = present; key < count; ++key) keys[key] = keys[0];
  }

  // LANES entries of LANES keys, from entry `i` on: a vector for each entry.
  void turn(const float* const* keys, int64_t i, Vector* square) const {
#pragma GCC unroll 16
    for (int key = 0; key < LANES; ++key) {
      const float* from = keys[key] + i;
      square[key] = load<Vector>(from);
      // What will be needed next: the value, and where tokens follow each other, a later key.
      __builtin_prefetch(from + cache.value, 0, 2);
      __builtin_prefetch(from + PANEL * cache.position, 0, 2);
    }
    transpose(square);
  }

  // Keys as a panel: [head_dim, PANEL].
  void key_panel(const float* const* keys, float* panel) const {
    const int64_t size = model.head_dim;
    for (int64_t half = 0; half < PANEL; half += LANES) {
      int64_t i = 0;
      for (; i + LANES <= size; i += LANES) {
        Vector square[LANES];
        turn(keys + half, i, square);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) store(panel + (i + j) * PANEL + half, square[j]);
      }
      for (; i < size; ++i) {
        for (int64_t key = 0; key < LANES; ++key) {
          panel[i * PANEL + half + key] = keys[half + key][i];
        }
      }
    }
  }

  // scores[r * room + key], of so many queries and LANES keys. Sums have the order of multiply_tile's.
  template <int R = FEW>
  void few_scores(int rows, const float* const* keys, const float* queries, float* scores,
                  int64_t room) const {
    if constexpr (R > 0) {
      if (rows < R) return few_scores<R - 1>(rows, keys, queries, scores, room);
      const int64_t size = model.head_dim;
      Vector sums[R] = {};
      int64_t i = 0;
      for (; i + LANES <= size; i += LANES) {
        Vector square[LANES];
        turn(keys, i, square);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) {
          for (int r = 0; r < R; ++r) sums[r] += queries[r * size + i + j] * square[j];
        }
      }
      for (; i < size; ++i) {
        Vector entry;
        for (int key = 0; key < LANES; ++key) entry[key] = keys[key][i];
        for (int r = 0; r < R; ++r) sums[r] += queries[r * size + i] * entry;
      }
      for (int r = 0; r < R; ++r) store(scores + r * room, sums[r]);
    }
  }

  // In place, of the first `seen` scores; those from there to `context` become 0.
  static void softmax(float* scores, int64_t seen, int64_t context) {
    const int64_t end = (seen + LANES - 1) / LANES * LANES;
    Vectors<LANES>::Int lanes;
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane;
    Vector most = load<Vector>(scores + end - LANES);
    most = lanes < int32_t(seen - (end - LANES)) ? most : Vector{} - INFINITY;
    store(scores + end - LANES, most);
    for (int64_t t = 0; t < end - LANES; t += LANES) most = larger(most, load<Vector>(scores + t));
    const float top = highest(most);
    Vector sums = {};
    for (int64_t t = 0; t < end; t += LANES) {
      const Vector e = exponential<LANES>(load<Vector>(scores + t) - top);
      store(scores + t, e);
      sums += e;
    }
    const float inverse = 1.0f / sum(sums);
    for (int64_t t = 0; t < end; t += LANES) store(scores + t, load<Vector>(scores + t) * inverse);
    for (int64_t t = end; t < context; ++t) scores[t] = 0;
  }

  // into[r] += sum of weights[r * stride + t] * values[t] for the keys from .. to. Meanwhile memory is
  // asked for as much from `ahead` on.
  template <int W, int R = ROWS>
  void weigh(int rows, const float* values, int64_t from, int64_t to, const float* weights,
             int64_t stride, float* const* into, const float* ahead) const {
    if constexpr (R > 0) {
      if (rows < R) return weigh<W, R - 1>(rows, values, from, to, weights, stride, into, ahead);
      int64_t i = 0;
      for (; i + 4 * W <= model.head_dim; i += 4 * W) {
        weigh_slice<W, R, 4>(values + i, from, to, weights, stride, into, i, ahead + i);
      }
      for (; i < model.head_dim; i += W) {
        weigh_slice<W, R, 1>(values + i, from, to, weights, stride, into, i, ahead + i);
      }
    }
  }

  template <int W, int R, int N>
  void weigh_slice(const float* values, int64_t from, int64_t to, const float* weights,
                   int64_t stride, float* const* into, int64_t offset, const float* ahead) const {
    using V = typename Vectors<W>::Float;
    V sums[R][N];
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < N; ++n) sums[r][n] = load<V>(into[r] + offset + n * W);
    }
    for (int64_t t = from; t < to; ++t, values += cache.position, ahead += cache.position) {
      for (int n = 0; n < N; ++n) {
        __builtin_prefetch(ahead + n * W, 0, 2);
        __builtin_prefetch(values + VALUES_AHEAD * cache.position + n * W, 0, 3);
      }
      for (int r = 0; r < R; ++r) {
        for (int n = 0; n < N; ++n) sums[r][n] += weights[r * stride + t] * load<V>(values + n * W);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < N; ++n) store(into[r] + offset + n * W, sums[r][n]);
    }
  }
};

// Query tokens that attend together: entries first .. first + count of a list of rows.
struct Task {
  int64_t sequence, first, count;
};

// Cut a list of rows into tasks of one sequence and at most so many rows; returns their number.
int64_t cut(const int64_t* rows, int64_t count, const int32_t* sequence_of, int64_t most,
            Task* tasks) {
  int64_t made = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t sequence = sequence_of[rows[i]];
    Task* last = made ? tasks + made - 1 : nullptr;
    if (last && last->sequence == sequence && last->count < most) {
      ++last->count;
    } else {
      tasks[made++] = {sequence, i, 1};
    }
  }
  return made;
}

// Cuts a buffer into aligned parts; with no buffer it only counts bytes.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  template <typename T>
  T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return result;
  }

  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

struct Workspace {
  float *hidden, *qkv, *attended, *activated, *scale, *last_hidden, *scratch;
  std::atomic<int64_t>* next;
  int64_t counters, room, queries, head_dim;
  int32_t* sequence_of;
  int64_t* all_rows;
  Task *tasks, *last_tasks;

  Workspace(Arena& arena, const Model& model, int64_t rows, int64_t wanted, int64_t context,
            int threads) {
    const int64_t query = model.num_heads * model.head_dim;
    room = (context + PANEL - 1) / PANEL * PANEL;
    queries = TOKENS * (model.num_heads / model.num_kv_heads);
    head_dim = model.head_dim;
    hidden = arena.take<float>(rows * model.hidden);
    qkv = arena.take<float>(rows * (query + 2 * model.num_kv_heads * model.head_dim));
    attended = arena.take<float>(rows * query);
    activated = arena.take<float>(rows * model.width);
    scale = arena.take<float>(rows > NORMS_ALONE ? rows : rows * threads);
    last_hidden = arena.take<float>(wanted * model.hidden);
    scratch = arena.take<float>(threads * scratch_size());
    counters = (8 * model.num_layers + 8) * threads * Shares::STRIDE;
    next = arena.take<std::atomic<int64_t>>(counters);
    sequence_of = arena.take<int32_t>(rows);
    all_rows = arena.take<int64_t>(rows);
    tasks = arena.take<Task>(rows);
    last_tasks = arena.take<Task>(wanted);
  }

  int64_t scratch_size() const { return queries * (head_dim + room) + head_dim * PANEL; }

  Scratch of(int thread) const {
    float* keys = scratch + thread * scratch_size();
    float* scores = keys + head_dim * PANEL;
    return {scores + queries * room, keys, scores, room};
  }
};

// The lowest of the best ids; any of them where scores are no numbers.
int64_t best_of(const float* scores, int64_t size) {
  float top = scores[0];
  int64_t i = 0;
  if (size >= LANES) {
    Vector most = load<Vector>(scores);
    for (i = LANES; i + LANES <= size; i += LANES) most = larger(most, load<Vector>(scores + i));
    top = highest(most);
  }
  for (; i < size; ++i) top = std::max(top, scores[i]);
  const int64_t found = std::find(scores, scores + size, top) - scores;
  return found < size ? found : 0;
}

template <int W>
void run(const Model& model, const Cache& cache, const Batch& batch, Workspace& space,
         float* logits, const Choice* choice, int threads, double* seconds) {
  const Work work{model, cache, batch};
  int64_t row = 0;
  for (int64_t sequence = 0; sequence < batch.sequences; ++sequence) {
    for (int64_t i = 0; i < batch.query_lens[sequence]; ++i, ++row) {
      space.sequence_of[row] = int32_t(sequence);
      space.all_rows[row] = row;
    }
  }
  const int64_t* wanted = batch.logit_rows ? batch.logit_rows : space.all_rows;
  // Some parts for each thread; within a part, keys are made ready once for all rows.
  const auto together = [&](int64_t rows) {
    return std::clamp<int64_t>(rows * model.num_kv_heads / (2 * threads), 1, TOKENS);
  };
  const int64_t all_tasks =
      cut(space.all_rows, batch.rows, space.sequence_of, together(batch.rows), space.tasks);
  const int64_t last_tasks =
      cut(wanted, batch.wanted, space.sequence_of, together(batch.wanted), space.last_tasks);
  // Where each sequence is one task, that task rotates its rows, too.
  const bool whole = !batch.logit_rows && batch.wanted && all_tasks == batch.sequences;
  for (int64_t i = 0; i < space.counters; i += Shares::STRIDE) {
    new (space.next + i) std::atomic<int64_t>(0);
  }
  const int64_t hidden_size = model.hidden, fused = work.fused_width();
  Shares shares(space.next, threads, seconds);

#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    shares.begin(omp_get_num_threads());
    const int thread = omp_get_thread_num();
    int step = 0;
    float* hidden = space.hidden;
    int64_t rows = batch.rows;
    // Of few rows each thread finds all scales by itself, which takes less time than to meet.
    const bool meets = batch.rows > NORMS_ALONE;
    float* scale = meets ? space.scale : space.scale + thread * batch.rows;
    const auto normalise = [&] {
      const auto find = [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) {
          scale[r] = inverse_norm(hidden + r * hidden_size, hidden_size, model.eps);
        }
      };
      if (!meets) return find(0, rows);
      const int64_t runs = std::min<int64_t>(rows, 4 * threads);
      shares.run(step++, NORM, thread, runs,
                 [&](int64_t part) { find(rows * part / runs, rows * (part + 1) / runs); });
    };
    {
      const int64_t runs = std::min<int64_t>(rows, 4 * threads);
      shares.run(step++, EMBED, thread, runs, [&](int64_t part) {
        for (int64_t r = rows * part / runs; r < rows * (part + 1) / runs; ++r) {
          std::memcpy(hidden + r * hidden_size,
                      model.embedding + batch.token_ids[r] * hidden_size,
                      hidden_size * sizeof(float));
        }
      });
    }
    for (int64_t index = 0; index < model.num_layers; ++index) {
      const Layer& layer = model.layers[index];
      const bool last = index == model.num_layers - 1;
      normalise();
      multiply<Then::STORE>(shares, step++, QKV, thread, layer.qkv, hidden, rows, scale,
                            space.qkv, fused);
      if (!whole) {
        const int64_t runs = std::min<int64_t>(rows, 4 * threads);
        shares.run(step++, ROTATE, thread, runs, [&](int64_t part) {
          for (int64_t r = rows * part / runs; r < rows * (part + 1) / runs; ++r) {
            for (int64_t head = 0; head < model.num_kv_heads; ++head) {
              work.rotate_and_store(index, space.sequence_of[r], r, head, space.qkv + r * fused);
            }
          }
        });
      }
      // The last layer's output matters only where logits are wanted.
      if (last && !batch.wanted) break;
      const Task* tasks = last ? space.last_tasks : space.tasks;
      const int64_t* queries = last ? wanted : space.all_rows;
      const int64_t count = (last ? last_tasks : all_tasks) * model.num_kv_heads;
      const Scratch scratch = space.of(thread);
      shares.run(step++, ATTEND, thread, count, [&](int64_t part) {
        const Task& task = tasks[part / model.num_kv_heads];
        for (int64_t i = 0; whole && i < task.count; ++i) {
          const int64_t r = queries[task.first + i];
          work.rotate_and_store(index, task.sequence, r, part % model.num_kv_heads,
                                space.qkv + r * fused);
        }
        const int64_t next = part + 1;
        const float* later = nullptr;
        if (next < count) {
          later = work.place(index, tasks[next / model.num_kv_heads].sequence, 0,
                             next % model.num_kv_heads);
        }
        work.attend<W>(index, task.sequence, part % model.num_kv_heads, queries + task.first,
                       task.count, space.qkv, space.attended + task.first * work.query_width(),
                       scratch, later);
      });
      if (last && batch.logit_rows) {
        hidden = space.last_hidden;
        rows = batch.wanted;
        shares.run(step++, ATTEND, thread, rows, [&](int64_t r) {
          std::memcpy(hidden + r * hidden_size, space.hidden + wanted[r] * hidden_size,
                      hidden_size * sizeof(float));
        });
      }
      multiply<Then::ADD>(shares, step++, OUT, thread, layer.o, space.attended, rows, nullptr, hidden,
                          hidden_size);
      normalise();
      multiply<Then::SILU>(shares, step++, GATE_UP, thread, layer.gate_up, hidden, rows, scale,
                           space.activated, model.width);
      multiply<Then::ADD>(shares, step++, DOWN, thread, layer.down, space.activated, rows, nullptr,
                          hidden, hidden_size);
    }
    if (batch.wanted) {
      normalise();
      multiply<Then::STORE>(shares, step++, HEAD, thread, model.lm_head, hidden, rows, scale,
                            logits, model.lm_head.outputs);
      if (choice) {
        shares.run(step++, HEAD, thread, rows, [&](int64_t r) {
          choice->ids[r] = best_of(logits + r * model.lm_head.outputs, choice->vocab_size);
        });
      }
    }
  }
}

void forward(const Model& model, const Cache& cache, const Batch& batch, char* workspace,
             int64_t context, float* logits, const Choice* choice, int threads, double* seconds) {
  Arena arena(workspace);
  Workspace space(arena, model, batch.rows, batch.wanted, context, threads);
  const int64_t size = model.head_dim;
  if (LANES >= 16 && size % 16 == 0) {
    run<16>(model, cache, batch, space, logits, choice, threads, seconds);
  } else if (LANES >= 8 && size % 8 == 0) {
    run<8>(model, cache, batch, space, logits, choice, threads, seconds);
  } else if (size % 4 == 0) {
    run<4>(model, cache, batch, space, logits, choice, threads, seconds);
  } else {
    run<2>(model, cache, batch, space, logits, choice, threads, seconds);
  }
}

// See Choice.
void judge(const Batch& batch, const Choice& choice) {
  const int64_t *best = choice.ids, *given = batch.token_ids;
  for (int64_t b = 0; b < batch.sequences; ++b) {
    const int64_t rows = batch.query_lens[b];
    int64_t kept = 0;
    while (kept < rows - 1 && best[kept] == given[kept + 1]) ++kept;
    choice.accepted[b] = kept;
    choice.next_ids[b] = best[kept];
    best += rows;
    given += rows;
  }
}

// What a draft keeps between its steps: the batch of those sequences that go on.
struct DraftSpace {
  float* logits;
  int64_t *chosen, *token_ids, *positions, *ones, *table, *members;
  char* workspace;

  DraftSpace(Arena& arena, const Model& model, int64_t sequences, int64_t units)
      : logits(arena.take<float>(sequences * model.lm_head.outputs)),
        chosen(arena.take<int64_t>(sequences)),
        token_ids(arena.take<int64_t>(sequences)),
        positions(arena.take<int64_t>(sequences)),
        ones(arena.take<int64_t>(sequences)),
        table(arena.take<int64_t>(sequences * units)),
        members(arena.take<int64_t>(sequences)),
        workspace(arena.take<char>(0)) {}
};

}  // namespace

extern "C" {

// Bytes that pdv_forward needs for such a batch; `context`: tokens of its longest sequence.
int64_t pdv_workspace(const Model* model, int64_t rows, int64_t wanted, int64_t context,
                      int64_t threads) {
  Arena arena(nullptr);
  Workspace space(arena, *model, rows, wanted, context, int(threads));
  return arena.used();
}

// Write the keys and values of all rows, and logits [wanted, vocab_size]. `workspace`: aligned to
// 64 bytes and as large as pdv_workspace says. `choice`, null: not wanted. `seconds` [PHASES],
// null: not wanted; what each phase took is added.
void pdv_forward(const Model* model, const Cache* cache, const Batch* batch, char* workspace,
                 int64_t context, float* logits, const Choice* choice, int64_t threads,
                 double* seconds) {
  forward(*model, *cache, *batch, workspace, context, logits, choice, int(threads), seconds);
  if (choice && choice->accepted) judge(*batch, *choice);
}

// Bytes that pdv_draft needs besides those of its first step.
int64_t pdv_draft_workspace(const Model* model, int64_t sequences, int64_t units) {
  Arena arena(nullptr);
  DraftSpace space(arena, *model, sequences, units);
  return arena.used();
}

// Tokens that follow each sequence of the batch, which wants one row of logits for each: the best
// one of the row, then the best one after that, and so on. All but the last of each sequence are
// fed, so `context` and the batch's table reach further than the batch does.
void pdv_draft(const Model* model, const Cache* cache, const Batch* batch, const Drafts* drafts,
               char* workspace, int64_t context, int64_t threads, double* seconds) {
  Arena arena(workspace);
  const DraftSpace space(arena, *model, batch->sequences, batch->units);
  const int64_t units = batch->units;
  const Choice choice{space.chosen, drafts->vocab_size, nullptr, nullptr};
  Batch next = *batch;
  for (int64_t b = 0; b < batch->sequences; ++b) {
    space.members[b] = b;
    space.positions[b] = batch->positions[batch->logit_rows ? batch->logit_rows[b] : b];
    space.ones[b] = 1;
  }
  std::memcpy(space.table, batch->table, batch->sequences * units * sizeof(int64_t));
  for (int64_t step = 0; next.sequences; ++step) {
    forward(*model, *cache, next, space.workspace, context, space.logits, &choice, int(threads),
            seconds);
    int64_t going = 0;
    for (int64_t i = 0; i < next.sequences; ++i) {
      const int64_t member = space.members[i];
      const int64_t id = space.chosen[i];
      drafts->ids[member * drafts->width + step] = id;
      if (drafts->lengths[member] == step + 1) continue;
      space.members[going] = member;
      space.token_ids[going] = id;
      space.positions[going] = space.positions[i] + 1;
      if (going < i) {
        std::memcpy(space.table + going * units, space.table + i * units, units * sizeof(int64_t));
      }
      ++going;
    }
    next = {space.token_ids, space.positions, space.ones, space.table, nullptr,
            going, going, units, going};
  }
}
}
