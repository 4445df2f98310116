#include "firsttouch/init/wasm/wasm_image.h"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/init/image_builder.h"
#include "wabt/binary-reader-nop.h"
#include "wabt/binary-reader.h"
#include "wabt/error.h"
#include "wabt/feature.h"

namespace firsttouch {
namespace {

using wabt::Index;
using wabt::Opcode;
using wabt::Result;

constexpr size_t kMaxExpressionText = 200;

// A name out of a module may be any bytes.
std::string Printable(std::string_view name) {
  return absl::Utf8SafeCEscape(absl::string_view(name.data(), name.size()));
}

// What a constant expression gives.
struct Value {
  wabt::Type type = wabt::Type::Any;
  enum class Kind {
    kNumber,    // `bits`, of an i32 the low half.
    kImported,  // Depends on what `import` is.
    kOpaque,    // Of a type that is no offset, or not constant.
  };
  Kind kind = Kind::kOpaque;
  uint64_t bits = 0;
  size_t import = 0;  // Of Reader::globals_.
};

struct Global {
  std::string name;  // "module.field" if imported.
  bool is_mutable = false;
  Value value;
};

struct Active {
  uint64_t index = 0;
  DataSegment segment;
};

// Takes from the module what makes up its memories. One class because wabt
// tells one object of everything that it reads.
class Reader : public wabt::BinaryReaderNop {
 public:
  Reader(const WasmImageOptions& options, std::span<const std::byte> module)
      : options_(options), module_(module) {}

  // Of the first thing that was wrong.
  const absl::Status& status() const { return status_; }
  WasmImages& images() { return images_; }
  const std::vector<std::vector<Active>>& active() const { return active_; }

  // Once the module has been read: names in the options that it does not have.
  absl::Status CheckOptions() const;

  bool OnError(const wabt::Error& error) override {
    if (error.error_level == wabt::ErrorLevel::Warning) return true;
    if (!status_.ok()) return true;
    // The proposal for custom page sizes has the bit of value 8 among the flags
    // of a memory. wabt 1.0.32 does not know it, and says what it found.
    constexpr std::string_view kFlags = "malformed memory limits flag: ";
    const size_t at = error.message.find(kFlags);
    uint32_t flags = 0;
    if (at != std::string::npos &&
        absl::SimpleAtoi(error.message.substr(at + kFlags.size()), &flags) &&
        (flags & 0x8) != 0) {
      status_ = absl::UnimplementedError(absl::StrFormat(
          "%s: wabt: %07x: %s: the memory has a page size of its own "
          "(custom-page-sizes), which this version of wabt cannot read; build "
          "the module with pages of %d bytes",
          Name(), error.loc.offset, error.message, kWasmPageBytes));
      return true;
    }
    status_ = absl::InvalidArgumentError(absl::StrFormat(
        "%s: wabt: %07x: %s", Name(), error.loc.offset, error.message));
    return true;
  }

  // --- Memories --------------------------------------------------------------

  Result OnImportMemory(Index /*import*/, std::string_view module,
                        std::string_view field, Index memory,
                        const wabt::Limits* limits) override {
    WasmMemory imported;
    imported.import = WasmImportName{std::string(module), std::string(field)};
    imported.initial_pages = limits->initial;
    if (options_.imported_memory_pages.has_value()) {
      const uint64_t pages = *options_.imported_memory_pages;
      if (pages < limits->initial || (limits->has_max && pages > limits->max)) {
        return Fail(absl::InvalidArgumentError(absl::StrCat(
            Name(), ": imported_memory_pages ", pages,
            " is outside what memory ", memory, " (imported as ",
            Printable(module), ".", Printable(field),
            ") allows: ", limits->initial, " to ",
            limits->has_max ? absl::StrCat(limits->max) : "any number of",
            " pages")));
      }
      imported.initial_pages = pages;
    }
    return AddMemory(memory, std::move(imported), *limits);
  }

  Result OnMemory(Index memory, const wabt::Limits* limits) override {
    WasmMemory own;
    own.initial_pages = limits->initial;
    return AddMemory(memory, std::move(own), *limits);
  }

  // --- Globals and constant expressions --------------------------------------

  Result OnImportGlobal(Index /*import*/, std::string_view module,
                        std::string_view field, Index /*global*/,
                        wabt::Type type, bool is_mutable) override {
    Global global;
    global.name = absl::StrCat(std::string(module), ".", std::string(field));
    global.is_mutable = is_mutable;
    global.value.type = type;
    const auto given = options_.globals.find(global.name);
    if (given != options_.globals.end()) {
      names_seen_.insert(global.name);
      const auto number = static_cast<int64_t>(given->second);
      if (type == wabt::Type::I32 && too_large_.empty() &&
          (number < std::numeric_limits<int32_t>::min() ||
           number > std::numeric_limits<uint32_t>::max())) {
        too_large_ = global.name;
      }
      global.value.kind = Value::Kind::kNumber;
      global.value.bits = type == wabt::Type::I32
                              ? static_cast<uint32_t>(given->second)
                              : given->second;
    } else {
      global.value.kind = Value::Kind::kImported;
      global.value.import = globals_.size();
    }
    globals_.push_back(std::move(global));
    return Result::Ok;
  }

  Result BeginGlobal(Index /*global*/, wabt::Type type,
                     bool is_mutable) override {
    // One whose expression is not followed, or fails, stays opaque.
    globals_.push_back({.is_mutable = is_mutable, .value = {.type = type}});
    return Result::Ok;
  }
  Result BeginGlobalInitExpr(Index /*global*/) override {
    BeginExpression();
    return Result::Ok;
  }
  Result EndGlobalInitExpr(Index /*global*/) override {
    in_expression_ = false;
    Value& value = globals_.back().value;
    if (wrong_.empty() && stack_.size() == 1 && stack_[0].type == value.type) {
      value = stack_[0];
    }
    return Result::Ok;
  }

  Result OnOpcode(Opcode opcode) override {
    if (!in_expression_) return Result::Ok;
    switch (static_cast<Opcode::Enum>(opcode)) {
      case Opcode::I32Const:
      case Opcode::I64Const:
      case Opcode::GlobalGet:
      case Opcode::I32Add:
      case Opcode::I32Sub:
      case Opcode::I32Mul:
      case Opcode::I64Add:
      case Opcode::I64Sub:
      case Opcode::I64Mul:
      case Opcode::End:
        break;
      default:
        Wrong(absl::StrCat(opcode.GetName(), " is not constant"));
    }
    return Result::Ok;
  }
  Result OnI32ConstExpr(uint32_t bits) override {
    Say("i32.const ", static_cast<int32_t>(bits));
    return Push({wabt::Type::I32, Value::Kind::kNumber, bits});
  }
  Result OnI64ConstExpr(uint64_t bits) override {
    Say("i64.const ", static_cast<int64_t>(bits));
    return Push({wabt::Type::I64, Value::Kind::kNumber, bits});
  }
  Result OnGlobalGetExpr(Index index) override {
    if (!in_expression_) return Result::Ok;
    if (index >= globals_.size()) {
      Wrong(absl::StrCat("there is no global ", index, " before it"));
      return Result::Ok;
    }
    const Global& global = globals_[index];
    if (global.name.empty()) {
      Say("global.get ", index);
    } else {
      Say("global.get ", Printable(global.name));
    }
    if (global.is_mutable) {
      Wrong(absl::StrCat("global ", index, " is mutable"));
    } else if (global.value.kind == Value::Kind::kOpaque) {
      Wrong(absl::StrCat("global ", index, " is not a constant number"));
    }
    return Push(global.value);
  }
  Result OnBinaryExpr(Opcode opcode) override {
    if (!in_expression_) return Result::Ok;
    Say(opcode.GetName(), "");
    if (stack_.size() < 2) {
      Wrong(absl::StrCat(opcode.GetName(), " has less than two operands"));
      return Result::Ok;
    }
    const Value right = stack_.back();
    stack_.pop_back();
    Value& left = stack_.back();
    const wabt::Type type = opcode.GetResultType();
    if (left.type != type || right.type != type) {
      Wrong(absl::StrCat(opcode.GetName(), " has operands of another type"));
      return Result::Ok;
    }
    if (left.kind != Value::Kind::kNumber) return Result::Ok;
    if (right.kind != Value::Kind::kNumber) {
      left = right;
      return Result::Ok;
    }
    switch (static_cast<Opcode::Enum>(opcode)) {
      case Opcode::I32Add:
      case Opcode::I64Add:
        left.bits += right.bits;
        break;
      case Opcode::I32Sub:
      case Opcode::I64Sub:
        left.bits -= right.bits;
        break;
      default:
        left.bits *= right.bits;
        break;
    }
    if (type == wabt::Type::I32) left.bits = static_cast<uint32_t>(left.bits);
    return Result::Ok;
  }

  // --- Data segments ---------------------------------------------------------

  Result BeginDataSegment(Index index, Index memory, uint8_t flags) override {
    segment_ = {.index = index};
    is_passive_ = (flags & wabt::SegPassive) != 0;
    if (is_passive_) return Result::Ok;
    if (memory >= images_.memories.size()) {
      return Fail(absl::InvalidArgumentError(absl::StrCat(
          Name(), ": data segment ", index, " is for memory ", memory,
          " of a module with ", images_.memories.size(), " memories")));
    }
    segment_.memory = memory;
    return Result::Ok;
  }
  Result BeginDataSegmentInitExpr(Index /*index*/) override {
    BeginExpression();
    return Result::Ok;
  }
  Result EndDataSegmentInitExpr(Index index) override {
    in_expression_ = false;
    const wabt::Type wanted = images_.memories[*segment_.memory].is_64
                                  ? wabt::Type::I64
                                  : wabt::Type::I32;
    if (wrong_.empty() && stack_.size() != 1) {
      wrong_ = absl::StrCat("it gives ", stack_.size(), " values");
    }
    if (wrong_.empty() && stack_[0].type != wanted) {
      wrong_ = absl::StrCat("it gives ", stack_[0].type.GetName(),
                            ", and the addresses of memory ", *segment_.memory,
                            " are ", wanted.GetName());
    }
    if (!wrong_.empty()) {
      return Fail(absl::InvalidArgumentError(
          absl::StrCat(Name(), ": data segment ", index, ": its offset \"",
                       text_, "\" is not a constant expression: ", wrong_)));
    }
    return Result::Ok;
  }
  Result OnDataSegmentData(Index index, const void* data,
                           wabt::Address size) override {
    const auto* bytes = static_cast<const std::byte*>(data);
    segment_.bytes = size;
    segment_.module_offset = static_cast<uint64_t>(bytes - module_.data());
    if (is_passive_) {
      images_.passive.push_back(std::move(segment_));
      return Result::Ok;
    }
    const uint32_t memory_index = *segment_.memory;
    const Value& offset = stack_[0];
    if (offset.kind == Value::Kind::kImported) {
      segment_.offset = text_;
      segment_.needs = Printable(globals_[offset.import].name);
      images_.unresolved.push_back(std::move(segment_));
      return Result::Ok;
    }
    WasmMemory& memory = images_.memories[memory_index];
    const uint64_t memory_bytes = memory.initial_pages * memory.page_bytes;
    if (offset.bits > memory_bytes || size > memory_bytes - offset.bits) {
      return Fail(absl::OutOfRangeError(absl::StrCat(
          Name(), ": data segment ", index, ": offset ", offset.bits, " + ",
          size, " bytes does not end within memory ", memory_index, ", which ",
          memory.import.has_value() ? "is imported with " : "begins with ",
          memory_bytes, " bytes (", memory.initial_pages, " pages)",
          memory.import.has_value()
              ? "; say how many it will have (imported_memory_pages)"
              : "")));
    }
    active_[memory_index].push_back({index, {offset.bits, {bytes, size}}});
    ++memory.active_segments;
    return Result::Ok;
  }

  Result OnStartFunction(Index function) override {
    images_.start_function = function;
    return Result::Ok;
  }

 private:
  std::string Name() const {
    return absl::StrCat("module '", options_.name, "'");
  }

  Result Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
    return Result::Error;
  }

  Result AddMemory(Index index, WasmMemory memory, const wabt::Limits& limits) {
    memory.is_64 = limits.is_64;
    memory.is_shared = limits.is_shared;
    if (limits.has_max) memory.max_pages = limits.max;
    if (memory.initial_pages > kMaxImageBytes / memory.page_bytes) {
      return Fail(absl::InvalidArgumentError(
          absl::StrCat(Name(), ": memory ", index, " begins with ",
                       memory.initial_pages, " pages of ", memory.page_bytes,
                       " bytes; an image has at most ", kMaxImageBytes)));
    }
    images_.memories.push_back(std::move(memory));
    active_.emplace_back();
    return Result::Ok;
  }

  void BeginExpression() {
    in_expression_ = true;
    stack_.clear();
    text_.clear();
    wrong_.clear();
  }
  Result Push(const Value& value) {
    if (in_expression_) stack_.push_back(value);
    return Result::Ok;
  }
  void Wrong(std::string text) {
    if (wrong_.empty()) wrong_ = std::move(text);
  }
  template <typename A, typename B>
  void Say(const A& a, const B& b) {
    if (!in_expression_ || text_.size() >= kMaxExpressionText) return;
    absl::StrAppend(&text_, text_.empty() ? "" : "; ", a, b);
    if (text_.size() >= kMaxExpressionText) {
      text_.resize(kMaxExpressionText);
      text_ += "...";
    }
  }

  const WasmImageOptions& options_;
  const std::span<const std::byte> module_;
  absl::Status status_;
  WasmImages images_;
  std::vector<std::vector<Active>> active_;  // By memory.
  std::vector<Global> globals_;
  std::set<std::string> names_seen_;  // Of options_.globals.
  std::string too_large_;  // A global whose value does not fit; or empty.

  // The constant expression that is being read.
  bool in_expression_ = false;
  std::vector<Value> stack_;
  std::string text_;
  std::string wrong_;  // Why it is none.

  // The segment that is being read.
  WasmSegment segment_;
  bool is_passive_ = false;
};

absl::Status Reader::CheckOptions() const {
  if (!too_large_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        Name(), ": the value ", options_.globals.at(too_large_), " of global '",
        Printable(too_large_),
        "' does not fit its 32 bits: it is an i32, from -2147483648 to "
        "4294967295"));
  }
  for (const auto& [name, value] : options_.globals) {
    if (names_seen_.contains(name)) continue;
    std::string imported;
    for (const Global& global : globals_) {
      if (global.name.empty()) continue;
      absl::StrAppend(&imported, imported.empty() ? "" : ", ",
                      Printable(global.name));
    }
    return absl::InvalidArgumentError(
        absl::StrCat(Name(), ": a value is given for global '", name,
                     "', which the module does not import; it imports ",
                     imported.empty() ? "none" : imported));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WasmImages> ImagesFromWasm(const WasmImageOptions& options,
                                          std::span<const std::byte> module) {
  wabt::Features features;
  features.EnableAll();
  wabt::ReadBinaryOptions read(features, /*log_stream=*/nullptr,
                               /*read_debug_names=*/false,
                               /*stop_on_first_error=*/true,
                               /*fail_on_custom_section_error=*/false);
  read.skip_function_bodies = true;
  Reader reader(options, module);
  const Result result =
      wabt::ReadBinary(module.data(), module.size(), &reader, read);
  if (!reader.status().ok()) return reader.status();
  if (wabt::Failed(result)) {
    return absl::InternalError(
        absl::StrCat("module '", options.name, "': wabt fails without a word"));
  }
  if (absl::Status checked = reader.CheckOptions(); !checked.ok()) {
    return checked;
  }
  WasmImages images = std::move(reader.images());
  for (size_t i = 0; i < images.memories.size(); ++i) {
    WasmMemory& memory = images.memories[i];
    std::vector<DataSegment> segments;
    segments.reserve(reader.active()[i].size());
    for (const Active& active : reader.active()[i]) {
      segments.push_back(active.segment);
    }
    absl::StatusOr<ImageRef> image = ImageFromSegments(
        {.name = i == 0 ? options.name : absl::StrCat(options.name, "#", i),
         .size_bytes = memory.initial_pages * memory.page_bytes},
        segments);
    if (!image.ok()) return image.status();
    memory.image = *std::move(image);
  }
  return images;
}

}  // namespace firsttouch
