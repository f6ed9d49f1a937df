// Attention of few queries over prefixes of many keys, float32, without packing the keys (see kernel.py).
//
// One task is one head of one sample and up to 64 queries of one group. Keys are taken as they lie: scores come out
// transposed, [key][query], so that a key is a broadcast and the queries are the vector; softmax is online.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

// A tile is WIDE vectors of queries (or of values) by 6 keys (or queries). Its accumulators, a row and a broadcast fill
// the registers: 6 x 4 + 4 + 1 of the 32 of AVX-512, 6 x 2 + 2 + 1 of the 16 of AVX2.
#ifdef __AVX512F__
constexpr int LANES = 16, WIDE = 4;
#else
constexpr int LANES = 8, WIDE = 2;
#endif
constexpr int QUERIES = 64;  // of one task
constexpr int KEYS = 48;     // of one tile: whole steps of 6 and of 8
constexpr int WIDEST = 256;  // head dimension
constexpr float LOG2E = 1.44269504088896341f;  // scores are powers of 2, which are cheaper than those of e

#define APART __attribute__((noinline))   // a test reads the tiles' assembler: nothing of theirs goes to the stack
#define EACH _Pragma("GCC unroll 8")  // a loop over a tile's registers: left rolled it would go through memory

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4)));

inline vec load(const float* p) { return *reinterpret_cast<const loose*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<loose*>(p) = v; }
inline vec all(float x) { return vec{} + x; }

// In a register from here on: the compiler would else read it from memory again for each of a tile's products, and the
// CPU takes two products per cycle, but not two products that both read memory beside the broadcasts.
inline vec held(vec v) {
  __asm__("" : "+v"(v));
  return v;
}

// 2^x for x <= 0 (Cephes' polynomial, about 1 unit in the last place); below the smallest normal number that.
inline vec power(vec x) {
  const vec magic = all(12582912.f);  // 1.5 * 2^23: adding it rounds, and leaves the integer in the last bits
  x = x < -126.f ? all(-126.f) : x;
  vec t = x + magic, f = x - (t - magic);
  vec p = all(1.535336188319500e-4f);
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.f;
  ivec n, bits;
  std::memcpy(&n, &t, sizeof(t));
  std::memcpy(&bits, &p, sizeof(p));
  bits += n << 23;
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}

struct Side {  // strides in elements; the head dimension is dense
  int64_t sample, head, row;
};

struct Task {
  int64_t sample, head, first, count, keys;
};

struct Scratch {
  alignas(64) float q[WIDEST * QUERIES];       // [head_dim][query]
  alignas(64) float scores[KEYS * QUERIES];    // [key][query]
  alignas(64) float out[QUERIES * WIDEST];     // [query][head_dim]
  alignas(64) float most[QUERIES], sum[QUERIES], shrink[QUERIES];
};

// scores[key][query] of `keys` keys, for NQ vectors of queries, R keys at a time.
template <int NQ, int R>
APART void score_rows(const float* k, int64_t stride, int dim, const float* q, float* out) {
  vec acc[R][NQ] = {};
  for (int d = 0; d < dim; ++d) {
    vec row[NQ];
    EACH for (int j = 0; j < NQ; ++j) row[j] = held(load(q + d * QUERIES + j * LANES));
    EACH for (int r = 0; r < R; ++r)
      EACH for (int j = 0; j < NQ; ++j) acc[r][j] += row[j] * k[r * stride + d];
  }
  EACH for (int r = 0; r < R; ++r)
    EACH for (int j = 0; j < NQ; ++j) store(out + r * QUERIES + j * LANES, acc[r][j]);
}

template <int NQ>
void score_columns(const float* k, int64_t stride, int dim, const float* q, int keys, float* out) {
  constexpr int R = NQ == WIDE ? 6 : 8;
  int key = 0;
  for (; key + R <= keys; key += R) score_rows<NQ, R>(k + key * stride, stride, dim, q, out + key * QUERIES);
  for (; key < keys; ++key) score_rows<NQ, 1>(k + key * stride, stride, dim, q, out + key * QUERIES);
}

void scores(int vectors, const float* k, int64_t stride, int dim, const float* q, int keys, float* out) {
  int j = 0;
  for (; j + WIDE <= vectors; j += WIDE) score_columns<WIDE>(k, stride, dim, q + j * LANES, keys, out + j * LANES);
  for (; j + 2 <= vectors; j += 2) score_columns<2>(k, stride, dim, q + j * LANES, keys, out + j * LANES);
  if (j < vectors) score_columns<1>(k, stride, dim, q + j * LANES, keys, out + j * LANES);
}

// One tile of the online softmax: scores become weights; `shrink` is what earlier sums must be multiplied by.
void softmax(int vectors, Scratch& s, int keys) {
  for (int j = 0; j < vectors; ++j) {
    vec before = load(s.most + j * LANES), most = before;
    for (int key = 0; key < keys; ++key) {
      vec x = load(s.scores + key * QUERIES + j * LANES);
      most = x > most ? x : most;
    }
    vec shrink = power(before - most), sum = load(s.sum + j * LANES) * shrink;
    for (int key = 0; key < keys; ++key) {
      float* at = s.scores + key * QUERIES + j * LANES;
      vec weight = power(load(at) - most);
      store(at, weight);
      sum += weight;
    }
    store(s.most + j * LANES, most);
    store(s.sum + j * LANES, sum);
    store(s.shrink + j * LANES, shrink);
  }
}

// out[query][0..LANES NV) = out * shrink + weights . values, R queries at a time.
template <int NV, int R>
APART void gather_rows(const float* v, int64_t stride, int keys, const float* weights, const float* shrink,
                       float* out) {
  vec acc[R][NV];
  EACH for (int r = 0; r < R; ++r)
    EACH for (int j = 0; j < NV; ++j) acc[r][j] = load(out + r * WIDEST + j * LANES) * shrink[r];
  for (int key = 0; key < keys; ++key) {
    vec row[NV];
    EACH for (int j = 0; j < NV; ++j) row[j] = held(load(v + key * stride + j * LANES));
    EACH for (int r = 0; r < R; ++r)
      EACH for (int j = 0; j < NV; ++j) acc[r][j] += row[j] * weights[key * QUERIES + r];
  }
  EACH for (int r = 0; r < R; ++r)
    EACH for (int j = 0; j < NV; ++j) store(out + r * WIDEST + j * LANES, acc[r][j]);
}

// Fewer than R queries in one tile: one by one they would cost as much as all the others.
template <int NV, int R>
void gather_rest(const float* v, int64_t stride, int keys, const float* weights, const float* shrink, float* out,
                 int n) {
  if constexpr (R > 0) {
    if (n == R) gather_rows<NV, R>(v, stride, keys, weights, shrink, out);
    else gather_rest<NV, R - 1>(v, stride, keys, weights, shrink, out, n);
  }
}

template <int NV>
void gather(const float* v, int64_t stride, int keys, Scratch& s, int queries, int column) {
  constexpr int R = NV == WIDE ? 6 : 8;
  int i = 0;
  for (; i + R <= queries; i += R)
    gather_rows<NV, R>(v + column, stride, keys, s.scores + i, s.shrink + i, s.out + i * WIDEST + column);
  gather_rest<NV, R - 1>(v + column, stride, keys, s.scores + i, s.shrink + i, s.out + i * WIDEST + column,
                         queries - i);
}

// The rows of a head lie apart, with other heads between them, so the CPU does not guess which lines come next.
void ask_for(const float* rows, int64_t stride, int count, int dim) {
  constexpr int LINE = 16;  // floats
  for (int i = 0; i < count; ++i)
    for (int d = 0; d < dim; d += LINE) __builtin_prefetch(rows + i * stride + d, 0, 2);
}

void run(const Task& t, const float* q, Side qs, const float* k, Side ks, const float* v, Side vs, float* out, Side os,
         int dim, float scale, Scratch& s) {
  const int n = static_cast<int>(t.count), vectors = (n + LANES - 1) / LANES;
  std::memset(s.q, 0, sizeof(float) * dim * QUERIES);
  for (int i = 0; i < n; ++i)
    for (int d = 0; d < dim; ++d) s.q[d * QUERIES + i] = q[(t.first + i) * qs.row + d] * scale * LOG2E;
  std::fill(s.most, s.most + QUERIES, std::numeric_limits<float>::lowest());
  std::fill(s.sum, s.sum + QUERIES, 0.f);
  std::memset(s.out, 0, sizeof(float) * WIDEST * n);
  for (int64_t at = 0; at < t.keys; at += KEYS) {
    const int keys = static_cast<int>(std::min<int64_t>(KEYS, t.keys - at));
    const float *key = k + at * ks.row, *value = v + at * vs.row;
    const int next = static_cast<int>(std::min<int64_t>(KEYS, t.keys - at - keys));
    ask_for(key + keys * ks.row, ks.row, next, dim);
    ask_for(value + keys * vs.row, vs.row, next, dim);
    scores(vectors, key, ks.row, dim, s.q, keys, s.scores);
    softmax(vectors, s, keys);
    int column = 0;
    for (; column + WIDE * LANES <= dim; column += WIDE * LANES) gather<WIDE>(value, vs.row, keys, s, n, column);
    for (; column + 2 * LANES <= dim; column += 2 * LANES) gather<2>(value, vs.row, keys, s, n, column);
    if (column < dim) gather<1>(value, vs.row, keys, s, n, column);
  }
  for (int i = 0; i < n; ++i)
    for (int d = 0; d < dim; d += LANES)
      store(out + (t.first + i) * os.row + d, load(s.out + i * WIDEST + d) / s.sum[i]);
}

}  // namespace

// bounds [groups][3]: first and last query of a group, and how many keys it sees. strides [4][3] of q, k, v, out.
extern "C" void mccompile_prefix_attention(const float* q, const float* k, const float* v, float* out,
                                           const int64_t* bounds, int64_t groups, const int64_t* strides,
                                           int64_t samples, int64_t heads, int64_t key_heads, int64_t dim, float scale,
                                           int64_t threads) {
  Side side[4];
  for (int i = 0; i < 4; ++i) side[i] = {strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]};
  std::vector<Task> tasks;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t first = bounds[3 * g]; first < bounds[3 * g + 1]; first += QUERIES)
      for (int64_t b = 0; b < samples; ++b)
        for (int64_t h = 0; h < heads; ++h)
          tasks.push_back({b, h, first, std::min<int64_t>(QUERIES, bounds[3 * g + 1] - first), bounds[3 * g + 2]});
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.count * a.keys > b.count * b.keys; });
#pragma omp parallel num_threads(threads)
  {
    Scratch* scratch = new Scratch;
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < tasks.size(); ++i) {
      const Task& t = tasks[i];
      const int64_t kh = t.head / (heads / key_heads);
      run(t, q + t.sample * side[0].sample + t.head * side[0].head, side[0],
          k + t.sample * side[1].sample + kh * side[1].head, side[1],
          v + t.sample * side[2].sample + kh * side[2].head, side[2],
          out + t.sample * side[3].sample + t.head * side[3].head, side[3], static_cast<int>(dim), scale, *scratch);
    }
    delete scratch;
  }
}
