// TablePool::Create() with the kernel passed in, for tests in which it fails.

#ifndef FIRSTTOUCH_POOL_TABLE_POOL_WITH_KERNEL_H_
#define FIRSTTOUCH_POOL_TABLE_POOL_WITH_KERNEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "firsttouch/pool/table_pool.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

// `kernel` must outlive the pool.
absl::StatusOr<std::unique_ptr<TablePool>> CreateTablePool(
    Kernel& kernel, const TablePoolOptions& options);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_TABLE_POOL_WITH_KERNEL_H_
