// MemfdCalls for tests: the kernel's, with failures on command and a count of
// what is open.
//
// Threads: for one thread. A test may override single calls in a subclass.

#ifndef FIRSTTOUCH_INIT_FAKE_MEMFD_H_
#define FIRSTTOUCH_INIT_FAKE_MEMFD_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>

#include "firsttouch/init/memfd.h"

namespace firsttouch {

enum class MemfdOp {
  kCreate,
  kTruncate,
  kWrite,
  kRead,
  kPunchHole,
  kAllocatedBytes,
  kAddSeals,
  kMapReadOnly,
  kUnmap,
  kAdvise,
  kClose,
  kFileSizeLimit,
};

class FakeMemfdCalls : public MemfdCalls {
 public:
  // The nth call of `op` from now (0: the next) gives `error` and does nothing.
  void Fail(MemfdOp op, int nth, int error) {
    failures_[{op, counts_[op] + nth}] = error;
  }
  // The nth call of anything from now gives `error` and does nothing. Unmap and
  // Close are not counted and do not fail: nobody could do anything about it.
  void FailAny(int nth, int error) {
    any_at_ = any_count_ + nth;
    any_error_ = error;
  }
  // The op that FailAny struck, if it did.
  bool struck() const { return struck_; }
  MemfdOp struck_op() const { return struck_op_; }

  // No Write does more than this many bytes.
  void LimitWrites(size_t bytes) { write_limit_ = bytes; }

  int Calls(MemfdOp op) { return counts_[op]; }
  // Descriptors and mappings made and not yet closed and unmapped.
  int open() const { return open_; }

  MemfdResult Create(const char* name, unsigned flags) noexcept override {
    MemfdResult result = Next(MemfdOp::kCreate);
    if (result.ok()) result = real_.Create(name, flags);
    open_ += result.ok();
    return result;
  }
  MemfdResult Truncate(int fd, uint64_t bytes) noexcept override {
    const MemfdResult result = Next(MemfdOp::kTruncate);
    return result.ok() ? real_.Truncate(fd, bytes) : result;
  }
  MemfdResult Write(int fd, const void* from, size_t bytes,
                    uint64_t offset) noexcept override {
    const MemfdResult result = Next(MemfdOp::kWrite);
    if (!result.ok()) return result;
    return real_.Write(fd, from, bytes < write_limit_ ? bytes : write_limit_,
                       offset);
  }
  MemfdResult Read(int fd, void* into, size_t bytes,
                   uint64_t offset) noexcept override {
    const MemfdResult result = Next(MemfdOp::kRead);
    return result.ok() ? real_.Read(fd, into, bytes, offset) : result;
  }
  MemfdResult PunchHole(int fd, uint64_t offset,
                        uint64_t bytes) noexcept override {
    const MemfdResult result = Next(MemfdOp::kPunchHole);
    return result.ok() ? real_.PunchHole(fd, offset, bytes) : result;
  }
  MemfdResult AllocatedBytes(int fd) noexcept override {
    const MemfdResult result = Next(MemfdOp::kAllocatedBytes);
    return result.ok() ? real_.AllocatedBytes(fd) : result;
  }
  MemfdResult AddSeals(int fd, int seals) noexcept override {
    const MemfdResult result = Next(MemfdOp::kAddSeals);
    return result.ok() ? real_.AddSeals(fd, seals) : result;
  }
  MemfdResult MapReadOnly(int fd, size_t bytes, int flags) noexcept override {
    MemfdResult result = Next(MemfdOp::kMapReadOnly);
    if (result.ok()) result = real_.MapReadOnly(fd, bytes, flags);
    open_ += result.ok();
    return result;
  }
  MemfdResult Unmap(uintptr_t address, size_t bytes) noexcept override {
    ++counts_[MemfdOp::kUnmap];
    const MemfdResult result = real_.Unmap(address, bytes);
    open_ -= result.ok();
    return result;
  }
  MemfdResult Advise(uintptr_t address, size_t bytes,
                     int advice) noexcept override {
    const MemfdResult result = Next(MemfdOp::kAdvise);
    return result.ok() ? real_.Advise(address, bytes, advice) : result;
  }
  MemfdResult Close(int fd) noexcept override {
    ++counts_[MemfdOp::kClose];
    const MemfdResult result = real_.Close(fd);
    open_ -= result.ok();
    return result;
  }
  MemfdResult FileSizeLimit() noexcept override {
    const MemfdResult result = Next(MemfdOp::kFileSizeLimit);
    return result.ok() ? real_.FileSizeLimit() : result;
  }

 private:
  MemfdResult Next(MemfdOp op) {
    MemfdResult result;
    const auto failure = failures_.find({op, counts_[op]++});
    if (failure != failures_.end()) result.error = failure->second;
    if (any_count_++ == any_at_) {
      struck_ = true;
      struck_op_ = op;
      result.error = any_error_;
    }
    return result;
  }

  MemfdCalls& real_ = RealMemfdCalls();
  std::map<MemfdOp, int> counts_;
  std::map<std::pair<MemfdOp, int>, int> failures_;
  int any_count_ = 0;
  int any_at_ = -1;
  int any_error_ = 0;
  bool struck_ = false;
  MemfdOp struck_op_ = MemfdOp::kCreate;
  size_t write_limit_ = SIZE_MAX;
  int open_ = 0;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_FAKE_MEMFD_H_
