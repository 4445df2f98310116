// Scripts of WebAssembly's test suite on each way to supply memory. Before each
// action the instance is snapshotted, and goes on as a new one made from the
// snapshot, or is reset to it, in turns; where instances share a memory or a
// table it is snapshotted alone.
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/integrations/wasm2c/runtime.h"
#include "firsttouch/integrations/wasm2c/test_sources.h"
#include "gtest/gtest.h"
#include "tests/spec_suite/known_failures.h"
#include "tests/spec_suite/spec_script.h"
#include "tests/spec_suite/spectest.h"

namespace firsttouch::spec {
namespace {

using wasm2c::MemorySource;
using wasm2c::SourceKind;
using wasm2c::TestSource;

// No script grows a memory further and expects to succeed.
constexpr uint64_t kMaxMemoryBytes = 2048 * wasm2c::kWasmPageBytes;
// Guests of the scripts with more than one memory have up to this many, the one
// of spectest included.
constexpr uint32_t kMaxMemories = 9;

// The module "spectest" of one instance.
class Spectest {
 public:
  Spectest() { wasm_rt_allocate_funcref_table(&instance_.table, 10, 20); }
  ~Spectest() {
    wasm_rt_free_memory(&instance_.memory);
    wasm_rt_free_funcref_table(&instance_.table);
  }
  Spectest(const Spectest&) = delete;
  Spectest& operator=(const Spectest&) = delete;

  // Gives it the memory that a script expects. A guest that is made from a
  // snapshot fills an empty one instead.
  absl::Status AllocateMemory(MemorySource* source) {
    wasm2c::ScopedMemorySource scope(source);
    return wasm2c::AllocateMemory(&instance_.memory, 1, 2);
  }

  Z_spectest_instance_t* get() { return &instance_; }

 private:
  Z_spectest_instance_t instance_;
};

// An instance with what it imports from its host.
struct Live {
  std::unique_ptr<Spectest> spectest;
  std::unique_ptr<ScriptGuest> module;
  int importers = 0;
  // Whether it came out of the snapshot that was taken last.
  bool replaced = false;
};

std::string Show(const Wanted& wanted) {
  switch (wanted.match) {
    case Match::kBits:
      return absl::StrCat(std::string(1, wanted.type), ":",
                          absl::Hex(wanted.bits));
    case Match::kCanonicalNan:
      return absl::StrCat(std::string(1, wanted.type), ":nan:canonical");
    case Match::kArithmeticNan:
      return absl::StrCat(std::string(1, wanted.type), ":nan:arithmetic");
    case Match::kNotNull:
      return "a reference";
  }
  return "";
}

bool Matches(const Wanted& wanted, uint64_t bits) {
  const bool single = wanted.type == 'f';
  const uint64_t sign = uint64_t{1} << (single ? 31 : 63);
  // The exponent and the highest bit of the fraction: a quiet NaN.
  const uint64_t quiet = single ? 0x7fc00000 : 0x7ff8000000000000;
  switch (wanted.match) {
    case Match::kBits:
      return bits == wanted.bits;
    case Match::kCanonicalNan:
      return (bits & ~sign) == quiet;
    case Match::kArithmeticNan:
      return (bits & quiet) == quiet;
    case Match::kNotNull:
      return bits != 0;
  }
  return false;
}

// Runs one script.
class Player {
 public:
  Player(const Script& script, MemorySource* source)
      : script_(script), source_(source), live_(script.modules.size()) {}
  ~Player() {
    // Who imports goes first.
    while (!live_.empty()) live_.pop_back();
  }

  // What a script's line did instead of what it says, by line.
  std::map<int, std::string> Play() {
    for (const Step& step : script_.steps) {
      std::string wrong = Do(step);
      if (!wrong.empty()) wrong_[step.line] = std::move(wrong);
    }
    return wrong_;
  }

  int replaced() const { return replaced_; }
  int reset() const { return reset_; }

 private:
  // Addresses of what the module imports. Null where it was not made.
  std::vector<void*> ImportsOf(int module, Spectest* spectest) {
    const ScriptModule& described = script_.modules[module];
    std::vector<void*> imports;
    for (int i = 0; i < described.provider_count; ++i) {
      const int provider = described.providers[i];
      imports.push_back(provider < 0 ? static_cast<void*>(spectest->get())
                                     : live_[provider].module->instance());
    }
    return imports;
  }

  absl::Status Instantiate(int module) {
    const ScriptModule& described = script_.modules[module];
    Live& live = live_[module];
    live.spectest = std::make_unique<Spectest>();
    absl::Status allocated = live.spectest->AllocateMemory(source_);
    if (!allocated.ok()) return allocated;
    absl::StatusOr<std::unique_ptr<ScriptGuest>> created = ScriptGuest::Create(
        *described.face, source_, ImportsOf(module, live.spectest.get()));
    if (!created.ok()) return created.status();
    live.module = *std::move(created);
    for (int i = 0; i < described.provider_count; ++i) {
      if (described.providers[i] >= 0)
        ++live_[described.providers[i]].importers;
    }
    return absl::OkStatus();
  }

  // Has the action happen in an instance that came out of a snapshot.
  absl::Status SnapshotAndGoOn(int module) {
    Live& live = live_[module];
    live.replaced = false;
    const absl::Status snapshot = live.module->Snapshot();
    if (!snapshot.ok()) {
      // The one state that no snapshot can hold.
      return absl::StrContains(std::string(snapshot.message()),
                               "holds a function of another module's instance")
                 ? absl::OkStatus()
                 : snapshot;
    }
    if (script_.modules[module].shares || live.importers > 0) {
      return absl::OkStatus();
    }
    auto spectest = std::make_unique<Spectest>();
    absl::StatusOr<std::unique_ptr<ScriptGuest>> copy =
        live.module->Copy(source_, ImportsOf(module, spectest.get()));
    if (!copy.ok()) return copy.status();
    live.module = *std::move(copy);
    live.spectest = std::move(spectest);
    ++replaced_;
    live.replaced = true;
    return absl::OkStatus();
  }

  std::string Do(const Step& step) {
    switch (step.kind) {
      case StepKind::kUntranslated:
        return "wabt does not translate the module";
      case StepKind::kModule:
        return std::string(Instantiate(step.module).message());
      case StepKind::kUnlinkable: {
        const absl::Status status = Instantiate(step.module);
        return status.code() == absl::StatusCode::kFailedPrecondition
                   ? ""
                   : absl::StrCat("not refused but: ", status.ToString());
      }
      case StepKind::kUninstantiable: {
        const absl::Status status = Instantiate(step.module);
        return status.code() == absl::StatusCode::kAborted &&
                       (absl::StrContains(std::string(status.message()),
                                          wasm_rt_strerror(step.trap)) ||
                        (step.trap == WASM_RT_TRAP_OOB &&
                         absl::StrContains(std::string(status.message()),
                                           "out of bounds")))
                   ? ""
                   : absl::StrCat("no such trap but: ", status.ToString());
      }
      case StepKind::kAction:
      case StepKind::kReturns:
      case StepKind::kTraps:
        break;
    }
    if (live_[step.module].module == nullptr) return "there is no instance";
    const absl::Status prepared = SnapshotAndGoOn(step.module);
    if (!prepared.ok()) return prepared.ToString();
    ScriptGuest& module = *live_[step.module].module;
    wasm2c::Trap trap;
    absl::Status host_error;
    if (live_[step.module].replaced && ++actions_ % 2 == 0) {
      // Every second time it is done twice, and undone in between.
      std::array<uint64_t, kMaxResults> unused = {};
      (void)module.Run(step.call, step.in, unused.data(), &trap, &host_error);
      const absl::Status status = module.Reset();
      if (!status.ok()) return status.ToString();
      ++reset_;
    }
    std::array<uint64_t, kMaxResults> results = {};
    const wasm2c::RunEnd end =
        module.Run(step.call, step.in, results.data(), &trap, &host_error);
    if (step.kind == StepKind::kTraps) {
      if (end != wasm2c::RunEnd::kTrapped) return "it did not trap";
      return trap.code == step.trap
                 ? ""
                 : absl::StrCat("trapped with ", trap.Message());
    }
    if (end != wasm2c::RunEnd::kReturned) {
      return end == wasm2c::RunEnd::kHostError ? host_error.ToString()
                                               : trap.Message();
    }
    for (size_t i = 0; i < step.wanted_count; ++i) {
      if (!Matches(step.wanted[i], results[i])) {
        return absl::StrCat("result ", i, " is ", absl::Hex(results[i]),
                            " instead of ", Show(step.wanted[i]));
      }
    }
    return "";
  }

  const Script& script_;
  MemorySource* const source_;
  std::vector<Live> live_;
  std::map<int, std::string> wrong_;
  int replaced_ = 0;
  int reset_ = 0;
  int actions_ = 0;
};

class SpecSuiteTest
    : public testing::TestWithParam<std::tuple<const Script*, SourceKind>> {};

INSTANTIATE_TEST_SUITE_P(
    Scripts, SpecSuiteTest,
    testing::Combine(testing::ValuesIn(AllScripts()),
                     testing::ValuesIn(wasm2c::AllSourceKinds())),
    [](const testing::TestParamInfo<SpecSuiteTest::ParamType>& info) {
      return absl::StrCat(std::get<0>(info.param)->name, "_",
                          std::get<1>(info.param).name);
    });

TEST_P(SpecSuiteTest, DoesWhatTheScriptSays) {
  const Script& script = *std::get<0>(GetParam());
  const SourceKind& kind = std::get<1>(GetParam());
  // An instance stays until its script ends, and so does its spectest.
  absl::StatusOr<TestSource> source = wasm2c::MakeTestSource(
      kind, static_cast<uint32_t>(2 * script.modules.size() + 2),
      kMaxMemoryBytes,
      absl::StartsWith(script.name, "multi_memory") ? kMaxMemories : 1);
  if (!source.ok()) {
    GTEST_SKIP() << kind.name << " is not possible here: " << source.status();
  }
  Player player(script, source->source.get());
  const std::map<int, std::string> wrong = player.Play();

  std::set<int> known;
  for (const KnownFailure& failure : kKnownFailures) {
    if (failure.script != script.name) continue;
    known.insert(failure.line);
    EXPECT_EQ(wrong.count(failure.line), 1u)
        << script.name << ":" << failure.line
        << " passes, and is listed as a known failure: " << failure.why;
  }
  for (const auto& [line, what] : wrong) {
    EXPECT_EQ(known.count(line), 1u)
        << script.name << ":" << line << ": " << what;
  }
  RecordProperty("commands", static_cast<int>(script.steps.size()));
  RecordProperty("in_a_new_instance", player.replaced());
  RecordProperty("after_a_reset", player.reset());
}

}  // namespace
}  // namespace firsttouch::spec
