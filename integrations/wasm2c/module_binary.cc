#include "firsttouch/integrations/wasm2c/module_binary.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "wabt/binary-reader-nop.h"
#include "wabt/binary-reader.h"
#include "wabt/error.h"
#include "wabt/feature.h"

namespace firsttouch::wasm2c {
namespace {

using wabt::Index;
using wabt::Limits;
using wabt::Opcode;
using wabt::Result;
using wabt::Type;

std::string String(std::string_view text) { return std::string(text); }

// What wasm2c 1.0.32 says is the maximum when a module names none.
constexpr uint64_t kNoMemoryMax = 65536;
constexpr uint64_t kNoTableMax = UINT32_MAX;

class Reader : public wabt::BinaryReaderNop {
 public:
  const ModuleBinary& module() const { return module_; }
  // Why the module cannot be read, or cannot be translated.
  const absl::Status& error() const { return error_; }
  const absl::Status& unsupported() const { return unsupported_; }

  bool OnError(const wabt::Error& error) override {
    error_ = absl::InvalidArgumentError(absl::StrFormat(
        "wabt: %07x: %s", error.loc.offset, error.message.c_str()));
    return true;
  }

  Result OnFuncType(Index index, Index params, Type* param_types, Index results,
                    Type* result_types) override {
    CheckTypes(absl::StrCat("type ", index), {param_types, params});
    CheckTypes(absl::StrCat("type ", index), {result_types, results});
    if (params > kMaxParameters && unsupported_.ok()) {
      unsupported_ = absl::UnimplementedError(absl::StrCat(
          "type ", index, " has ", params,
          " parameters: a guest's function may have ", kMaxParameters));
    }
    return Result::Ok;
  }

  Result OnImportTable(Index, std::string_view module, std::string_view field,
                       Index, Type, const Limits* limits) override {
    module_.tables.push_back(
        {.module = String(module),
         .field = String(field),
         .min = static_cast<uint32_t>(limits->initial),
         .max = static_cast<uint32_t>(limits->has_max ? limits->max
                                                      : kNoTableMax)});
    return Result::Ok;
  }
  Result OnImportMemory(Index, std::string_view module, std::string_view field,
                        Index, const Limits* limits) override {
    CheckMemory(
        absl::StrCat("imported memory ", String(module), ".", String(field)),
        *limits);
    module_.memories.push_back(
        {.module = String(module),
         .field = String(field),
         .min = static_cast<uint32_t>(limits->initial),
         .max = static_cast<uint32_t>(limits->has_max ? limits->max
                                                      : kNoMemoryMax)});
    return Result::Ok;
  }
  Result OnImportGlobal(Index, std::string_view module, std::string_view field,
                        Index, Type type, bool is_mutable) override {
    CheckTypes(
        absl::StrCat("imported global ", String(module), ".", String(field)),
        {&type, 1});
    module_.globals.push_back({.module = String(module),
                               .field = String(field),
                               .is_mutable = is_mutable});
    return Result::Ok;
  }

  Result OnMemory(Index index, const Limits* limits) override {
    CheckMemory(absl::StrCat("memory ", index), *limits);
    return Result::Ok;
  }
  Result BeginGlobal(Index index, Type type, bool) override {
    CheckTypes(absl::StrCat("global ", index), {&type, 1});
    return Result::Ok;
  }

  Result BeginFunctionBody(Index index, wabt::Offset) override {
    function_ = absl::StrCat("function ", index);
    return Result::Ok;
  }
  Result OnLocalDecl(Index, Index, Type type) override {
    CheckTypes(function_, {&type, 1});
    return Result::Ok;
  }
  Result OnOpcode(Opcode opcode) override {
    const auto refuse = [&](std::string_view feature) {
      Refuse(function_, absl::StrCat("uses ", opcode.GetName()), feature);
    };
    if (opcode.HasPrefix() && opcode.GetPrefix() == 0xfd) refuse("SIMD");
    if (opcode.HasPrefix() && opcode.GetPrefix() == 0xfe) refuse("threads");
    if (opcode == Opcode::ReturnCall || opcode == Opcode::ReturnCallIndirect) {
      refuse("tail calls");
    }
    if (opcode == Opcode::CallRef) refuse("typed function references");
    return Result::Ok;
  }

 private:
  void Refuse(std::string_view where, std::string_view does,
              std::string_view feature) {
    if (!unsupported_.ok()) return;
    unsupported_ = absl::UnimplementedError(
        absl::StrCat(String(where), " ", String(does),
                     ": wasm2c 1.0.32 does not translate ", String(feature)));
  }
  void CheckTypes(std::string_view where, std::span<const Type> types) {
    if (std::find(types.begin(), types.end(), Type(Type::V128)) !=
        types.end()) {
      Refuse(where, "has v128", "SIMD");
    }
  }
  void CheckMemory(std::string_view where, const Limits& limits) {
    if (limits.is_shared) Refuse(where, "is shared", "threads");
    if (limits.is_64) Refuse(where, "has 64-bit addresses", "memory64");
  }

  ModuleBinary module_;
  absl::Status error_;
  absl::Status unsupported_;
  std::string function_;
};

absl::Status Read(std::span<const std::byte> bytes, bool bodies,
                  Reader* reader) {
  wabt::Features features;
  features.EnableAll();
  wabt::ReadBinaryOptions options(features, /*log_stream=*/nullptr,
                                  /*read_debug_names=*/false,
                                  /*stop_on_first_error=*/true,
                                  /*fail_on_custom_section_error=*/false);
  options.skip_function_bodies = !bodies;
  const Result result =
      wabt::ReadBinary(bytes.data(), bytes.size(), reader, options);
  if (!reader->error().ok()) return reader->error();
  if (wabt::Failed(result)) {
    return absl::InvalidArgumentError("wabt: this is no WebAssembly module");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModuleBinary> ReadModuleBinary(
    std::span<const std::byte> bytes) {
  Reader reader;
  if (absl::Status read = Read(bytes, /*bodies=*/false, &reader); !read.ok()) {
    return read;
  }
  return reader.module();
}

absl::Status CheckTranslatable(std::span<const std::byte> bytes) {
  Reader reader;
  absl::Status read = Read(bytes, /*bodies=*/true, &reader);
  // A feature that wasm2c lacks explains best why its reader fails.
  if (!reader.unsupported().ok()) return reader.unsupported();
  return read;
}

std::string MangleName(std::string_view name) {
  std::string mangled = "Z_";
  for (const char c : name) {
    if ((absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != 'Z') ||
        c == '_') {
      mangled.push_back(c);
    } else {
      absl::StrAppendFormat(&mangled, "Z%02X", static_cast<unsigned char>(c));
    }
  }
  return mangled;
}

}  // namespace firsttouch::wasm2c
