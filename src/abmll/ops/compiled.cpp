// The elementwise stage of the Gaussian-LoRA operation on a CPU (core.py says what, compiled.py builds and calls it).
//
// A tile is up to kRows rows by two runs of kColumns coordinates, j.. and half + j.., which share their noise (noise.py,
// Box-Muller). In a tile m and l are computed from the rank-r rows, then everything elementwise, then, in backward, the
// products back to rank r; all of it in the first-level cache. Columns are the outer loop, so that B stays there too.
// Vectors are the compiler's own (GCC and Clang on any processor); no -ffast-math: the order of every sum is fixed.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int kWidth = 16;
#else
constexpr int kWidth = 8;
#endif
constexpr int kNarrow = 8;  // for vectors of rank coordinates, which are few
constexpr int kRows = 6, kColumns = 128;
typedef float V __attribute__((vector_size(kWidth * 4)));
typedef float N __attribute__((vector_size(kNarrow * 4)));
typedef int32_t I __attribute__((vector_size(kWidth * 4)));
typedef uint32_t U __attribute__((vector_size(kWidth * 4)));

template <typename T = V>
inline T load(const float* p) { T v; std::memcpy(&v, p, sizeof v); return v; }
template <typename T>
inline void store(float* p, T v) { std::memcpy(p, &v, sizeof v); }
inline V set(float x) { return x - V{}; }
inline I as_int(V v) { I i; std::memcpy(&i, &v, sizeof v); return i; }
inline V as_float(I i) { V v; std::memcpy(&v, &i, sizeof v); return v; }
inline V choose(I mask, V a, V b) { return as_float((as_int(a) & mask) | (as_int(b) & ~mask)); }
inline float sum(V v) {
    float x[kWidth];
    std::memcpy(x, &v, sizeof v);
    for (int half = kWidth / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[half + i];
    return x[0];
}
inline I iota() {
    I i;
    for (int k = 0; k < kWidth; k++) i[k] = k;
    return i;
}
inline bool any(I mask) {
    uint64_t parts[kWidth / 2];
    std::memcpy(parts, &mask, sizeof mask);
    uint64_t found = 0;
    for (uint64_t part : parts) found |= part;
    return found;
}

constexpr float kRound = 12582912.0f;  // 1.5 x 2^23: x + kRound rounds |x| < 2^22 and holds it in its low bits

// Polynomials: least squares reweighted towards the smallest largest error, which the comments give.

// e^x to 3e-7; x is held in [-87, 88], where float32 has it. A NaN stays one.
inline V exp(V x) {
    x = set(88.0f) < x ? set(88.0f) : x;
    x = set(-87.0f) > x ? set(-87.0f) : x;
    const V k = x * 1.44269504f + kRound;
    const V f = x - (k - kRound) * 0.693147181f;
    const V p = 0.499999933f + f * (0.166665191f + f * (0.0416684058f + f * (0.00836889887f + f * 0.00138142198f)));
    return (1.0f + (f + f * f * p)) * as_float((as_int(k) << 23) + (127 << 23));
}

// e^d - 1 - d to a relative 1e-7 for |d| <= 1/2, where written out it would cancel; beyond that, written out.
inline V expm1_minus(V d) {
    const V p = 0.500000012f + d * (0.166666655f + d * (0.0416657959f + d * (0.0083334522f + d * (0.00139819973f +
                d * 0.000198756199f))));
    const V near = d * d * p;
    const I far = ~((d <= 0.5f) & (d >= -0.5f));
    return any(far) ? choose(far, exp(d) - 1.0f - d, near) : near;
}

inline V precision(V l) { return exp(-(set(-80.0f) > l ? set(-80.0f) : l)); }  // gaussian.exp_neg

// -2 log u for u in (0, 1], relative to 1e-7 also near 1.
inline V minus_two_log(V u) {
    const I bits = as_int(u) - 0x3f3504f3;  // sqrt(1/2): the mantissa is taken from [sqrt(1/2), sqrt 2)
    const V e = __builtin_convertvector(bits >> 23, V);
    const V f = as_float((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    const V q = -0.499999916f + f * (0.333339502f + f * (-0.25001755f + f * (0.199620713f + f * (-0.165705141f +
                f * (0.149179888f + f * (-0.143074831f + f * 0.0873475061f))))));
    return -2.0f * (e * 0.693147181f + (f + f * f * q));
}

inline V sqrt(V x) {
    for (int i = 0; i < kWidth; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

// noise.py's 24-bit uniform of a coordinate's counter.
inline V uniform(U counter, uint32_t start, uint32_t step) {
    U x = start + counter * step;
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    x = x ^ (x >> 16);
    return (__builtin_convertvector((I)(x >> 8), V) + 0.5f) * 0x1p-24f;
}

// Standard normals of coordinates j.. (cosines) and half + j.. (sines) of a row. Several short loops, here and below:
// one long one waits for its own chain of results.
inline void normals(int64_t address, int64_t j, int64_t half, int columns, float* low, float* high) {
    const uint32_t start = (uint32_t)address, step = (uint32_t)((uint64_t)address >> 32) | 1u;
    const U counter = (U)iota() + (uint32_t)j;
    for (int v = 0; v < columns; v += kWidth)
        store(low + v, sqrt(minus_two_log(uniform(counter + (uint32_t)v, start, step))));
    for (int v = 0; v < columns; v += kWidth) {
        const V u = uniform(counter + (uint32_t)(half + v), start, step), radius = load(low + v);
        const V k = u * 4.0f + kRound;
        const I quarter = as_int(k);
        const V t = u - (k - kRound) * 0.25f;  // exact, |t| <= 1/8 of a turn
        const V w = t * t;
        const V s = t * (6.28318522f + w * (-41.341628f + w * (81.5881246f + w * -75.2400641f)));
        const V c = 0.999999972f + w * (-19.7391522f + w * (64.9212526f + w * -83.5926022f));
        const I odd = (quarter & 1) != 0;
        store(low + v, radius * as_float(as_int(choose(odd, s, c)) ^ (((quarter + 1) & 2) << 30)));
        store(high + v, radius * as_float(as_int(choose(odd, c, s)) ^ ((quarter & 2) << 30)));
    }
}

enum KL { kNone, kClosed, kSampled };

}  // namespace

extern "C" {

// What a call works on; compiled.py mirrors it field by field. Blocks are m_q, l_q[, m_p, l_p].
struct Problem {
    int64_t rows, width, rank, blocks, threads;
    int64_t draw, kl, hyper;      // core.Ask
    int64_t into[4];              // backward: which blocks have gradients
    int64_t into_B;               // backward: of which adapters' B too: 1 of q, 2 of p
    double c_q, c_p, rate, grad_kl, grad_hyper;
    const float *y0, *h, *B;      // (rows, width); (rows, blocks rank); (blocks, width, rank)
    const int64_t* address;       // (rows,)
    const float* mask;            // (rows,)
    float* y;                     // forward: (rows, width)
    double* sums;                 // forward: (rows, 2) of kl, hyper; backward: (rows, 2) of gradients of log c of q, p
    const float* grad_y;          // backward: (rows, width) or null
    float *grad_h, *grad_B;       // backward: as h and B, zeros
};

}  // extern "C"

namespace {

struct Work {
    const Problem& p;
    int64_t rank, half, padded;       // rank and width in whole vectors
    std::vector<float> B, B_t;        // (blocks, padded, rank) and (blocks, rank, padded), zeros beyond

    explicit Work(const Problem& p) : p(p), rank((p.rank + kNarrow - 1) / kNarrow * kNarrow), half((p.width + 1) / 2),
        padded(p.width + kColumns), B_t(p.blocks * p.rank * padded) {
        if (p.grad_h) B.resize(p.blocks * padded * rank);
        for (int64_t b = 0; b < p.blocks; b++)
            for (int64_t j = 0; j < p.width; j++)
                for (int64_t k = 0; k < p.rank; k++) {
                    const float value = p.B[(b * p.width + j) * p.rank + k];
                    B_t[(b * p.rank + k) * padded + j] = value;
                    if (p.grad_h) B[(b * padded + j) * rank + k] = value;
                }
    }
};

struct Tile {
    alignas(64) float eps[2][kRows][kColumns];  // of both runs; then exp(l_q / 2) eps of the run at hand
    alignas(64) float at[4][kRows][kColumns];   // m_q, l_q, m_p, l_p without log c; in backward then their gradients
    alignas(64) float prior[kRows][kColumns];   // exp(-l_p)
    alignas(64) float y[kRows][kColumns];       // y0, then y; in backward grad_y
};

// at[b] = B_b h_b for the rows and columns of a tile.
void project(const Work& w, int64_t n, int rows, int64_t j, int columns, Tile& t) {
    const Problem& p = w.p;
    const int64_t stride = p.blocks * p.rank;
    for (int64_t b = 0; b < p.blocks; b++) {
        const float* h[kRows];
        for (int i = 0; i < kRows; i++) h[i] = p.h + (n + std::min(i, rows - 1)) * stride + b * p.rank;
        for (int v = 0; v < columns; v += 2 * kWidth) {  // B_t has zeros, or other columns, beyond
            V a[kRows][2] = {};
            const float* column = &w.B_t[b * p.rank * w.padded + j + v];
            for (int64_t k = 0; k < p.rank; k++, column += w.padded) {
                // 0 + x is no x to the compiler: it keeps a vector in its register instead of loading it four times
                const V x = 0.0f + load(column), y = 0.0f + load(column + kWidth);
                for (int i = 0; i < kRows; i++) a[i][0] += x * h[i][k], a[i][1] += y * h[i][k];
            }
            for (int i = 0; i < kRows; i++)
                store(&t.at[b][i][v], a[i][0]), store(&t.at[b][i][v + kWidth], a[i][1]);
        }
    }
}

template <typename F>
inline void vectors(int columns, F body) {
    for (int v = 0; v < columns; v += kWidth) body(v);
}

// Elements of the last vector that are beyond the run are made 0: what is summed there must not count.
inline V inside(V x, int v, int columns) {
    return v + kWidth <= columns ? x : choose(iota() + v < columns, x, V{});
}

template <bool kDraw, KL kKL, bool kHyper>
void forward_run(const Problem& p, int64_t n, int rows, int64_t j, int columns, int side, Tile& t) {
    const float c_q = (float)p.c_q, c_p = (float)p.c_p, c_d = (float)(p.c_q - p.c_p);
    const double constant = columns * (std::log(p.rate) - 0.5 * std::log(2.0 * M_PI));  // of the hyperprior
    for (int i = 0; i < rows; i++) {
        float *m_q = t.at[0][i], *l_q = t.at[1][i], *m_p = t.at[2][i], *l_p = t.at[3][i];
        float *eps = t.eps[side][i], *prior = t.prior[i], *y = t.y[i];
        std::memcpy(y, p.y0 + (n + i) * p.width + j, columns * sizeof(float));
        V kl = {}, square = {}, tau = {};
        if (kKL == kSampled) vectors(columns, [&](int v) { kl -= inside(load(eps + v) * load(eps + v), v, columns); });
        if (kDraw || kKL == kSampled)
            vectors(columns, [&](int v) { store(eps + v, exp(0.5f * (load(l_q + v) + c_q)) * load(eps + v)); });
        if (kKL != kNone || kHyper)
            vectors(columns, [&](int v) { store(prior + v, precision(load(l_p + v) + c_p)); });
        vectors(columns, [&](int v) {
            const V m = load(m_q + v);
            store(y + v, load(y + v) + (kDraw ? m + load(eps + v) : m));
            if (kKL != kNone) {
                const V d = (load(l_q + v) - load(l_p + v)) + c_d, gap = m - load(m_p + v), tau = load(prior + v);
                const V u = kKL == kSampled ? gap + load(eps + v) : gap;
                kl += inside(u * u * tau + (kKL == kSampled ? -d : expm1_minus(d)), v, columns);
            }
            if (kHyper) {
                square += inside(load(m_p + v) * load(m_p + v), v, columns);
                tau += inside(load(prior + v), v, columns);
            }
        });
        std::memcpy(p.y + (n + i) * p.width + j, y, columns * sizeof(float));
        if (kKL != kNone) p.sums[2 * (n + i)] += 0.5 * sum(kl);
        if (kHyper) p.sums[2 * (n + i) + 1] += constant - 0.5 * sum(square) - p.rate * sum(tau);
    }
}

// at[b] = the gradient of block b, from grad_y and the rows' weights in the two sums.
template <bool kDraw, KL kKL, bool kHyper>
void backward_run(const Problem& p, int64_t n, int rows, int64_t j, int columns, int side, Tile& t) {
    const float c_q = (float)p.c_q, c_p = (float)p.c_p, c_d = (float)(p.c_q - p.c_p), rate = (float)p.rate;
    for (int i = 0; i < rows; i++) {
        float *m_q = t.at[0][i], *l_q = t.at[1][i], *m_p = t.at[2][i], *l_p = t.at[3][i];
        float *eps = t.eps[side][i], *prior = t.prior[i], *g = t.y[i];
        const float mask = p.mask ? p.mask[n + i] : 0.0f;
        const float weight = (float)(p.grad_kl * mask), hyper = (float)(p.grad_hyper * mask);
        if (p.grad_y) std::memcpy(g, p.grad_y + (n + i) * p.width + j, columns * sizeof(float));
        V of_c_q = {}, of_c_p = {};
        if (kDraw || kKL == kSampled)
            vectors(columns, [&](int v) { store(eps + v, exp(0.5f * (load(l_q + v) + c_q)) * load(eps + v)); });
        if (kKL != kNone || kHyper)
            vectors(columns, [&](int v) { store(prior + v, precision(load(l_p + v) + c_p)); });
        vectors(columns, [&](int v) {
            V g_m = load(g + v), g_l = kDraw ? g_m * load(eps + v) : V{};  // g_l: twice the gradient by l_q
            if (kKL != kNone || kHyper) {
                const V l = load(l_p + v), tau = load(prior + v), m = load(m_p + v);
                const I guarded = l + c_p < -80.0f;  // where the precision is constant
                V pull = {}, p_l = {};
                if (kKL != kNone) {
                    const V d = (load(l_q + v) - l) + c_d, gap = load(m_q + v) - m;
                    const V u = kKL == kSampled ? gap + load(eps + v) : gap;
                    pull = u * tau * weight;
                    const V flat = kKL == kSampled ? set(-weight) : (expm1_minus(d) + d) * weight;
                    g_m += pull;
                    g_l += kKL == kSampled ? flat + pull * load(eps + v) : flat;
                    p_l = -0.5f * (flat + choose(guarded, V{}, u * pull));
                }
                if (kHyper) p_l += choose(guarded, V{}, tau * (hyper * rate));
                store(m_p + v, kHyper ? -pull - m * hyper : -pull);
                store(l_p + v, p_l);
                of_c_p += inside(p_l, v, columns);
            }
            store(m_q + v, g_m);
            store(l_q + v, 0.5f * g_l);
            of_c_q += inside(0.5f * g_l, v, columns);
        });
        p.sums[2 * (n + i)] += sum(of_c_q);
        p.sums[2 * (n + i) + 1] += sum(of_c_p);
    }
    for (int i = rows; i < kRows; i++)
        for (auto& block : t.at) std::memset(block[i], 0, sizeof block[i]);
}

typedef void (*Run)(const Problem&, int64_t, int, int64_t, int, int, Tile&);

template <bool kDraw, KL kKL>
Run choose_run(bool backward, bool hyper) {
    if (hyper) return backward ? backward_run<kDraw, kKL, true> : forward_run<kDraw, kKL, true>;
    return backward ? backward_run<kDraw, kKL, false> : forward_run<kDraw, kKL, false>;
}

Run choose_run(bool backward, bool draw, int64_t kl, bool hyper) {
    if (kl == kSampled) return draw ? choose_run<true, kSampled>(backward, hyper) : choose_run<false, kSampled>(backward, hyper);
    if (kl == kClosed) return draw ? choose_run<true, kClosed>(backward, hyper) : choose_run<false, kClosed>(backward, hyper);
    return draw ? choose_run<true, kNone>(backward, hyper) : choose_run<false, kNone>(backward, hyper);
}

// grad_h[n] += g[n] B and grad_B += g^T h for the tile's block b, a vector of rank coordinates at a time.
template <bool kIntoB>
void reduce(const Work& w, const float* h, float* grad_h, float* grad_B, int64_t b, int64_t j, int rows, int columns,
            const Tile& t) {
    const int64_t stride = w.p.blocks * w.rank;
    for (int64_t k = 0; k < w.rank; k += kNarrow) {
        N from[kRows], into[kRows] = {};
        for (int i = 0; i < kRows; i++) from[i] = i < rows ? load<N>(h + i * stride + b * w.rank + k) : N{};
        const float* B = &w.B[(b * w.padded + j) * w.rank + k];
        float* gradient = grad_B + (b * w.padded + j) * w.rank + k;
        for (int c = 0; c < columns; c++, B += w.rank, gradient += w.rank) {
            const N x = load<N>(B);
            N y = kIntoB ? load<N>(gradient) : N{};
            for (int i = 0; i < kRows; i++) {
                const float g = t.at[b][i][c];
                into[i] += g * x;
                if (kIntoB) y += g * from[i];
            }
            if (kIntoB) store(gradient, y);
        }
        for (int i = 0; i < rows; i++) {
            float* to = grad_h + i * stride + b * w.rank + k;
            store(to, load<N>(to) + into[i]);
        }
    }
}

inline void prefetch(const float* p, const Problem& problem, int64_t n, int64_t j) {
    if (p && n < problem.rows)
        for (int c = 0; c < kColumns; c += 16) __builtin_prefetch(p + n * problem.width + j + c);
}

// Rows first .. last on one thread; grad_h and grad_B are in whole vectors, (rows, blocks, rank), (blocks, padded, rank).
void span(const Work& w, int64_t first, int64_t last, const float* h, float* grad_h, float* grad_B) {
    const Problem& p = w.p;
    const bool backward = p.grad_h != nullptr, draw = p.draw && (!backward || p.grad_y);
    const Run run = choose_run(backward, draw, p.kl, p.hyper);
    Tile t = {};
    for (int64_t j = 0; j < w.half; j += kColumns)
        for (int64_t n = first; n < last; n += kRows) {
            const int rows = (int)std::min<int64_t>(kRows, last - n);
            const int64_t at[2] = {j, w.half + j};
            const int columns[2] = {(int)std::min<int64_t>(kColumns, w.half - j),
                                    (int)std::min<int64_t>(kColumns, p.width - w.half - j)};
            if (draw || p.kl == kSampled)
                for (int i = 0; i < rows; i++) normals(p.address[n + i], j, w.half, columns[0], t.eps[0][i], t.eps[1][i]);
            for (int side = 0; side < 2; side++) {
                if (columns[side] <= 0) continue;
                for (int i = 0; i < kRows; i++) {  // of the next tile
                    prefetch(backward ? p.grad_y : p.y0, p, n + kRows + i, at[side]);
                    prefetch(p.y, p, n + kRows + i, at[side]);
                }
                project(w, n, rows, at[side], columns[side], t);
                run(p, n, rows, at[side], columns[side], side, t);
                for (int64_t b = 0; b < p.blocks; b++) {
                    if (!backward || !p.into[b]) continue;
                    const int64_t row = n * p.blocks * w.rank;
                    (p.into_B & (b < 2 ? 1 : 2) ? reduce<true> : reduce<false>)(
                        w, h + row, grad_h + row, grad_B, b, at[side], rows, columns[side], t);
                }
            }
        }
}

template <typename F>
void in_parallel(int64_t rows, int64_t threads, F work) {
    const int64_t blocks = (rows + kRows - 1) / kRows, used = std::max<int64_t>(1, std::min(threads, blocks));
    std::vector<std::thread> others;
    for (int64_t i = 1; i < used; i++)
        others.emplace_back(work, i, blocks * i / used * kRows, std::min(rows, blocks * (i + 1) / used * kRows));
    work(0, 0, std::min(rows, blocks / used * kRows));
    for (auto& other : others) other.join();
}

}  // namespace

extern "C" {

void abmll_forward(const Problem* p) {
    const Work w(*p);
    in_parallel(p->rows, p->threads,
                [&](int64_t, int64_t first, int64_t last) { span(w, first, last, nullptr, nullptr, nullptr); });
}

void abmll_backward(const Problem* p) {
    const Work w(*p);
    const int64_t size = p->blocks * w.padded * w.rank, wide = p->blocks * w.rank;
    const int64_t used = std::max<int64_t>(1, std::min(p->threads, (p->rows + kRows - 1) / kRows));
    std::vector<float> h(p->rows * wide), grad_h(p->rows * wide), grad_B(p->into_B ? used * size : 1);
    for (int64_t n = 0; n < p->rows * p->blocks; n++)
        std::memcpy(&h[n * w.rank], p->h + n * p->rank, p->rank * sizeof(float));
    in_parallel(p->rows, p->threads, [&](int64_t i, int64_t first, int64_t last) {
        span(w, first, last, h.data(), grad_h.data(), grad_B.data() + (p->into_B ? i * size : 0));
    });
    for (int64_t n = 0; n < p->rows * p->blocks; n++)
        std::memcpy(p->grad_h + n * p->rank, &grad_h[n * w.rank], p->rank * sizeof(float));
    if (!p->into_B) return;
    for (int64_t b = 0; b < p->blocks; b++)
        for (int64_t j = 0; j < p->width; j++)
            for (int64_t k = 0; k < p->rank; k++) {
                float total = 0.0f;  // over threads, in order
                for (int64_t i = 0; i < used; i++) total += grad_B[i * size + (b * w.padded + j) * w.rank + k];
                p->grad_B[(b * p->width + j) * p->rank + k] = total;
            }
}

}  // extern "C"
