#include "tests/npm_guests/interpreter.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "wabt/binary-reader.h"
#include "wabt/error-formatter.h"
#include "wabt/feature.h"
#include "wabt/interp/binary-reader-interp.h"
#include "wabt/interp/interp.h"

namespace firsttouch::npm {
namespace {

namespace interp = wabt::interp;

uint64_t ToBits(const interp::Value& value, wabt::Type type) {
  if (type == wabt::Type::I32) return value.Get<uint32_t>();
  if (type == wabt::Type::I64) return value.Get<uint64_t>();
  uint64_t bits = 0;
  if (type == wabt::Type::F32) {
    const float number = value.Get<float>();
    memcpy(&bits, &number, sizeof number);
  } else if (type == wabt::Type::F64) {
    const double number = value.Get<double>();
    memcpy(&bits, &number, sizeof number);
  }
  return bits;
}

interp::Value FromBits(uint64_t bits, wabt::Type type) {
  if (type == wabt::Type::I32) {
    return interp::Value::Make(static_cast<uint32_t>(bits));
  }
  if (type == wabt::Type::F32) {
    float number = 0;
    memcpy(&number, &bits, sizeof number);
    return interp::Value::Make(number);
  }
  if (type == wabt::Type::F64) {
    double number = 0;
    memcpy(&number, &bits, sizeof number);
    return interp::Value::Make(number);
  }
  if (interp::IsReference(type)) return interp::Value::Make(interp::Ref::Null);
  return interp::Value::Make(bits);
}

class WabtInterpreter : public Interpreter {
 public:
  WabtInterpreter() : store_(Features()) {}

  static wabt::Features Features() {
    wabt::Features features;
    features.EnableAll();
    return features;
  }

  absl::Status Instantiate(const std::string& module,
                           const std::map<std::string, uint64_t>& globals,
                           ImportObserver* observer) {
    wabt::Errors errors;
    interp::ModuleDesc desc;
    const wabt::ReadBinaryOptions read(Features(), /*log_stream=*/nullptr,
                                       /*read_debug_names=*/false,
                                       /*stop_on_first_error=*/true,
                                       /*fail_on_custom_section_error=*/false);
    if (wabt::Failed(interp::ReadBinaryInterp(
            "test", module.data(), module.size(), read, &errors, &desc))) {
      return absl::FailedPreconditionError(
          wabt::FormatErrorsToString(errors, wabt::Location::Type::Binary));
    }
    module_ = interp::Module::New(store_, std::move(desc));
    interp::RefVec refs;
    for (const interp::ImportType& import : module_->import_types()) {
      refs.push_back(MakeImport(import, globals, observer));
    }
    interp::Trap::Ptr trap;
    instance_ =
        interp::Instance::Instantiate(store_, module_.ref(), refs, &trap);
    if (trap) return absl::AbortedError(trap->message());
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> Call(
      std::string_view name, const std::vector<uint64_t>& arguments) override {
    const std::optional<interp::Ref> function = Export(name);
    if (!function || !store_.Is<interp::Func>(*function)) {
      return absl::NotFoundError(
          absl::StrCat("no function ", std::string(name)));
    }
    return Call(store_.UnsafeGet<interp::Func>(*function), arguments);
  }

  absl::StatusOr<uint64_t> CallInTable(
      std::string_view table, uint32_t element,
      const std::vector<uint64_t>& arguments) override {
    const std::optional<interp::Ref> found = Export(table);
    if (!found || !store_.Is<interp::Table>(*found)) {
      return absl::NotFoundError(absl::StrCat("no table ", std::string(table)));
    }
    interp::Ref function;
    if (wabt::Failed(
            store_.UnsafeGet<interp::Table>(*found)->Get(element, &function)) ||
        !store_.Is<interp::DefinedFunc>(function)) {
      return absl::NotFoundError(absl::StrCat(
          "no function in element ", element, " of ", std::string(table)));
    }
    return Call(store_.UnsafeGet<interp::Func>(function), arguments);
  }

  uint8_t* memory(size_t i) override { return Memory(i)->UnsafeData(); }
  size_t memory_bytes(size_t i) override { return Memory(i)->ByteSize(); }
  size_t memories() override { return instance_->memories().size(); }

 private:
  std::optional<interp::Ref> Export(std::string_view name) {
    const std::vector<interp::ExportType>& exports = module_->export_types();
    for (size_t i = 0; i < exports.size(); ++i) {
      if (exports[i].name == name) return instance_->exports()[i];
    }
    return std::nullopt;
  }

  absl::StatusOr<uint64_t> Call(const interp::Func::Ptr& function,
                                const std::vector<uint64_t>& arguments) {
    const interp::FuncType& type = function->type();
    if (arguments.size() != type.params.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          arguments.size(), " arguments for ", type.params.size()));
    }
    interp::Values parameters;
    for (size_t p = 0; p < arguments.size(); ++p) {
      parameters.push_back(FromBits(arguments[p], type.params[p]));
    }
    interp::Values results;
    interp::Trap::Ptr trap;
    if (wabt::Failed(function->Call(store_, parameters, results, &trap))) {
      return absl::AbortedError(trap->message());
    }
    return results.empty() ? 0 : ToBits(results[0], type.results[0]);
  }

  interp::Memory::Ptr Memory(size_t i) {
    return store_.UnsafeGet<interp::Memory>(instance_->memories()[i]);
  }

  interp::Ref MakeImport(const interp::ImportType& import,
                         const std::map<std::string, uint64_t>& globals,
                         ImportObserver* observer) {
    switch (import.type->kind) {
      case wabt::ExternalKind::Func: {
        const auto& type = *wabt::cast<interp::FuncType>(import.type.get());
        return interp::HostFunc::New(
                   store_, type,
                   [this, type, observer, module = import.module,
                    field = import.name](
                       interp::Thread&, const interp::Values& parameters,
                       interp::Values& results, interp::Trap::Ptr*) {
                     std::vector<uint64_t> bits;
                     for (size_t i = 0; i < parameters.size(); ++i) {
                       bits.push_back(ToBits(parameters[i], type.params[i]));
                     }
                     const bool ready = instance_ && memories() > 0;
                     const uint64_t result = observer->OnCall(
                         module, field, bits, ready ? memory(0) : nullptr,
                         ready ? memory_bytes(0) : 0);
                     for (size_t i = 0; i < results.size(); ++i) {
                       results[i] = FromBits(result, type.results[i]);
                     }
                     return wabt::Result::Ok;
                   })
            ->self();
      }
      case wabt::ExternalKind::Table:
        return interp::Table::New(
                   store_, *wabt::cast<interp::TableType>(import.type.get()))
            ->self();
      case wabt::ExternalKind::Memory:
        return interp::Memory::New(
                   store_, *wabt::cast<interp::MemoryType>(import.type.get()))
            ->self();
      case wabt::ExternalKind::Global: {
        const auto& type = *wabt::cast<interp::GlobalType>(import.type.get());
        const auto given =
            globals.find(absl::StrCat(import.module, ".", import.name));
        return interp::Global::New(
                   store_, type,
                   FromBits(given == globals.end() ? 0 : given->second,
                            type.type))
            ->self();
      }
      case wabt::ExternalKind::Tag:
        return interp::Tag::New(store_,
                                *wabt::cast<interp::TagType>(import.type.get()))
            ->self();
    }
    return interp::Ref::Null;
  }

  interp::Store store_;
  interp::Module::Ptr module_;
  interp::Instance::Ptr instance_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Interpreter>> Interpret(
    const std::string& module, const std::map<std::string, uint64_t>& globals,
    ImportObserver* observer) {
  auto interpreter = std::make_unique<WabtInterpreter>();
  absl::Status instantiated =
      interpreter->Instantiate(module, globals, observer);
  if (!instantiated.ok()) return instantiated;
  return interpreter;
}

}  // namespace firsttouch::npm
