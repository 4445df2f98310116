// Compares our constants with those that the installed headers define, old or
// new.

#include "firsttouch/uffd/abi.h"

#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>

#include <cstdint>
#include <set>
#include <string>

#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(Abi, AgreesWithTheHeaders) {
  EXPECT_EQ(kUffdApi, UFFD_API);
  EXPECT_EQ(kUffdioApi, static_cast<unsigned long>(UFFDIO_API));
  EXPECT_EQ(kUffdioRegister, static_cast<unsigned long>(UFFDIO_REGISTER));
  EXPECT_EQ(kUffdioUnregister, static_cast<unsigned long>(UFFDIO_UNREGISTER));
  EXPECT_EQ(kUffdioWake, static_cast<unsigned long>(UFFDIO_WAKE));
  EXPECT_EQ(kUffdioCopy, static_cast<unsigned long>(UFFDIO_COPY));
  EXPECT_EQ(kUffdioZeroPage, static_cast<unsigned long>(UFFDIO_ZEROPAGE));
  EXPECT_EQ(kUffdIoctlCopy, uint64_t{1} << _UFFDIO_COPY);
  EXPECT_EQ(kUffdIoctlWake, uint64_t{1} << _UFFDIO_WAKE);
  EXPECT_EQ(kUffdIoctlZeroPage, uint64_t{1} << _UFFDIO_ZEROPAGE);
  EXPECT_EQ(kUffdFeatureSigbus, uint64_t{UFFD_FEATURE_SIGBUS});
  EXPECT_EQ(kUffdFeatureThreadId, uint64_t{UFFD_FEATURE_THREAD_ID});
  EXPECT_EQ(kUffdRegisterMissing, UFFDIO_REGISTER_MODE_MISSING);
  EXPECT_EQ(kUffdEventPagefault, UFFD_EVENT_PAGEFAULT);
  EXPECT_EQ(kUffdEventUnmap, UFFD_EVENT_UNMAP);
#ifdef UFFDIO_WRITEPROTECT
  EXPECT_EQ(kUffdioWriteProtect,
            static_cast<unsigned long>(UFFDIO_WRITEPROTECT));
  EXPECT_EQ(kUffdIoctlWriteProtect, uint64_t{1} << _UFFDIO_WRITEPROTECT);
  EXPECT_EQ(kUffdCopyWp, UFFDIO_COPY_MODE_WP);
  EXPECT_EQ(kUffdWriteProtectWp, UFFDIO_WRITEPROTECT_MODE_WP);
  EXPECT_EQ(kUffdRegisterWp, UFFDIO_REGISTER_MODE_WP);
#endif
#ifdef UFFDIO_CONTINUE
  EXPECT_EQ(kUffdioContinue, static_cast<unsigned long>(UFFDIO_CONTINUE));
  EXPECT_EQ(kUffdIoctlContinue, uint64_t{1} << _UFFDIO_CONTINUE);
  EXPECT_EQ(kUffdRegisterMinor, UFFDIO_REGISTER_MODE_MINOR);
#endif
#ifdef UFFD_USER_MODE_ONLY
  EXPECT_EQ(kUffdUserModeOnly, UFFD_USER_MODE_ONLY);
#endif
#ifdef USERFAULTFD_IOC_NEW
  EXPECT_EQ(kUffdIocNew, static_cast<unsigned long>(USERFAULTFD_IOC_NEW));
#endif
#ifdef UFFDIO_CONTINUE_MODE_WP
  EXPECT_EQ(kUffdContinueWp, UFFDIO_CONTINUE_MODE_WP);
#endif
#ifdef UFFDIO_POISON
  EXPECT_EQ(kUffdioPoison, static_cast<unsigned long>(UFFDIO_POISON));
  EXPECT_EQ(sizeof(UffdioPoison), sizeof(uffdio_poison));
#endif
#ifdef UFFD_FEATURE_WP_ASYNC
  EXPECT_EQ(kUffdFeatureWpAsync, uint64_t{UFFD_FEATURE_WP_ASYNC});
#endif
#ifdef PAGEMAP_SCAN
  EXPECT_EQ(kPagemapScan, static_cast<unsigned long>(PAGEMAP_SCAN));
  EXPECT_EQ(sizeof(PmScanArg), sizeof(pm_scan_arg));
  EXPECT_EQ(kPageIsPfnZero, uint64_t{PAGE_IS_PFNZERO});
#endif
  EXPECT_EQ(kMadvDontNeed, MADV_DONTNEED);
#ifdef MADV_GUARD_INSTALL
  EXPECT_EQ(kMadvGuardInstall, MADV_GUARD_INSTALL);
#endif
#ifdef MADV_POPULATE_WRITE
  EXPECT_EQ(kMadvPopulateRead, MADV_POPULATE_READ);
  EXPECT_EQ(kMadvPopulateWrite, MADV_POPULATE_WRITE);
#endif
}

// Constants that no header here has, computed as the kernel's own headers do.
TEST(Abi, LaterNumbersAreTheKernels) {
  EXPECT_EQ(kUffdioPoison, 0xc020aa08ul);
  EXPECT_EQ(kPagemapScan, 0xc0606610ul);
  EXPECT_EQ(kUffdFeatureMove, 0x10000u);
  EXPECT_EQ(kUffdIoctlPoison, 0x100u);
}

TEST(Abi, EveryFeatureIsListedOnce) {
  uint64_t all = 0;
  std::set<std::string> names;
  for (const UffdFeatureInfo& feature : kUffdFeatures) {
    EXPECT_EQ(all & feature.bit, 0u) << feature.name;
    all |= feature.bit;
    EXPECT_TRUE(names.insert(feature.name).second) << feature.name;
  }
  EXPECT_EQ(all, 0x1ffffu);  // bits 0 to 16, Linux 6.8
  uint64_t ioctls = 0;
  for (const UffdIoctlInfo& info : kUffdRangeIoctls) ioctls |= info.bit;
  EXPECT_EQ(ioctls, 0x1fcu);
}

}  // namespace
}  // namespace firsttouch
