#include "firsttouch/tools/firsttouchd/config.h"

#include <chrono>
#include <initializer_list>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/tools/cli/bytes.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::firsttouchd {
namespace {

// A wrong path must not fill the memory.
constexpr size_t kMostConfigBytes = size_t{1} << 20;

absl::Status OneOf(const char* field, const std::string& value,
                   std::initializer_list<const char*> choices) {
  std::string list;
  for (const char* const choice : choices) {
    if (value == choice) return absl::OkStatus();
    absl::StrAppend(&list, list.empty() ? "" : ", ", choice);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, " \"", value, "\" is none of ", list));
}

absl::Status AddPolicy(const Policy& policy, SocketPlan* plan) {
  if (policy.has_on_loss()) {
    if (absl::Status known =
            OneOf("on_loss", policy.on_loss(), {"poison", "kill"});
        !known.ok()) {
      return known;
    }
    plan->guest.on_loss =
        policy.on_loss() == "kill" ? OnLoss::kKill : OnLoss::kPoison;
  }
  if (policy.has_retry_for()) {
    absl::Duration duration;
    if (!absl::ParseDuration(policy.retry_for(), &duration) ||
        duration < absl::ZeroDuration()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "retry_for \"", policy.retry_for(), "\" is no duration, such as 5s"));
    }
    plan->guest.retry_for = absl::ToChronoMilliseconds(duration);
  }
  if (policy.has_read_ahead()) {
    absl::StatusOr<uint64_t> bytes =
        cli::ParseBytes("read_ahead", policy.read_ahead());
    if (!bytes.ok()) return bytes.status();
    if (*bytes < kPageBytes || *bytes > kHugePageBytes ||
        (*bytes & (*bytes - 1)) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "read_ahead is ", *bytes, " bytes; it must be a power of two from ",
          kPageBytes, " to ", kHugePageBytes));
    }
    plan->guest.most_read_ahead_bytes = *bytes;
  }
  if (policy.has_background()) {
    absl::StatusOr<uint64_t> bytes =
        cli::ParseBytes("background", policy.background());
    if (!bytes.ok()) return bytes.status();
    plan->guest.background_bytes_per_second = *bytes;
  }
  if (policy.has_kill_refused()) plan->kill_refused = policy.kill_refused();
  if (policy.has_refuse_forks()) {
    plan->guest.serve_forks = !policy.refuse_forks();
  }
  return absl::OkStatus();
}

absl::Status CheckImages(const std::vector<Image>& images) {
  if (images.empty()) {
    return absl::InvalidArgumentError(
        "there is no image: say either --image FILE, or --store DIRECTORY with "
        "--name NAME, or --config FILE with an image in it");
  }
  std::map<std::string, size_t> names;
  for (const Image& image : images) {
    if (image.file().empty() == image.store().empty() ||
        image.store().empty() != image.name_in_store().empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "image \"", image.name(),
          "\": say either its file, or its store and name_in_store (--image "
          "FILE, or --store DIRECTORY with --name NAME)"));
    }
    if (!names.emplace(image.name(), names.size()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("two images have the name \"", image.name(), "\""));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> Find(const std::vector<Image>& images,
                            const std::string& name, const std::string& who) {
  if (name.empty() && images.size() == 1) return 0;
  for (size_t i = 0; i < images.size(); ++i) {
    if (!name.empty() && images[i].name() == name) return i;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(who, ": image \"", name, "\" is none of the ", images.size(),
                   " images' names"));
}

}  // namespace

absl::Status ReadConfig(const std::string& path, Config* config) {
  absl::StatusOr<std::string> text = cli::ReadFile(path, kMostConfigBytes);
  if (!text.ok()) return text.status();
  return cli::ParseText(path, *text, config, /*places=*/nullptr);
}

void Overlay(const Config& over, Config* config) {
  if (over.image_size() > 0) config->clear_image();
  if (over.listen_size() > 0) config->clear_listen();
  config->MergeFrom(over);
}

absl::StatusOr<Plan> PlanOf(const Config& config) {
  Plan plan;
  plan.images.assign(config.image().begin(), config.image().end());
  if (absl::Status checked = CheckImages(plan.images); !checked.ok()) {
    return checked;
  }
  for (Image& image : plan.images) {
    if (image.touches().empty() && !image.file().empty()) {
      image.set_touches(absl::StrCat(image.file(), ".touches"));
    }
  }
  plan.state = config.state();
  plan.metrics = config.metrics();
  plan.user = config.user();
  plan.record = config.record();
  plan.keep_descriptors = config.keep_descriptors();
  if (plan.keep_descriptors && plan.state.empty()) {
    return absl::InvalidArgumentError(
        "keep_descriptors needs a state (--state): a descriptor alone does not "
        "say what belongs where");
  }
  if (absl::Status added = AddPolicy(config.policy(), &plan.others);
      !added.ok()) {
    return added;
  }
  plan.others.guest.record_touches = plan.record;
  // A child's userfaultfd dies with this process: then its missing pages would
  // read as zeroes. Where guests are to outlive it, children are refused.
  if (!plan.state.empty()) plan.others.guest.serve_forks = false;
  for (const Socket& socket : config.listen()) {
    const std::string who = absl::StrCat(
        "listen \"",
        socket.path().empty() ? socket.systemd_name() : socket.path(), "\"");
    if (socket.path().empty() == socket.systemd_name().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(who, ": say either its path or its systemd_name"));
    }
    SocketPlan one = plan.others;
    one.path = socket.path();
    one.systemd_name = socket.systemd_name();
    one.users.assign(socket.user_id().begin(), socket.user_id().end());
    if (absl::Status added = AddPolicy(socket.policy(), &one); !added.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(who, ": ", added.message()));
    }
    if (!plan.state.empty() && one.guest.serve_forks) {
      return absl::InvalidArgumentError(
          absl::StrCat(who, ": with a state, forked children are not served"));
    }
    absl::StatusOr<size_t> image = Find(plan.images, socket.image(), who);
    if (!image.ok()) return image.status();
    one.image = *image;
    plan.sockets.push_back(std::move(one));
  }
  // What is kept track of is there to be taken over.
  if (!plan.state.empty()) plan.server.at_end = ServerOptions::AtEnd::kLeave;
  if (config.has_at_end()) {
    if (absl::Status known =
            OneOf("at_end", config.at_end(), {"poison", "leave"});
        !known.ok()) {
      return known;
    }
    plan.server.at_end = config.at_end() == "leave"
                             ? ServerOptions::AtEnd::kLeave
                             : ServerOptions::AtEnd::kPoison;
  }
  if (config.has_threads()) plan.server.threads = config.threads();
  if (config.has_max_guests()) plan.server.max_guests = config.max_guests();
  for (const auto& [field, text, value] :
       {std::tuple{"max_guest_bytes", config.max_guest_bytes(),
                   &plan.server.max_guest_bytes},
        std::tuple{"max_total_bytes", config.max_total_bytes(),
                   &plan.server.max_total_bytes}}) {
    if (text.empty()) continue;
    absl::StatusOr<uint64_t> bytes = cli::ParseBytes(field, text);
    if (!bytes.ok()) return bytes.status();
    *value = *bytes;
  }
  return plan;
}

}  // namespace firsttouch::firsttouchd
