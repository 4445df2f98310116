#include "firsttouch/init/store_names.h"

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/store_directory.h"

namespace firsttouch {

std::vector<std::string> StoreNames::Of(const Digest& content) const {
  std::vector<std::string> names;
  for (const auto& [name, named] : names_) {
    if (named == content) names.push_back(name);
  }
  return names;
}

absl::StatusOr<Digest> StoreNames::Find(const std::string& name) const {
  if (!directory_.on_disk()) {
    const auto known = names_.find(name);
    if (known != names_.end()) return known->second;
  } else if (!name.empty() && name.size() <= kMaxStoreNameBytes) {
    const std::string path = directory_.NamePath(name);
    absl::StatusOr<std::string> text = directory_.ReadFile(path);
    if (text.ok()) {
      const std::optional<Digest> content = Digest::FromHex(*text);
      if (content.has_value()) return *content;
      return directory_.Damaged(path, "holds no digest");
    }
    if (!absl::IsNotFound(text.status())) return text.status();
  }
  return absl::NotFoundError(absl::StrCat(
      directory_.prefix(), "there is no image named '", name, "'"));
}

absl::Status StoreNames::Set(const std::string& name, const Digest& content) {
  if (directory_.on_disk()) {
    absl::Status status =
        directory_.WriteFile(directory_.NamePath(name), content.ToHex());
    if (!status.ok()) return status;
  }
  names_[name] = content;
  return absl::OkStatus();
}

absl::Status StoreNames::Drop(const std::string& name) {
  if (directory_.on_disk()) {
    absl::Status status = directory_.Unlink(directory_.NamePath(name));
    if (!status.ok()) return status;
  }
  names_.erase(name);
  return absl::OkStatus();
}

absl::Status StoreNames::Load(std::set<std::string>& damaged) {
  if (!directory_.on_disk()) return absl::OkStatus();
  absl::StatusOr<std::vector<std::string>> names = directory_.Names();
  if (!names.ok()) return names.status();
  names_.clear();
  for (const std::string& hex : *names) {
    const std::string name = absl::HexStringToBytes(hex);
    absl::StatusOr<Digest> content = Find(name);
    if (content.ok()) {
      names_[name] = *content;
    } else {
      damaged.insert(directory_.NamePath(name));
    }
  }
  return absl::OkStatus();
}

}  // namespace firsttouch
