#include "firsttouch/init/wasm/test_modules.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "wabt/binary-reader.h"
#include "wabt/binary-writer.h"
#include "wabt/error-formatter.h"
#include "wabt/feature.h"
#include "wabt/interp/binary-reader-interp.h"
#include "wabt/interp/interp.h"
#include "wabt/ir.h"
#include "wabt/stream.h"
#include "wabt/validator.h"
#include "wabt/wast-lexer.h"
#include "wabt/wast-parser.h"

namespace firsttouch {
namespace {

namespace interp = wabt::interp;

wabt::Features AllFeatures() {
  wabt::Features features;
  features.EnableAll();
  return features;
}

absl::Status Failure(const wabt::Errors& errors, wabt::Location::Type type) {
  return absl::FailedPreconditionError(
      wabt::FormatErrorsToString(errors, type));
}

// Something that a module can import as `type`.
interp::Ref MakeImport(interp::Store& store, const interp::ImportType& import,
                       const InterpreterImports& imports) {
  switch (import.type->kind) {
    case wabt::ExternalKind::Func: {
      const auto& type = *wabt::cast<interp::FuncType>(import.type.get());
      return interp::HostFunc::New(
                 store, type,
                 [&store](interp::Thread&, const interp::Values&,
                          interp::Values&, interp::Trap::Ptr* trap) {
                   *trap = interp::Trap::New(store, "a stub was called");
                   return wabt::Result::Error;
                 })
          ->self();
    }
    case wabt::ExternalKind::Table:
      return interp::Table::New(
                 store, *wabt::cast<interp::TableType>(import.type.get()))
          ->self();
    case wabt::ExternalKind::Memory: {
      interp::MemoryType type =
          *wabt::cast<interp::MemoryType>(import.type.get());
      if (imports.memory_pages.has_value()) {
        type.limits.initial = *imports.memory_pages;
      }
      return interp::Memory::New(store, type)->self();
    }
    case wabt::ExternalKind::Global: {
      const auto& type = *wabt::cast<interp::GlobalType>(import.type.get());
      const auto given =
          imports.globals.find(absl::StrCat(import.module, ".", import.name));
      const uint64_t bits = given == imports.globals.end() ? 0 : given->second;
      interp::Value value = interp::Value::Make(bits);
      if (type.type == wabt::Type::I32) {
        value = interp::Value::Make(static_cast<uint32_t>(bits));
      } else if (interp::IsReference(type.type)) {
        value = interp::Value::Make(interp::Ref::Null);
      }
      return interp::Global::New(store, type, value)->self();
    }
    case wabt::ExternalKind::Tag:
      return interp::Tag::New(store,
                              *wabt::cast<interp::TagType>(import.type.get()))
          ->self();
  }
  return interp::Ref::Null;
}

}  // namespace

absl::StatusOr<Bytes> ModuleFromText(std::string_view text, bool validate) {
  wabt::Errors errors;
  std::unique_ptr<wabt::WastLexer> lexer = wabt::WastLexer::CreateBufferLexer(
      "test", text.data(), text.size(), &errors);
  const wabt::Features features = AllFeatures();
  wabt::WastParseOptions parse(features);
  std::unique_ptr<wabt::Module> module;
  if (wabt::Failed(
          wabt::ParseWatModule(lexer.get(), &module, &errors, &parse))) {
    return Failure(errors, wabt::Location::Type::Text);
  }
  if (validate &&
      wabt::Failed(wabt::ValidateModule(module.get(), &errors,
                                        wabt::ValidateOptions(features)))) {
    return Failure(errors, wabt::Location::Type::Text);
  }
  wabt::MemoryStream stream;
  wabt::WriteBinaryOptions write(features, /*canonicalize_lebs=*/true,
                                 /*relocatable=*/false,
                                 /*write_debug_names=*/false);
  if (wabt::Failed(wabt::WriteBinaryModule(&stream, module.get(), write))) {
    return absl::FailedPreconditionError("wabt cannot write the module");
  }
  const std::vector<uint8_t>& data = stream.output_buffer().data;
  const auto* bytes = reinterpret_cast<const std::byte*>(data.data());
  return Bytes(bytes, bytes + data.size());
}

absl::StatusOr<std::vector<Bytes>> MemoriesInInterpreter(
    const Bytes& module, const InterpreterImports& imports) {
  wabt::Errors errors;
  interp::ModuleDesc desc;
  const wabt::ReadBinaryOptions read(AllFeatures(), /*log_stream=*/nullptr,
                                     /*read_debug_names=*/false,
                                     /*stop_on_first_error=*/true,
                                     /*fail_on_custom_section_error=*/false);
  if (wabt::Failed(interp::ReadBinaryInterp(
          "test", module.data(), module.size(), read, &errors, &desc))) {
    return Failure(errors, wabt::Location::Type::Binary);
  }
  desc.starts.clear();
  interp::Store store(AllFeatures());
  interp::Module::Ptr loaded = interp::Module::New(store, std::move(desc));
  interp::RefVec refs;
  for (const interp::ImportType& import : loaded->import_types()) {
    refs.push_back(MakeImport(store, import, imports));
  }
  interp::Trap::Ptr trap;
  interp::Instance::Ptr instance =
      interp::Instance::Instantiate(store, loaded.ref(), refs, &trap);
  if (trap) return absl::FailedPreconditionError(trap->message());
  std::vector<Bytes> memories;
  for (interp::Ref ref : instance->memories()) {
    interp::Memory::Ptr memory = store.UnsafeGet<interp::Memory>(ref);
    const auto* bytes =
        reinterpret_cast<const std::byte*>(memory->UnsafeData());
    memories.emplace_back(bytes, bytes + memory->ByteSize());
  }
  return memories;
}

}  // namespace firsttouch
