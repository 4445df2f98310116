// A module of npm's as it is shipped, on each way to supply memory: does what
// it does in wabt's interpreter, and leaves the same memory behind; first by
// its own instantiation, then as a copy of a snapshot, then after a reset.
//
//   <name>_test <module>
#include "tests/npm_guests/npm_guest.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "firsttouch/integrations/wasm2c/any_guest.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/integrations/wasm2c/module_binary.h"
#include "firsttouch/integrations/wasm2c/source_test.h"
#include "firsttouch/integrations/wasm2c/test_sources.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "gtest/gtest.h"
#include "tests/npm_guests/interpreter.h"

namespace firsttouch::npm {
namespace {

using Trace = std::vector<std::string>;
using wasm2c::SourceKind;

// Enough for the largest of the modules, onigasm.
constexpr uint64_t kMaxMemoryBytes = uint64_t{256} << 20;

Trace& TheTrace() {
  static auto& trace = *new Trace;
  return trace;
}

std::string Called(const std::string& symbol,
                   const std::vector<uint64_t>& arguments) {
  return absl::StrCat(symbol, "(", absl::StrJoin(arguments, ", "), ")");
}

uint64_t Resolve(const Value& value, const std::vector<uint64_t>& results) {
  // WebAssembly's addresses and most of its numbers have 32 bits.
  return value.result == 0
             ? value.number
             : (results[value.result - 1] + value.number) & 0xffffffff;
}

// What a part of the plan did.
struct Seen {
  std::vector<uint64_t> results;
  Trace trace;
  std::vector<uint8_t> memory;
};

std::string ModulePath() {
  const std::vector<std::string> arguments = testing::internal::GetArgvs();
  return arguments.size() > 1 ? arguments[1] : "";
}

// The host of the interpreter.
class Observer : public ImportObserver {
 public:
  explicit Observer(const Plan& plan) : plan_(plan) {}

  uint64_t OnCall(const std::string& module, const std::string& field,
                  const std::vector<uint64_t>& arguments, uint8_t* memory,
                  size_t memory_bytes) override {
    const auto wasi = plan_.wasi.find(field);
    if (module == kWasiModule && wasi != plan_.wasi.end()) {
      const wasm_rt_memory_t view = {
          .data = memory,
          .pages = static_cast<uint32_t>(memory_bytes / wasm2c::kWasmPageBytes),
          .size = static_cast<uint32_t>(memory_bytes)};
      wasi_.Attach(&view);
      const uint64_t result = wasi->second(&wasi_, arguments.data());
      wasi_.Attach(nullptr);
      return result;
    }
    trace.push_back(Called(
        wasm2c::MangleName(module) + wasm2c::MangleName(field), arguments));
    const auto returned = plan_.returned.find(absl::StrCat(module, ".", field));
    return returned == plan_.returned.end() ? 0 : returned->second;
  }

  Trace trace;

 private:
  static constexpr std::string_view kWasiModule = "wasi_snapshot_preview1";

  const Plan& plan_;
  wasm2c::Wasi wasi_{WhatWasiSays()};
};

// What the plan does in wabt's interpreter: at its instantiation, before the
// snapshot, and after it.
struct Expected {
  Seen created, before, after;
};

absl::StatusOr<Expected> InInterpreter(const Plan& plan) {
  std::ifstream in(ModulePath(), std::ios::binary);
  const std::string module{std::istreambuf_iterator<char>(in), {}};
  Observer observer(plan);
  absl::StatusOr<std::unique_ptr<Interpreter>> interpreter =
      Interpret(module, plan.globals, &observer);
  if (!interpreter.ok()) return interpreter.status();
  std::vector<uint64_t> results;
  const auto see = [&] {
    const uint8_t* const bytes = (*interpreter)->memory(0);
    Seen seen = {results,
                 observer.trace,
                 {bytes, bytes + (*interpreter)->memory_bytes(0)}};
    observer.trace.clear();
    return seen;
  };
  Expected expected;
  expected.created = see();
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    if (i == plan.ready) expected.before = see();
    const Step& step = plan.steps[i];
    const uint64_t at = Resolve(step.at, results);
    const size_t bytes = (*interpreter)->memory_bytes(0);
    if (step.call != nullptr) {
      std::vector<uint64_t> arguments;
      for (const Value& value : step.in) {
        arguments.push_back(Resolve(value, results));
      }
      absl::StatusOr<uint64_t> result;
      if (step.in_table) {
        const auto element = static_cast<uint32_t>(arguments[0]);
        arguments.erase(arguments.begin());
        result = (*interpreter)->CallInTable(step.name, element, arguments);
      } else {
        result = (*interpreter)->Call(step.name, arguments);
      }
      if (!result.ok()) {
        return absl::Status(
            result.status().code(),
            absl::StrCat(step.name, ": ",
                         std::string(result.status().message())));
      }
      results.push_back(*result);
    } else if (at > bytes || bytes - at < step.bytes.size() + 4) {
      return absl::OutOfRangeError(absl::StrCat("step ", i, ": address ", at));
    } else if (!step.bytes.empty()) {
      memcpy((*interpreter)->memory(0) + at, step.bytes.data(),
             step.bytes.size());
    } else {
      uint32_t word = 0;
      memcpy(&word, (*interpreter)->memory(0) + at, sizeof word);
      results.push_back(word);
    }
  }
  expected.after = see();
  return expected;
}

class NpmGuestTest : public wasm2c::SourceTest {
 protected:
  static void SetUpTestSuite() {
    plan_ = new Plan(ThePlan());
    expected_ = new absl::StatusOr<Expected>(InInterpreter(*plan_));
  }

  void SetUp() override {
    ASSERT_TRUE(expected_->ok()) << expected_->status();
    MakeSource(2, kMaxMemoryBytes);
  }

  // Does the steps [first, last), behind the ones that gave `results`.
  void Do(wasm2c::AnyGuest& guest, size_t first, size_t last,
          std::vector<uint64_t>* results) {
    for (size_t i = first; i < last; ++i) {
      const Step& step = plan_->steps[i];
      auto* const at = const_cast<uint8_t*>(guest.memory(0).data()) +
                       Resolve(step.at, *results);
      if (step.call != nullptr) {
        std::vector<uint64_t> arguments;
        for (const Value& value : step.in) {
          arguments.push_back(Resolve(value, *results));
        }
        uint64_t result = 0;
        const auto outcome = guest.Run(step.call, arguments.data(), &result);
        ASSERT_TRUE(outcome.ok()) << step.name << ": " << outcome.status();
        results->push_back(result);
      } else if (!step.bytes.empty()) {
        memcpy(at, step.bytes.data(), step.bytes.size());
        continue;
      } else {
        uint32_t word = 0;
        memcpy(&word, at, sizeof word);
        results->push_back(word);
      }
      if (step.has_wanted) {
        EXPECT_EQ(results->back(), step.wanted) << "step " << i << step.name;
      }
    }
  }

  // Compares with the interpreter's, and forgets the trace.
  static void ExpectSeen(wasm2c::AnyGuest& guest, const Seen& seen,
                         const std::vector<uint64_t>& results,
                         const std::string& when) {
    EXPECT_EQ(results, seen.results) << when;
    EXPECT_EQ(TheTrace(), seen.trace) << when;
    TheTrace().clear();
    const std::span<const uint8_t> memory = guest.memory(0);
    ASSERT_EQ(memory.size(), seen.memory.size()) << when;
    if (memcmp(memory.data(), seen.memory.data(), memory.size()) == 0) return;
    size_t i = 0;
    while (memory[i] == seen.memory[i]) ++i;
    ADD_FAILURE() << when << ": memories differ at " << i << ": " << memory[i]
                  << " instead of " << seen.memory[i];
  }

  static Plan* plan_;
  static absl::StatusOr<Expected>* expected_;
};

Plan* NpmGuestTest::plan_ = nullptr;
absl::StatusOr<Expected>* NpmGuestTest::expected_ = nullptr;

INSTANTIATE_TEST_SUITE_P(Sources, NpmGuestTest,
                         testing::ValuesIn(wasm2c::AllSourceKinds()),
                         wasm2c::SourceKindName);

TEST_P(NpmGuestTest, DoesWhatTheInterpreterDoes) {
  const Expected& expected = **expected_;
  TheTrace().clear();
  const std::unique_ptr<Imports> imports = NewImports();
  const std::unique_ptr<Imports> copys_imports = NewImports();
  const std::unique_ptr<wasm2c::AnyGuest> guest = plan_->make();
  const absl::Status created = guest->Create(source(), imports->get());
  ASSERT_TRUE(created.ok()) << created;
  std::vector<uint64_t> results;
  ExpectSeen(*guest, expected.created, results, "instantiated");
  Do(*guest, 0, plan_->ready, &results);
  ExpectSeen(*guest, expected.before, results, "set up");
  const absl::Status snapshot = guest->Snapshot();
  ASSERT_TRUE(snapshot.ok()) << snapshot;

  for (int lease = 0; lease < 4; ++lease) {
    const std::string when = absl::StrCat("lease ", lease);
    if (lease == 0) {
      const absl::Status replaced =
          guest->Replace(source(), copys_imports->get());
      ASSERT_TRUE(replaced.ok()) << replaced;
    } else {
      const absl::Status reset = guest->Reset();
      ASSERT_TRUE(reset.ok()) << reset;
    }
    results.resize(expected.before.results.size());
    TheTrace() = expected.before.trace;
    ExpectSeen(*guest, expected.before, results, when + ", at its start");
    Do(*guest, plan_->ready, plan_->steps.size(), &results);
    ExpectSeen(*guest, expected.after, results, when + ", at its end");
  }
}

}  // namespace

void Note(const char* symbol, std::initializer_list<uint64_t> arguments) {
  TheTrace().push_back(Called(symbol, arguments));
}

}  // namespace firsttouch::npm
