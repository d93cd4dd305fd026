// The triangular factors that GPTQ needs: H = V V^T with V upper triangular, and U = V^-1, so that H^-1 = U^T U.
//
// Factoring from the last column up gives U without ever forming H^-1. The recursion turns nearly all work into matrix
// products; the small blocks at its end are factored in f64 whatever T is.
#pragma once

#include <cstdint>

#include "engine/base/thread_pool.h"

namespace sage {

// h: [n, n] symmetric; its upper triangle becomes V, below the diagonal nothing is read or written.
// u: [n, n], U with zeros below the diagonal.
// Returns -1, or the column whose pivot is not above `least_pivot` or not finite (then h and u hold no result). In
// exact arithmetic no pivot is below the least eigenvalue, so a known bound on that also catches what rounding
// destroyed.
template <typename T>
int64_t FactorUpper(T* h, int64_t n, T* u, double least_pivot, ThreadPool& threads);

}  // namespace sage
