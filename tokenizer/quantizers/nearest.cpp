// Nearest-code search on the CPU: scores never leave the registers, so nothing of size N x K exists anywhere.
//
// Every score is |e|^2 / 2 - sum_j z_j e_j with the sum taken from j = 0 upwards: the same bits whatever the number of
// features, of codes or of threads. Built by native.py; plain C interface, no dependency.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 16;  // codes side by side: one AVX-512 register, two of AVX2, four of NEON
constexpr int ROWS = 8;    // features that share each loaded block of codes

typedef float Scores __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Indices __attribute__((vector_size(4 * LANES), aligned(4)));

// codes: D x K with K a multiple of LANES, half_squares: K, infinite for padding.
void search(const float* features, const float* codes, const float* half_squares, int64_t first, int64_t last,
            int64_t num_codes, int64_t dim, int64_t* out) {
  Indices lanes;
  for (int l = 0; l < LANES; ++l) lanes[l] = l;
  for (int64_t n = first; n < last; n += ROWS) {
    const int rows = static_cast<int>(std::min<int64_t>(ROWS, last - n));
    const float* row[ROWS];  // a short last block repeats its first feature
    for (int r = 0; r < ROWS; ++r) row[r] = features + (n + (r < rows ? r : 0)) * dim;
    Scores best[ROWS];
    Indices where[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      best[r] = Scores{} + std::numeric_limits<float>::infinity();
      where[r] = lanes;
    }
    for (int64_t k = 0; k < num_codes; k += LANES) {
      Scores dot[ROWS] = {};
      const float* block = codes + k;
      for (int64_t j = 0; j < dim; ++j, block += num_codes) {
        const Scores values = *reinterpret_cast<const Scores*>(block);
        for (int r = 0; r < ROWS; ++r) dot[r] += row[r][j] * values;
      }
      const Scores half = *reinterpret_cast<const Scores*>(half_squares + k);
      const Indices index = lanes + static_cast<int32_t>(k);
      for (int r = 0; r < ROWS; ++r) {
        const Scores score = half - dot[r];
        const Indices closer = score < best[r];  // strictly: the first of equals stays
        best[r] = closer ? score : best[r];
        where[r] = closer ? index : where[r];
      }
    }
    for (int r = 0; r < rows; ++r) {
      int winner = 0;
      for (int l = 1; l < LANES; ++l)
        if (best[r][l] < best[r][winner] || (best[r][l] == best[r][winner] && where[r][l] < where[r][winner]))
          winner = l;
      out[n + r] = where[r][winner];
    }
  }
}

}  // namespace

extern "C" void wvq_nearest(const float* features, const float* codes, const float* half_squares, int64_t num_features,
                            int64_t num_codes, int64_t dim, int64_t num_threads, int64_t* out) {
  const int64_t blocks = (num_features + ROWS - 1) / ROWS;
  const int64_t workers = std::max<int64_t>(1, std::min(num_threads, blocks));
  const int64_t share = (blocks + workers - 1) / workers * ROWS;
  std::vector<std::thread> threads;
  for (int64_t w = 1; w < workers; ++w)
    threads.emplace_back(search, features, codes, half_squares, std::min(w * share, num_features),
                         std::min((w + 1) * share, num_features), num_codes, dim, out);
  search(features, codes, half_squares, 0, std::min(share, num_features), num_codes, dim, out);
  for (auto& thread : threads) thread.join();
}
