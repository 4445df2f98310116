#include "firsttouch/bench/touch_strategies.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace firsttouch::bench {
namespace {

const char* ContentName(Content content) {
  return content == Content::kImage ? "image" : "zero";
}

ImageRef ImageFor(Content content) {
  return content == Content::kImage ? PatternImage(kTouchBytes) : nullptr;
}

void TouchEachPage(Access access, std::byte* base, uint64_t bytes) {
  if (access == Access::kRead) {
    ReadEachPage(base, bytes);
  } else {
    WriteEachPage(base, bytes);
  }
}

class InPool : public TouchStrategy {
 public:
  explicit InPool(const PoolTouch& touch)
      : access_(touch.access),
        image_(ImageFor(touch.content)),
        pool_(MakePool({.backing = touch.backing,
                        .resolve = touch.resolve,
                        .fault_around_bytes = touch.fault_around_bytes,
                        .memory_bytes = kTouchBytes,
                        // Nothing is made private before it is touched.
                        .retained_pages_limit = 0})) {}

  void Prepare() override {
    memory_ = Memory();
    memory_ = ColdMemory(*pool_, image_, kTouchBytes);
  }
  void Touch() override { TouchEachPage(access_, memory_.base(), kTouchBytes); }

 private:
  const Access access_;
  const ImageRef image_;
  const std::unique_ptr<Service> pool_;
  Memory memory_;
};

class ByKernel : public TouchStrategy {
 public:
  explicit ByKernel(const KernelTouch& touch)
      : touch_(touch),
        image_(ImageFor(touch.content)),
        // A copy goes into anonymous memory.
        mapping_(kTouchBytes,
                 touch.kind == KernelTouchKind::kCopy ? nullptr : image_) {}

  void Prepare() override { mapping_.MapAnew(); }

  void Touch() override {
    if (touch_.kind == KernelTouchKind::kFault) {
      TouchEachPage(touch_.access, mapping_.base(), kTouchBytes);
      return;
    }
    for (uint64_t at = 0; at < kTouchBytes; at += touch_.fault_around_bytes) {
      std::byte* const around = mapping_.base() + at;
      if (touch_.kind == KernelTouchKind::kPopulate) {
        const int advice = touch_.access == Access::kRead ? MADV_POPULATE_READ
                                                          : MADV_POPULATE_WRITE;
        if (madvise(around, touch_.fault_around_bytes, advice) != 0) {
          Die("MADV_POPULATE_* failed (kernel 5.14)");
        }
        TouchEachPage(touch_.access, around, touch_.fault_around_bytes);
      } else if (image_ != nullptr) {
        memcpy(around, image_->data() + at, touch_.fault_around_bytes);
      } else {
        memset(around, 0, touch_.fault_around_bytes);
      }
    }
  }

 private:
  const KernelTouch touch_;
  const ImageRef image_;
  Mapping mapping_;
};

constexpr uint64_t kFaultAroundSizes[] = {4 << 10, 64 << 10, 2 << 20};

}  // namespace

std::string BytesName(uint64_t bytes) {
  return bytes >= 1 << 20 ? absl::StrCat(bytes >> 20, "MiB")
                          : absl::StrCat(bytes >> 10, "KiB");
}

std::unique_ptr<TouchStrategy> MakePoolTouch(const PoolTouch& touch) {
  return std::make_unique<InPool>(touch);
}

std::string PoolTouchName(const PoolTouch& touch) {
  return absl::StrCat(ContentName(touch.content), "/", AccessName(touch.access),
                      "/", BytesName(touch.fault_around_bytes), "/",
                      BackingName(touch.backing), "/",
                      ResolveName(touch.resolve));
}

std::unique_ptr<TouchStrategy> MakeKernelTouch(const KernelTouch& touch) {
  return std::make_unique<ByKernel>(touch);
}

std::string KernelTouchName(const KernelTouch& touch) {
  const bool image = touch.content == Content::kImage;
  std::string start = absl::StrCat(ContentName(touch.content), "/",
                                   AccessName(touch.access), "/");
  switch (touch.kind) {
    case KernelTouchKind::kFault:
      return absl::StrCat(start, "kernel/",
                          image ? "private-file" : "anonymous");
    case KernelTouchKind::kPopulate:
      return absl::StrCat(start, BytesName(touch.fault_around_bytes),
                          "/kernel/populate");
    case KernelTouchKind::kCopy:
      return absl::StrCat(start, BytesName(touch.fault_around_bytes),
                          "/kernel/", image ? "memcpy-fresh" : "memset-fresh");
  }
  return start;
}

std::vector<NamedTouchStrategy> AllTouchStrategies() {
  std::vector<NamedTouchStrategy> strategies;
  const auto add_kernel = [&](const KernelTouch& touch) {
    strategies.push_back(
        {KernelTouchName(touch), [touch] { return MakeKernelTouch(touch); }});
  };
  for (Content content : {Content::kImage, Content::kZero}) {
    for (Access access : {Access::kRead, Access::kWrite}) {
      add_kernel({KernelTouchKind::kFault, content, access});
      for (uint64_t around : kFaultAroundSizes) {
        add_kernel({KernelTouchKind::kPopulate, content, access, around});
        if (access == Access::kWrite) {
          add_kernel({KernelTouchKind::kCopy, content, access, around});
        }
        for (Backing backing : {Backing::kShared, Backing::kCopied}) {
          for (Resolve resolve :
               {Resolve::kInThread, Resolve::kHandlerThread}) {
            const PoolTouch touch{content, access, around, backing, resolve};
            strategies.push_back({PoolTouchName(touch),
                                  [touch] { return MakePoolTouch(touch); }});
          }
        }
      }
    }
  }
  return strategies;
}

}  // namespace firsttouch::bench
